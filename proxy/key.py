"""Owns the RequestKey: which requests are one and the same, as a cryptographic hash.
Must not know policy (whether to share), flights or Redis.
Called by the gateway's handlers, once a request whose answer may be shared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from proxy.errors import Code, GatewayError
from proxy.wire.openai import Ask, stream_extras

SCHEMA: Final = b"2"
"""Raised whenever the canonical form or what is stored changes: old entries are then never found."""

UNKEYED: Final = frozenset({"stream", "stream_options", "user", "metadata"})
"""The fields that cannot change the generated tokens. Every other field is keyed, known to us or not."""

NewHash = Callable[[], Any]

# Numbers stay as they are written (1.0 is not 1 to a template that prints them); escapes and spaces do not.
_ANY: Final = msgspec.json.Decoder(float_hook=lambda text: msgspec.Raw(text.encode()))
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Any]], float_hook=lambda text: msgspec.Raw(text.encode()))


# Its own canonical form: a name, a number without exponent or sign, a string of ASCII without escapes.
_PLAIN: Final = re.compile(rb'true|false|null|0|[1-9][0-9]{0,14}|"[ !#-\[\]-~]*"')


def hash_for(cpuinfo: str) -> NewHash:
    """sha256 where the CPU has instructions for it, else blake2b: 1.5 against 2.2 µs a KB with them,
    about twice as slow without. Never a fast non-cryptographic hash: tenants could collide on purpose."""
    flags = cpuinfo.split()
    if "sha_ni" in flags or "sha2" in flags:
        return hashlib.sha256
    return lambda: hashlib.blake2b(digest_size=32)


class Keyer:
    """Makes keys. `tenant` keeps answers of different owners apart."""

    def __init__(self, new_hash: NewHash = hashlib.sha256) -> None:
        self._new = new_hash

    def key(self, ask: Ask, *, tenant: bytes = b"", fold: bool = True) -> bytes:
        """32 bytes. With `fold` the key is common to streaming and not; without, each mode has its own.

        Raises GatewayError 400 where a field cannot be read.
        """
        digest = self._new()
        parts = [b"gateway", SCHEMA, tenant, ask.endpoint.encode()]
        if not fold:
            parts.append(b"stream" if ask.stream else b"whole")
        extras = stream_extras(ask)
        for name in sorted(extras):
            parts += (b"stream_options." + name.encode("utf-8", "surrogatepass"), bytes(extras[name]))
        parts.append(b"")
        fields = ask.fields
        for name in sorted(fields):
            if name not in UNKEYED:
                raw = bytes(fields[name])
                parts += (
                    name.encode("utf-8", "surrogatepass"),
                    raw if _PLAIN.fullmatch(raw) else canonical(name, fields[name]),
                )
        # Each part is preceded by its length: no two lists of parts give the same bytes.
        sized = []
        for part in parts:
            sized.append(b"%d:" % len(part))
            sized.append(part)
        digest.update(b"".join(sized))
        result: bytes = digest.digest()
        return result


def canonical(name: str, raw: msgspec.Raw) -> bytes:
    """One field's value in one spelling: no spaces, no optional escapes.

    The order of a message's own members means nothing to the engine and is ignored. Deeper order is kept:
    tool definitions and JSON schemas reach the model, or the grammar, in the order in which they are written.
    """
    try:
        if name == "messages":
            messages = _OBJECTS.decode(raw)
            return msgspec.json.encode([dict(sorted(message.items())) for message in messages])
        return msgspec.json.encode(_ANY.decode(raw))
    except msgspec.ValidationError:
        return msgspec.json.format(bytes(raw), indent=-1)  # not a list of objects: the engine will say so
    except (msgspec.DecodeError, RecursionError, UnicodeError) as e:
        raise GatewayError(
            Code.INVALID_JSON, f"The field {name[:64]!r} is not valid JSON: {e}.", param=name[:64]
        ) from None
