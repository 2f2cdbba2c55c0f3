"""Splits one answer with many choices among the requests that were merged into it: whose each choice is,
renumbered, with its usage. Frames and bodies in, frames and bodies out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Raw

from proxy.wire.fold.known import Unfoldable
from proxy.wire.frames import Usage, has_content, is_error, usage_from
from proxy.wire.shares import shares_of
from proxy.wire.sse import DONE, data_of, encode, is_done
from proxy.wire.whole import REASONS

_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_LIST: Final = msgspec.json.Decoder(list[dict[str, Raw]])
_LISTED: Final = msgspec.json.Decoder(list[int])
_INT: Final = msgspec.json.Decoder(int)
_TEXT: Final = msgspec.json.Decoder(str)
_REASON: Final = msgspec.json.Decoder(str | None)
_ENCODE: Final = msgspec.json.Encoder().encode
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NULL: Final = b"null"
_IDS: Final = ("token_ids", "prompt_token_ids")
MOVED: Final = "system_fingerprint"
"""vLLM 0.32 moves it from each finish to the usage chunk where usage is requested; see `frames.UsageStripper`."""


@dataclass(slots=True)
class Part:
    """One client's share of the choices: `count` of them from `first` on."""

    first: int
    count: int
    usage: bool  # the client requested the usage chunk
    request_id: str
    endings: dict[int, str] = field(default_factory=dict)  # finish_reason by choice that has ended
    ended: bool = False
    held: list[bytes] = field(default_factory=list)  # finish frames that wait for the fingerprint
    content_events: int = 0
    completion_tokens: int = 0
    estimated: bool = False  # its tokens are a share of the total, not the engine's count

    @property
    def whole(self) -> bool:
        """Whether each of its choices has ended with a finish_reason of OpenAI's."""
        return len(self.endings) == self.count and REASONS.issuperset(self.endings.values())


Given = tuple[int, bytes, bool]
"""(index of the part, frame, whether it has content)."""


