"""Owns what Prometheus is told of embeddings: where items came from, how large arrays were, what was set apart.
Must not know requests, items or engines: it is given numbers.
Called by the embedder, once an item or an array."""

from __future__ import annotations

from aioprometheus.collectors import Registry

from proxy.telemetry import BATCH_BUCKETS, PREFIX, Counts, Histograms, Label

SOURCES = ("cache", "joined", "asked")


class EmbedMetrics:
    """One method a fact."""

    def __init__(self, registry: Registry) -> None:
        items = Counts(
            PREFIX + "embed_items_total",
            "Inputs of embeddings: found in the store, joined under way, asked of an engine.",
            (Label("source", SOURCES),),
            registry,
        )
        self._array = Histograms(
            PREFIX + "embed_array_items", "Inputs in one array call to an engine.", (), BATCH_BUCKETS, registry
        )
        self._split = Counts(
            PREFIX + "embed_arrays_split_total", "Arrays refused by an engine and asked in parts.", (), registry
        )
        self._poison = Counts(
            PREFIX + "embed_refused_items_total",
            "Inputs refused by an engine, alone or with their own.",
            (),
            registry,
        )
        self._sources = [items.of((source,)) for source in SOURCES]
        for source in SOURCES:
            items.count((source,), 0)
        self._split.count((), 0)
        self._poison.count((), 0)

    def cached(self, count: int) -> None:
        self._sources[0].value += count

    def joined(self, count: int) -> None:
        self._sources[1].value += count

    def asked(self, count: int) -> None:
        self._sources[2].value += count

    def array(self, items: int) -> None:
        self._array.seen((), items)

    def split(self) -> None:
        self._split.count(())

    def poison(self, items: int) -> None:
        self._poison.count((), items)
