"""Where in a stream a client is: what it says, the place of a frame in a log, and `id:` lines in a stream.

A stream's frames are its events with data, counted from 1: comments are none. Pure: no clock, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from proxy.flights.flight import SLICE_BYTES, Pipe
from proxy.wire import chunk, is_comment, without_ids

_ID: Final = re.compile(r"([0-9]{1,12})(?:-([0-9a-f]{16}))?")


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
    It takes the stream in any pieces. An engine's own `id:` lines, of which a client would take the last, and a
    BOM, which would follow our line, are dropped; of a frame over `SLICE_BYTES` those in its first bytes."""

    __slots__ = ("_carry", "_left", "_seams", "frames", "pipe")

    def __init__(self, pipe: Pipe, frames: int, seams: Sequence[Seam]) -> None:
        """`frames`: how many the client has. `seams`: of the stream, which may grow."""
        self.frames = frames
        self.pipe = pipe
        self._seams = seams
        self._carry = b""  # a chunk that is not whole
        self._left = 0  # bytes of the chunk that is being written

    def write(self, data: bytes | memoryview) -> bool:
        return self.pipe.write(b"".join(self._numbered(self._carry + bytes(data))))

    def _numbered(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        at, end = 0, len(data)
        self._carry = b""
        while at < end:
            if not self._left:
                line = data.find(b"\r\n", at)
                size = int(data[at:line], 16) if line >= 0 else 0
                start = line + 2
                if line < 0 or (start + size > end and end - at < SLICE_BYTES):
                    self._carry = data[at:]
                    break
                frame = data[start : start + size]
                if size and (len(frame) < size or not is_comment(frame)):
                    self.frames += 1
                    position = Position(self.frames, mark_of(self._seams, self.frames))
                    pieces.append(chunk(f"id: {position}\n".encode()))
                said = without_ids(frame)
                if said is not frame:
                    pieces += (b"%x\r\n" % (size - len(frame) + len(said)), said)
                    at = start + len(frame)
                    self._left = start + size + 2 - at
                    continue
                self._left = start - at + size + 2
            piece = data[at : at + self._left]
            pieces.append(piece)
            at += len(piece)
            self._left -= len(piece)
        return pieces