class StreamSplit:
    """Splits one stream with `n` choices among its parts, frame by frame.

    Each part gets the stream that it would have got alone: choices numbered from 0, the id of its request, and its
    end as soon as its own choices have ended, not when the longest part has; an incomplete part gets no end. The
    engine is sent a request for usage and `continuous_usage_stats`, so the tokens of each choice are the engine's
    count; without them the total is divided by content events. A client that requested usage gets it with the
    engine's final usage. `fingerprint`: the engine's, where it is known; else the finishes of clients that did not
    request usage wait for it.
    """

    def __init__(self, parts: Sequence[Part], *, request_id: str, fingerprint: Raw | None = None) -> None:
        self.parts = list(parts)
        self.fingerprint = fingerprint
        self.prompt_tokens = 0
        self.failed = False  # the engine has reported an error
        self._id = request_id
        self._firsts = [part.first for part in parts]
        self._counts: dict[int, int] = {}  # tokens of each choice so far, by the engine
        self._total: dict[str, Raw] | None = None  # the final usage chunk
        self._ending: set[int] = set()  # parts that the current frame ends

    @property
    def ended(self) -> bool:
        return all(part.ended for part in self.parts)

    def feed(self, frame: bytes) -> list[Given]:
        """The frames for each part. Raises Unfoldable for a frame that cannot be split."""
        self._ending = set()
        if is_done(frame):
            return self._ended([given for n in range(len(self.parts)) for given in self._end(n)])
        data = data_of(frame)
        failed = data is not None and is_error(frame)
        self.failed = self.failed or failed
        if data is None or failed:  # a comment, or an error, which is the last: for all parts
            left = [n for n, part in enumerate(self.parts) if not part.ended]
            given: list[Given] = [(n, frame, False) for n in left]
            if not failed:
                return given
            self._ending.update(left)
            return self._ended(given)
        try:
            members = _MEMBERS.decode(data)
            choices = _LIST.decode(members.get("choices", _NULL))
            usage = members.pop("usage", None)
            if not choices:
                counted = usage_from(usage) if usage is not None else None
                if usage is not None and counted is not None:
                    self._total = {**members, "usage": usage}
                    self.fingerprint = members.get(MOVED, self.fingerprint)
                    self.prompt_tokens = counted.prompt_tokens
                return []
            given = self._choices(members, choices, usage)
            return self._ended(given) if self._ending else given
        except _BROKEN as e:
            raise Unfoldable(f"a frame of unknown shape: {e}") from None

    def usage_of(self, n: int) -> Usage:
        """The tokens of one part: the whole prompt, and its own choices."""
        part = self.parts[n]
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=part.completion_tokens,
            total_tokens=self.prompt_tokens + part.completion_tokens,
        )

    # -- inside -----------------------------------------------------------------------------------

    def _choices(self, members: dict[str, Raw], choices: list[dict[str, Raw]], usage: Raw | None) -> list[Given]:
        given: list[Given] = []
        for choice in choices:
            index = _INT.decode(choice["index"]) if "index" in choice else 0
            n = bisect_right(self._firsts, index) - 1
            part = self.parts[n]
            if not 0 <= index - part.first < part.count:
                raise Unfoldable(f"a choice with the index {index}")
            counted = usage_from(usage) if usage is not None and usage != _NULL else None
            if counted is not None:
                self.prompt_tokens = counted.prompt_tokens
                self._counts[index] = counted.completion_tokens
            if part.ended:
                continue
            own = {**members, "choices": [{**choice, "index": index - part.first}]}
            _rename(own, self._id, part.request_id)
            reason = _reason_of(choice)
            frame = encode(_ENCODE(own))
            content = has_content(frame)
            part.content_events += content
            if not reason:
                given.append((n, frame, content))
                continue
            if part.endings.get(index, "stop") in REASONS:  # the first that is none of OpenAI's stays
                part.endings[index] = reason
            if part.usage:  # theirs comes on the usage chunk
                given.append((n, frame, content))
                continue
            part.held.append(frame)
            if self.fingerprint is not None and part.whole:
                given += self._end(n)
        return given

    def _ended(self, given: list[Given]) -> list[Given]:
        """All of a frame has been told apart: only now the parts that it ends have ended."""
        for n in self._ending:
            self.parts[n].ended = True
        return given

    def _end(self, n: int) -> list[Given]:
        """What ends a part: its held finishes, its usage where it asked for it, [DONE]."""
        part = self.parts[n]
        if part.ended or n in self._ending or not part.whole:
            return []
        part.completion_tokens = self._completion(n)
        given = [(n, self._with_fingerprint(frame), has_content(frame)) for frame in part.held]
        if part.usage and self._total is not None:
            own: dict[str, Any] = dict(self._total)
            _rename(own, self._id, part.request_id)
            own["usage"] = {**_MEMBERS.decode(self._total["usage"]), **msgspec.structs.asdict(self.usage_of(n))}
            given.append((n, encode(_ENCODE(own)), False))
        self._ending.add(n)
        return [*given, (n, DONE, False)]

    def _with_fingerprint(self, frame: bytes) -> bytes:
        members = _MEMBERS.decode(data_of(frame) or b"{}")
        if self.fingerprint is None or MOVED in members:
            return frame
        return encode(_ENCODE({**members, MOVED: self.fingerprint}))

    def _completion(self, n: int) -> int:
        part = self.parts[n]
        if self._counts:
            return sum(self._counts.get(index, 0) for index in range(part.first, part.first + part.count))
        counted = usage_from(Raw(self._total["usage"])) if self._total is not None else None
        part.estimated = len(self.parts) > 1 or counted is None
        if counted is None:
            return part.content_events
        total = counted.completion_tokens
        return shares_of(total, [one.content_events for one in self.parts])[n]


