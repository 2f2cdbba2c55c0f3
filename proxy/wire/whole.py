"""Whether an answer is complete: each choice ended by a finish_reason of OpenAI's, one vector for each input.
Ingest, merged answers and the cache all decide by this module."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from proxy.wire.document import long_number
from proxy.wire.frames import FINISH, Usage, usage_from
from proxy.wire.openai import ApiRequest, Endpoint
from proxy.wire.sse import data_of, is_done

REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call", "repetition"})
"""OpenAI's values of finish_reason, and vLLM's `repetition`, which a request asks for (`repetition_detection`)."""
UNFINISHED: Final = frozenset({"abort", "error"})
"""vLLM's values where the answer is not at its end. One that is not known is passed on, and not stored."""
MAX_CHOICES: Final = 100_000
_NO_INDEX: Final = -1
_OPEN: Final = REASONS | {""}
MAX_COUNTED: Final = 1024 * 1024
"""Bytes of a list of prompts up to which its items are counted."""

SMALL: Final = 64 * 1024
"""Bytes of an event whose numbers may have any length: 4 MiB of indexes of 4,299 digits take 80 ms."""

_WRITTEN: Final = b'"finish_reason":"'
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_UNREADABLE: Final = (ValueError, RecursionError)
_NOTHING: Final = frozenset({b"null", b'""', b"{}", b"[]", b"false"})
_NULL: Final = Raw(b"null")
_NO_NUMBERS: Final = (b'"', b"n", b"t", b"f", b"{")
"""What texts, null, NaN, Infinity, booleans and objects have in JSON, and numbers have not."""
_LARGE: Final = re.compile(rb"e[0-9+]")  # a float that may be out of range
_LONG: Final = re.compile(rb"[0-9]{9}")
_STRIDE: Final = 34
"""An integer of 309 digits, which may be out of range, has nine in succession among each 34th byte."""
_NUMBERS: Final = msgspec.json.Decoder(list[float])


class Lack(NamedTuple):
    """Why an answer is not whole."""

    words: str  # the error message for the client
    few: bool = False  # the choices present are valid; some are missing or not ended
    more: bool = False  # all that was asked for is there: who asked for it gets what came, and nobody later


class _Choice(Struct, gc=False):
    index: int | None = 0
    finish_reason: str | None = None


