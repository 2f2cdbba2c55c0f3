"""OpenAI's requests: a body into an `ApiRequest`, and an `ApiRequest` into the body that goes to the engine.
Only the fields that the gateway acts on are read."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from proxy.errors import Code, GatewayError
from proxy.wire import loose
from proxy.wire.document import COUNTED, TOO_DEEP, long_number, read, too_deep, too_long, utf8

Endpoint = Literal["chat", "completions", "embeddings"]

PATHS: Final[dict[Endpoint, str]] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
"""The path of each endpoint, at the engine and at the gateway."""

PROMPT_FIELD: Final[dict[Endpoint, str]] = {
    "chat": "messages",
    "completions": "prompt",
    "embeddings": "input",
}


MAX_MEMBERS: Final = 1024
"""Top-level members of a request: the API has some forty, engines add as many."""
MAX_MESSAGES: Final = 65_536
"""Messages of a chat: with four tokens around each, they alone fill a context of 262,144 tokens."""
MAX_SALT: Final = 512
"""Characters of a client's `cache_salt`."""
MAX_STREAM_OPTIONS: Final = 4096
"""Bytes of `stream_options`, which has two known members."""
_NAMED: Final = 100_000  # commas in a body up to which a duplicate member is searched for


class _Key(str):
    """A JSON object key that equals only itself, so that a dict keeps duplicates."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class RequestHead(msgspec.Struct, gc=False):
    """The fields that the gateway reads. All others are for the engine to check."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    seed: int | None = None


class ChatRequest(RequestHead, gc=False):
    messages: list[msgspec.Raw] | None = None


class CompletionRequest(RequestHead, gc=False):
    prompt: str | list[msgspec.Raw] | None = None


class EmbeddingRequest(RequestHead, gc=False):
    input: str | list[msgspec.Raw] | None = None


# The prompt may be any array (strings, token ids, messages): only that it is an array is checked here.
REQUESTS: Final[dict[Endpoint, type[RequestHead]]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingRequest,
}
_HEADS: Final[dict[Endpoint, msgspec.json.Decoder[Any]]] = {
    endpoint: msgspec.json.Decoder(kind) for endpoint, kind in REQUESTS.items()
}
_LOOSE: Final = {"stream": loose.boolean, "temperature": loose.number, "seed": loose.integer}
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PAIRS: Final = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=lambda kind, value: kind(value))
_ENCODE: Final = msgspec.json.Encoder().encode
_COMPACT: Final = -1  # of `msgspec.json.format`: without white space
_NULL: Final = msgspec.Raw(b"null")
_USAGE: Final = b',"stream_options":{"include_usage":true}}'
_WHERE: Final = re.compile(r" - at `\$\.?([^`]*)`$")


class Large(msgspec.Struct, gc=False):
    """Facts of a large request, found while it was decoded in another process, so that it is not read again."""

    cost: tuple[int, int]  # tokens of the prompt and of the completion
    key: bytes | None  # None: its answer is not shared
    affinity: int
    refers: bool  # refers to media by URL, see `wire/media.py`
    salt: str | None = None  # the client's `cache_salt`, which `body` has no more


class ApiRequest(msgspec.Struct, gc=False):  # created in 0.1 µs, a dataclass in 0.7; it is in no reference cycle
    """One decoded request. `fields`: its top-level JSON members, undecoded; `body`: its exact bytes."""

    endpoint: Endpoint
    model: str | None
    stream: bool
    include_usage: bool
    temperature: float | None
    seed: int | None
    fields: dict[str, msgspec.Raw]
    body: bytes
    large: Large | None = None
    """Not None: `fields` hold only the beginning of each long member, and `body` requests usage already. Such a
    request goes to the engine as it is; no body may be built from its fields."""

    @property
    def prompt(self) -> bytes:
        """The prompt as JSON bytes."""
        return bytes(self.fields.get(PROMPT_FIELD[self.endpoint], b"null"))


