"""Owns the judgement whether an answer is whole: each choice ended by a reason of OpenAI's, a vector an input.
Must not know flights, engines or HTTP: frames, bodies and what was asked for in, what is missing out.
Called by the feeder, the carrier's split and the store, so that all of them judge alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from proxy.wire.frames import FINISH, Usage, usage_from
from proxy.wire.openai import ApiRequest, Endpoint
from proxy.wire.sse import data_of, is_done

REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""What OpenAI's finish_reason may be. vLLM also says `abort` and `error`: the model did not end such an answer."""
MAX_CHOICES: Final = 100_000
_NO_INDEX: Final = -1
_OPEN: Final = REASONS | {""}
MAX_COUNTED: Final = 1024 * 1024
"""Bytes of a list of prompts up to which its members are counted."""

_WRITTEN: Final = b'"finish_reason":"'
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_UNREADABLE: Final = (ValueError, RecursionError)
_NOTHING: Final = frozenset({b"null", b'""', b"{}", b"[]", b"false"})
_NULL: Final = Raw(b"null")


class Lack(NamedTuple):
    """Why an answer is not whole."""

    words: str  # for its reader
    few: bool = False  # what is there is good; choices are missing, or were not ended


class _Choice(Struct, gc=False):
    index: int | None = 0
    finish_reason: str | None = None


class _Frame(Struct, gc=False):
    choices: list[_Choice] | None = None


class _Ended(Struct, gc=False):
    finish_reason: str | None  # without it the first one ends the decoding: 64 MiB of `{}` are no million objects
    index: int | None = 0


class _Body(Struct, gc=False):
    choices: list[_Ended] | None = None
    usage: Usage | None = None
    error: Raw = _NULL
    object: str | None = None


class _Vector(Struct, gc=False):
    embedding: Raw
    index: int | None = None


class _Vectors(Struct, gc=False):
    data: list[_Vector] | None = None
    usage: Usage | None = None
    error: Raw = _NULL
    object: str | None = None


_FRAME: Final = msgspec.json.Decoder(_Frame)
_BODY: Final = msgspec.json.Decoder(_Body)
_VECTORS: Final = msgspec.json.Decoder(_Vectors)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_CHOICES: Final = msgspec.json.Decoder(list[_Ended])
_DATA: Final = msgspec.json.Decoder(list[_Vector])
_LIST: Final = msgspec.json.Decoder(list[Raw])


# -- what was asked for --------------------------------------------------------------------------------


def asked_of(ask: ApiRequest) -> int:
    """How many choices, or vectors, a request asks for; 0 where that cannot be told."""
    fields = ask.fields
    if ask.endpoint == "embeddings":
        return _items(fields.get("input", _NULL))
    n = bytes(fields.get("n", b"1"))
    count = 1 if n == b"null" else int(n) if n.isdigit() and len(n) < 6 else 0
    if ask.endpoint == "chat" or not count:
        return count
    if bytes(fields.get("prompt_embeds", _NULL)) != b"null":
        return 0
    return count * _items(fields.get("prompt", _NULL))


def _items(raw: Raw) -> int:
    """How many prompts these are: a text or a list of token ids is one."""
    view = memoryview(raw)
    head = bytes(view[:64]).lstrip()
    if head.startswith(b'"'):
        return 1
    first = head[1:].lstrip()[:1]
    if not head.startswith(b"[") or not first or first == b"]" or (first.isdigit() or first == b"-"):
        return 1 if first.isdigit() or first == b"-" else 0
    if len(view) > MAX_COUNTED:
        return 0
    try:
        return len(_LIST.decode(raw))
    except _BROKEN:
        return 0


# -- a stream ------------------------------------------------------------------------------------------


def note(frame: bytes, ended: dict[int, str]) -> bool:
    """Note which choices of a frame have ended, and how; "" is for one that was seen and has not ended. The first
    reason that is not OpenAI's stays. False: the frame has such a one."""
    good = True
    for choice in _choices_of(frame):
        index, reason = choice.index or 0, choice.finish_reason or ""
        if not 0 <= index < MAX_CHOICES:
            index, reason = _NO_INDEX, "?"
        good = good and reason in _OPEN
        known = ended.get(index)
        if known is None or (reason and known in _OPEN):
            ended[index] = reason
    return good


def _choices_of(frame: bytes) -> Sequence[_Choice]:
    data = data_of(frame) or b"{}"
    try:
        return _FRAME.decode(data).choices or ()
    except msgspec.ValidationError:
        return ()
    except _BROKEN:
        pass
    try:  # NaN and halves of an emoji, which many readers of JSON take
        return msgspec.convert(json.loads(data), _Frame).choices or ()
    except (*_UNREADABLE, msgspec.MsgspecError):
        return ()


def lack_of(ended: Mapping[int, str], asked: int) -> Lack | None:
    """What a stream lacks whose choices have ended so. `asked`: how many were asked for, 0 where nobody knows."""
    open_ = 0
    for index, reason in ended.items():
        if not reason:
            open_ += 1
        elif index == _NO_INDEX:
            return Lack("The engine's answer has a choice whose index cannot be.")
        elif reason not in REASONS:
            return Lack(f"The engine ended the answer with finish_reason {reason[:64]!r}.")
    whole = len(ended) - open_
    if asked and not open_ and whole == asked and max(ended) == asked - 1:
        return None
    absent = sum(index not in ended for index in range(asked)) if asked else not ended
    if not open_ and not absent:
        return None
    if not ended:
        return Lack("The engine ended the answer without a choice that has a finish_reason.", few=True)
    words = f"The engine ended the answer with {whole} of {max(asked, len(ended))} choices complete."
    return Lack(words, few=True)


