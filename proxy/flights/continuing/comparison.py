"""Two answers to one request: what readers have of the first, and the rest of the second. Frames
in, frames out; no I/O.

Engines cut frames at different places, so contents are compared, not frames: texts, reasoning, tool calls, log
probabilities and endings, each choice by itself. A member that is not known here is a difference: it cannot be
compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw

from proxy.wire import Usage, data_of, encode, long_number, unchunks, usage_of

MOST_FRAMES: Final = 3000
MOST_BYTES: Final = 4 * 1024 * 1024
"""Frames (10 µs each) and bytes of the first answer that are read between two calls of `renew`. Only choices in a
very different order, or a long answer in one piece, need more: they are not compared."""
MOST_VALUES: Final = 25_000
"""Values of lists (1 to 2 µs each), as ids of tokens, that are decoded between two calls of `renew`."""
MOST_LISTED: Final = 250_000
"""Commas in one list: ten for each value, as an entry of log probabilities has members."""
MOST_AHEAD: Final = 1024 * 1024
"""Characters and values of the first answer that may wait for the second: choices in another order."""

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw] | None)
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Raw]] | None)
_LIST: Final = msgspec.json.Decoder(list[Raw] | None)
_TEXT: Final = msgspec.json.Decoder(str | None)
_INT: Final = msgspec.json.Decoder(int)
_VALUE: Final = msgspec.json.Decoder()
_ENCODE: Final = msgspec.json.Encoder().encode
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NULL: Final = Raw(b"null")
_NOTHING: Final = frozenset((b"null", b'""', b"[]", b"{}", b"false"))

_HEAD: Final = ("id", "object", "created", "model", "system_fingerprint")
"""Members that readers get as the first answer has them."""
_OF_ENGINE: Final = frozenset({*_HEAD, "choices", "usage", "service_tier", "timings", "metrics"})
"""Members of a chunk that say nothing about the generated text."""
_OF_PROMPT: Final = frozenset({"prompt_token_ids", "prompt_text", "prompt_logprobs"})
_WHOLE: Final = None  # in place of a choice's index: members of the chunk

Kind = Literal["text", "list", "fact", "name"]
"""Of a content: a text or a list comes in pieces; a fact comes once, and may be repeated; a name is chosen by the
engine, as the id of a tool call is: readers keep the first."""
Path = tuple[str | int, ...]
Content = tuple[Path, Kind, Any]

_KINDS: Final[Mapping[str, Kind]] = {
    "text": "text",
    "token_ids": "list",
    **dict.fromkeys(("finish_reason", "stop_reason", *_OF_PROMPT), "fact"),
}
_KINDS_OF_DELTA: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(("content", "reasoning", "reasoning_content", "refusal"), "text"),
    "role": "fact",
}
_KINDS_OF_LOGPROBS: Final[Mapping[str, Kind]] = dict.fromkeys(
    ("content", "refusal", "tokens", "token_logprobs", "top_logprobs", "text_offset"), "list"
)
_KINDS_OF_CALL: Final[Mapping[str, Kind]] = {"id": "name", "type": "fact"}
_KINDS_OF_FUNCTION: Final[Mapping[str, Kind]] = {"name": "text", "arguments": "text"}
_FINISH: Final[Path] = ("finish_reason",)


class Differs(Exception):
    """The second answer is not the first, or they cannot be compared; the text says why."""


class _Choice:
    """What readers have of one choice."""

    __slots__ = ("_at", "_left", "facts")

    def __init__(self) -> None:
        self.facts: dict[Path, Any] = {}
        self._left: dict[Path, deque[Any]] = {}  # that the second answer has not repeated: strings, or values
        self._at: dict[Path, int] = {}  # characters of the first string that are repeated

    def learn(self, path: Path, kind: Kind, value: Any) -> int:
        """Keep a content of the first answer. Returns how much of it the second has to repeat."""
        if kind in ("fact", "name"):
            self.facts.setdefault(path, value)
            return 0
        left = self._left.setdefault(path, deque())
        if kind == "text":
            left.append(value)
        else:
            left.extend(map(_VALUE.decode, value))
        return len(value)

    @property
    def repeated(self) -> bool:
        return not any(self._left.values())

    @property
    def ended(self) -> bool:
        return _FINISH in self.facts

    def match(self, path: Path, kind: Kind, value: Any, start: int) -> int:
        """Compare a text or a list from `start` on. Returns where the known part ends in it. Raises Differs."""
        left = self._left.get(path)
        if not left:
            return start
        if kind == "list":
            while left and start < len(value):
                if left.popleft() != _VALUE.decode(value[start]):
                    raise Differs(f"other {path[-1]}")
                start += 1
            return start
        at = self._at.get(path, 0)
        while left and start < len(value):
            piece = left[0]
            size = min(len(piece) - at, len(value) - start)
            if piece[at : at + size] != value[start : start + size]:
                raise Differs(f"another {path[-1]}")
            start, at = start + size, at + size
            if at == len(piece):
                left.popleft()
                at = 0
        self._at[path] = at
        return start


class Comparison:
    """Compares a second answer with the log of a first one, frame by frame, and gives the rest of the second."""

    def __init__(self, log: Sequence[bytes]) -> None:
        """`log`: frames in HTTP chunks. What is appended later is not part of the first answer."""
        self._log = log
        self._next, self._end = 0, len(log)
        self._frames: deque[bytes] = deque()  # of the entry that is being read
        self._choices: dict[int | None, _Choice] = {}
        self._head: dict[str, Raw] = {}
        self._usage: Usage | None = None  # in a chunk without choices
        self._ahead = 0  # characters and values that were read, and have not come again
        self.renew()

    def renew(self) -> None:
        """Another read of the second answer is compared: see MOST_FRAMES."""
        self._frames_left, self._bytes_left, self._values_left = MOST_FRAMES, MOST_BYTES, MOST_VALUES

    def feed(self, frame: bytes) -> bytes | None:
        """What readers get of a frame of the second answer; None: nothing. Raises Differs."""
        try:
            return self._rest(frame)
        except (*_BROKEN, ValueError) as e:
            raise Differs(f"what cannot be compared: {e}"[:200]) from None

    def end(self) -> None:
        """The second answer is complete. Raises Differs where readers have more."""
        try:
            while self._repeated and self._read():
                pass
        except (*_BROKEN, ValueError) as e:
            raise Differs(f"what cannot be compared: {e}"[:200]) from None
        if not self._repeated:
            raise Differs("an earlier end")

    # -- the first answer -------------------------------------------------------------------------

    @property
    def _repeated(self) -> bool:
        """All that was read of the first answer has come again."""
        return self._ahead == 0

    @property
    def _over(self) -> bool:
        """All of the first answer has come again."""
        return self._next == self._end and not self._frames and self._repeated

    def _read(self) -> bool:
        """Read the next frame of the first answer. False: there is none."""
        while not self._frames:
            if self._next == self._end:
                return False
            self._frames.extend(unchunks(self._log[self._next]))
            self._next += 1
        frame = self._frames.popleft()
        self._frames_left -= 1
        self._bytes_left -= len(frame)
        if self._frames_left < 0 or self._bytes_left < 0 or self._ahead > MOST_AHEAD:
            raise Differs("another order of choices")
        members = _chunk(frame)
        for name in _HEAD:
            if name in members:
                self._head.setdefault(name, members[name])
        choices = _OBJECTS.decode(members.get("choices", _NULL)) or ()
        if not choices:
            self._usage = usage_of(frame) or self._usage
        self._learn(_WHOLE, _of_chunk(members))
        for choice in choices:
            self._learn(*_of_choice(choice))
        return True

    def _learn(self, index: int | None, contents: Iterable[Content]) -> None:
        choice = self._choice(index)
        for path, kind, value in contents:
            self._count(kind, value)
            self._ahead += choice.learn(path, kind, value)

    def _count(self, kind: Kind, value: Any) -> None:
        if kind == "list":
            self._values_left -= len(value)
            if self._values_left < 0:
                raise Differs("too many values at once")

    def _choice(self, index: int | None) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        return choice

    # -- the second -------------------------------------------------------------------------------

    def _rest(self, frame: bytes) -> bytes | None:
        members = _chunk(frame)
        if not self._next:
            self._read()  # whose head readers have
        choices = _OBJECTS.decode(members.get("choices", _NULL)) or ()
        rest = dict(members)
        for path, _, _ in self._new(_WHOLE, _of_chunk(members))[1]:
            rest.pop(str(path[0]))
        if not choices:
            return self._headed(frame, members, rest) if self._usage_is_new(frame) else None
        kept: list[object] = []
        whole = True
        for choice in choices:
            index, contents = _of_choice(choice)
            new, old = self._new(index, contents)
            whole = whole and not old
            if new or (not old and self._over):
                kept.append(_rebuilt(choice, new) if old else choice)
        if not kept:
            return None
        if not whole or len(kept) < len(choices):
            rest["choices"] = Raw(_ENCODE(kept))
        return self._headed(frame, members, rest)

    def _new(self, index: int | None, contents: Iterable[Content]) -> tuple[list[Content], list[Content]]:
        """Compare contents of one choice with what readers have. Returns those that are new, and those that are
        not; a text may be both."""
        choice = self._choice(index)
        new: list[Content] = []
        old: list[Content] = []
        for path, kind, value in sorted(contents, key=_is_finish):  # the end is compared last
            if kind in ("fact", "name"):
                finish = path == _FINISH
                while path not in choice.facts and not (finish and not choice.repeated) and self._read():
                    pass
                if finish and not choice.repeated:
                    raise Differs("an earlier end")
                if path not in choice.facts:
                    new.append((path, kind, value))
                elif kind == "fact" and choice.facts[path] != value:
                    raise Differs(f"another {path[-1]}")
                else:
                    old.append((path, kind, value))
                continue
            self._count(kind, value)
            start = choice.match(path, kind, value, 0)
            while start < len(value) and self._read():
                start = choice.match(path, kind, value, start)
            self._ahead -= start
            if start:
                old.append((path, kind, value[:start]))
            if start < len(value):
                new.append((path, kind, value[start:]))
        if new and choice.ended:
            raise Differs("a later end")
        return new, old

    def _usage_is_new(self, frame: bytes) -> bool:
        """Whether readers get a chunk without choices. Raises Differs for counts that are not the first's."""
        usage = usage_of(frame)
        if usage is None:
            return self._over
        while self._usage is None and self._read():
            pass
        if self._usage is None:
            return True
        counts = self._usage.prompt_tokens, self._usage.completion_tokens
        if (usage.prompt_tokens, usage.completion_tokens) != counts:
            raise Differs("another usage")
        return False

    def _headed(self, frame: bytes, members: Mapping[str, Raw], rest: dict[str, Raw]) -> bytes:
        """The frame as one of the first answer."""
        for name, raw in self._head.items():
            if name in rest:
                rest[name] = raw
        return frame if rest == members else encode(_ENCODE(rest))


