"""Shapes of engines that no module knows, learned from one stream and one body of the same request. A template
or a body out, or Unfoldable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from proxy.wire.fold.known import Folded, Odd, Unfoldable
from proxy.wire.fold.shape import Layout, Members, Template

MOST_MEMBERS: Final = 64
MOST_BYTES: Final = 1024
"""Bounds of a learned shape: unknown members of one object, and bytes of one constant value."""

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Raw]])
_TEXT: Final = msgspec.json.Decoder(str | None)
_INT: Final = msgspec.json.Decoder(int)
_ENCODE: Final = msgspec.json.Encoder().encode
_NULL: Final = b"null"

_CHUNK: Final = frozenset({"id", "object", "created", "model", "choices", "usage"})
_CHOICE: Final = frozenset({"index", "delta", "text", "logprobs", "finish_reason", "stop_reason"})
_REASONING: Final = ("reasoning", "reasoning_content")
_DELTA: Final = frozenset({"role", "content", "tool_calls", *_REASONING})
_BODY: Final = frozenset({"id", "created", "model", "choices", "usage"})
_BODY_CHOICE: Final = frozenset({"index", "message", "text", "finish_reason", "stop_reason"})
_MESSAGE: Final = frozenset({"role", "content", *_REASONING})


Object = Mapping[str, bytes]
"""A JSON object: each member's name, and its value as JSON text."""


def _object(data: bytes) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in _OBJECT.decode(data).items()}


def _objects(data: bytes) -> list[dict[str, bytes]]:
    return [{name: bytes(value) for name, value in members.items()} for members in _OBJECTS.decode(data)]


_ODD: Final = (LookupError, AttributeError, TypeError, ValueError, msgspec.MsgspecError, RecursionError)


class Unproven(Unfoldable):
    """A member that only the body has: another body is needed to see whether its value is constant."""


class _Parts:
    """The contents of chunks, merged choice by choice."""

    def __init__(self, endpoint: Folded, template: Template) -> None:
        self.chat = endpoint == "chat"
        self._template = template
        self._chunk, self._choice = dict(template.chunk), dict(template.choice)
        self._delta = dict(template.delta)
        self.head: tuple[bytes, bytes, bytes] | None = None  # id, created, model
        self.usage: bytes | None = None
        self.texts: dict[int, list[str]] = {}
        self.reasons: dict[int, list[str]] = {}  # texts of reasoning
        self.ends: dict[int, tuple[bytes, bytes]] = {}  # finish_reason and stop_reason
        self.role: bytes | None = None

    def add(self, data: bytes) -> None:
        members = _object(data)
        _constant(members, _CHUNK, self._chunk, "chunk")
        if _text(members, "object") != self._template.chunk_object:
            raise Unfoldable("a chunk of another kind")
        head = members["id"], members["created"], members["model"]
        self.head = self.head or head
        if head != self.head:
            raise Unfoldable("chunks of different answers")
        usage = members.get("usage")
        self.usage = usage if usage is not None and usage != _NULL else None  # only the last chunk's is used
        for choice in _objects(members["choices"]):
            self._add_choice(choice)

    def _add_choice(self, choice: Object) -> None:
        _constant(choice, _CHOICE, self._choice, "choice")
        index = _INT.decode(choice.get("index", b"0"))
        if index in self.ends:
            raise Unfoldable("a choice that goes on after its end")
        texts = self.texts.setdefault(index, [])
        if choice.get("logprobs", _NULL) != _NULL:
            raise Unfoldable("logprobs, of which none were seen")
        if self.chat:
            delta = _object(choice["delta"])
            _constant(delta, _DELTA, self._delta, "delta")
            if delta.get("tool_calls", _NULL) not in (_NULL, b"[]"):
                raise Odd("a tool call, of which none was seen")
            role = delta.get("role", _NULL)
            if role != _NULL:
                if self.role not in (None, role):
                    raise Unfoldable("two roles")
                self.role = role
            texts.append(_text(delta, "content") or "")
            for name in _REASONING:
                if said := _text(delta, name):
                    if name != self._template.reasoning:
                        raise Odd("reasoning, of which none was seen")
                    self.reasons.setdefault(index, []).append(said)
        else:
            texts.append(_text(choice, "text") or "")
        reason = _text(choice, "finish_reason")
        if reason is not None:
            if reason not in ("stop", "length"):
                raise Odd(f"finish_reason {reason[:64]}")
            self.ends[index] = choice["finish_reason"], choice.get("stop_reason", _NULL)
        elif choice.get("stop_reason", _NULL) != _NULL:
            raise Unfoldable("a stop_reason before the end")


def look(data: bytes, endpoint: Folded, template: Template) -> None:
    """Raise what `body` would for this chunk of an unfinished stream, as far as one chunk shows."""
    _Parts(endpoint, template).add(data)


