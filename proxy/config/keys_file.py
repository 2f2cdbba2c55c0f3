"""The API keys file: how it is parsed, and its errors. It holds hashes of keys only."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from proxy.config.toml_errors import read_toml
from proxy.config.values import LEAST_RATE
from proxy.config.vocabulary import NORMAL, PRIORITIES
from proxy.errors import SettingsError

_ENTRY: Final = re.compile(r"\s*\[\[\s*keys\s*\]\]")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,63}")
_KEY: Final = frozenset({"key", "api_key", "secret", "token", "value"})
_ONLY_HASH: Final = "; the file holds a key's sha256 only: python -m proxy.keys hash NAME < FILE makes the entry"
_ROLES: Final = ("user", "operator")
_MOST: Final = 10**9  # of each limit of a key, as of the settings' limits
_SHORTEST_TIME: Final = len("2027-01-31T00:00:00Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """One entry of the file. None: the default of the settings, or no restriction."""

    digest: bytes  # SHA-256 of the key
    name: str
    tenant: str | None
    models: frozenset[str] | None
    rps: float | None
    burst: int | None
    tokens_per_minute: int | None
    streams: int | None
    priority: int
    top_priority: int
    expires: float  # Unix time; infinity: never
    operator: bool


def hash_of(key: str) -> bytes:
    """What is kept of a key. A plain hash is enough: keys are 256 random bits (`python -m proxy.keys`), no words
    that could be guessed, and each request pays for it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys_file(text: str, path: str) -> list[KeyEntry]:
    """The entries of a keys file. Raises SettingsError that names each wrong entry and its line."""
    try:
        table = read_toml(text, _FIELDS)
    except ValueError as e:
        raise SettingsError(f"{path}: not a TOML file: {e}") from None
    problems = [f"{path}: unknown key {name!r}: only [[keys]] entries" for name in table if name != "keys"]
    entries = table.get("keys", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise SettingsError("\n".join([*problems, f"{path}: holds no key: each is a [[keys]] entry"]))
    at = [number for number, line in enumerate(text.splitlines(), 1) if _ENTRY.match(line)]
    found: dict[bytes, KeyEntry] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"{path}:{at[index]}" if len(at) == len(entries) else f"{path}: entry {index + 1}"
        try:
            key = _entry(entry)
            if key.name in names:
                raise ValueError(f"name = {key.name!r}: is another key's too")
            if key.digest in found:
                raise ValueError(f"sha256: is also that of {found[key.digest].name!r}")
        except ValueError as e:
            problems.append(f"{where}: {e}")
            continue
        names.add(key.name)
        found[key.digest] = key
    if problems:
        raise SettingsError("\n".join(problems))
    return list(found.values())


def _entry(entry: Mapping[str, Any]) -> KeyEntry:
    for field in entry:
        if field not in _FIELDS:
            near = difflib.get_close_matches(field, list(_FIELDS), n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"unknown field {field!r}{_ONLY_HASH if field in _KEY else meant}")
    value = {name: read(entry.get(name)) for name, read in _FIELDS.items()}
    priority = NORMAL if value["priority"] is None else value["priority"]
    top = min(priority, NORMAL) if value["top_priority"] is None else value["top_priority"]
    if priority < top:
        raise ValueError("top_priority: must not be below priority")
    return KeyEntry(
        digest=bytes.fromhex(value["sha256"]),
        name=value["name"],
        tenant=value["tenant"],
        models=value["models"],
        rps=value["rps"],
        burst=value["burst"],
        tokens_per_minute=value["tokens_per_minute"],
        streams=value["streams"],
        priority=priority,
        top_priority=top,
        expires=value["expires"],
        operator=value["role"] == "operator",
    )


def _sha256(raw: object) -> str:
    text = raw.strip().lower() if isinstance(raw, str) else ""
    if not _HEX.fullmatch(text):
        raise ValueError("sha256: must be the 64 hex digits of a key's SHA-256 (python -m proxy.keys new NAME)")
    return text


def _name(raw: object) -> str:
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        raise ValueError("name: must be 1 to 64 letters, digits and . _ @ : / + - (the log shows it)")
    return raw


def _tenant(raw: object) -> str | None:
    if raw is not None and (not isinstance(raw, str) or not 0 < len(raw) <= 256):
        raise ValueError("tenant: must be a text of 1 to 256 characters")
    return raw


def _models(raw: object) -> frozenset[str] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or not raw or not all(isinstance(name, str) and name for name in raw):
        raise ValueError('models: must be a list of names, such as ["m1"]; leave it out to allow every model')
    return frozenset(raw)


def _priority(name: str) -> Callable[[object], int | None]:
    def read(raw: object) -> int | None:
        if raw is None:
            return None
        if raw not in PRIORITIES:
            raise ValueError(f"{name}: must be one of {', '.join(PRIORITIES)}")
        return PRIORITIES.index(str(raw))

    return read


def _whole(name: str) -> Callable[[object], int | None]:
    def read(raw: object) -> int | None:
        if raw is None:
            return None
        if isinstance(raw, bool) or not isinstance(raw, int) or not 1 <= raw <= _MOST:
            raise ValueError(f"{name}: must be a whole number from 1 to {_MOST:,}")
        return raw

    return read


def _rps(raw: object) -> float | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not LEAST_RATE <= raw <= _MOST:
        raise ValueError(f"rps: must be a number of requests a second from {LEAST_RATE:f} to {_MOST:,}")
    return float(raw)


def _expires(raw: object) -> float:
    """A date and time with its offset, TOML's own or the same as text."""
    if raw is None:
        return math.inf
    try:
        when = raw if isinstance(raw, datetime) else datetime.fromisoformat(str(raw).strip())
        if when.tzinfo is None or not isinstance(raw, datetime | str) or len(str(raw)) < _SHORTEST_TIME:
            raise ValueError
        return when.timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            "expires: must be a time with its offset (RFC 3339), such as 2027-01-31T00:00:00Z"
        ) from None


def _role(raw: object) -> str:
    if raw is not None and raw not in _ROLES:
        raise ValueError(f"role: must be one of {', '.join(_ROLES)}")
    return "user" if raw is None else str(raw)


_FIELDS: Final[dict[str, Callable[[object], Any]]] = {
    "sha256": _sha256,
    "name": _name,
    "tenant": _tenant,
    "models": _models,
    "rps": _rps,
    "burst": _whole("burst"),
    "tokens_per_minute": _whole("tokens_per_minute"),
    "streams": _whole("streams"),
    "priority": _priority("priority"),
    "top_priority": _priority("top_priority"),
    "expires": _expires,
    "role": _role,
}
