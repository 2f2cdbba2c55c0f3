"""What the JSON frames of a stream say: content, usage, an error; and the stream as a client sees it that did
not ask for usage. JSON is parsed only where a cheap search finds a reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from proxy.wire.sse import data_of, field_of, is_done
from proxy.wire.structs import settable

# A quote inside a JSON string is escaped, so a search for `"usage"` does not match content about usage: the byte
# searches below match only keys, and values that are whole strings.
_TEXTS: Final = (b'"content":"', b'"text":"', b'"arguments":"', b'"reasoning":"', b'"reasoning_content":"')
_CONTENT: Final = re.compile(
    rb'"(?:content|text|arguments|name|reasoning|reasoning_content|refusal)"[ \t\r\n]*:[ \t\r\n]*"[^"]'
)
FINISH: Final = re.compile(rb'"finish_reason"[ \t\r\n]*:[ \t\r\n]*"')
_OPENING: Final = re.compile(
    rb'data: \{"id":"[\w.:-]{1,128}","object":"(?:chat\.completion\.chunk|text_completion)","created":[0-9]{1,12},'
    rb'"model":"[\w ./:@+-]{1,256}","choices":\['
)
"""How vLLM begins each event of a stream. What differs between streams is in it, but for text and counts."""
_NOT_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NULL: Final = msgspec.Raw(b"null")
_MOVED: Final = ("system_fingerprint", "timings")


MAX_KNOWN: Final = 256  # events that streams have in common, and as many texts
KNOWN_BYTES: Final = 1024  # of such an event, without its opening
MAX_TOKENS: Final = 2**40
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
"""A plausible count: sums of thousands of them fit into 64 bits, the limit of the JSON and msgpack encoders."""


class Usage(msgspec.Struct, gc=False):
    """Token counts from the engine. Implausible counts are read as no usage."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    total_tokens: Tokens = 0


class _UsageOnly(msgspec.Struct):
    usage: Usage | None = None


class _Choice(msgspec.Struct):
    index: int = 0


class _Choices(msgspec.Struct):
    choices: list[_Choice] = []


_USAGE: Final = msgspec.json.Decoder(_UsageOnly)
_TOKENS: Final = msgspec.json.Decoder(Tokens | None)
_CHOICES: Final = msgspec.json.Decoder(_Choices)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def has_content(frame: bytes) -> bool:
    """Whether the frame has generated text, reasoning or a tool call; a role or a finish alone does not count.

    0.2 µs for chat content, 0.5 µs for a tool call's arguments.
    """
    for key in _TEXTS:
        at = frame.find(key)
        if at >= 0 and frame[at + len(key) : at + len(key) + 1] != b'"':
            return True
    return _CONTENT.search(frame) is not None


def usage_of(frame: bytes) -> Usage | None:
    """The frame's token counts; None where it has none, or null."""
    if frame.rfind(b'"usage"') < 0:
        return None
    try:
        return _USAGE.decode(data_of(frame) or b"{}").usage
    except msgspec.ValidationError:
        return usage_from(_members(frame).get("usage", _NULL))
    except _NOT_JSON:
        return None


def usage_from(raw: msgspec.Raw) -> Usage | None:
    """Usage whose members are read one by one: an implausible `total_tokens` is ignored; an implausible count
    of the other two means no usage."""
    try:
        members = _MEMBERS.decode(raw)
        prompt = _TOKENS.decode(members.get("prompt_tokens", b"0")) or 0
        completion = _TOKENS.decode(members.get("completion_tokens", b"0")) or 0
    except _NOT_JSON:
        return None
    return Usage(prompt, completion, prompt + completion)


def is_error(frame: bytes) -> bool:
    """Whether the engine reports an error inside a stream that began as a success."""
    if frame.rfind(b"error") < 0:
        return False
    if b"error" in (value.strip() for value in field_of(frame, b"event")):
        return True
    members = _members(frame)
    error = bytes(members.get("error", b"null"))
    return error != b"null" or bytes(members.get("object", b"")) == b'"error"'


class _Failure(msgspec.Struct):
    message: str = ""
    code: int | str | None = None


class _Failed(msgspec.Struct):
    error: _Failure = msgspec.field(default_factory=_Failure)


