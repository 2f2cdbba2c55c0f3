"""Embeddings requests as items: a request into its inputs, inputs into one array, one answer into vectors,
vectors into a body. Bytes in, bytes out."""

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
"""OpenAI's bound of one array; a larger one goes to the engine as it is."""
TOKENS_AROUND: Final = 2
"""Tokens that BERT's tokenizers add to each text ([CLS], [SEP]); others add one or none."""
SLICE: Final = 256  # vectors per slice of an answer
LARGE: Final = 4096  # bytes: larger pieces of an answer are not joined with others

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
_BINARY: Final = frozenset({b'"bytes"', b'"bytes_only"'})
_OF_ONE_CLIENT: Final = frozenset(
    ["input", "user", "metadata", "stream", "stream_options", "safety_identifier", "prompt_cache_key", "store",
     "service_tier"]
)  # fmt: skip
"""Members that an array for several clients omits: they belong to one client and change no vector."""


class Unsplittable(ValueError):
    """An answer without exactly one vector for each item."""


class Inputs(NamedTuple):
    """The items of a request."""

    kind: Literal["text", "ids"]
    items: list[bytes]  # JSON, normalised
    tokens: list[int]  # per item; an estimate for texts


class Parts(NamedTuple):
    """An answer: the envelope, each item's object, and the prompt tokens of all items where known."""

    envelope: dict[str, Raw]
    data: list[dict[str, Raw]]
    tokens: int | None


def embeds_bytes(api_request: ApiRequest) -> bool:
    """Whether its answer is no JSON: vectors as bytes, which with `bytes` a header describes."""
    return bytes(api_request.fields.get("encoding_format", b"null")) in _BINARY


def embeds_chat(body: bytes) -> bool:
    """Whether a request for an embedding has `messages`, which the engine puts into a template, and no `input`."""
    try:
        fields = _OBJECT.decode(body)
    except _BAD:
        return False
    return "messages" in fields and "input" not in fields


def inputs_of(api_request: ApiRequest) -> Inputs | None:
    """A request's items; None where they, or their vectors, cannot be separated: it goes to the engine as it
    is."""
    if bytes(api_request.fields.get("encoding_format", b"null")) not in _JSON_FORMATS:
        return None
    raw = bytes(api_request.fields["input"])
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
    # 1.0 is not an id here: the engine decides about it.
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


def array_body(api_request: ApiRequest, items: Sequence[bytes]) -> bytes:
    """The body of one request for all items, with the options of `api_request`, which they share."""
    options = {name: raw for name, raw in api_request.fields.items() if name not in _OF_ONE_CLIENT}
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
    """The engine's count of prompt tokens; None where it is missing or implausible."""
    try:
        usage = _OBJECT.decode(envelope["usage"]) if "usage" in envelope else {}
        return _TOKENS.decode(usage["prompt_tokens"]) if "prompt_tokens" in usage else None
    except _BAD:
        return None


class Vector(NamedTuple):
    """One input's object in an answer: the JSON before and after the value of `index`."""

    before: bytes
    after: bytes

    @property
    def size(self) -> int:
        return len(self.before) + len(self.after)

    @classmethod
    def of(cls, datum: Mapping[str, Raw]) -> Vector:
        """A copy: the answer it came in is not kept alive."""
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
    """An answer without its vectors. A copy."""
    return _ENCODE({**parts.envelope, "data": []})


def put_together(envelope: bytes, vectors: Sequence[Vector], tokens: int | None) -> Iterator[list[bytes]]:
    """The body that the engine would have sent for these items alone: its order of members, its bytes of vectors.
    Without `tokens` it has no usage. Yields slices, as lists of pieces; large vectors are separate pieces that are
    not copied, the same bytes for each repetition of an input."""
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
