"""The metrics of one process as plain data, and the sums over several processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from aioprometheus import collectors
from aioprometheus.collectors import Registry
from aioprometheus.renderer import render

Value = float | list[tuple[float | str, float]]
"""A number; of a histogram the cumulative count of each bound, then `sum` and `count`."""


class Family(msgspec.Struct, array_like=True):
    """All series of one metric."""

    name: str
    doc: str
    kind: str  # counter, gauge or histogram
    samples: list[tuple[dict[str, str], Value]]


_GREATEST: Final = frozenset(
    {
        *("build_info", "backend_up", "backend_breaker", "backend_requests_running", "backend_requests_waiting"),
        *("backend_kv_cache_usage", "backend_start_time_seconds", "limits_local", "redis_refusing"),
        "redis_servers_away",
    }
)
_LEAST: Final = frozenset(
    {
        *("backend_folds", "cache_available", "start_time_seconds", "last_reload_successful"),
        *("certificate_seconds_left", "fleet_live", "admission_live"),
    }
)
"""Gauges of facts that all processes have in common. Every other gauge is the sum over the processes."""


def families_of(registry: Registry) -> list[Family]:
    """The metrics of this process now."""
    return [
        Family(each.name, each.doc, each.kind.name, [*map(_plain, each.get_all())]) for each in registry.get_all()
    ]


def _plain(sample: tuple[dict[str, str], Any]) -> tuple[dict[str, str], Value]:
    labels, value = sample
    return labels, list(value.items()) if isinstance(value, dict) else value


def summed(parts: Iterable[Sequence[Family]], prefix: str) -> list[Family]:
    """One family for each metric, over all processes. `prefix`: of the names in the tables above."""
    total: dict[str, tuple[Family, dict[tuple[tuple[str, str], ...], Value]]] = {}
    for families in parts:
        for family in families:
            _, series = total.setdefault(family.name, (family, {}))
            rule = family.name.removeprefix(prefix) if family.kind == "gauge" else ""
            for labels, value in family.samples:
                key = tuple(sorted(labels.items()))
                before = series.get(key)
                series[key] = value if before is None else _joined(rule, before, value)
    return [
        Family(family.name, family.doc, family.kind, [(dict(key), value) for key, value in series.items()])
        for family, series in total.values()
    ]


class Totals:
    """Families by name, read as `Metrics.samples` is."""

    def __init__(self, families: Iterable[Family], prefix: str) -> None:
        self._families = {family.name.removeprefix(prefix): family for family in families}

    def samples(self, name: str) -> list[tuple[dict[str, str], Any]]:
        """The samples of a metric, none where nothing has counted; `name` is without the prefix."""
        family = self._families.get(name)
        if family is None:
            return []
        return [(labels, dict(value) if isinstance(value, list) else value) for labels, value in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The value of one series; 0 where it does not exist."""
        return next((value for each, value in self.samples(name) if each == labels), 0.0)


def lasting(families: Iterable[Family]) -> list[Family]:
    """What counts on after the process has ended: all but the gauges."""
    return [family for family in families if family.kind != "gauge"]


def _joined(rule: str, one: Value, other: Value) -> Value:
    if isinstance(one, list) or isinstance(other, list):
        if not (isinstance(one, list) and isinstance(other, list)):
            return one  # two versions of the gateway: the first one's form
        counts = dict(other)
        return [(bound, count + counts.get(bound, 0.0)) for bound, count in one]
    if rule in _GREATEST:
        return max(one, other)
    if rule in _LEAST:
        return min(one, other)
    return one + other


class _Shown(collectors.Collector):
    """A family as a collector, to be rendered."""

    def __init__(self, family: Family, registry: Registry) -> None:
        super().__init__(family.name, family.doc, registry=registry)
        self._samples = family.samples

    def get_all(self) -> list[tuple[dict[str, str], Any]]:
        return [(labels, dict(value) if isinstance(value, list) else value) for labels, value in self._samples]


class _Counter(_Shown, collectors.Counter):
    pass


class _Gauge(_Shown, collectors.Gauge):
    pass


class _Histogram(_Shown, collectors.Histogram):
    pass


_SHOWN: Final[dict[str, type[_Shown]]] = {"counter": _Counter, "gauge": _Gauge, "histogram": _Histogram}


def rendered(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """The /metrics page and its content type, for an Accept header."""
    registry = Registry()
    for family in families:
        _SHOWN[family.kind](family, registry)
    body, headers = render(registry, [part.strip() for part in accept.split(",") if part.strip()])
    return body, headers["Content-Type"]