# -- one body ------------------------------------------------------------------------------------------


def read_body(body: bytes, endpoint: Endpoint, asked: int) -> tuple[Usage | None, Lack | None]:
    """The usage of a successful answer's body, and what the answer lacks. Raises what `msgspec` raises where it is
    not JSON."""
    try:
        if endpoint == "embeddings":
            found: _Vectors | _Body = _VECTORS.decode(body)
        else:
            found = _BODY.decode(body)
    except msgspec.ValidationError:
        return _odd_body(body, endpoint, asked)
    if bytes(found.error) not in _NOTHING or found.object == "error":
        return found.usage, _ERROR
    if isinstance(found, _Vectors):
        return found.usage, _vectors(found.data, asked)
    choices = found.choices
    if asked == 1 and choices is not None and len(choices) == 1:  # as nearly all are: without another call
        (only,) = choices
        if not only.index and only.finish_reason in REASONS:
            return found.usage, None
    return found.usage, _chosen(choices, asked)


_ERROR: Final = Lack("The engine answered 200 with an error in place of the answer.")


def _odd_body(body: bytes, endpoint: Endpoint, asked: int) -> tuple[Usage | None, Lack | None]:
    """The same for a body with a member of an unexpected type: each member is read by itself."""
    try:
        members = _MEMBERS.decode(body)
    except msgspec.ValidationError:
        return None, Lack("The engine answered 200 with a body that is not a JSON object.")
    usage = usage_from(members.get("usage", _NULL))
    if bytes(members.get("error", _NULL)) not in _NOTHING or bytes(members.get("object", _NULL)) == b'"error"':
        return usage, _ERROR
    name = "data" if endpoint == "embeddings" else "choices"
    try:
        raw = members.get(name, _NULL)
        if endpoint == "embeddings":
            return usage, _vectors(_DATA.decode(raw), asked)
        return usage, _chosen(_CHOICES.decode(raw), asked)
    except _BROKEN:
        return usage, Lack(f"The engine's answer has no list of {name} that can be read.")


def _chosen(choices: Sequence[_Ended] | None, asked: int) -> Lack | None:
    if not choices:
        return Lack("The engine's answer has no choices.", few=choices is not None)
    ended: dict[int, str] = {}
    for choice in choices:
        index = choice.index or 0
        if index in ended or not 0 <= index < MAX_CHOICES:
            return Lack(f"The engine's answer has the choice {index} where it should not.", few=True)
        ended[index] = choice.finish_reason or ""
    return lack_of(ended, asked)


def _vectors(data: Sequence[_Vector] | None, asked: int) -> Lack | None:
    if not data:
        return Lack("The engine's answer has no embeddings.")
    if len(data) < asked:
        return Lack(f"The engine's answer has {len(data)} embeddings for {asked} inputs.")
    if not all(is_vector(datum.embedding) for datum in data):
        return Lack("The engine's answer has an embedding that is no vector.")
    indexes = [datum.index for datum in data if datum.index is not None]
    if indexes and sorted(indexes) != list(range(len(data))):
        return Lack(f"The engine's answer has {len(data)} embeddings, but not one for each index.")
    return None


def is_vector(raw: Raw) -> bool:
    """Whether it is a list that has numbers, and nothing that is null, or a text (base64) that is not empty."""
    text = bytes(raw)
    return text not in _NOTHING and text[:1] in (b"[", b'"') and (text[:1] == b'"' or b"n" not in text)


# -- what is stored ------------------------------------------------------------------------------------


def whole_streams(same: Sequence[bytes], ends: Iterable[Sequence[bytes]]) -> bool:
    """Whether stored frames are streams that ended: what all have the `same`, and each one's own end. [DONE] is
    last and once, and no choice is open; how many were asked for is not known here."""
    content = b"".join(same)
    if b"[DONE]" in content and any(b"[DONE]" in frame and is_done(frame) for frame in same):
        return False
    before: dict[int, str] = {}
    at = content.find(_WRITTEN)
    while at >= 0:  # as vLLM and llama.cpp write it, one search of all finds it
        start, stop = content.rfind(b"\n\n", 0, at), content.find(b"\n\n", at)
        if stop < 0:
            break
        note(content[start + 2 if start >= 0 else 0 : stop + 2], before)
        at = content.find(_WRITTEN, stop)
    for end in ends:
        if not end or not is_done(end[-1]) or any(map(is_done, end[:-1])):
            return False
        ended = endings(end, dict(before))
        if lack_of(ended, 0) is not None and lack_of(endings([*same, *end]), 0) is not None:
            return False
    return True


def endings(frames: Iterable[bytes], ended: dict[int, str] | None = None) -> dict[int, str]:
    """How the choices of a stream ended, besides those that are known to have."""
    ended = {} if ended is None else ended
    for frame in frames:
        if FINISH.search(frame) is not None:
            note(frame, ended)
    return ended


def whole_body(body: bytes) -> bool:
    """Whether a stored body is a whole answer, of one endpoint or another."""
    try:
        if not body.isascii():
            body.decode()  # a text that is only passed over is not looked into
        if b'"embedding"' in body and read_body(body, "embeddings", 1)[1] is None:
            return True
        return read_body(body, "chat", 0)[1] is None
    except _BROKEN:
        return False
