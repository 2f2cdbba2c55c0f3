"""Heads that clients repeat: nearly every client sends the same one with each request, but for its Content-Length.
What aiohttp's parser and `read_head` have read of one is kept, and neither reads it again (decision 169)."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from multidict import CIMultiDictProxy

from proxy.server.listener.request import KnownHead, Request
from proxy.wire.http import Target

MAX_KNOWN: Final = 512  # heads; the oldest is forgotten for a new one
KNOWN_BYTES: Final = 2048  # of a head that is kept

_BLANK: Final = b"\r\n\r\n"
_SPARE: Final = 32  # bytes by which a head may be longer than the one that the parser has read: digits
_NAMED: Final = len(b"\r\nContent-Length: ")

PLAIN: Final = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "api-key", "authorization", "connection", "content-length",
        "content-type", "host", "openai-organization", "openai-project", "user-agent", "via", "x-api-key",
        "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip",
        "x-stainless-arch", "x-stainless-async", "x-stainless-lang", "x-stainless-os",
        "x-stainless-package-version", "x-stainless-read-timeout", "x-stainless-retry-count",
        "x-stainless-runtime", "x-stainless-runtime-version",
    }
)  # fmt: skip
"""Headers that say who the client is or how it is reached. A request with these alone asks the gateway for nothing
by its head, and an engine gets none of them with a request that may be shared."""


class KnownHeads:
    """The heads of all connections of a listener, by their bytes without the digits of Content-Length."""

    def __init__(self, max_head: int) -> None:
        """`max_head`: bytes of a head that the listener takes."""
        self._longest = min(KNOWN_BYTES, max_head - _SPARE)
        self._heads: dict[bytes, KnownHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def read(self, data: bytes, protocol: Any, task: asyncio.Task[None] | None) -> Request | bytes:
        """The request in `data`, where that is one with a known head and its complete body; else what `keep` takes
        for its head, which is nothing for one that is never kept."""
        end = data.find(_BLANK)
        if not 0 < end <= self._longest:
            return b""
        at = data.find(b"\r\nContent-Length: ", 0, end)
        if at < 0:
            at = data.find(b"\r\ncontent-length: ", 0, end)
            if at < 0:
                return b""
        begin = at + _NAMED
        stop = data.find(b"\r\n", begin)
        key = data[:begin] + data[stop:end]
        known = self._heads.get(key)
        if known is None:
            return key
        body = data[end + 4 :]
        if data[begin:stop] != b"%d" % len(body) or not body:
            return b""
        target = known.target
        # By place: by name it takes a microsecond more.
        return Request(
            "POST", target.path, target.text, known.host, HttpVersion11, True, protocol,
            task,  # type: ignore[arg-type]  # None after the connection only
            body, None, None, None, known.plain, known, known.made,
        )  # fmt: skip

    def keep(self, key: bytes, message: RawRequestMessage, target: Target, host: str) -> None:
        """Know the head of this message from now on. `key`: what `read` gave for it."""
        headers, raw = message.headers, message.raw_headers
        if (
            message.method != "POST"
            or message.version is not HttpVersion11
            or message.should_close
            or message.chunked
            or message.upgrade
            or "expect" in headers
        ):
            return
        place = next((n for n, (name, _) in enumerate(raw) if name.lower() == b"content-length"), -1)
        names = [name for name in headers if name.lower() == "content-length"]
        lines = key.split(b"\r\n")
        # The line without its digits must be that header, and no line have been read in another way.
        if len(names) != 1 or len(lines) != len(raw) + 1 or lines[place + 1] != raw[place][0] + b": ":
            return
        if len(self._heads) >= MAX_KNOWN:
            del self._heads[next(iter(self._heads))]
        self._heads[key] = KnownHead(
            message, target, host, names[0], raw[place][0], raw[:place], raw[place + 1 :], _is_plain(headers)
        )


def _is_plain(headers: CIMultiDictProxy[str]) -> bool:
    return PLAIN.issuperset(map(str.lower, headers)) and headers.getall("content-type", ()) == ["application/json"]