class _Frame(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Raw = _NULL


class _Ended(Struct, gc=False):
    finish_reason: str | None  # required, so that the first object without it ends the decoding: 64 MiB of `{}`
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


# -- the request ---------------------------------------------------------------------------------------


def asked_of(api_request: ApiRequest) -> int:
    """The number of choices, or vectors, that a request asks for; 0: not known."""
    fields = api_request.fields
    if api_request.endpoint == "embeddings":
        return _items(fields.get("input", _NULL))
    n = bytes(fields.get("n", b"1"))
    count = 1 if n == b"null" else int(n) if n.isdigit() and len(n) < 6 else 0
    if api_request.endpoint == "chat" or not count:
        return count
    if bytes(fields.get("prompt_embeds", _NULL)) != b"null":
        return 0
    return count * _items(fields.get("prompt", _NULL))


def _items(raw: Raw) -> int:
    """The number of prompts, 0 where it is not known: a text or a list of token ids is one, and objects may be the
    messages of one conversation (vLLM) or an input each (others)."""
    view = memoryview(raw)
    head = bytes(view[:64]).lstrip()
    if head.startswith(b'"'):
        return 1
    first = head[1:].lstrip()[:1]
    if not head.startswith(b"[") or not first or first == b"]" or (first.isdigit() or first == b"-"):
        return 1 if first.isdigit() or first == b"-" else 0
    if first == b"{" or len(view) > MAX_COUNTED:
        return 0
    try:
        return len(_LIST.decode(raw))
    except _BROKEN:
        return 0


# -- a stream ------------------------------------------------------------------------------------------


def note(frame: bytes, ended: dict[int, str]) -> bool:
    """Record the finish_reason of each choice in a frame; "" for a choice that has not ended. The first reason
    that is not OpenAI's stays. False: the frame has such a reason."""
    good = True
    for choice in _choices_of(frame) or ():
        good = _record(choice, ended) and good
    return good


def take_event(frame: bytes, ended: dict[int, str], asked: int, *, content: bool) -> Lack | None:
    """`note` for an event of a stream. Returns why no whole answer has such an event: it is no object with
    choices, a choice was not asked for, has ended already and has `content` here, or ends by a reason that is not
    OpenAI's. `asked`: as in `lack_of`."""
    choices: Sequence[_Choice] | None = None
    if frame.startswith(b"data: {") and SMALL > len(frame) == frame.find(b"\n") + 2 and 13 not in frame:
        try:  # here and not in a function: several times a stream
            choices = _FRAME.decode(frame[6:-2]).choices
        except _BROKEN:
            pass
    if choices is None:
        choices = _choices_of(frame)
    if choices is None:
        return _STRAY
    lack = None
    for choice in choices:
        index = choice.index or 0
        if choice.finish_reason in REASONS and 0 <= index < asked and index not in ended:
            ended[index] = choice.finish_reason  # nearly every end, without another call
            continue
        if content and ended.get(index):
            lack = Lack(f"The engine continued the choice {index} after its finish_reason.", more=True)
        elif asked <= index and asked:
            lack = lack or _surplus(asked)
        if (choice.finish_reason is not None or not asked or index < 0) and not _record(choice, ended):
            lack = lack or _STRAY  # `lack_of` says the reason
    return lack


_STRAY: Final = Lack("The engine sent an event in its stream that is no part of an answer.", more=True)


def _surplus(asked: int) -> Lack:
    return Lack(f"The engine's answer has more choices than the {asked} asked for.", more=True)


def _record(choice: _Choice, ended: dict[int, str]) -> bool:
    index, reason = choice.index or 0, choice.finish_reason or ""
    if not 0 <= index < MAX_CHOICES:
        index, reason = _NO_INDEX, "?"
    known = ended.get(index)
    if known is None or (reason and known in _OPEN):
        ended[index] = reason
    return reason in _OPEN


def _choices_of(frame: bytes) -> Sequence[_Choice] | None:
    """None: not an event of an answer. One without data is none for a client, and one may have usage alone."""
    data = data_of(frame)
    if not data or data.isspace():
        return ()
    if len(data) > SMALL and long_number(data):
        return None
    try:
        found = _FRAME.decode(data)
    except msgspec.ValidationError:
        return None
    except _BROKEN:
        if long_number(data):
            return None
        try:  # NaN and lone surrogates, which many JSON readers accept
            # Of bytes, it would take a BOM and UTF-16, which no client takes within an event.
            found = msgspec.convert(json.loads(data.decode("utf-8", "surrogatepass")), _Frame)
        except (*_UNREADABLE, msgspec.MsgspecError):
            return None
    return () if found.choices is None and bytes(found.usage) not in _NOTHING else found.choices


def lack_of(ended: Mapping[int, str], asked: int) -> Lack | None:
    """What a stream lacks, by the finish_reasons of its choices. `asked`: number of choices requested, 0: not
    known."""
    open_ = 0
    unknown: Lack | None = None
    for index, reason in ended.items():
        if not reason:
            open_ += 1
        elif index == _NO_INDEX:
            return Lack("The engine's answer has a choice with an invalid index.")
        elif reason not in REASONS:
            words = f"The engine ended the answer with finish_reason {reason[:64]!r}."
            if reason in UNFINISHED:
                return Lack(words)
            unknown = unknown or Lack(words, more=True)
    whole = len(ended) - open_
    if asked and not open_ and whole == asked and max(ended) == asked - 1:
        return unknown
    absent = sum(index not in ended for index in range(asked)) if asked else not ended
    if not open_ and not absent:
        return _surplus(asked) if asked else unknown
    if not ended:
        return Lack("The engine ended the answer without any finish_reason.", few=True)
    words = f"The engine ended the answer with {whole} of {max(asked, len(ended))} choices complete."
    return Lack(words, few=True)


# -- one body ------------------------------------------------------------------------------------------


def read_body(body: bytes, endpoint: Endpoint, asked: int) -> tuple[Usage | None, Lack | None]:
    """The usage in the body of a successful answer, and what the answer lacks. Raises msgspec's error where the
    body is not JSON."""
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
    if asked == 1 and choices is not None and len(choices) == 1:  # the common case, without another call
        (only,) = choices
        if not only.index and only.finish_reason in REASONS:
            return found.usage, None
    return found.usage, _chosen(choices, asked)


_ERROR: Final = Lack("The engine answered 200 with an error instead of an answer.")


def _odd_body(body: bytes, endpoint: Endpoint, asked: int) -> tuple[Usage | None, Lack | None]:
    """`read_body` for a body with a member of an unexpected type: each member is read by itself."""
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
            return Lack(f"The engine's answer has the choice {index} at an invalid place.", few=True)
        ended[index] = choice.finish_reason or ""
    return lack_of(ended, asked)


def _vectors(data: Sequence[_Vector] | None, asked: int) -> Lack | None:
    if not data:
        return Lack("The engine's answer has no embeddings.")
    if asked and len(data) != asked:
        return Lack(f"The engine's answer has {len(data)} embeddings for {asked} inputs.")
    if not all(is_vector(datum.embedding) for datum in data):
        return Lack("The engine's answer has an embedding that is not a vector.")
    indexes = [datum.index for datum in data if datum.index is not None]
    if indexes and sorted(indexes) != list(range(len(data))):
        return Lack(f"The engine's answer has {len(data)} embeddings, but not one for each index.")
    return None


def is_vector(raw: Raw) -> bool:
    """Whether it is a non-empty list of finite numbers, or a non-empty string (base64). 1,024 numbers are searched
    in 8 µs; decoding them takes 100."""
    text = bytes(raw)
    if text in _NOTHING:
        return False
    if text[:1] == b'"':
        return True
    if text[:1] != b"[" or any(mark in text for mark in _NO_NUMBERS):
        return False
    long = len(text) > 9 * _STRIDE and _LONG.search(text[::_STRIDE]) is not None
    if not long and b"E" not in text and _LARGE.search(text) is None:
        return True
    try:
        if long:
            _NUMBERS.decode(text)  # as integers they would be in range, and take quadratic time
        else:
            msgspec.json.decode(text)
    except _BROKEN:
        return False  # out of range
    return True


# -- stored answers ------------------------------------------------------------------------------------


def whole_streams(same: Sequence[bytes], ends: Iterable[Sequence[bytes]]) -> bool:
    """Whether stored frames are complete streams: the common frames `same`, and for each stream its `ends`.
    [DONE] comes last and once, and no choice is open; the number of requested choices is not known here."""
    content = b"".join(same)
    if b"[DONE]" in content and any(b"[DONE]" in frame and is_done(frame) for frame in same):
        return False
    before: dict[int, str] = {}
    at = content.find(_WRITTEN)
    while at >= 0:  # in the spelling of vLLM and llama.cpp, found by one search
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
    """The finish_reasons of a stream's choices, added to those in `ended`."""
    ended = {} if ended is None else ended
    for frame in frames:
        if FINISH.search(frame) is not None:
            note(frame, ended)
    return ended


def whole_body(body: bytes) -> bool:
    """Whether a stored body is a complete answer of any endpoint."""
    try:
        if not body.isascii():
            body.decode()  # msgspec does not check strings that it skips
        if b'"embedding"' in body and read_body(body, "embeddings", 0)[1] is None:
            return True
        return read_body(body, "chat", 0)[1] is None
    except _BROKEN:
        return False
