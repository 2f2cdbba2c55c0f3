"""Owns what a stream's frames say, as far as the gateway must know: content, usage, errors, finish.
Must not know flights or sockets; JSON is parsed only where a cheap look shows that it must be.
Called by the feeder (reading) and by flight (the view of readers that did not ask for usage)."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from proxy.wire.sse import data_of, is_done

_CONTENT: Final = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments|name|refusal)"\s*:\s*"[^"]')
_FINISHED: Final = re.compile(rb'"finish_reason"\s*:\s*"')


class Usage(msgspec.Struct):
    """Token counts as the engine gives them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Usage(msgspec.Struct):
    usage: Usage | None = None


class _Tail(msgspec.Struct):
    """What may sit on the usage chunk, and would be on the finish chunk had usage not been asked for."""

    choices: list[msgspec.Raw] | None = None
    usage: msgspec.Raw | None = None
    system_fingerprint: str | None = None


class _Error(msgspec.Struct):
    error: Any = None


_USAGE: Final = msgspec.json.Decoder(_Usage)
_TAIL: Final = msgspec.json.Decoder(_Tail)
_ERROR: Final = msgspec.json.Decoder(_Error)


def has_content(frame: bytes) -> bool:
    """Whether the frame carries generated content: a role or a finish alone does not count."""
    return _CONTENT.search(frame) is not None


def usage_of(frame: bytes) -> Usage | None:
    """The frame's token counts. A quote inside a JSON string is escaped, so `"usage"` in content that merely
    talks of it does not even look like one."""
    if b'"usage"' not in frame:
        return None
    try:
        return _USAGE.decode(data_of(frame) or b"{}").usage
    except (msgspec.MsgspecError, RecursionError):
        return None


def is_error(frame: bytes) -> bool:
    """Whether the engine reports an error inside a stream that began as a success."""
    if b"error" not in frame:
        return False
    if frame.startswith(b"event: error") or b"\nevent: error" in frame:
        return True
    if b'"error"' not in frame:
        return False
    try:
        return _ERROR.decode(data_of(frame) or b"{}").error is not None
    except (msgspec.MsgspecError, RecursionError):
        return False


class PlainView:
    """A stream for which usage was asked, as a client sees it that did not ask.

    The usage chunk vanishes. vLLM 0.32 moves `system_fingerprint` from the finish chunks to the usage chunk
    when usage is asked: it is put back. It is known only then, so finish chunks wait for it (they come right
    before it; with n > 1 an early one waits for the others, which are not held up).
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def feed(self, frame: bytes) -> list[bytes]:
        """The frames that the client now gets."""
        if b'"usage"' in frame and (tail := _usage_chunk(frame)) is not None:
            held, self._held = self._held, []
            fingerprint = tail.system_fingerprint
            return [_put_back(f, fingerprint) for f in held] if fingerprint is not None else held
        if _FINISHED.search(frame) is not None and b'"system_fingerprint"' not in frame:
            self._held.append(frame)
            return []
        if self._held and is_done(frame):
            return [*self.end(), frame]
        return [frame]

    def end(self) -> list[bytes]:
        """What is still held when nothing more comes: an engine that gave no usage."""
        held, self._held = self._held, []
        return held


def _usage_chunk(frame: bytes) -> _Tail | None:
    """The chunk that exists only because usage was asked for: no choices, and a usage."""
    try:
        tail = _TAIL.decode(data_of(frame) or b"{}")
    except (msgspec.MsgspecError, RecursionError):
        return None
    if tail.choices == [] and tail.usage is not None and bytes(tail.usage) != b"null":
        return tail
    return None


def _put_back(frame: bytes, fingerprint: str) -> bytes:
    """The finish chunk with its fingerprint as its last member, byte for byte as vLLM writes it."""
    end = frame.rindex(b"}")
    return frame[:end] + b',"system_fingerprint":' + msgspec.json.encode(fingerprint) + frame[end:]
