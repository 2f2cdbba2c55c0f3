"""The request key: a cryptographic hash that identical requests have in common. Whether they share is not decided
here."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from proxy.errors import Code, GatewayError
from proxy.redis import TAG_BYTES
from proxy.wire import ApiRequest, stream_extras

SCHEMA: Final = "5"
"""Increased when the canonical form or the stored format changes, so that old entries no longer match."""

NAMES: Final = frozenset({"user", "safety_identifier", "prompt_cache_key"})
"""Fields that name a caller or a conversation: engines ignore them."""
_FLAGS: Final[dict[str, frozenset[bytes]]] = {
    "store": frozenset((b"true", b"false")),
    "service_tier": frozenset((b'"auto"', b'"default"', b'"flex"', b'"scale"', b'"priority"')),
}
"""Fields of OpenAI's own service, and the values that it documents."""
UNKEYED: Final = frozenset({"stream", "stream_options", "metadata"}) | NAMES | _FLAGS.keys()
"""The fields that cannot change the generated tokens. Every other field is keyed, known or unknown, and each of
these whose value is not `ordinary`."""

MAX_NAME: Final = 256  # characters of a `user` that every engine accepts
MAX_METADATA: Final = (16, 64, 512)  # members, characters of a name and of a value: OpenAI's own bounds
PADDING: Final = 64 * 1024  # bytes that a body may have beyond four times its canonical form

MAX_TAGS: Final = 256  # models whose tags are kept
LONG: Final = 16_384  # bytes over which values are only parsed where necessary

NewHash = Callable[[bytes], Any]
Headers = Sequence[tuple[str, str]]

# Numbers stay as they are written (1.0 is not 1 to a template that prints them); escapes and spaces do not.
_ANY: Final = msgspec.json.Decoder(float_hook=lambda text: msgspec.Raw(text.encode()))
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Any]], float_hook=lambda text: msgspec.Raw(text.encode()))
_MEMBERS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_FLAT: Final = msgspec.json.Decoder(list[dict[str, str | bool | None]])  # no numbers: it would take 1.0 for 1
_ENCODE: Final = msgspec.json.Encoder().encode
_TEXT: Final = msgspec.json.Decoder(str)
_TEXTS: Final = msgspec.json.Decoder(dict[str, str])
_ESCAPED: Final = rb"\u0022"  # a quote as .NET writes it
_OURS: Final = 10  # quotes of the key's own five texts
_SORTED: Final = msgspec.json.Encoder(order="deterministic").encode


def model_tag(model: str | None) -> bytes:
    """The prefix of the keys of a model's answers, for their removal. Models may share one."""
    return zlib.crc32((model or "").encode("utf-8", "surrogatepass")).to_bytes(TAG_BYTES)


def hash_for(cpuinfo: str) -> NewHash:
    """sha256 where the CPU has instructions for it, else blake2b: 1.5 against 2.2 µs a KB with them,
    about twice as slow without. Never a fast non-cryptographic hash: tenants could collide on purpose."""
    flags = cpuinfo.split()
    if "sha_ni" in flags or "sha2" in flags:
        return hashlib.sha256
    return lambda data: hashlib.blake2b(data, digest_size=32)


def hash_of_cpu() -> NewHash:
    """The hash for the processor that this runs on."""
    try:
        return hash_for(Path("/proc/cpuinfo").read_text("ascii", "replace"))
    except OSError:
        return hash_for("")


