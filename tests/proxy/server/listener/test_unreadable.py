"""What a client is told whose request cannot be read."""

from __future__ import annotations

import json

import pytest
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, LineTooLong

from proxy.errors import Code, GatewayError
from proxy.server.listener.unreadable import HeadTooLarge, error_for, final_response


@pytest.mark.parametrize(
    ("exc", "status", "words"),
    [
        (HeadTooLarge("x"), 431, "exceed 99 bytes"),
        (LineTooLong(b"x", 9), 431, "too long"),
        (BadHttpMessage("Too many headers received"), 431, "too many"),
        (BadStatusLine("Bad status line:\n  Invalid HTTP version: HTTP/1.2"), 505, "HTTP/1.1"),
        (BadHttpMessage("x"), 400, "Malformed HTTP/1.1 request"),
    ],
)
def test_each_reason_has_its_status(exc: Exception, status: int, words: str) -> None:
    error = error_for(exc, 99, proxied=False)
    assert error.status == status
    assert words in error.message


def test_a_proxy_protocol_head_from_nobody_we_trust_is_named() -> None:
    assert "trusted_proxies" in error_for(BadHttpMessage("x"), 99, proxied=True).message


def test_the_last_answer_is_whole_and_says_so() -> None:
    head, _, body = final_response(GatewayError(Code.QUEUE_FULL, "full", retry_after=3)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nconnection: close\r\n" in head
    assert b"\r\nretry-after: 3\r\n" in head
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["code"] == "queue_full"
