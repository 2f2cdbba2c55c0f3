"""Where the chunks of a request body end, so that the bytes of two pipelined requests can be separated. Whether
the chunks are valid is for the parser to say."""

from __future__ import annotations

from typing import Final

SIZE_LENGTH: Final = 20  # bytes of a chunk-size line


class ChunkEnds:
    """Tracks the chunks of a body, under any split of its bytes."""

    __slots__ = ("_left", "_line", "over")

    def __init__(self) -> None:
        self.over = False
        """The last chunk's size has come: the body ends with the next empty line."""
        self._left = 0  # bytes left of the current chunk and its line end
        self._line = b""  # the beginning of a size line

    def take(self, data: bytes) -> int:
        """The number of these bytes that belong to chunks."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at)
            line = self._line + data[at : end if end >= 0 else at + SIZE_LENGTH]
            if end < 0:
                self._line = line[:SIZE_LENGTH]
                return len(data)
            self._line, at = b"", end + 1
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                size = 0  # not a size: the parser reports it
            if size <= 0:
                self.over = True
                break
            self._left = size + 2
        return at