class Keyer:
    """Makes keys. `tenant` keeps answers of different owners apart."""

    def __init__(self, new_hash: NewHash = hashlib.sha256) -> None:
        self._new = new_hash
        self._tags: dict[str | None, bytes] = {}  # by model: see `model_tag`

    def key(
        self, api_request: ApiRequest, *, tenant: bytes = b"", fold: bool = True, headers: Headers = ()
    ) -> bytes:
        """The model's tag and a hash, 36 bytes. With `fold` the key is common to streaming and not; without, each
        mode has its own. `headers`: those that go up and on which an engine acts.

        Raises GatewayError 400 where a field cannot be read.
        """
        fields, body = api_request.fields, api_request.body
        generates = api_request.endpoint != "embeddings"
        mode = "both" if fold else "stream" if api_request.stream else "whole"
        extras = dict(sorted(stream_extras(api_request).items())) if "stream_options" in fields else None
        elsewhere = -_OURS  # quotes of the body outside keyed fields, less those of the key outside them
        value, messages = (_long_value, _long_messages) if len(body) > LONG else (_ANY.decode, _messages)
        name = ""
        try:
            keyed = {}
            for name in sorted(fields):
                if name == "messages":
                    keyed[name] = messages(fields[name])
                elif name not in UNKEYED:
                    keyed[name] = value(fields[name])
                elif name == "stream" and generates:
                    elsewhere += 2
                elif ordinary(api_request, name):
                    raw = bytes(fields[name])
                    elsewhere += 2 + raw.count(b'"') + raw.count(_ESCAPED)
                else:
                    keyed[name] = value(fields[name])
            if extras:
                elsewhere -= _ENCODE(extras).count(b'"')
            parts: tuple[object, ...] = (
                "gateway",
                SCHEMA,
                tenant,
                api_request.endpoint,
                mode,
                extras or None,
                keyed,
            )
            # One JSON value: no two lists of parts give the same bytes.
            text = _ENCODE(parts)
            # An engine may refuse a body for its spelling, though its canonical form equals that of others: it is
            # padded to many times its size, or a field holds a duplicate member, which the number of quotes shows.
            # It then shares only with requests of the same bytes.
            # The sum has to be exact: an escaped quote, left out of it, would hide a duplicate member's.
            quotes, due = body.count(b'"') + body.count(_ESCAPED), text.count(b'"') + elsewhere
            odd = quotes != due or len(body) > 4 * len(text) + PADDING
            if headers or odd:
                named = sorted((header, value.encode("utf-8", "surrogateescape")) for header, value in headers)
                text = _ENCODE((*parts, named, self._new(body).digest() if odd else None))
        except (msgspec.DecodeError, RecursionError, UnicodeError) as e:
            raise GatewayError(
                Code.INVALID_JSON, f"The field {name[:64]!r} is not valid JSON: {e}.", param=name[:64]
            ) from None
        model = api_request.model
        tag = self._tags.get(model)
        if tag is None:
            tag = model_tag(model)
            if len(self._tags) >= MAX_TAGS:
                self._tags.clear()
            if model is None or len(model) <= MAX_NAME:
                self._tags[model] = tag
        result: bytes = tag + self._new(text).digest()
        return result

    def items(
        self, api_request: ApiRequest, items: Sequence[bytes], *, tenant: bytes = b"", headers: Headers = ()
    ) -> tuple[bytes, list[bytes]]:
        """For a request for embeddings: the key common to all requests that may be one array, and each item's key.

        Raises GatewayError 400 where a field cannot be read.
        """
        options = {name: raw for name, raw in api_request.fields.items() if name != "input"}
        shared = msgspec.structs.replace(api_request, fields=options, body=_ENCODE(options))
        common = self.key(shared, tenant=tenant, headers=headers)
        new, start, tag = self._new, b"item" + common, common[:TAG_BYTES]
        return common, [tag + new(start + item).digest() for item in items]


def ordinary(api_request: ApiRequest, name: str) -> bool:
    """Whether every engine accepts this value of an unkeyed field. Other values are keyed: an engine may refuse
    them, and only requests with the same value may share the refusal."""
    raw = bytes(api_request.fields[name])
    if raw == b"null":
        return True
    if name == "stream":  # a boolean, as our decoder has seen; for embeddings it means nothing
        return api_request.endpoint != "embeddings" or raw == b"false"
    if name == "stream_options":
        return api_request.stream and api_request.endpoint != "embeddings" and _once(raw)
    try:
        if name in NAMES:
            if len(raw) > 12 * MAX_NAME:  # of six characters at most for each of two units
                return False
            text = _TEXT.decode(raw)
            return len(text) <= MAX_NAME and text.isprintable()
        if name in _FLAGS:
            return raw in _FLAGS[name]
        return _plain_metadata(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False


def _plain_metadata(raw: bytes) -> bool:
    most, longest_name, longest = MAX_METADATA
    if len(raw) > 16 * most * (longest_name + longest):
        return False
    members = _TEXTS.decode(raw)
    return (
        len(members) <= most
        and _once(raw)
        and all(len(name) <= longest_name and name.isprintable() for name in members)
        and all(len(value) <= longest and value.isprintable() for value in members.values())
    )


def _once(raw: bytes) -> bool:
    """Whether no member is duplicate, judged by the number of quotes."""
    try:
        return raw.count(b'"') + raw.count(_ESCAPED) == _ENCODE(_ANY.decode(raw)).count(b'"')
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False


def _messages(raw: msgspec.Raw) -> object:
    """The messages in canonical form: the order of a message's own members means nothing to the engine.

    Deeper order is kept: tool definitions and JSON schemas reach the model, or the grammar, in their order.
    """
    try:
        return msgspec.Raw(_SORTED(_FLAT.decode(raw)))  # nothing in it is deeper: 0.9 µs for two, else 2.4
    except msgspec.ValidationError:
        pass
    try:
        return [dict(sorted(message.items())) for message in _OBJECTS.decode(raw)]
    except msgspec.ValidationError:
        return _ANY.decode(raw)  # not a list of objects: the engine will say so


def _plain(data: bytes) -> bool:
    """Whether the canonical form of a value is its text without white space: it has no escape, and no -0, which
    equals 0. That saves a Python call for each number, and an object for each part."""
    return b"\\" not in data and b"-0" not in data


def _long_value(raw: msgspec.Raw) -> object:
    data = bytes(raw)
    return msgspec.Raw(msgspec.json.format(data, indent=-1)) if _plain(data) else _ANY.decode(data)


def _long_messages(raw: msgspec.Raw) -> object:
    data = bytes(raw)
    if _plain(data):
        try:
            return msgspec.Raw(_SORTED(_MEMBERS.decode(msgspec.json.format(data, indent=-1))))
        except msgspec.ValidationError:
            pass
    return _messages(raw)
