"""Owns the targets of clients' bodies: what is read of a request, and of one that passes through.
Must not know HTTP. The second reader is json.loads.
Called by the tests and by the driver."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
from pydantic import TypeAdapter

from proxy.access.intake import ApiRequestJob, RawJob, Terms, read_api_request, read_raw, work
from proxy.access.request_limits import RequestLimits
from proxy.errors import Code, GatewayError
from proxy.flights.cost import estimate_raw
from proxy.flights.key import Keyer
from proxy.wire.document import DEEPEST
from proxy.wire.http.media_type import JSON
from proxy.wire.openai import PROMPT_FIELD, ApiRequest, Endpoint, decode, stream_extras, with_fields, with_usage
from proxy.wire.prompt import everything, prompt_of
from proxy.wire.raw_body import read_passed
from proxy.wire.whole import asked_of
from tests.fuzz.kit import Target, flagged, levels, strict_json

ENDPOINTS: Final[tuple[Endpoint, ...]] = ("chat", "completions", "embeddings")
CAP: Final = 7
SIZES: Final = RequestLimits(max_tokens=CAP, messages=20, prompt_chars=2000, n=4, best_of=4)
TERMS: Final = Terms(share="all", routing="hash", assumed=100, sizes=SIZES)
KEYER: Final = Keyer()
_HALF: Final = re.compile("[\ud800-\udfff]")
_LAX: Final = TypeAdapter(bool | None)  # as vLLM reads a flag
_TOKENS: Final = ("max_tokens", "max_completion_tokens", "n_predict", "max_output_tokens")


def request(data: bytes) -> None:
    """A body is refused with a reason, or is what json.loads finds; what goes up says the same."""
    kind, body = flagged(data)
    endpoint = ENDPOINTS[kind % 3]
    try:
        api_request = decode(endpoint, body)
    except GatewayError as e:
        assert e.status in (400, 413)
        assert e.message
        if e.code is Code.INVALID_JSON:
            _is_no_json(body)
        return
    given = strict_json(body, once=False)
    assert isinstance(given, dict)
    pairs = json.loads(body, object_pairs_hook=list)
    assert len(pairs) == len(given), "a member twice"
    assert list(api_request.fields) == list(given)
    assert {name: strict_json(bytes(raw), once=False) for name, raw in api_request.fields.items()} == given
    assert api_request.model == given.get("model")
    assert api_request.stream == (_LAX.validate_python(given.get("stream")) is True)
    assert PROMPT_FIELD[endpoint] in given or "prompt_embeds" in given
    options = given.get("stream_options") or {}
    assert api_request.include_usage == (_LAX.validate_python(options.get("include_usage")) is True)
    sent = strict_json(with_usage(api_request), once=False)
    wanted = {**options, "include_usage": options.get("include_usage") if api_request.include_usage else True}
    if not api_request.include_usage:
        wanted.pop("continuous_usage_stats", None)
    assert sent == {**given, "stream_options": wanted}
    stream_extras(api_request)
    _on(api_request, given)


def _on(api_request: ApiRequest, given: dict[str, Any]) -> None:
    """What the gateway goes on to do with it raises nothing but a refusal, and its caps hold."""
    changed = with_fields(api_request, {"user": api_request.fields.get("model", KNOWN["user"])})
    assert strict_json(changed.body, once=False) == {**given, "user": given.get("model", "u")}
    asked_of(api_request)
    try:
        prompt = prompt_of(api_request)
        capped = SIZES.check(api_request)
    except GatewayError as e:
        assert e.status in (400, 413)
        return
    assert prompt.chars <= 2000
    if api_request.endpoint != "embeddings":
        told = strict_json(capped.body, once=False)
        named = [told[name] for name in _TOKENS[:3] if told.get(name) is not None]
        assert named
        assert all(type(value) is int and 0 <= value <= CAP for value in named)


def _is_no_json(body: bytes) -> None:
    try:
        value = strict_json(body)
    except (ValueError, RecursionError):
        return
    if levels(value) > DEEPEST:
        return
    text = body.decode()
    assert "\\u" in text
    assert _HALF.search(json.dumps(value, ensure_ascii=False)), "valid JSON is refused as none"


def intake(data: bytes) -> None:
    """The reading of large requests finds what the reading of small ones does, and raises nothing at all. White
    space between members changes no key."""
    kind, body = flagged(data)
    endpoint = ENDPOINTS[kind % 3]
    found, sent = read_api_request(ApiRequestJob(endpoint), body, TERMS, None, KEYER)
    assert work(body, 10.0) >= work(body, None) >= 0
    if found.refusal is not None:
        assert found.refusal.error().status in (400, 413)
        assert not sent
        return
    api_request = SIZES.check(decode(endpoint, body))
    assert (found.model, found.stream) == (api_request.model, api_request.stream)
    if sent:
        right = with_usage(api_request) if endpoint != "embeddings" and api_request.stream else api_request.body
        assert strict_json(sent, once=False) == strict_json(right, once=False)
    spaced, _ = read_api_request(ApiRequestJob(endpoint), msgspec.json.format(body, indent=3), TERMS, None, KEYER)
    assert (spaced.key, spaced.model, spaced.stream) == (found.key, found.model, found.stream)


PATHS: Final = ("/v1/responses", "/v1/messages", "/v1/chat/completions/batch", "/tokenize", "/rerank")


def passed(data: bytes) -> None:
    """A body that passes through: its caps hold as json.loads reads it, and its model is the one that is there."""
    kind, body = flagged(data)
    path = PATHS[kind % len(PATHS)]
    found, sent = read_raw(RawJob(path), body, TERMS, None)
    if found.refusal is not None:
        assert found.refusal.error().status in (400, 413)
        return
    given: Any = strict_json(body) if body else None  # what json.loads does not read was refused
    read = read_passed(JSON, body)
    assert estimate_raw(path, read, 100) == found.cost
    everything(read.value)
    model = given.get("model") if isinstance(given, dict) else None
    assert found.model == (model if isinstance(model, str) else None) or _odd(body)
    if isinstance(given, dict) and kind % len(PATHS) < 3 and not _odd(body):
        told = strict_json(sent or body)
        names = {0: ("max_output_tokens",), 1: ("max_tokens",)}.get(kind % len(PATHS), _TOKENS[:2])
        named = [told[name] for name in names if told.get(name) is not None]
        assert named
        assert all(type(value) is int and 0 <= value <= CAP for value in named)
        assert {k: v for k, v in told.items() if k not in _TOKENS} == {
            k: v for k, v in given.items() if k not in _TOKENS
        }


def _odd(body: bytes) -> bool:
    """Half an emoji, which json.loads takes and a strict reader does not."""
    return b"\\u" in body


KNOWN: Final = decode("chat", b'{"messages":[],"user":"u"}').fields
WORDS: Final = tuple(
    rb"""{"model":"m","messages":[{"role":"user","content":"hi"}]}|"messages":[|"prompt":"|"input":[|"model":
"stream":|true|false|null|"stream_options":{"include_usage":|"temperature":|"seed":|"n":|"max_tokens":|"max_completion_tokens":
"n_predict":|"max_output_tokens":|"best_of":|"prompt_embeds":"|NaN|Infinity|1e400|-0|1.0|\u0061|99999999999999999999
\ud800|\"|\\|{|}|[|]|,|:|"|\u006dodel|"user":|"tools":[|"metadata":{|"logit_bias":{|"content":[{"type":"text","text":"
""".strip().replace(b"\n", b"|").split(b"|")
)  # fmt: skip
TARGETS: Final = {
    "request": Target(request, "refused with a reason, or what json.loads finds, and so is what goes up", WORDS),
    "intake": Target(intake, "raises nothing; a large request is read as a small one", WORDS),
    "passed": Target(passed, "caps hold and the model is found, as json.loads reads what is sent", WORDS),
}