def split_body(
    body: bytes, parts: Sequence[Part], *, request_id: str, ids: bool = False
) -> list[tuple[bytes, Usage] | None]:
    """Split one body with all choices into one body per part, with its usage; None for an incomplete part. Raises
    Unfoldable for a body of unknown shape.

    An engine counts the tokens of all choices together. Where it lists those of each (token ids, logprobs) they
    are counted; else the parts are `estimated`: the total is divided by the bytes of their choices, and adds up.
    `ids`: the gateway requested the token ids, and no client may see them.
    """
    try:
        members = _MEMBERS.decode(body)
        choices: dict[int, dict[str, Raw]] = {}
        for choice in _LIST.decode(members["choices"]):
            index = _INT.decode(choice["index"])
            if index in choices:
                raise Unfoldable(f"a body with the choice {index} twice")
            choices[index] = choice
        raw = members.get("usage", Raw(_NULL))
        total = usage_from(raw)
        if total is None:  # none, or implausible
            total, raw = Usage(), Raw(b"{}")
            members.pop("usage", None)
        usage = _MEMBERS.decode(raw)
        mine = [
            [choices[index] for index in range(part.first, part.first + part.count) if index in choices]
            for part in parts
        ]
        tokens, estimated = _tokens(total.completion_tokens, mine)
        if ids:
            _strip_ids(members)
            for own_choices in mine:
                for choice in own_choices:
                    _strip_ids(choice)
        split: list[tuple[bytes, Usage] | None] = []
        for part, own_choices, count in zip(parts, mine, tokens, strict=True):
            if len(own_choices) < part.count or not all(map(_ended, own_choices)):
                split.append(None)
                continue
            part.estimated = estimated
            own: dict[str, Any] = dict(members)
            _rename(own, request_id, part.request_id)
            own["choices"] = [{**choice, "index": n} for n, choice in enumerate(own_choices)]
            used = Usage(total.prompt_tokens, count, total.prompt_tokens + count)
            if "usage" in members:
                own["usage"] = {**usage, **msgspec.structs.asdict(used)}
            split.append((_ENCODE(own), used))
        return split
    except KeyError as e:
        raise Unfoldable(f"a body without {e}") from None
    except _BROKEN as e:
        raise Unfoldable(f"a body of unknown shape: {e}") from None


def _strip_ids(members: dict[str, Raw]) -> None:
    """Set the members as the engine does without requested ids: vLLM writes null."""
    for name in _IDS:
        if name in members:
            members[name] = Raw(_NULL)


def _tokens(total: int, mine: Sequence[Sequence[dict[str, Raw]]]) -> tuple[list[int], bool]:
    """The completion tokens of each part, and whether they are estimated."""
    if all(bytes(choice.get("token_ids", _NULL)) != _NULL for own in mine for choice in own):
        return [sum(len(_LISTED.decode(choice["token_ids"])) for choice in own) for own in mine], False
    counts = [[_counted(choice) for choice in own] for own in mine]
    known = [[count for count in own if count is not None] for own in counts]
    if all(len(k) == len(own) for k, own in zip(known, counts, strict=True)) and sum(map(sum, known)) == total:
        return [sum(own) for own in known], False
    return shares_of(
        total, [sum(len(bytes(c.get("message", c.get("text", b"")))) for c in own) for own in mine]
    ), True


def _reason_of(choice: dict[str, Raw]) -> str:
    """The finish_reason of a choice; "" where it has not ended."""
    try:
        return _REASON.decode(choice.get("finish_reason", _NULL)) or ""
    except _BROKEN:
        return "?"


def _ended(choice: dict[str, Raw]) -> bool:
    return _reason_of(choice) in REASONS


def _counted(choice: dict[str, Raw]) -> int | None:
    """The number of tokens with log probabilities in a choice; None: none."""
    logprobs: Any = msgspec.json.decode(choice.get("logprobs", _NULL))
    if isinstance(logprobs, dict):
        for name in ("content", "tokens"):
            if isinstance(listed := logprobs.get(name), list):
                return len(listed)
    return None


def _rename(members: dict[str, Any], theirs: str, own: str) -> None:
    """vLLM's ids end in the request's id: replace it by that of the client's request."""
    raw = members.get("id")
    if raw is not None and theirs and theirs != own:
        text = _TEXT.decode(raw)
        if text.endswith(theirs):
            members["id"] = text.removesuffix(theirs) + own
