"""All checks of one request as pure functions of bytes and terms: decode, size limits, deny list, cost, key. A
child process runs them for large requests; results are data."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from proxy.access.denylist.rules import DenyList
from proxy.access.request_limits import RequestLimits
from proxy.config import ModelNames
from proxy.errors import Code, GatewayError
from proxy.flights import Keyer, Share, estimate, estimate_raw, sharing_of
from proxy.upstream import affinity, by_raw_session, by_session, key_of, mixed, raw_affinity
from proxy.wire import (
    NO_FACTS,
    NO_TEXT_FIELDS,
    PROMPT_FIELD,
    ApiRequest,
    Endpoint,
    Large,
    RawBody,
    RawFacts,
    decode,
    everything,
    joined,
    prompt_in,
    read,
    read_passed,
    refers,
    refuse_ids,
    refuse_template,
    renamed,
    with_usage,
    without_salt,
)
from proxy.wire.event_apis import EVENT_APIS
from proxy.wire.fold import Folded, Shape, foldable
from proxy.wire.http import Media

BUDGET: Final = 20e6
"""Nanoseconds that a request may take to parse on the event loop, by the estimate below."""
_SIMPLE: Final = 2 * 1024 * 1024
"""Bytes over which a body's work is not estimated: the estimate itself would take long."""
_TEXT: Final = 12.0  # nanoseconds a byte, at most, of a text with escapes; 4 without
_PART: Final = 900.0  # nanoseconds a value, at most; values are counted by `,`, `[` and `{`
_ODD: Final = 400.0  # nanoseconds a byte to normalise a text that is not ASCII
_DIGIT: Final = 20.0  # nanoseconds a digit, at most: long integers are read and printed, which is quadratic
_SAMPLE: Final = 31  # bytes; one of so many is looked at for digits
_NO_DIGITS: Final = bytes(set(range(256)) - set(b"0123456789"))
_GROWS: Final = 6  # characters a byte after normalisation: U+FDFA has three bytes and becomes eighteen characters

PROMPT_BYTES: Final = 65_536
"""Bytes kept of a large prompt, from its beginning: for the log, and for routing and queueing by prefix."""
MEMBER_BYTES: Final = 1024  # bytes kept of each other member
MODEL_CHARS: Final = 65_536  # characters kept of a model's name: no engine serves a longer one


class Terms(msgspec.Struct, frozen=True, tag="terms"):
    """The settings that all requests are read by."""

    share: Share
    routing: str
    assumed: int  # tokens charged for an answer without a limit of its length
    sizes: RequestLimits
    deny: str | None = None  # the deny list's text
    names: ModelNames = ModelNames()
    salted: bool = False  # requests go up with a `cache_salt`


class ApiRequestJob(msgspec.Struct, frozen=True, tag="ask"):
    """A request to one of the generating endpoints; its body comes beside it."""

    endpoint: Endpoint
    cache_control: str = ""
    override: str = ""
    tenant: bytes = b""
    session: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # that an engine acts on
    model: str = ""  # the model that answers, whatever the body names; empty: the body's


class RawJob(msgspec.Struct, frozen=True, tag="raw"):
    """A request that passes through; `kind` and `boundary` are its media type."""

    path: str
    kind: Literal["json", "form", "other"] = "json"
    boundary: bytes = b""
    session: str = ""
    model: str = ""  # as for an ApiRequestJob


class PageJob(msgspec.Struct, frozen=True, tag="page"):
    """A request for many readers; the one that each of them makes is inside."""

    api_request: ApiRequestJob


class TextsJob(msgspec.Struct, frozen=True, tag="texts"):
    """An answer in one body, whose texts are looked at."""


class EmbedsChatJob(msgspec.Struct, frozen=True, tag="embeds"):
    """A request for an embedding, which may have messages in place of an input."""


class FoldJob(msgspec.Struct, frozen=True, tag="fold"):
    """A finished stream, in its HTTP chunks, that is wanted as one body."""

    endpoint: Folded
    forced_tool: bool
    shape: Shape | None = None


Job = ApiRequestJob | RawJob | PageJob | TextsJob | EmbedsChatJob | FoldJob


