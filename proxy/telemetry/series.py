"""How numbers are kept: plain counters and bisect histograms, turned into aioprometheus samples when scraped.
aioprometheus' own labelled increment costs 5 µs, a dict's 0.2."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Any, Final

from aioprometheus import collectors
from aioprometheus.collectors import Registry

OTHER: Final = "other"
MAX_LABEL: Final = 100  # characters
_UNSAFE: Final = re.compile(r"[^\x21\x23-\x5b\x5d-\x7e]")
"""All but printable ASCII, and `"` and `\\`: aioprometheus escapes nothing."""

Key = tuple[str, ...]  # the values of a metric's labels
Sample = tuple[dict[str, str], Any]


def clean(value: str) -> str:
    """A label value, cut to MAX_LABEL, without characters that the text format would have to escape."""
    return _UNSAFE.sub("_", value[:MAX_LABEL])


class Label:
    """A label with a bounded set of values: the known ones, then the first `room` others; all further ones become
    `other`."""

    __slots__ = ("_claimed", "_known", "_room", "name")

    def __init__(self, name: str, known: Iterable[str] = (), *, room: int = 0) -> None:
        self.name = name
        self._known = {OTHER, *known}
        self._claimed: set[str] = set()
        self._room = room

    def clean(self, value: str, *, claim: bool = True) -> str:
        """The value as shown. With `claim` a new value takes up one of the free places."""
        if value in self._known:
            return value
        text = clean(value)
        if text in self._known:
            return text
        if not claim or self._room <= 0:
            return OTHER
        self._room -= 1
        self._known.add(text)
        self._claimed.add(text)
        return text

    def forget(self, value: str) -> None:
        """Free the place of a claimed value."""
        text = clean(value)
        if text in self._claimed:
            self._claimed.remove(text)
            self._known.remove(text)
            self._room += 1


class _Labels(tuple[Label, ...]):
    """The labels of one metric. Only new values are cleaned."""

    __slots__ = ()

    def clean(self, key: Key) -> Key:
        return tuple(label.clean(value) for label, value in zip(self, key, strict=True))

    def named(self, key: Key) -> dict[str, str]:
        return {label.name: value for label, value in zip(self, key, strict=True)}


class Count:
    """One counter."""

    __slots__ = ("shown", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self.shown = False  # even at zero


class Counts(collectors.Counter):
    """A counter for each combination of labels."""

    def __init__(self, name: str, doc: str, labels: Iterable[Label], registry: Registry) -> None:
        super().__init__(name, doc, registry=registry)
        self._labels = _Labels(labels)
        self._series: dict[Key, Count] = {}

    def of(self, key: Key) -> Count:
        """The counter of these label values; keep it to save the look-up."""
        series = self._series.get(key)
        if series is None:
            key = self._labels.clean(key)
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = Count()
        return series

    def begin(self, key: Key) -> Count:
        """The counter of these label values, shown from the start, at zero."""
        series = self.of(key)
        series.shown = True
        return series

    def count(self, key: Key, by: float = 1) -> None:
        """Add `by`; 0 shows the series from the start."""
        series = self._series.get(key) or self.of(key)
        series.value += by
        series.shown = True

    def forget(self, name: str, value: str) -> None:
        """Drop every series that has this value of the label `name`."""
        at = [label.name for label in self._labels].index(name)
        text = clean(value)
        self._series = {key: count for key, count in self._series.items() if key[at] != text}

    def get_all(self) -> list[Sample]:
        """The series that have counted something."""
        return [(self._labels.named(key), c.value) for key, c in self._series.items() if c.shown or c.value]


class Histogram:
    """Counts of values by upper bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds  # ascending, each inclusive; above the last is +Inf
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def empty(self) -> bool:
        return not any(self.counts)

    def told(self) -> dict[float | str, float]:
        """As aioprometheus renders it: the cumulative count of each bound, then the sum and the count."""
        running = list(accumulate(self.counts))
        buckets: dict[float | str, float] = dict(zip((*self.bounds, inf), running, strict=True))
        return buckets | {"sum": self.sum, "count": running[-1]}


class RequestSeries:
    """The series of requests of one endpoint, status and verdict."""

    __slots__ = ("_count", "_latency", "_queue", "_ttft")

    def __init__(self, count: Count, latency: Histogram, queue: Histogram, ttft: Histogram) -> None:
        self._count = count
        self._latency = latency
        self._queue = queue
        self._ttft = ttft

    def observe(self, total_s: float, queue_s: float, ttft_s: float | None) -> None:
        """Count one request. Seconds; `ttft_s` None: it had no token. `Histogram.observe` written out three times:
        three calls less for each request."""
        self._count.value += 1
        latency = self._latency
        latency.counts[bisect_left(latency.bounds, total_s)] += 1
        latency.sum += total_s
        if ttft_s is not None:
            ttft = self._ttft
            ttft.counts[bisect_left(ttft.bounds, ttft_s)] += 1
            ttft.sum += ttft_s
        elif queue_s <= 0:
            return
        queue = self._queue
        queue.counts[bisect_left(queue.bounds, queue_s)] += 1
        queue.sum += queue_s


class Histograms(collectors.Histogram):
    """A histogram for each combination of labels."""

    def __init__(
        self, name: str, doc: str, labels: Iterable[Label], bounds: Sequence[float], registry: Registry
    ) -> None:
        super().__init__(name, doc, registry=registry)
        self._labels = _Labels(labels)
        self._bounds = bounds
        self._series: dict[Key, Histogram] = {}

    def of(self, key: Key) -> Histogram:
        """The histogram of these label values; keep it to save the look-up."""
        series = self._series.get(key)
        if series is None:
            key = self._labels.clean(key)
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = Histogram(self._bounds)
        return series

    def seen(self, key: Key, value: float) -> None:
        """Observe one value, in the metric's unit."""
        self.of(key).observe(value)

    def get_all(self) -> list[Sample]:
        """The series that have observed something."""
        return [(self._labels.named(key), seen.told()) for key, seen in self._series.items() if not seen.empty]


class _Read:
    """Numbers that are read at each scrape."""

    _readers: dict[tuple[tuple[str, str], ...], Callable[[], float]]

    def read_by(self, read: Callable[[], float], labels: Mapping[str, str]) -> None:
        """Register the reader of one number. A second one for the same labels replaces the first."""
        self._readers[tuple((name, clean(value)) for name, value in labels.items())] = read

    def forget(self, labels: Mapping[str, str]) -> None:
        """Unregister the reader of these labels."""
        self._readers.pop(tuple((name, clean(value)) for name, value in labels.items()), None)

    def get_all(self) -> list[Sample]:
        """All readable numbers; one that raises is left out: the page is needed most when something is broken."""
        samples: list[Sample] = []
        for labels, read in self._readers.items():
            try:
                samples.append((dict(labels), +read()))  # a bool becomes a number, None an error
            except Exception:  # noqa: BLE001, S112 - the other numbers are still shown
                continue
        return samples


class ReadGauge(_Read, collectors.Gauge):
    """A gauge that is read at each scrape."""

    def __init__(self, name: str, doc: str, registry: Registry) -> None:
        super().__init__(name, doc, registry=registry)
        self._readers = {}


class ReadCounter(_Read, collectors.Counter):
    """A counter kept elsewhere and read at each scrape."""

    def __init__(self, name: str, doc: str, registry: Registry) -> None:
        super().__init__(name, doc, registry=registry)
        self._readers = {}