def decode(endpoint: Endpoint, body: bytes) -> ApiRequest:
    """Read a request body. Raises GatewayError 400 that says what is wrong, where, and what is valid.

    Types are checked for the fields that the gateway acts on; the others go to the engine unchanged. A duplicate
    member is refused: two readers of one body must not see two different requests; so is a number of more digits
    than a double has. The time is linear in the bytes, whatever they are.
    """
    if not body:
        raise GatewayError(Code.INVALID_JSON, "The request body is empty; send a JSON object.")
    if not body.isascii():
        utf8(body)
    try:
        fields = _FIELDS.decode(body)
        if number := long_number(body):
            raise GatewayError(Code.INVALID_JSON, f"The request body is not valid JSON: {too_long(number)}.")
        if len(fields) > MAX_MEMBERS:
            raise GatewayError(
                Code.INVALID_VALUE, f"The request has {len(fields)} members; it may have {MAX_MEMBERS} at most."
            )
        try:
            head = _HEADS[endpoint].decode(body)
        except msgspec.ValidationError:
            head = _HEADS[endpoint].decode(_ENCODE(_typed(fields)))
        if COUNTED and too_deep(body):
            raise GatewayError(Code.INVALID_JSON, f"The request body is not valid JSON: {TOO_DEEP}.")
        # No encoding is shorter than msgspec's, and a duplicate member takes at least five bytes: `"":0,`.
        least = _ENCODE(fields)
        if len(body) - len(least) >= 5 and not _all_once(fields, least, body):
            _refuse_twice(body)
    except msgspec.ValidationError as e:
        raise _wrong_type(str(e)) from None
    except (msgspec.DecodeError, RecursionError) as e:
        if b"\\u" in body:
            read(body)  # its error for a lone surrogate is clearer
        raise GatewayError(Code.INVALID_JSON, f"The request body is not valid JSON: {e}.") from None
    prompt_field = PROMPT_FIELD[endpoint]
    if getattr(head, prompt_field) is None and not (endpoint == "completions" and "prompt_embeds" in fields):
        raise GatewayError(
            Code.MISSING_FIELD, f"The field {prompt_field!r} is missing; it is required.", param=prompt_field
        )
    if endpoint == "chat" and len(head.messages) > MAX_MESSAGES:
        raise GatewayError(
            Code.INVALID_VALUE,
            f"There are {len(head.messages)} messages; at most {MAX_MESSAGES} are allowed.",
            param="messages",
        )
    options = head.stream_options
    if (
        options is not None
        and head.stream is not True
        and endpoint != "embeddings"
        and _OBJECT.decode(fields["stream_options"])
    ):
        raise GatewayError(
            Code.INVALID_VALUE, "stream_options is only taken with stream: true.", param="stream_options"
        )
    if options is not None and len(bytes(fields["stream_options"])) > MAX_STREAM_OPTIONS:
        raise GatewayError(
            Code.INVALID_VALUE,
            f"The field 'stream_options' is over {MAX_STREAM_OPTIONS} bytes; it has two members.",
            param="stream_options",
        )
    return ApiRequest(
        endpoint,
        head.model,
        head.stream is True,
        options is not None and options.include_usage is True,
        head.temperature,
        head.seed,
        fields,
        body,
    )


def _typed(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """The members, with loose types that vLLM accepts converted to the types of the API."""
    typed: dict[str, Any] = dict(fields)
    for name, typed_as in _LOOSE.items():
        if name in fields and (value := typed_as(msgspec.json.decode(fields[name]))) is not None:
            typed[name] = value
    if "stream_options" in fields:
        options = msgspec.json.decode(fields["stream_options"])
        if isinstance(options, dict):
            readable = {name: loose.boolean(options.get(name)) for name in StreamOptions.__struct_fields__}
            typed["stream_options"] = options | {name: on for name, on in readable.items() if on is not None}
    return typed


def _all_once(fields: dict[str, msgspec.Raw], least: bytes, body: bytes) -> bool:
    """Whether it is certain that a body that is not compact has no duplicate member. `least`: its members as
    msgspec writes them.

    Whatever the whitespace, a duplicate adds at least two quotes to those of the members; a name that contains a
    quote can be spelled without one, and proves nothing.
    """
    if body.count(b'"') == least.count(b'"') and '"' not in "".join(fields):
        return True
    return len(_compact(body)) - len(_compact(least)) < 5


def _compact(data: bytes) -> bytes:
    return msgspec.json.format(data, indent=_COMPACT)


def _refuse_twice(body: bytes) -> None:
    """Raises GatewayError 400 for a duplicate member. Slow: a Python call per member."""
    if b"\\" not in body and body.count(b",") > _NAMED:
        # No name is spelled with an escape, so the size alone proves it.
        raise GatewayError(Code.INVALID_JSON, "A field is given twice; give each once.")
    seen: set[str] = set()
    for key in _PAIRS.decode(body):
        name = str(key)
        if name in seen:
            raise GatewayError(
                Code.INVALID_JSON, f"The field {name[:64]!r} is given twice; give it once.", param=name[:64]
            )
        seen.add(name)


def with_usage(api_request: ApiRequest) -> bytes:
    """The body that requests usage in a stream. All other members stay as the client wrote them, except for
    `continuous_usage_stats`, which has no meaning where the client did not request usage."""
    if api_request.include_usage or api_request.large is not None:
        return api_request.body
    options = api_request.fields.get("stream_options")
    if options is None and api_request.fields:
        return api_request.body.rstrip()[:-1] + _USAGE
    members: dict[str, Any] = (
        msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None) or {} if options else {}
    )
    members.pop("continuous_usage_stats", None)
    members["include_usage"] = True
    return msgspec.json.encode({**api_request.fields, "stream_options": members})