_FAILED: Final = msgspec.json.Decoder(_Failed)


def fault_of(frame: bytes) -> str | None:
    """The message of an error frame that tells a fault of the engine; None where it blames the request (4xx)."""
    try:
        error = _FAILED.decode(data_of(frame) or b"{}").error
    except _NOT_JSON:
        return ""
    return None if str(error.code).startswith("4") else error.message


@settable
class FrameTemplate(msgspec.Struct, gc=False, eq=False):
    """Recognises frames that differ from a known one only in their text.

    An engine's content frames are identical except for one JSON string. A frame that matches has content and
    neither usage, finish nor error, and is not the terminal: one check in place of five. (A regex per stream is
    faster per token, but takes 0.7 ms to compile.)
    """

    opening: bytes = b""  # of this stream's events, in the form of vLLM's
    front: bytes = b""
    back: bytes = b""
    start: int = 0  # offset of the text; 0: nothing is known
    stop: int = 0  # of its end, from the frame's end

    def __contains__(self, frame: bytes) -> bool:
        # The front has no line end and the back only the two that end the event: the bytes are one event.
        if not (frame.startswith(self.front) and frame.endswith(self.back)):
            return False
        text = frame[self.start : self.stop]
        # No quote, no line end, and no backslash at the end, which would escape the quote after it.
        return bool(text) and 34 not in text and 10 not in text and 13 not in text and text[-1] != 92

    def forget(self) -> None:
        """Recognise no frame until another one is learned."""
        self.front = self.back = b""
        self.start = self.stop = 0

    def learn(self, frame: bytes) -> bool:
        """Set the frame to compare with: one with content, and without usage, error or end. False: it is none to
        compare with, and the one before stays."""
        for key in _TEXTS:
            at = frame.find(key)
            if at >= 0:
                start = at + len(key)
                end = frame.find(b'"', start)
                whole = frame.find(b"\n") == len(frame) - 2 and 13 not in frame
                if end > start and whole and frame[end - 1] != 92 and not FINISH.search(frame):
                    self.front, self.back = frame[:start], frame[end:]
                    self.start, self.stop = start, end - len(frame)
                    return True
                return False
        return False

    # -- what other streams have taught -----------------------------------------------------------

    def known(self, frame: bytes) -> str | None:
        """The finish_reason of an event of one choice that came in another stream too; "" for its role. None: it
        is not known."""
        opening = self.opening
        if not opening:
            found = _OPENING.match(frame)
            if found is None:
                return None
            self.opening = opening = found[0]
        if len(frame) - len(opening) > KNOWN_BYTES or not frame.startswith(opening):
            return None
        return _KNOWN.events.get(frame[len(opening) :])

    def learns_known(self, frame: bytes) -> bool:
        """`learn` a frame whose like came in another stream. False: none did."""
        opening = len(self.opening)
        if not opening:
            return False
        for key in _TEXTS:
            at = frame.find(key, opening)
            if at >= 0:
                start = at + len(key)
                end = frame.find(b'"', start)
                text = frame[start:end]
                if (
                    end > start and start - opening + len(frame) - end <= KNOWN_BYTES
                    and (frame[opening:start], frame[end:]) in _KNOWN.texts
                    and text[-1] != 92 and 10 not in text and 13 not in text
                    and frame.startswith(self.opening)
                ):  # fmt: skip
                    self.front, self.back = frame[:start], frame[end:]
                    self.start, self.stop = start, end - len(frame)
                    return True
                return False
        return False

    def share_event(self, frame: bytes, reason: str) -> None:
        """Know such an event in all streams. `reason`: as in `known`. All that is to know of it must follow from
        that, wherever it comes before the end of its stream's one choice."""
        opening, rest = self.opening, frame[len(self.opening) :]
        if opening and frame.startswith(opening) and len(rest) <= KNOWN_BYTES and _is_line(rest):
            _KNOWN.add_event(rest, reason)

    def share_text(self) -> None:
        """Know a frame like the one learned in all streams."""
        opening, front, back = self.opening, self.front, self.back
        if opening and front.startswith(opening) and len(front) - len(opening) + len(back) <= KNOWN_BYTES:
            _KNOWN.add_text(front[len(opening) :], back)


