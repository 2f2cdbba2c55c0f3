"""Where in a stream a client is: what it says, the place of a frame in a log, and `id:` lines in a stream.

A stream's frames are its events with data, counted from 1: comments are none. Pure: no clock, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from proxy.flights.flight import Pipe
from proxy.wire import chunk, is_comment

_ID: Final = re.compile(r"([0-9]{1,12})(?:-([0-9a-f]{16}))?")
_COLON: Final = ord(":")


class Position(NamedTuple):
    """So many frames that a client has. `mark`: of the gateway that made the last of them anew; empty: the first
    gateway did."""

    frames: int
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.frames}-{self.mark}" if self.mark else str(self.frames)


def read_position(text: str) -> Position | None:
    """The position that an id or a count names; None for any other text."""
    words = _ID.fullmatch(text)
    return None if words is None else Position(int(words[1]), words[2] or "")


class Seam(NamedTuple):
    """Frames behind the first `frames` were made anew when their gateway was lost: another answer's count is none
    of this one's."""

    frames: Annotated[int, Meta(ge=0)]
    mark: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]


def mark_of(seams: Sequence[Seam], frame: int) -> str:
    """The mark of a frame, by its number."""
    mark = ""
    for seam in seams:
        if frame > seam.frames:
            mark = seam.mark
    return mark


def walk(log: bytes, frames: int, steps: int = 4096) -> Iterator[tuple[int, int]]:
    """The place behind so many frames in a log whose frames are in one piece, as a stored stream's are: gives
    frames and bytes passed so far after each so many steps (4,096 take 2 ms), and at last those of the place, or
    of the log's end."""
    passed = at = 0
    while passed < frames and at < len(log):
        line = log.index(b"\r\n", at)
        at = line + 4 + int(log[at:line], 16)
        passed += 1
        if not passed % steps:
            yield passed, at
    yield passed, at


class Numbered:
    """A pipe before another one: gives each frame an `id:` line, in an HTTP chunk of its own before the frame's.
    It takes the stream in any pieces."""

    __slots__ = ("_carry", "_left", "_pipe", "_seams", "frames")

    def __init__(self, pipe: Pipe, frames: int, seams: Sequence[Seam]) -> None:
        """`frames`: how many the client has. `seams`: of the stream, which may grow."""
        self.frames = frames
        self._pipe = pipe
        self._seams = seams
        self._carry = b""  # a chunk's first line that is not whole
        self._left = 0  # bytes of the chunk that is being written

    def write(self, data: bytes | memoryview) -> bool:
        return self._pipe.write(b"".join(self._numbered(self._carry + bytes(data))))

    def _numbered(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        at, end = 0, len(data)
        self._carry = b""
        while at < end:
            if not self._left:
                line = data.find(b"\r\n", at)
                if line < 0 or line + 2 >= end:
                    self._carry = data[at:]
                    break
                size = int(data[at:line], 16)
                self._left = line - at + size + 4
                if size and not self._comment(data, line + 2, size):
                    self.frames += 1
                    position = Position(self.frames, mark_of(self._seams, self.frames))
                    pieces.append(chunk(f"id: {position}\n".encode()))
            piece = data[at : at + self._left]
            pieces.append(piece)
            at += len(piece)
            self._left -= len(piece)
        return pieces

    def _comment(self, data: bytes, start: int, size: int) -> bool:
        """Whether a chunk is a comment. One that is written in pieces is a frame: a comment comes whole."""
        return data[start] == _COLON and start + size <= len(data) and is_comment(data[start : start + size])
