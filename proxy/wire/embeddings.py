"""Owns an embeddings request as items, items as one request, one answer taken apart and others put together.
Must not know flights, keys, Redis or who asks: bytes in, bytes out, and the arithmetic of usage.
Called by the embedder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec import Raw

from proxy.wire.frames import Tokens
from proxy.wire.openai import ApiRequest
from proxy.wire.prompt import BYTES_A_TOKEN
from proxy.wire.whole import is_vector

MAX_ITEMS: Final = 2048
"""OpenAI's own bound of one array; a larger one goes to the engine as it is."""
TOKENS_AROUND: Final = 2
"""What BERT's tokenizers put around each text ([CLS], [SEP]); others put one there, or none."""
SLICE: Final = 256  # vectors in one slice of an answer
LARGE: Final = 4096  # bytes from which on a piece of an answer is not copied together with others

_TEXTS: Final = msgspec.json.Decoder(str | list[str])
_LISTS: Final = msgspec.json.Decoder(list[list[int]])
_IDS: Final = msgspec.json.Decoder(list[int])
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_DATA: Final = msgspec.json.Decoder(list[dict[str, Raw]])
_WHOLE: Final = msgspec.json.Decoder(int)
_TOKENS: Final = msgspec.json.Decoder(Tokens)
_ENCODE: Final = msgspec.json.Encoder().encode
_BAD: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_JSON_FORMATS: Final = frozenset({b"null", b'"float"', b'"base64"'})
_OF_ONE_CLIENT: Final = frozenset(
    ["input", "user", "metadata", "stream", "stream_options", "safety_identifier", "prompt_cache_key", "store",
     "service_tier"]
)  # fmt: skip
"""What an array for several clients does not have: it belongs to one of them, and changes no vector."""


class Unsplittable(ValueError):
    """An answer that is not one vector for each item."""


class Inputs(NamedTuple):
    """The items of a request."""

    kind: Literal["text", "ids"]
    items: list[bytes]  # JSON, in one spelling
    tokens: list[int]  # of ids their number, of texts a guess


class Parts(NamedTuple):
    """An answer: what is around the vectors, each item's object, the prompt tokens of all where they were told."""

    envelope: dict[str, Raw]
    data: list[dict[str, Raw]]
    tokens: int | None


