"""The API keys file: how it is parsed, its errors, and which key a caller presents. Only hashes are kept."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import math
import re
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from proxy.access.caller import Caller, Rates
from proxy.config import NORMAL, PRIORITIES
from proxy.errors import SettingsError

_ENTRY: Final = re.compile(r"\s*\[\[\s*keys\s*\]\]")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,63}")
_PREFIX: Final = 8  # bytes of the hash by which an entry is found
_ROLES: Final = ("user", "operator")
_SHORTEST_TIME: Final = len("2027-01-31T00:00:00Z")
MOST_NAMES: Final = 20  # of keys that one line tells


def hash_of(key: str) -> bytes:
    """What is kept of a key. A plain hash is enough: keys are 256 random bits (`python -m proxy.keys`), no words
    that could be guessed, and each request pays for it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyRing:
    """Who may call, by the hash of the key.

    An entry is found by the first 8 bytes of the hash and compared whole in constant time. The time of the look-up
    can tell of those 8 bytes only, and who sends a key cannot choose its hash: nothing is learned that leads to a
    key sooner than guessing 256 bits.
    """

    def __init__(self, callers: Mapping[bytes, Caller]) -> None:
        self._entries: dict[bytes, list[tuple[bytes, Caller]]] = {}
        self._callers = {caller.id: caller for caller in callers.values()}
        self._ends = sorted({caller.expires for caller in callers.values()})
        for digest, caller in callers.items():
            self._entries.setdefault(digest[:_PREFIX], []).append((digest, caller))

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self)}>"

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    @property
    def has_operator(self) -> bool:
        return any(caller.operator for caller in self._callers.values())

    def expires_after(self, now: float) -> float:
        """When the next key ends, Unix time."""
        at = bisect_right(self._ends, now)
        return self._ends[at] if at < len(self._ends) else math.inf

    def get(self, id: str) -> Caller | None:
        """The owner of a key, by its id, as the file has it now."""
        return self._callers.get(id)

    def changed_from(self, before: KeyRing) -> str:
        """What is new, by the names of keys."""
        old, new = before._callers, self._callers
        parts = {
            "added": [caller.name for id, caller in new.items() if id not in old],
            "removed": [caller.name for id, caller in old.items() if id not in new],
            "changed": [caller.name for id, caller in new.items() if id in old and caller != old[id]],
        }
        return "; ".join(f"{what}: {_names(names)}" for what, names in parts.items() if names) or "no key"

    def name_of(self, tenant: bytes) -> str:
        """What the log calls a tenant: one of its keys."""
        callers = (caller for entries in self._entries.values() for _, caller in entries)
        return next((caller.name for caller in callers if caller.tenant == tenant), "a key that was removed")

    def find(self, key: str) -> Caller | None:
        digest = hash_of(key)
        for known, caller in self._entries.get(digest[:_PREFIX], ()):
            if hmac.compare_digest(known, digest):
                return caller
        return None


def _names(names: list[str]) -> str:
    rest = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + rest


def read_keys(text: str, path: str) -> KeyRing:
    """The ring that a keys file describes. Raises SettingsError that names each wrong entry and its line."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise SettingsError(f"{path}: not a TOML file: {e}") from None
    problems = [f"{path}: unknown key {name!r}: only [[keys]] entries" for name in table if name != "keys"]
    entries = table.get("keys", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise SettingsError("\n".join([*problems, f"{path}: holds no key: each is a [[keys]] entry"]))
    at = [number for number, line in enumerate(text.splitlines(), 1) if _ENTRY.match(line)]
    callers: dict[bytes, Caller] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"{path}:{at[index]}" if len(at) == len(entries) else f"{path}: entry {index + 1}"
        try:
            digest, caller = _entry(entry)
            if caller.name in names:
                raise ValueError(f"name = {caller.name!r}: is another key's too")
            if digest in callers:
                raise ValueError(f"sha256: is also that of {callers[digest].name!r}")
        except ValueError as e:
            problems.append(f"{where}: {e}")
            continue
        names.add(caller.name)
        callers[digest] = caller
    if problems:
        raise SettingsError("\n".join(problems))
    return KeyRing(callers)


def _entry(entry: Mapping[str, Any]) -> tuple[bytes, Caller]:
    for field in entry:
        if field not in _FIELDS:
            near = difflib.get_close_matches(field, list(_FIELDS), n=1)
            raise ValueError(f"unknown field {field!r}" + (f"; did you mean {near[0]}?" if near else ""))
    value = {name: read(entry.get(name)) for name, read in _FIELDS.items()}
    digest = bytes.fromhex(value["sha256"])
    tenant = value["tenant"]
    priority = NORMAL if value["priority"] is None else value["priority"]
    top = min(priority, NORMAL) if value["top_priority"] is None else value["top_priority"]
    if priority < top:
        raise ValueError("top_priority: must not be below priority")
    whose = f"tenant\0{tenant}" if tenant is not None else f"key\0{digest.hex()}"
    return digest, Caller(
        id=digest.hex()[:16],
        name=value["name"],
        tenant=hashlib.sha256(whose.encode()).digest(),
        models=value["models"],
        rates=Rates(
            rps=value["rps"],
            burst=value["burst"],
            tokens_per_minute=value["tokens_per_minute"],
            streams=value["streams"],
        ),
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
        if isinstance(raw, bool) or not isinstance(raw, int) or raw < 1:
            raise ValueError(f"{name}: must be a whole number of at least 1")
        return raw

    return read


def _rps(raw: object) -> float | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 < raw < float("inf"):
        raise ValueError("rps: must be a number of requests a second over 0")
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