def _is_finish(content: Content) -> bool:
    return content[0] == _FINISH


def _chunk(frame: bytes) -> dict[str, Raw]:
    """The members of an event's data. Raises Differs for numbers whose reading would take quadratic time."""
    data = data_of(frame) or b"{}"
    if long_number(data):
        raise Differs("a number of too many digits")
    return _object(data)


def _object(raw: Raw | bytes) -> dict[str, Raw]:
    return _OBJECT.decode(raw) or {}


def _of_chunk(members: Mapping[str, Raw]) -> Iterator[Content]:
    """What a chunk says of all choices."""
    for name, raw in members.items():
        if name not in _OF_ENGINE:
            yield from _content((), name, raw, _KINDS)


def _of_choice(choice: Mapping[str, Raw]) -> tuple[int, Iterator[Content]]:
    """The index of a choice, and its contents. Raises Differs for a member that is not known."""
    return _INT.decode(choice["index"]) if "index" in choice else 0, _contents(choice)


def _contents(choice: Mapping[str, Raw]) -> Iterator[Content]:
    for name, raw in choice.items():
        if name == "delta":
            for inner, value in _object(raw).items():
                if inner == "tool_calls":
                    for call in _OBJECTS.decode(value) or ():
                        yield from _of_call(call)
                else:
                    yield from _content(("delta",), inner, value, _KINDS_OF_DELTA)
        elif name == "logprobs":
            for inner, value in _object(raw).items():
                yield from _content(("logprobs",), inner, value, _KINDS_OF_LOGPROBS)
        elif name != "index":
            yield from _content((), name, raw, _KINDS)