def inputs_of(ask: ApiRequest) -> Inputs | None:
    """A request's items. None where they, or their vectors, cannot be told apart: it goes up as it is."""
    if bytes(ask.fields.get("encoding_format", b"null")) not in _JSON_FORMATS:
        return None
    raw = bytes(ask.fields["input"])
    try:
        value = _TEXTS.decode(raw)
    except msgspec.ValidationError:
        return _ids(raw)
    except _BAD:
        return None
    texts = [value] if isinstance(value, str) else value
    if not 0 < len(texts) <= MAX_ITEMS:
        return None
    items = [_ENCODE(text) for text in texts]
    return Inputs("text", items, [TOKENS_AROUND + (len(item) - 2) // BYTES_A_TOKEN for item in items])


def _ids(raw: bytes) -> Inputs | None:
    # 1.0 is no id: whether it is 1 is for the engine to say.
    try:
        lists = _LISTS.decode(raw)
    except _BAD:
        try:
            lists = [_IDS.decode(raw)]
        except _BAD:
            return None
    if len(lists) > MAX_ITEMS:
        return None
    return Inputs("ids", [_ENCODE(ids) for ids in lists], [len(ids) for ids in lists])


def array_body(ask: ApiRequest, items: Sequence[bytes]) -> bytes:
    """One request for all items, with the options of `ask`, which are those of all."""
    options = {name: raw for name, raw in ask.fields.items() if name not in _OF_ONE_CLIENT}
    return _ENCODE({**options, "input": [Raw(item) for item in items]})


def take_apart(body: bytes, count: int) -> Parts:
    """An engine's answer for `count` items, in their order. Raises Unsplittable."""
    try:
        envelope = _OBJECT.decode(body)
        found = _DATA.decode(envelope["data"])
        data = {_WHOLE.decode(datum["index"]): datum for datum in found}
        if len(found) != count or data.keys() != set(range(count)):
            raise Unsplittable(f"{len(found)} vectors for {count} inputs, or numbered otherwise")
        if not all("embedding" in datum and is_vector(datum["embedding"]) for datum in found):
            raise Unsplittable("an input without its vector")
        tokens = _prompt_tokens(envelope)
    except KeyError as e:
        raise Unsplittable(f"it has no {e.args[0]}") from None
    except _BAD as e:
        raise Unsplittable(f"it is no list of vectors: {e}") from None
    return Parts(envelope, [data[n] for n in range(count)], tokens)


def _prompt_tokens(envelope: Mapping[str, Raw]) -> int | None:
    """The engine's count; None where it gives none, or one that cannot be."""
    try:
        usage = _OBJECT.decode(envelope["usage"]) if "usage" in envelope else {}
        return _TOKENS.decode(usage["prompt_tokens"]) if "prompt_tokens" in usage else None
    except _BAD:
        return None


class Vector(NamedTuple):
    """One input's object in an answer, as JSON, around the value of its `index`."""

    before: bytes
    after: bytes

    @property
    def size(self) -> int:
        return len(self.before) + len(self.after)

    @classmethod
    def of(cls, datum: Mapping[str, Raw]) -> Vector:
        """A copy: the answer that it came in is not kept."""
        around: list[Raw | bytes] = [b"{"]
        before = b""
        for name, value in datum.items():
            around += (b"," if len(around) > 1 or before else b"", _ENCODE(name), b":")
            if name == "index":
                before, around = b"".join(around), []
            else:
                around.append(value)
        return cls(before, b"".join([*around, b"}"]))


def envelope_of(parts: Parts) -> bytes:
    """What is around the vectors of an answer: the answer without them. A copy."""
    return _ENCODE({**parts.envelope, "data": []})


def put_together(envelope: bytes, vectors: Sequence[Vector], tokens: int | None) -> Iterator[list[bytes]]:
    """The body that the engine would have sent for these items alone: members in its order, vectors in its bytes.
    Without `tokens` it says nothing of usage. It comes in slices of pieces; large vectors are pieces of their own,
    the same bytes wherever an input is repeated, and are not copied."""
    members: dict[str, Raw | bytes] = dict(_OBJECT.decode(envelope))
    if tokens is None:
        members.pop("usage", None)
    else:
        usage = _OBJECT.decode(members["usage"]) if "usage" in members else {}
        members["usage"] = _ENCODE({**usage, "prompt_tokens": tokens, "total_tokens": tokens})
    names = list(members)
    at = names.index("data")
    head = [_member(name, members[name]) for name in names[:at]]
    small = [b"{" + b",".join([*head, b'"data":['])]
    for start in range(0, len(vectors), SLICE):
        pieces: list[bytes] = []
        for n, vector in enumerate(vectors[start : start + SLICE], start):
            for piece in (b"," if n else b"", vector.before, b"%d" % n, vector.after):
                if len(piece) < LARGE:
                    small.append(piece)
                    continue
                pieces += (b"".join(small), piece)
                small = []
        pieces.append(b"".join(small))
        small = []
        yield pieces
    tail = [_member(name, members[name]) for name in names[at + 1 :]]
    yield [b",".join([b"]", *tail]) + b"}"]


def _member(name: str, value: Raw | bytes) -> bytes:
    return b"%b:%b" % (_ENCODE(name), value)


def shares(total: int, weights: Sequence[int], known: Sequence[int | None]) -> list[int]:
    """Each item's part of the engine's count of all. What is known is kept; the others have the rest in proportion
    to their weights, by largest remainder, so that the sum is `total` whatever comes. Where what is known
    cannot be (more than there is, or less with nobody else to have it), it only weighs."""
    open_ = [n for n, count in enumerate(known) if count is None]
    rest = total - sum(count for count in known if count is not None)
    if rest < 0 or (rest > 0 and not open_):
        weights = [weight if count is None else count for weight, count in zip(weights, known, strict=True)]
        open_, rest = list(range(len(known))), total
        known = [None] * len(known)
    found = [count or 0 for count in known]
    weight_of = {n: max(1, weights[n]) for n in open_}
    whole = sum(weight_of.values())
    for n in open_:
        found[n] = rest * weight_of[n] // whole
    left = rest - sum(found[n] for n in open_)
    for n in sorted(open_, key=lambda n: (-(rest * weight_of[n] % whole), n))[:left]:
        found[n] += 1
    return found