class Refusal(msgspec.Struct, frozen=True):
    """A GatewayError as data."""

    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None

    def error(self) -> GatewayError:
        return GatewayError(Code[self.code], self.message, param=self.param, retry_after=self.retry_after)


def refusal(error: GatewayError) -> Refusal:
    return Refusal(error.code.name, error.message, error.param, error.retry_after)


class Found(msgspec.Struct):
    """What a reading came to. Up to where it was refused; `denied` is the line of a rule that it breaks."""

    model: str | None = None  # as the client names it
    target: str = ""  # the model that is sent, where that is another one
    stream: bool = False
    include_usage: bool = False
    temperature: float | None = None
    seed: int | None = None
    fields: dict[str, bytes] = {}
    cost: tuple[int, int] = (0, 0)
    key: bytes | None = None
    affinity: int = 0
    refers: bool = False  # to media elsewhere
    raw: RawFacts = NO_FACTS
    takes_salt: bool = False  # of a body that is passed through
    salt: str | None = None  # the client's `cache_salt`, taken out of the body
    denied: int = 0
    refusal: Refusal | None = None
    embeds_chat: bool = False  # answers an EmbedsChatJob
    delays: list[float] = []  # of many readers
    fault: str = ""  # of ours, for the log

    def api_request(self, endpoint: Endpoint, body: bytes) -> ApiRequest:
        """The request as it goes on."""
        return ApiRequest(
            endpoint,
            self.target or self.model,
            self.stream,
            self.include_usage,
            self.temperature,
            self.seed,
            {name: msgspec.Raw(raw) for name, raw in self.fields.items()},
            body,
            Large(self.cost, self.key, self.affinity, self.refers, self.salt),
        )


def place_of(name: str, number: int) -> float:
    """Where in 0 to 1 a request is for a name that several models share, by a number that its session has."""
    return mixed(number ^ key_of(name.encode())) / 2**64


def resolve(names: ModelNames, api_request: ApiRequest, session: str) -> ApiRequest:
    """The request for the engines' model, where it names an alias. Of a name that several models share, a session
    (`x-session-id`, else `user`, else the prompt) always gets the same one."""
    name = api_request.model
    if name is None or name not in names.aliases:
        return api_request
    number = by_session(api_request, {"x-session-id": session} if session else {})
    return renamed(api_request, names.model_of(name, place_of(name, number)))


def resolve_raw(names: ModelNames, passed: RawBody, session: str) -> RawBody:
    """The same for a body that is passed through; in place of the prompt its beginning decides."""
    name = passed.model
    if name is None or name not in names.aliases:
        return passed
    number = by_raw_session(passed, session, passed.body[:PROMPT_BYTES])
    return passed.with_model(names.model_of(name, place_of(name, number)))


def work(body: bytes, weight: float | None) -> float:
    """An estimate of the nanoseconds that a body takes to read, at most. `weight`: nanoseconds a character in the
    search for denied texts; None: there is no deny list."""
    size = len(body)
    if size > _SIMPLE:
        return 2 * BUDGET
    escapes = b"\\" in body
    nanoseconds = size * (_TEXT if escapes else _TEXT / 3)
    nanoseconds += len(body[::_SAMPLE].translate(None, _NO_DIGITS)) * _SAMPLE * _DIGIT
    odd = not body.isascii()
    if odd:
        nanoseconds += size * _TEXT
    if weight is not None:
        nanoseconds += (
            size * (_ODD + _GROWS * weight) if odd or (escapes and b"\\u" in body) else size * 2 * weight
        )
    for mark in b",", b"[", b"{":
        if nanoseconds > BUDGET:
            break
        nanoseconds += body.count(mark) * (_PART if weight is None else 3 * _PART)
    return nanoseconds


def denied_in(deny: DenyList, api_request: ApiRequest) -> int | None:
    """The line of the rule that a request breaks. Raises GatewayError 400 where the request cannot be searched."""
    members = read(api_request.body)
    refuse_template(members)
    refuse_ids(members)
    value = members.get(PROMPT_FIELD[api_request.endpoint])
    prompt = prompt_in(api_request.endpoint, value).parts
    return _find(deny, prompt, everything(members, but=NO_TEXT_FIELDS), joined(value))