def _is_line(rest: bytes) -> bool:
    """Whether the rest of an event is one line and the empty one that ends it."""
    return rest.find(b"\n") == len(rest) - 2 and rest.endswith(b"\n\n") and 13 not in rest


class _Known:
    """Events that streams have in common, without their opening: what of them was learned in one stream holds in
    each other one. Bounded; forgotten at once where it is full."""

    __slots__ = ("events", "texts")

    def __init__(self) -> None:
        self.events: dict[bytes, str] = {}  # the finish_reason of its one choice; "": its role
        self.texts: set[tuple[bytes, bytes]] = set()  # what is before and after the text

    def add_event(self, rest: bytes, reason: str) -> None:
        if len(self.events) >= MAX_KNOWN:
            self.events.clear()
        self.events[rest] = reason

    def add_text(self, before: bytes, after: bytes) -> None:
        if len(self.texts) >= MAX_KNOWN:
            self.texts.clear()
        self.texts.add((before, after))


_KNOWN: Final = _Known()


class UsageStripper:
    """Turns a stream with requested usage into the stream that a client gets who did not request it.

    The chunk that holds only usage is removed. Members that the engine moved onto it go back, as the last member,
    to the chunks with a finish_reason: vLLM 0.32 moves `system_fingerprint`, llama.cpp `timings`. So these chunks
    are held until the usage chunk (which comes next, or with n > 1 after the last choice's finish), [DONE], or the
    end. Frames of other choices pass meanwhile; else the order is kept. 0.5 µs per frame. Where a chunk before the
    finish has usage, the engine sends it without request (vLLM's `--enable-force-include-usage`): then all frames
    pass unchanged.
    """

    __slots__ = ("forced", "held")

    def __init__(self) -> None:
        self.forced = False
        self.held: list[tuple[bytes, set[int]]] = []  # while any is held, every frame must be fed

    def __repr__(self) -> str:
        return f"<UsageStripper, {len(self.held)} held>"

    def feed(self, frame: bytes) -> list[bytes]:
        """The frames that the client gets now."""
        if self.forced:
            return [frame]
        if frame.rfind(b'"usage"') >= 0:
            members = _members(frame)
            if bytes(members.get("usage", b"null")) != b"null" and "choices" in members:
                if _has_no_choice(members):
                    moved = [(name, members[name]) for name in _MOVED if name in members]
                    return [_put_back(held, moved) for held in self.end()]
                if FINISH.search(frame) is None:
                    self.forced = True
                    return [*self.end(), frame]
        if FINISH.search(frame) is not None:
            self.held.append((frame, _indexes(frame)))
            return []
        if not self.held:
            return [frame]
        if is_done(frame) or is_error(frame):
            return [*self.end(), frame]
        indexes = _indexes(frame)
        if any(indexes & of_held for _, of_held in self.held):
            self.held.append((frame, indexes))
            return []
        return [frame]

    def end(self) -> list[bytes]:
        """The frames still held at the end, unchanged."""
        held, self.held = self.held, []
        return [frame for frame, _ in held]


def _members(frame: bytes) -> dict[str, msgspec.Raw]:
    """The members of the frame's JSON object; empty where it is not one."""
    try:
        return _MEMBERS.decode(data_of(frame) or b"{}")
    except _NOT_JSON:
        return {}


def _has_no_choice(members: dict[str, msgspec.Raw]) -> bool:
    return bytes(members["choices"]).translate(None, b" \t\r\n") == b"[]"


def _indexes(frame: bytes) -> set[int]:
    try:
        return {choice.index for choice in _CHOICES.decode(data_of(frame) or b"{}").choices}
    except _NOT_JSON:
        return set()


def _put_back(frame: bytes, moved: Sequence[tuple[str, msgspec.Raw]]) -> bytes:
    """The finish chunk with the moved members at its end, byte for byte as the engine writes them."""
    present = _members(frame)
    missing = b"".join(b',"%b":%b' % (name.encode(), bytes(raw)) for name, raw in moved if name not in present)
    data = data_of(frame)
    if not missing or not present or not data or FINISH.search(frame) is None:
        return frame
    at = frame.find(data)
    if at < 0:
        return frame  # an object spread over several data lines, as no engine writes it
    end = at + data.rindex(b"}")
    return frame[:end] + missing + frame[end:]
