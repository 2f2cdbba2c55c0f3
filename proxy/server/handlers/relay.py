"""What may be passed through to an engine: which paths, and which of a client's headers. Pure functions of
texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import unquote

from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.upstream.http import HOP_BY_HOP
from proxy.wire import PASSED_PATHS
from proxy.wire.event_apis import is_responses, is_under

_PATHS: Final = frozenset(path for path in PASSED_PATHS if not path.startswith("/v1/"))
"""vLLM's inference paths outside /v1. Its administration (/metrics, /sleep, /load_lora…) is not offered."""

ACTED_ON: Final = (
    "traceparent",
    "tracestate",
    "x-data-parallel-rank",
    "x-session-id",
    "x-vllm-priority",
    "endpoint-load-metrics-format",  # its answer then has the header endpoint-load-metrics
)
"""Client headers an engine acts on; of a request that may be shared, nothing else goes up."""

STREAMS: Final = "/v1/streams"
"""Below it are streams of the gateway. Their names are for their clients alone: no spelling goes to an engine."""

_BLOCKED: Final = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9._~/@:+=,!$&'()*-]*")  # the same to every server
_CUT: Final = re.compile(r"[;?#]")
_PRINTABLE: Final = re.compile(r"[ -~]*")
_TRACE: Final = ("traceparent", "tracestate")
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE: Final = re.compile(r"[ -~]{1,512}")

_CREDENTIALS: Final = ("authorization", "x-api-key")
"""Headers with a client's key, which engines get with `forward_authorization`."""

_OF_PROXIES: Final = {  # by which a server behind would take the request for another's, or for another request
    "client-ip", "front-end-https", "proxy", "true-client-ip", "x-client-ip", "x-cluster-client-ip",
    "x-forwarded", "x-host", "x-http-host-override", "x-http-method", "x-http-method-override",
    "x-method-override", "x-original-host", "x-original-method", "x-original-uri", "x-original-url",
    "x-originating-ip", "x-remote-addr", "x-remote-ip", "x-rewrite-url",
}  # fmt: skip
_NOT_FORWARDED: Final = (
    HOP_BY_HOP
    | _OF_PROXIES
    | {
        "host",
        "content-length",  # written anew
        "expect",  # answered here
        "authorization",  # the gateway's, not the engine's
        "api-key",  # other names of the same
        "x-api-key",
        "cookie",
        "forwarded",
        "x-real-ip",  # as X-Forwarded-*: set by anyone
        "x-request-id",  # written anew
        "x-gateway-resume",
        "x-gateway-share",
    }
)


_OF_CONTENT: Final = {"content-type", "content-encoding"}
"""They say what the body is, as it was read here: no `Connection` header may name them (RFC 9110 7.6.1)."""
_DECODED: Final = 3  # times that a server behind another may decode a path


def passed_on(settings: Settings) -> tuple[str, ...]:
    """The client headers that are sent to an engine along with a request that may be shared."""
    return (*ACTED_ON, *_CREDENTIALS) if settings.forward_authorization else ACTED_ON


def is_allowed(path: str) -> bool:
    """Whether a path, in its normal form, goes to the engine. Nothing in it may be another path to a server that
    decodes it once more, or drops parameters after a semicolon."""
    if not (path.startswith("/v1/") or path in _PATHS):
        return False
    kept = is_responses(path)
    if _PLAIN_PATH.fullmatch(path) is not None:
        low = path.lower()
        return low not in _BLOCKED and not is_under(low, STREAMS) and (kept or not is_responses(low))
    for _ in range(_DECODED):
        if not _harmless(path, kept=kept):
            return False
        path = unquote(path)
    return _harmless(path, kept=kept)


def _harmless(path: str, *, kept: bool) -> bool:
    """Whether a path stays what it is where parameters, a query or spaces are cut off, and forms are folded.
    `kept`: it is of the Responses API, whose ids belong to tenants; no other spelling may lead there."""
    text = unicodedata.normalize("NFKC", path)
    segments = [_CUT.split(part, maxsplit=1)[0].strip() for part in text.split("/")]
    return not (
        "" in segments[1:-1]
        or "." in segments
        or ".." in segments
        or "\\" in text
        or any(ord(c) < 0x20 or c == "\x7f" for c in text)
        or "/".join(segments).rstrip("/").lower() in _BLOCKED
        or is_under("/".join(segments).lower(), STREAMS)
        or (not kept and is_responses("/".join(segments).lower()))
        or _CUT.split(text, maxsplit=1)[0].strip().rstrip("/").lower() in _BLOCKED
    )


def asks_for_websocket(headers: Mapping[str, str]) -> bool:
    """Whether a GET is the handshake of a websocket (RFC 6455 4.1), also where a proxy has cut `Upgrade` off."""
    return "sec-websocket-key" in headers or "websocket" in headers.get("upgrade", "").lower()


def named_by_connection(connection: str) -> frozenset[str]:
    """The headers that concern one connection only, by its `Connection` header (RFC 9110 7.6.1)."""
    return frozenset(token.strip().lower() for token in connection.split(","))


def engine_headers(headers: Mapping[str, str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Those of `names` that the client sent, and not for this connection only. A trace context goes up where it is
    well-formed: it changes no answer, so it must not draw a refusal that others would share.

    Raises GatewayError 400 where one of the others is not printable ASCII.
    """
    found = []
    for name in names:  # a comprehension is a Python call until 3.12
        if name in headers:
            found.append((name, headers[name]))
    return _fit(headers, found) if found else found


def _fit(headers: Mapping[str, str], found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    named = named_by_connection(headers["connection"]) if "connection" in headers else ()
    traced = _TRACEPARENT.fullmatch(headers.get("traceparent", "")) is not None and "traceparent" not in named
    fit = []
    for name, value in found:
        if name in named:
            continue
        if name in _TRACE:
            if traced and (name == "traceparent" or _TRACESTATE.fullmatch(value)):
                fit.append((name, value))
            continue
        if not _PRINTABLE.fullmatch(value):
            raise GatewayError(
                Code.INVALID_HEADER, f"{name} must be printable ASCII: it is sent to the engine.", param=name
            )
        fit.append((name, value))
    return fit


def end_to_end_headers(
    headers: Iterable[tuple[bytes, bytes]], *, authorization: bool = False, encoded: bool = True
) -> list[tuple[str, str]]:
    """A client's end-to-end headers, as they came, but for those that end here. `authorization`: with its key.
    `encoded`: the answer may be compressed, as it is not read here."""
    items = [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in headers]
    named = {
        token.strip().lower()
        for name, value in items
        if name.lower() == "connection"
        for token in value.split(",")
    } - _OF_CONTENT
    return [
        (name, value)
        for name, value in items
        if ((low := name.lower()) not in _NOT_FORWARDED or (authorization and low in _CREDENTIALS))
        and low not in named
        and "_" not in low  # some servers read `content_length` as Content-Length
        and not low.startswith(("x-forwarded-", "sec-websocket-", "x-envoy-"))
        and (encoded or low != "accept-encoding")
    ] + ([] if encoded else [("accept-encoding", "identity")])
