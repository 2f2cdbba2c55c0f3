"""Embedding items and Redis: look-ups, a batch a round trip, and stores. Without Redis it does nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import zip_longest
from typing import Final

from proxy.flights.embeddings.items import EmbeddingItem, Origin, Result
from proxy.flights.queue.lookups import FairLookups
from proxy.flights.spec import tenant_of
from proxy.redis import Cache, Stored, wall_clock
from proxy.wire import Unsplittable

_UNKNOWN: Final = Origin(None, math.inf, None)


class ItemStore:
    """An entry is the answer to a request for one item alone, in the engine's own bytes."""

    def __init__(
        self,
        cache: Cache | None,
        *,
        makes: Callable[[str | None, bytes], bool] = lambda model, build: True,
        build_of: Callable[[str | None, str | None, float | None], bytes | None] = lambda *asked: b"",
        max_batch: int,
        on_batch: Callable[[int], None],
        found: Callable[[EmbeddingItem, Result | None], None],
        looked: Callable[[], None],
        lost: Callable[[EmbeddingItem, Exception], None],
        on_fault: Callable[[str, BaseException], None],
    ) -> None:
        """`makes`, `build_of`: see Backends. `found` is called with each item that was not discarded, `lost` with
        one whose result raised; `looked` after them, at the end of the round trip."""
        self._cache = cache
        self._makes = makes
        self._build_of = build_of
        self._on_batch = on_batch
        self._on_found = found
        self._looked = looked
        self._on_lost = lost
        self._on_fault = on_fault
        self._lookups: FairLookups[EmbeddingItem] = FairLookups(max_batch=max_batch)

    def __len__(self) -> int:
        return len(self._lookups)

    def __repr__(self) -> str:
        return f"<ItemStore arrived={len(self._lookups.arrived)} looking={len(self._lookups.looking)}>"

    def add(self, item: EmbeddingItem) -> bool:
        """Queue an item for a look-up. False: there is no store, or the item must be fresh."""
        if self._cache is None or item.fresh or not self._cache.available:
            return False
        self._lookups.add(item, _caller_of(item))
        return True

    def change_turn(self, item: EmbeddingItem) -> None:
        """An item that is queued for a look-up may have another owner."""
        self._lookups.move(item, _caller_of(item))

    def waits(self, item: EmbeddingItem) -> bool:
        """Whether it is queued for a look-up, or is being looked up."""
        return item in self._lookups

    def discard(self, item: EmbeddingItem) -> bool:
        """Remove an item. True if it was here."""
        return self._lookups.discard(item)

    def look(self) -> None:
        """Start a round trip for queued items, callers in turn, unless one is under way."""
        batch = self._lookups.due()
        if not batch or self._cache is None:
            return
        try:
            self._on_batch(len(batch))
            self._cache.lookup([item.key for item in batch], lambda found: self._found(batch, found))
        except Exception as e:  # noqa: BLE001 - items that cannot be looked up are requested from an engine
            self._on_fault("the look-up of embeddings", e)
            self._found(batch, ())

    def _found(self, batch: Sequence[EmbeddingItem], found: Sequence[Stored | None]) -> None:
        """The reply; a short one has nothing for the rest of the batch."""
        try:
            for item, stored in zip_longest(batch, found[: len(batch)]):
                try:
                    if self._lookups.looked(item):
                        self._on_found(item, self._read(item, stored))
                except Exception as e:  # noqa: BLE001 - one item must not end the look-up of the others
                    self._on_lost(item, e)
        finally:
            self._looked()

    def _read(self, item: EmbeddingItem, stored: Stored | None) -> Result | None:
        if stored is None:
            return None
        if not self._makes(item.kind.model, stored.build):
            item.replace_stored()
            return None
        try:
            return Result.of(stored)
        except Unsplittable:
            pass
        except Exception as e:  # noqa: BLE001 - one entry must not end the look-up of the others
            self._on_fault("a stored embedding", e)
        item.replace_stored()
        return None

    def keep(self, item: EmbeddingItem, result: Result, settled: Callable[[], None]) -> None:
        """Store a new vector; `settled` is called once it is, or will not be."""
        if self._cache is None or not item.storable:
            settled()
            return
        try:
            name, created, sent = result.origin or _UNKNOWN
            build = self._build_of(name, item.kind.model, sent)
            if build is None:
                settled()
                return
            stored = Stored(
                kind="whole",
                created=wall_clock(),
                body=result.alone(),
                prompt_tokens=result.tokens,
                completion_tokens=0,
                build=build,
            )
            replace = item.fresh or item.replace
            self._cache.store(item.key, stored, settled, replace=replace, asked=created)
        except Exception as e:  # noqa: BLE001 - it is served though it is not stored
            self._on_fault("the store of an embedding", e)
            settled()


def _caller_of(item: EmbeddingItem) -> Hashable:
    return None if item.owner is None else tenant_of(item.owner.caller)