def _of_call(call: Mapping[str, Raw]) -> Iterator[Content]:
    if "index" not in call:
        raise Differs("a tool call without an index")
    at: Path = ("delta", "tool_calls", _INT.decode(call["index"]))
    for name, raw in call.items():
        if name == "function":
            for inner, value in _object(raw).items():
                yield from _content((*at, "function"), inner, value, _KINDS_OF_FUNCTION)
        elif name != "index":
            yield from _content(at, name, raw, _KINDS_OF_CALL)


def _content(at: Path, name: str, raw: Raw, kinds: Mapping[str, Kind]) -> Iterator[Content]:
    if bytes(raw) in _NOTHING:
        return
    kind = kinds.get(name)
    if kind is None:
        raise Differs(f"a member {name[:64]!r} that cannot be compared")
    if kind == "list" and bytes(raw).count(b",") > MOST_LISTED:
        raise Differs("too many values at once")  # before each is an object
    value = (_TEXT if kind == "text" else _LIST if kind == "list" else _VALUE).decode(raw)
    if value is not None:
        yield (*at, name), kind, value


def _rebuilt(choice: Mapping[str, Raw], new: Iterable[Content]) -> dict[str, Any]:
    """A choice with its new contents alone, in the order of its members."""
    rebuilt: dict[str, Any] = {}
    for name, raw in choice.items():
        rebuilt[name] = raw if name == "index" else {} if name == "delta" else "" if name == "text" else None
    calls: dict[str | int, dict[str, Any]] = {}
    for path, _, value in new:
        match path:
            case ("delta", "tool_calls", int(number), *inner):
                call = calls.setdefault(number, {"index": number})
                if inner[0] == "function":
                    call.setdefault("function", {})[inner[1]] = value
                else:
                    call[str(inner[0])] = value
            case ("delta", member):
                rebuilt["delta"][member] = value
            case ("logprobs", member):
                rebuilt["logprobs"] = (rebuilt["logprobs"] or {}) | {member: value}
            case (member,):
                rebuilt[str(member)] = value
    if calls:
        rebuilt["delta"]["tool_calls"] = list(calls.values())
    return rebuilt
