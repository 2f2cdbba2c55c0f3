"""Simulated servers whose long-run shares are known exactly. They get the arrivals of the measured stages, so that
what chance in the arrivals did to a stage can be subtracted, whatever the measured server is."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Final

from loadgen.analysis.search.crossing import Controls, Luck
from loadgen.analysis.search.queue import tail, waits
from loadgen.analysis.search.stage import Stage

HEAVIEST: Final = 0.985
"""Load of the simulated queue above which a stage is too short for its law to be of use."""
WIDTHS: Final = (0.5, 1.0, 2.0)
"""Windows that are tried, relative to the mean time of a response."""
GRID: Final = (0.2, 0.4, 0.55, 0.68, 0.78, 0.85, 0.9, 0.94, 0.97, 1.0, 1.04)
"""Loads, near the limit, of the simulated queues that are tried, before the best one is refined."""
COMPARED: Final = 12_000
"""Requests by which the simulated queues are compared."""


class Queue:
    """Chooses the service time of the simulated queue."""

    def __init__(self) -> None:
        self._service = 0.0
        self._compared = 0

    def service(self, stages: Sequence[Stage], reference: float) -> float:
        """The one with which waits follow the measured strain best. Searched for again only after the sample has
        grown by half. `reference`: a load near the limit."""
        requests = sum(map(len, stages))
        if requests >= 1.5 * self._compared:
            self._compared = requests
            stages = _recent(stages, COMPARED)
            loads, step = list(GRID), 0.04
            scored: dict[float, float] = {}
            for _ in range(4):
                scored |= {load: _followed(stages, load / reference) for load in loads if load not in scored}
                best = max(scored, key=lambda load: scored[load])
                loads, step = [best * (1 - step), best * (1 + step)], step / 2.5
            self._service = best / reference
        return self._service


def controls_of(stages: Sequence[Stage], service: float) -> Controls:
    """`service`: of the simulated queue of one place; 0: none is known."""
    queue = _queue(stages, service) if service > 0 else None
    window = _window(stages)
    kinds = [kind for kind in (queue, window) if kind is not None]
    return Controls(stages, [[kind[number] for kind in kinds] for number in range(len(stages))])


def _queue(stages: Sequence[Stage], service: float) -> list[Luck] | None:
    """Whether a request waits in a queue of one place (M/D/1) longer than as large a share did as was bad."""
    light = [stage for stage in stages if service * stage.load < HEAVIEST]
    waited = {id(stage): waits(stage.due, service) for stage in light}
    limit = _quantile([value for stage in light for value in waited[id(stage)][stage.skipped :]], _bad(light))
    if limit is None:
        return None
    return [
        Luck([float(wait > limit) for wait in waited[id(stage)]], tail(service * stage.load, limit / service))
        if id(stage) in waited else Luck([0.0] * len(stage), 0.0)
        for stage in stages
    ]  # fmt: skip


def _window(stages: Sequence[Stage]) -> list[Luck] | None:
    """Whether so many requests came in a time before a request, as if all were served at once (M/D/infinity)."""
    flying = sum(stage.overlap * len(stage) / stage.load for stage in stages)
    requests = sum(map(len, stages))
    if not requests or flying <= 0:
        return None
    response = flying / requests
    best: tuple[float, float, list[list[int]]] | None = None
    for width in (response * factor for factor in WIDTHS):
        counts = [_before(stage.due, width) for stage in stages]
        likeness = _likeness(stages, counts)
        if best is None or likeness > best[0]:
            best = likeness, width, counts
    assert best is not None
    _, width, counts = best
    pooled = [float(count) for stage, each in zip(stages, counts, strict=True) for count in each[stage.skipped :]]
    limit = _quantile(pooled, _bad(stages))
    if limit is None:
        return None
    return [
        Luck([float(count > limit) for count in each], _poisson_above(stage.load * width, int(limit)))
        for stage, each in zip(stages, counts, strict=True)
    ]


def _bad(stages: Sequence[Stage]) -> int:
    return sum(sum(stage.bad[stage.skipped :]) for stage in stages)


def _quantile(values: list[float], above: int) -> float | None:
    """The value that so many exceed, or fewer where some are equal."""
    if not 0 < above < len(values):
        return None
    values.sort()
    return values[len(values) - above - 1]


def _before(due: Sequence[float], width: float) -> list[int]:
    counts, first = [], 0
    for place, at in enumerate(due):
        while due[first] < at - width:
            first += 1
        counts.append(place - first)
    return counts


def _likeness(stages: Sequence[Stage], counts: Sequence[Sequence[int]]) -> float:
    """Correlation of a count with the strain, inside the stages."""
    xx = yy = xy = 0.0
    for stage, each in zip(stages, counts, strict=True):
        xs, ys = each[stage.skipped :], stage.strain[stage.skipped :]
        n = len(xs)
        if not n:
            continue
        x0, y0 = sum(xs) / n, sum(ys) / n
        xx += sum((x - x0) ** 2 for x in xs)
        yy += sum((y - y0) ** 2 for y in ys)
        xy += sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True))
    return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else 0.0


def _poisson_above(mean: float, most: int) -> float:
    """P(N > most), for a mean below 700."""
    if mean >= 700:
        return 0.5
    term = exp(-mean)
    total = term
    for n in range(1, most + 1):
        term *= mean / n
        total += term
    return max(1 - total, 0.0)


def _recent(stages: Sequence[Stage], requests: int) -> Sequence[Stage]:
    """The last stages that have so many requests together."""
    for place in range(len(stages) - 1, -1, -1):
        requests -= len(stages[place])
        if requests <= 0:
            return stages[place:]
    return stages


def _followed(stages: Sequence[Stage], service: float) -> float:
    """Squared correlation of the batches' mean strain and mean wait in the simulated queue."""
    pairs: list[tuple[float, float]] = []
    for stage in stages:
        pairs += zip(stage.means(stage.strain), stage.means(waits(stage.due, service)), strict=True)
    n = len(pairs)
    if not n:
        return 0.0
    x0, y0 = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    xx, yy = sum((x - x0) ** 2 for x, _ in pairs), sum((y - y0) ** 2 for _, y in pairs)
    xy = sum((x - x0) * (y - y0) for x, y in pairs)
    return xy * xy / (xx * yy) if xx > 0 and yy > 0 and xy > 0 else 0.0
