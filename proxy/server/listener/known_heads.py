"""Heads that clients repeat: nearly every client sends the same one with each request, but for its Content-Length.
What aiohttp's parser and `read_head` have read of one is kept, and neither reads it again (decision 169)."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.server.listener.request import Request
from proxy.wire.http import Target

MAX_KNOWN: Final = 512  # heads; the oldest is forgotten for a new one
KNOWN_BYTES: Final = 2048  # of a head that is kept

_BLANK: Final = b"\r\n\r\n"
_SPARE: Final = 32  # bytes by which a head may be longer than the one that the parser has read: digits
_NAMED: Final = len(b"\r\nContent-Length: ")


class KnownHead(msgspec.Struct, frozen=True, eq=False):
    """One head. `message` is that of its first request: the size of that one's body is its own."""

    message: RawRequestMessage
    target: Target
    host: str
    name: str  # Content-Length, as its client writes it
    raw_name: bytes
    before: tuple[tuple[bytes, bytes], ...]  # raw headers before that one
    after: tuple[tuple[bytes, bytes], ...]


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
        size = str(len(body))
        digits = data[begin:stop]
        if digits != size.encode() or not body:
            return b""
        message, target = known.message, known.target
        headers = CIMultiDict(message.headers)
        headers[known.name] = size
        return Request(
            message.method,
            target.path,
            target.text,
            known.host,
            message.version,
            True,
            CIMultiDictProxy(headers),
            (*known.before, (known.raw_name, digits), *known.after),
            protocol,
            task,  # type: ignore[arg-type]  # as in `read_request`
            body,
        )

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
        self._heads[key] = KnownHead(message, target, host, names[0], raw[place][0], raw[:place], raw[place + 1 :])