def body(chunks: Sequence[bytes], endpoint: Folded, template: Template) -> dict[str, Any]:
    """The body that the engine would have answered, member by member in its order."""
    parts = _Parts(endpoint, template)
    try:
        for data in chunks:
            parts.add(data)
    except KeyError as e:
        raise Unfoldable(f"a chunk without {e}") from None
    if parts.head is None or parts.usage is None:
        raise Unfoldable("no usage at the stream's end")
    if sorted(parts.texts) != [0] or len(parts.ends) != 1:
        raise Unfoldable(f"choices {sorted(parts.texts)[:8]}, of which {len(parts.ends)} have ended; one was seen")
    known: dict[str, object] = {
        "id": Raw(parts.head[0]),
        "created": Raw(parts.head[1]),
        "model": Raw(parts.head[2]),
        "object": template.body_object,
        "choices": [_choice(0, parts, template)],
        "usage": _usage(_object(parts.usage), template),
    }
    return _laid_out(template.body, known)


def _choice(index: int, parts: _Parts, template: Template) -> dict[str, object]:
    reason, stop = parts.ends[index]
    text: object = "".join(parts.texts[index])
    known: dict[str, object] = {"index": index, "finish_reason": Raw(reason), "stop_reason": Raw(stop)}
    if not text:
        if template.empty is None:
            raise Odd("no content: whether that is empty or null was not seen")
        text = Raw(template.empty.encode())
    if parts.chat:
        thought = "".join(parts.reasons.get(index, ()))
        message = {"role": Raw(parts.role or _NULL), "content": text}
        if template.reasoning is not None:
            if not thought:
                raise Odd("no reasoning where there was some")
            message[template.reasoning] = thought
        known["message"] = _laid_out(template.message, message)
    else:
        known["text"] = text
    if stop != _NULL and all(name != "stop_reason" for name, _ in template.body_choice):
        raise Unfoldable("a stop_reason that bodies do not have")
    return _laid_out(template.body_choice, known)


def _usage(given: Object, template: Template) -> dict[str, object]:
    names = {name for name, _ in template.usage}
    if any(value != _NULL for name, value in given.items() if name not in names):
        raise Unfoldable("a count that bodies do not have")
    known: dict[str, object] = {name: Raw(value) for name, value in given.items()}
    for name, layout in template.details:
        if given.get(name, _NULL) == _NULL:
            raise Unfoldable(f"usage without {name}")
        inner = _object(given[name])
        if any(value != _NULL for key, value in inner.items() if key not in dict(layout)):
            raise Unfoldable("a count that bodies do not have")
        known[name] = _counted({key: Raw(value) for key, value in inner.items()}, layout)
    objects = {name for name, _ in template.details}
    if any(value[:1] == b"{" for name, value in given.items() if name not in objects):
        raise Unfoldable("details of a count, of which none were seen")
    return _counted(known, template.usage)


def _counted(given: Mapping[str, object], layout: Layout) -> dict[str, object]:
    """Counts as in a body: a stream may omit null members."""
    if any(text is None and name not in given for name, text in layout):
        raise Unfoldable("a count that the stream does not have")
    return {name: given.get(name, Raw(_NULL)) for name, _ in layout}


def _laid_out(layout: Layout, known: Mapping[str, object]) -> dict[str, object]:
    if any(text is None and name not in known for name, text in layout):
        raise Unfoldable("a member that the stream does not have")
    return {name: known[name] if text is None else Raw(text.encode()) for name, text in layout}


def _constant(members: Object, known: frozenset[str], constants: Mapping[str, str], where: str) -> None:
    for name, value in members.items():
        if name not in known and (name not in constants or constants[name].encode() != value):
            raise Unfoldable(f"a {where} whose {name[:64]!r} is not as it was")


def _text(members: Object, name: str) -> str | None:
    text: str | None = _TEXT.decode(members.get(name, _NULL))
    return text


# -- learning ------------------------------------------------------------------------------------------


def learn(chunks: Sequence[bytes], answer: bytes, endpoint: Folded, second: bytes | None = None) -> Template:
    """The template of one stream and one body of the same request. Raises Unfoldable where there is none;
    Unproven where a `second` body, of another request, must show that a value is constant."""
    try:
        template = _learned(chunks, answer, endpoint, second)
        same(body(chunks, endpoint, template), answer)
    except (
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        ValueError,
        msgspec.MsgspecError,
        RecursionError,
    ) as e:
        raise Unfoldable(f"answers of unknown shape: {_reason(e):.200}") from None
    return template


def _reason(error: Exception) -> str:
    """What is odd about an answer, from what reading it raised."""
    if isinstance(error, KeyError):
        return f"no member {error.args[0]!r}"
    if isinstance(error, msgspec.MsgspecError):
        return str(error)  # "JSON is malformed: …", "Expected `object`, got `int`"
    return "nested too deeply" if isinstance(error, RecursionError) else "a part is missing or of another type"


