"""Metrics of embeddings: sources of items, sizes of arrays, bisections, refusals."""

from __future__ import annotations

from aioprometheus.collectors import Registry

from proxy.telemetry import BATCH_BUCKETS, PREFIX, Counts, Histograms, Label

SOURCES = ("cache", "joined", "asked")


class EmbedMetrics:
    """One method a fact."""

    def __init__(self, registry: Registry) -> None:
        items = Counts(
            PREFIX + "embed_items_total",
            "Embedding inputs by source: the store, another request's call, or an engine.",
            (Label("source", SOURCES),),
            registry,
        )
        self._array = Histograms(
            PREFIX + "embed_array_items", "Inputs in one array call to an engine.", (), BATCH_BUCKETS, registry
        )
        self._split = Counts(
            PREFIX + "embed_arrays_split_total", "Arrays refused by an engine and bisected.", (), registry
        )
        self._refused = Counts(
            PREFIX + "embed_refused_items_total",
            "Embedding inputs refused by an engine once isolated.",
            (),
            registry,
        )
        self._items = items
        for source in SOURCES:
            items.count((source,), 0)
        self._split.count((), 0)
        self._refused.count((), 0)

    def cached(self, count: int) -> None:
        self._items.count(("cache",), count)

    def joined(self, count: int) -> None:
        self._items.count(("joined",), count)

    def asked(self, count: int) -> None:
        self._items.count(("asked",), count)

    def array(self, items: int) -> None:
        self._array.seen((), items)

    def split(self) -> None:
        self._split.count(())

    def refused(self, items: int) -> None:
        self._refused.count((), items)
