"""Which caller a presented API key belongs to. Only hashes of keys are kept."""

from __future__ import annotations

import hashlib
import hmac
import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final

from proxy.access.caller import Caller, Rates
from proxy.config import KeyEntry, hash_of, read_keys_file
from proxy.flights import User

_PREFIX: Final = 8  # bytes of the hash by which an entry is found
MOST_NAMES: Final = 20  # of keys that one line tells


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
    """The ring of a keys file. Raises SettingsError that names each wrong entry and its line."""
    return KeyRing({entry.digest: _caller(entry) for entry in read_keys_file(text, path)})


def _caller(entry: KeyEntry) -> Caller:
    whose = f"tenant\0{entry.tenant}" if entry.tenant is not None else f"key\0{entry.digest.hex()}"
    tenant = hashlib.sha256(whose.encode()).digest()
    id_ = entry.digest.hex()[:16]
    return Caller(
        id=id_,
        name=entry.name,
        tenant=tenant,
        user=User(tenant, id_),
        models=entry.models,
        rates=Rates(
            rps=entry.rps,
            burst=entry.burst,
            tokens_per_minute=entry.tokens_per_minute,
            streams=entry.streams,
        ),
        priority=entry.priority,
        top_priority=entry.top_priority,
        expires=entry.expires,
        operator=entry.operator,
    )