def denied_in_passed(deny: DenyList, path: str, passed: RawBody) -> int | None:
    """`denied_in` for a body that is passed through."""
    return _find(deny, [passed.prompt()], passed.texts(path), joined(passed.value))


def _find(deny: DenyList, prompt: list[list[str]], texts: list[str], joins: list[list[str]]) -> int | None:
    """Search the prompt across its parts, then every other text and name once. `joins`: lists of parts that an
    engine joins, though other members lie between them."""
    line = deny.find_in_prompt(prompt)
    if line is not None:
        return line
    others = [parts for parts in joins if parts not in prompt]
    if others and (line := deny.find_in_prompt(others)) is not None:
        return line
    seen = {text for part in prompt for text in part}
    return deny.find("\n".join(text for text in dict.fromkeys(texts) if text not in seen))


def read_api_request(
    job: ApiRequestJob, body: bytes, terms: Terms, deny: DenyList | None, keyer: Keyer
) -> tuple[Found, bytes]:
    """Read a large request, by the same steps as a small one. Returns also the body to send to the engine; empty:
    the client's own."""
    result = Found()
    try:
        api_request = decode(job.endpoint, body)
        result.model, result.stream = api_request.model and api_request.model[:MODEL_CHARS], api_request.stream
        if terms.sizes:
            api_request = terms.sizes.check(api_request)
        if deny is not None and (line := denied_in(deny, api_request)) is not None:
            result.denied = line
            return result, b""
        named = api_request
        if job.model:
            api_request = renamed(api_request, job.model)
        else:
            api_request = resolve(terms.names, api_request, job.session)
        if api_request is not named:
            result.target = api_request.model or ""
        share = sharing_of(api_request, terms.share, cache_control=job.cache_control, override=job.override)
        result.cost = estimate(api_request, terms.assumed)
        keep_by = affinity(terms.routing)
        if keep_by is not None:
            result.affinity = keep_by(api_request, {"x-session-id": job.session} if job.session else {})
        if share.shared:
            result.refers = refers(api_request)
            fold = api_request.endpoint == "embeddings" or foldable(api_request.endpoint, api_request.fields)
            result.key = keyer.key(api_request, tenant=job.tenant, fold=fold, headers=job.headers)
        if terms.salted:
            api_request, result.salt = without_salt(api_request)
    except GatewayError as e:
        result.refusal = refusal(e)
        return result, b""
    result.include_usage, result.temperature = api_request.include_usage, api_request.temperature
    if api_request.seed is not None:
        result.seed = max(-(2**63), min(api_request.seed, 2**63 - 1))  # as far as it fits
    prompt = PROMPT_FIELD[job.endpoint]
    result.fields = {
        name: bytes(memoryview(raw)[: PROMPT_BYTES if name == prompt else MEMBER_BYTES])
        for name, raw in api_request.fields.items()
        if len(name) <= MEMBER_BYTES
    }
    sent = (
        with_usage(api_request)
        if result.key is not None and api_request.stream and job.endpoint != "embeddings"
        else api_request.body
    )
    return result, b"" if sent is body else sent


def read_raw(job: RawJob, body: bytes, terms: Terms, deny: DenyList | None) -> tuple[Found, bytes]:
    """`read_api_request` for a request that is passed through."""
    result = Found()
    try:
        passed = read_passed(Media(job.kind, job.boundary), body)
        result.model = passed.model and passed.model[:MODEL_CHARS]
        result.cost = estimate_raw(job.path, passed, terms.assumed)
        kept = job.path in EVENT_APIS
        result.raw = passed.facts(raw_affinity(terms.routing, passed, job.session) if kept else 0)
        if terms.sizes:
            passed = terms.sizes.check_raw(job.path, passed)
        if deny is not None:
            result.denied = denied_in_passed(deny, job.path, passed) or 0
        named = passed
        passed = passed.with_model(job.model) if job.model else resolve_raw(terms.names, passed, job.session)
        if passed is not named:
            result.target = passed.model or ""
        if terms.salted and passed.takes_salt(job.path):
            result.takes_salt = True
            passed, result.salt = passed.without_salt()
    except GatewayError as e:
        result.refusal = refusal(e)
        return result, b""
    return result, b"" if passed.body is body else passed.body