def _learned(chunks: Sequence[bytes], answer: bytes, endpoint: Folded, second: bytes | None) -> Template:
    chat = endpoint == "chat"
    chunk_objects = [_object(data) for data in chunks]
    choices = [choice for chunk in chunk_objects for choice in _objects(chunk["choices"])]
    deltas = [_object(choice["delta"]) for choice in choices] if chat else []
    whole = _object(answer)
    (choice,) = _objects(whole["choices"])
    message = _object(choice["message"]) if chat else {}
    text = message["content"] if chat else choice["text"]
    other = _object(second) if second is not None else None
    other_choice = _objects(other["choices"])[0] if other is not None else None
    other_message = _object(other_choice["message"]) if chat and other_choice is not None else None
    chunk = _constants(chunk_objects, _CHUNK, whole)
    of_choice = _constants(choices, _CHOICE, choice)
    of_delta = _constants(deltas, _DELTA, message)
    usage = _object(whole["usage"])
    if whole["id"].split(b"-")[0] != chunk_objects[0]["id"].split(b"-")[0]:
        raise Unfoldable("ids of another kind in bodies")
    return Template(
        chunk_object=_text(chunk_objects[0], "object") or "",
        body_object=_text(whole, "object") or "",
        chunk=chunk,
        choice=of_choice,
        delta=of_delta,
        body=_layout(whole, _BODY | {"object"}, dict(chunk), other),
        body_choice=_layout(choice, _BODY_CHOICE, dict(of_choice), other_choice),
        message=_layout(message, _MESSAGE - _absent(message), dict(of_delta), other_message),
        usage=_counts(usage),
        details=tuple((name, _counts(_object(value))) for name, value in usage.items() if value[:1] == b"{"),
        empty=text.decode() if text in (_NULL, b'""') else None,
        reasoning=next((name for name in _REASONING if _text(message, name)), None),
    )


def _absent(message: Object) -> set[str]:
    """Reasoning members that are null or empty in this message: constants of an engine without reasoning."""
    return {name for name in _REASONING if name in message and not _text(message, name)}


def _counts(usage: Object) -> Layout:
    return tuple((name, "null" if value == _NULL else None) for name, value in usage.items())


def _constants(objects: Iterable[Object], known: frozenset[str], whole: Object) -> Members:
    """The unknown members of these objects, each with its constant value."""
    found: dict[str, bytes] = {}
    for members in objects:
        for name, value in members.items():
            if name in known:
                continue
            text = value
            if found.setdefault(name, text) != text or len(text) > MOST_BYTES:
                raise Unfoldable(f"a member {name[:64]!r} that is no constant")
            if name in whole and whole[name] != text and text != _NULL:
                raise Unfoldable(f"a member {name[:64]!r} that bodies have otherwise")
    if len(found) > MOST_MEMBERS:
        raise Unfoldable(f"{len(found)} members that are not known")
    return tuple((name, text.decode()) for name, text in found.items())


def _layout(members: Object, made: frozenset[str], constants: Mapping[str, str], other: Object | None) -> Layout:
    layout: list[tuple[str, str | None]] = []
    for name, value in members.items():
        text = value
        if name in made:
            layout.append((name, None))
            continue
        if text != _NULL and constants.get(name, "").encode() != text:
            if len(text) > MOST_BYTES or (text[:1] not in b'"tf' and text not in (b"[]", b"{}")):
                raise Unfoldable(f"a member {name[:64]!r} that only bodies have")
            if other is None:
                raise Unproven(f"a member {name[:64]!r} that only bodies have")
            if other.get(name, _NULL) != text:
                raise Unfoldable(f"a member {name[:64]!r} of bodies that is no constant")
        layout.append((name, text.decode()))
    if len(layout) > MOST_MEMBERS:
        raise Unfoldable(f"a body with {len(layout)} members in one object")
    return tuple(layout)


def same(folded: object, answer: bytes) -> None:
    """Raise Unfoldable unless a folded body equals the engine's, member by member in order, except for the id,
    the time, and details of counts, which may differ between two answers to one request."""
    try:
        ours, theirs = msgspec.json.decode(_ENCODE(folded)), msgspec.json.decode(answer)
        for each in (ours, theirs):
            each["id"] = each["created"] = None
            for name, details in each["usage"].items():
                if isinstance(details, dict):
                    each["usage"][name] = list(details)
        equal = _ENCODE(ours) == _ENCODE(theirs)
    except _ODD as e:
        raise Unfoldable(f"a body of unknown shape: {e!r:.200}") from None
    if not equal:
        raise Unfoldable("a folded stream that is not the engine's own body")
