"""What one side has of a published stream: its length, and a digest of all of it.

Pure: no clock, no I/O."""

from __future__ import annotations

from hashlib import blake2b


class Tail:
    """A stream is its frames in their HTTP chunks, joined. The digest of so many bytes is the same however they
    were cut into appends, and differs between fences."""

    __slots__ = ("_hash", "size")

    def __init__(self, fence: bytes) -> None:
        self.size = 0  # bytes
        self._hash = blake2b(fence, digest_size=16)

    def __repr__(self) -> str:
        return f"<Tail of {self.size} bytes>"

    @property
    def digest(self) -> bytes:
        return self._hash.hexdigest().encode()

    def extend(self, data: bytes) -> None:
        """Append what this side made."""
        self._hash.update(data)
        self.size += len(data)

    def take(self, offset: int, data: bytes, after: bytes) -> bytes | None:
        """The part of an append that is new here, appended; empty where all of it is old. None where it does not
        continue what is here: bytes between are missing, or they are others."""
        if offset > self.size:
            return None
        new = data[self.size - offset :]
        if not new:
            return b""
        continued = self._hash.copy()
        continued.update(new)
        if continued.hexdigest().encode() != after:
            return None
        self._hash = continued
        self.size += len(new)
        return new
