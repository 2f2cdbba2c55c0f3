"""Validates a request's head, as aiohttp's parser returns it: target, host and framing. Refuses a head that
another server could interpret differently. Pure."""

from __future__ import annotations

from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11

from proxy.errors import Code, GatewayError
from proxy.wire.http import (
    ASTERISK,
    KEPT_LENGTH,
    Malformed,
    Target,
    known_host,
    known_target,
    read_authority,
    read_host,
    read_target,
)

_VERSIONS = (HttpVersion11, HttpVersion10)


def read_head(message: RawRequestMessage) -> tuple[Target, str]:
    """The target, and the host that the request is for (empty: HTTP/1.0 without one). Raises GatewayError: the
    connection then ends, as the begin of the next request is not certain."""
    headers, raw = message.headers, message.path
    version = message.version
    if version < HttpVersion10:
        raise GatewayError(Code.INVALID_VALUE, "The request line must end with HTTP/1.1.")
    if version not in _VERSIONS:
        words = f"HTTP/{version.major}.{version.minor} is not supported: send HTTP/1.1."
        raise GatewayError(Code.HTTP_VERSION, words)
    try:
        if message.method == "CONNECT":
            target = read_authority(raw)
        else:
            target = known_target(raw) if len(raw) <= KEPT_LENGTH else read_target(raw)
            if target is ASTERISK and message.method != "OPTIONS":
                raise Malformed("The request target '*' is for OPTIONS only.")
        value = headers.get("host")
        if value is not None:
            host = known_host(value) if len(value) <= KEPT_LENGTH else read_host(value)
        elif version is HttpVersion11:
            raise Malformed("A request of HTTP/1.1 must have a Host.")
        else:
            host = ""
        if target.authority is not None:
            host = read_host(target.authority)
        if message.chunked or "transfer-encoding" in headers:
            _check_coding(message)
        length = headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdecimal()):
            raise Malformed("Content-Length must be one number.")
        if message.method == "TRACE" and (message.chunked or length not in (None, "0")):
            raise Malformed("A TRACE request must not have a body (RFC 9110 9.3.8).")
        if "expect" in headers and version is HttpVersion11 and headers["expect"].lower() != "100-continue":
            raise GatewayError(Code.EXPECTATION_FAILED, "The only supported expectation is 100-continue.")
    except Malformed as e:
        raise GatewayError(Code.INVALID_VALUE, str(e)) from None
    return target, host


def _check_coding(message: RawRequestMessage) -> None:
    """Refuse framing of a body that can be read in two ways (RFC 9112 6.1, 6.3). Raises Malformed."""
    codings = message.headers.getall("transfer-encoding", ())
    if len(codings) != 1 or codings[0].lower() != "chunked" or not message.chunked:
        raise Malformed("Transfer-Encoding must be 'chunked' and nothing else, or not there.")
    if "content-length" in message.headers:
        raise Malformed("A request has a Content-Length or a Transfer-Encoding, not both (RFC 9112 6.1).")
    if message.version is not HttpVersion11:
        raise Malformed("HTTP/1.0 has no Transfer-Encoding (RFC 9112 6.1).")
