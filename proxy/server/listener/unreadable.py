"""The error for a request that cannot be parsed, and the final response of its connection. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

import msgspec
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from proxy.errors import Code, GatewayError
from proxy.wire.http import SECURITY_LINES


class HeadTooLarge(BadHttpMessage):
    """A request's line and header fields are larger together than is allowed."""


class OtherProtocol(BadHttpMessage):
    """The request line ends with the version of another protocol than HTTP."""


def error_for(exc: BaseException, most: int, *, proxied: bool) -> GatewayError:
    """The error for a request that aiohttp's parser refused. `proxied`: it began like a PROXY protocol header."""
    if isinstance(exc, HeadTooLarge):
        return GatewayError(Code.HEADERS_TOO_LARGE, f"The request line and headers exceed {most} bytes.")
    if isinstance(exc, LineTooLong):
        return GatewayError(Code.HEADERS_TOO_LARGE, "The request line or a header is too long.")
    if "Too many headers" in str(exc):
        return GatewayError(Code.HEADERS_TOO_LARGE, "The request has too many header fields.")
    if isinstance(exc, OtherProtocol):
        return GatewayError(Code.INVALID_VALUE, "The request line must end with HTTP/1.1.")
    if "Invalid HTTP version" in str(exc) and "HTTP/1." in str(exc):
        return GatewayError(Code.HTTP_VERSION, "Only HTTP/1.1 and HTTP/1.0 are supported: send HTTP/1.1.")
    why = "Malformed HTTP/1.1 request."
    if proxied:
        why = "PROXY protocol header from a peer that is not in trusted_proxies, or proxy_protocol is off."
    return GatewayError(Code.INVALID_VALUE, why)


def final_response(error: GatewayError, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A whole response that ends its connection."""
    body = msgspec.json.encode(error.body())
    more = "".join(f"{name}: {value}\r\n" for name, value in headers)
    if error.retry_after is not None:
        more += f"retry-after: {error.retry_after}\r\n"
    return (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n{more}"
        f"{SECURITY_LINES}connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