def with_fields(api_request: ApiRequest, changed: dict[str, msgspec.Raw]) -> ApiRequest:
    """The request with these fields changed; all other members stay as the client wrote them. Where all are new
    they are appended to the body."""
    fields = {**api_request.fields, **changed}
    if api_request.fields and not any(name in api_request.fields for name in changed):
        body = (
            api_request.body.rstrip()[:-1]
            + b"".join(b",%b:%b" % (_ENCODE(name), bytes(raw)) for name, raw in changed.items())
            + b"}"
        )
    else:
        body = _ENCODE(fields)
    return msgspec.structs.replace(api_request, fields=fields, body=body)


def renamed(api_request: ApiRequest, model: str) -> ApiRequest:
    """The request for another model."""
    changed = with_fields(api_request, {"model": msgspec.Raw(_ENCODE(model))})
    return msgspec.structs.replace(changed, model=model)


def without_salt(api_request: ApiRequest) -> tuple[ApiRequest, str | None]:
    """The request without `cache_salt`, and that; None: it has none. Raises GatewayError 400 for one that no
    engine takes."""
    raw = api_request.fields.get("cache_salt")
    if raw is None:
        return api_request, None
    salt = salt_of(msgspec.json.decode(raw))
    fields = {name: value for name, value in api_request.fields.items() if name != "cache_salt"}
    return msgspec.structs.replace(api_request, fields=fields, body=_ENCODE(fields)), salt


def salt_of(value: object) -> str | None:
    """A request's `cache_salt`. Raises GatewayError 400 for one that no engine takes."""
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_SALT):
        raise GatewayError(
            Code.INVALID_VALUE,
            f"cache_salt must be a string of 1 to {MAX_SALT} characters.",
            param="cache_salt",
        )
    return value


def salted(body: bytes, salt: str) -> bytes:
    """A JSON object, which has no `cache_salt`, with this one. Nothing of it is read again."""
    begin = body.rstrip()[:-1].rstrip()
    return b'%b%b"cache_salt":"%b"}' % (begin, b"" if begin.endswith(b"{") else b",", salt.encode())


def stream_extras(api_request: ApiRequest) -> dict[str, msgspec.Raw]:
    """Members of `stream_options` that may change the frames: all but `include_usage`, and
    `continuous_usage_stats` where it is false. An unknown member counts whatever its value. Usage in every frame
    that is requested without `include_usage`, and so not sent, is null here: such a stream has other frames."""
    options = api_request.fields.get("stream_options")
    if options is None:
        return {}
    members = msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None) or {}
    return {
        name: _NULL if name == "continuous_usage_stats" and not api_request.include_usage else raw
        for name, raw in members.items()
        if name != "include_usage" and not (name == "continuous_usage_stats" and bytes(raw) in (b"null", b"false"))
    }


def _wrong_type(message: str) -> GatewayError:
    where = _WHERE.search(message)
    path = where.group(1) if where else ""
    what = message[: where.start()] if where else message
    if not path:
        return GatewayError(Code.INVALID_VALUE, f"The request body must be a JSON object: {what}.")
    return GatewayError(Code.INVALID_VALUE, f"Wrong type at {path!r}: {what}.", param=path)
