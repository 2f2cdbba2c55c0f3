"""Where the share of bad requests crosses what is allowed: a logistic curve through batches of the stages near it,
with the luck of the arrivals as control variates, and its interval."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from math import ceil, erf, exp, log, sqrt
from typing import Final, NamedTuple

from loadgen.analysis.search.fit import Line, Row, fitted, student
from loadgen.analysis.search.stage import Stage

BATCHES: Final = 160
"""Of all stages near the crossing together: as long as that leaves, so that neighbours depend little on each
other."""
SMALLEST: Final = 20  # requests of a batch
LAGS: Final = 4
"""Batches over which neighbours may depend on each other."""
SKIPS: Final = (0.0, 0.15, 0.3, 0.5)
"""Of the longest stage's seconds: what is left out of each stage at its beginning, until stages do not grow
worse."""
TREND: Final = 2.0
"""Standard errors by which the second halves of the stages must be worse before more of them is left out."""
SLOPE: Final = (10.0, 8.0)
"""Expected slope of the logit by the logarithm of the load, and its standard deviation: it counts only while there
is next to no data. A queue at 80 % of its capacity has about 10."""
SLOPES: Final = (3.0, 120.0)
"""No slope beyond is believed: a flatter server would hardly slow down with load."""
WINDOW: Final = 1.3
"""Stages whose logit differs by more from what is allowed have no weight: the curve need not be logistic there."""
ROUNDS: Final = 25
FLOOR: Final = 0.01
"""Half width that is added in quadrature, relatively: of the curve's shape, of what is left of the stages'
beginnings and of the choice of the simulated servers. Measured: up to 0.5 % on servers with a known limit."""
LEAST_DEGREES: Final = 4  # of freedom, without which there is no interval
NODES: Final = 41
NORMAL: Final = 1.959964


class Luck(NamedTuple):
    """A value for each request of a stage, and what its mean is in the long run, whatever the server."""

    values: Sequence[float]
    expected: float


class Estimate(NamedTuple):
    """The load at the crossing with its 95 % interval, the slope of the logit there, and the number of batches."""

    load: float
    low: float
    high: float
    slope: float
    batches: int
    unsettled: bool  # the second halves of the stages are worse than the first, however much is left out
    balance: tuple[float, float]  # weights of the requests below and above the crossing


class Controls(NamedTuple):
    """For each stage its lucks; all stages have the same kinds."""

    stages: Sequence[Stage]
    lucks: Sequence[Sequence[Luck]]


class _Batch(NamedTuple):
    stage: int
    x: float  # logarithm of load / reference
    size: int
    share: float
    rate: tuple[float, float]  # luck of the rate in it and before it
    lucks: tuple[float, ...]
    late: bool  # in the second half of its stage


def logit(share: float) -> float:
    return log(share / (1 - share))


def estimate(controls: Controls, allowed: float, reference: float) -> Estimate | None:
    """None if the batches do not say where the crossing is. `reference`: a load near it."""
    longest = max((stage.due[-1] for stage in controls.stages if len(stage)), default=0.0)
    best: Estimate | None = None
    for share in SKIPS:
        batches = _batches(controls, reference, share * longest)
        fit = _fit(batches, logit(allowed))
        if fit is None:
            return best
        now = _interval(fit, batches, logit(allowed), reference, unsettled=_trend(fit, batches) > TREND)
        if now is None:
            return best
        best = now
        if not best.unsettled:
            break
    return best


def _batches(controls: Controls, reference: float, skip: float) -> list[_Batch]:
    """Without the first `skip` seconds of each stage."""
    begins = [max(stage.skipped, bisect_left(stage.due, skip), 1) for stage in controls.stages]
    kept = sum(max(len(stage) - begin, 0) for stage, begin in zip(controls.stages, begins, strict=True))
    size = max(ceil(kept / BATCHES), SMALLEST)
    batches = []
    for number, (stage, lucks, begin) in enumerate(zip(controls.stages, controls.lucks, begins, strict=True)):
        n = len(stage) - begin
        if n < SMALLEST:
            continue
        count = max(round(n / size), 1)
        cuts = [begin + n * place // count for place in range(count + 1)]
        for start, end in pairwise(cuts):
            before = max(2 * start - end, 0)
            batches.append(
                _Batch(
                    number,
                    log(stage.load / reference),
                    end - start,
                    sum(stage.bad[start:end]) / (end - start),
                    (_rate_luck(stage, start, end), _rate_luck(stage, before, start)),
                    tuple(sum(luck.values[start:end]) / (end - start) - luck.expected for luck in lucks),
                    2 * start >= 2 * begin + n,
                )
            )
    return batches


def _rate_luck(stage: Stage, start: int, end: int) -> float:
    """How much faster than its load requests came, with a mean of 0."""
    first = max(start - 1, 0)
    if end - 1 <= first or not stage.ends:
        return 0.0
    return 1 - stage.load * (stage.due[end - 1] - stage.due[first]) / (end - 1 - first)


class _Fit(NamedTuple):
    offset: float
    slope: float
    rows: list[Row]  # of the last round, and the expected slope as the last one
    left: list[float]  # of each batch that has weight, as of a row
    weights: list[float]


def _fit(batches: Sequence[_Batch], level: float) -> _Fit | None:
    """By Gauss and Newton. A row's terms are the derivatives, so that the last round's covariance is the fit's."""
    if not batches:
        return None
    used = [place for place in range(len(batches[0].lucks)) if any(batch.lucks[place] for batch in batches)]
    rated = any(any(batch.rate) for batch in batches)
    offset, slope = level, SLOPE[0]
    rows: list[Row] = []
    line: Line | None = None
    for step in range(ROUNDS):
        rows = []
        for batch in batches:
            eta = min(max(offset + slope * batch.x, level - 4), level + 6)
            mean = 1 / (1 + exp(-eta))
            spread = mean * (1 - mean)
            distance = (eta - level) / WINDOW
            near = max(1 - distance * distance, 0.0) ** 2 if step else 1.0
            if near <= 0.01:
                continue
            terms = [spread, spread * batch.x]
            if rated:
                terms += [spread * luck for luck in batch.rate]
            terms += [batch.lucks[place] for place in used]
            # The share's distance from the curve, in terms of which the curve is a line.
            value = batch.share - mean + spread * (offset + slope * batch.x)
            rows.append(Row(value, tuple(terms), near * batch.size / spread, batch.stage))
        if not rows:
            return None
        width = len(rows[0].terms)
        rows.append(Row(SLOPE[0], tuple(float(place == 1) for place in range(width)), SLOPE[1] ** -2, -1))
        line = fitted(rows)
        if line is None:
            return None
        new_offset, new_slope, *_ = line.coefficients
        new_slope = min(max(new_slope, SLOPES[0]), SLOPES[1])
        change = abs(new_offset - offset) + 0.1 * abs(new_slope - slope)
        offset += min(max(new_offset - offset, -2.0), 2.0)
        slope += min(max(new_slope - slope, -0.5 * slope), slope)
        if change < 1e-4 and step > 1:
            break
    assert line is not None
    left = [
        row.value - sum(c * term for c, term in zip(line.coefficients, row.terms, strict=True))
        for row in rows[:-1]
    ]
    return _Fit(offset, slope, rows, left, [row.weight for row in rows[:-1]])


def _trend(fit: _Fit, batches: Sequence[_Batch]) -> float:
    """Standard errors by which the second halves of the stages are worse against the curve than the first."""
    sums = {True: [0.0, 0.0, 0.0], False: [0.0, 0.0, 0.0]}  # distance, weight, squares
    for batch in batches:
        mean = 1 / (1 + exp(-min(max(fit.offset + fit.slope * batch.x, -8.0), 8.0)))
        left = batch.size * (batch.share - mean)
        each = sums[batch.late]
        each[0], each[1], each[2] = each[0] + left, each[1] + batch.size, each[2] + left * left
    late, early = sums[True], sums[False]
    if not late[1] or not early[1]:
        return 0.0
    error = sqrt(late[2] / late[1] ** 2 + early[2] / early[1] ** 2)
    return (late[0] / late[1] - early[0] / early[1]) / error if error > 0 else 0.0


def linked(rows: Sequence[Row], left: Sequence[float]) -> float:
    """Correlation of neighbouring batches of a stage, without its bias in short series."""
    cross = square = 0.0
    pairs = 0
    for place in range(1, len(left)):
        if rows[place].series == rows[place - 1].series:
            weight = sqrt(rows[place].weight * rows[place - 1].weight)
            cross += weight * left[place] * left[place - 1]
            square += (rows[place].weight * left[place] ** 2 + rows[place - 1].weight * left[place - 1] ** 2) / 2
            pairs += 1
    if not square:
        return 0.0
    found = cross / square
    return min(max(found + (1 + 4 * found) / pairs, 0.0), 0.95)


def _interval(
    fit: _Fit, batches: Sequence[_Batch], level: float, reference: float, *, unsettled: bool
) -> Estimate | None:
    """The wider one of two: by some lags, and by the correlation of neighbours as if it fell off geometrically."""
    rho = linked(fit.rows, fit.left)
    series = len({row.series for row in fit.rows}) - 1
    effective = series + (len(fit.left) - series) * (1 - rho) / (1 + rho)
    degrees = int(effective) - len(fit.rows[0].terms)
    if degrees < LEAST_DEGREES:
        return None
    ends: list[tuple[float, float, float]] = []
    for lags, factor in ((0, (1 + rho) / (1 - rho)), (LAGS, 1.0)):
        line = fitted(fit.rows, lags)
        if line is None:
            return None
        v = [[factor * value for value in row[:2]] for row in line.covariance[:2]]
        at = placed(fit.offset, fit.slope, v, level, student(degrees))
        if at is None:
            return None
        ends.append(at)
    x, low, high = max(ends, key=lambda each: each[2] - each[1])
    if abs(x) > 1 or high - low > 2:
        return None
    low, high = x - sqrt((x - low) ** 2 + FLOOR**2), x + sqrt((high - x) ** 2 + FLOOR**2)
    below = sum(batch.size for batch in batches if batch.x < x and fit.slope * (x - batch.x) < WINDOW)
    above = sum(batch.size for batch in batches if batch.x > x and fit.slope * (batch.x - x) < WINDOW)
    return Estimate(
        reference * exp(x), reference * exp(low), reference * exp(high), fit.slope, len(fit.left), unsettled,
        (float(below), float(above)),
    )  # fmt: skip


def placed(
    offset: float, slope: float, v: Sequence[Sequence[float]], level: float, sure: float
) -> tuple[float, float, float] | None:
    """(x, low, high) where `offset + slope * x` is `level`, with 95 % between the ends, if the two have this
    covariance and the slope is in SLOPES: a mixture over the slope, so that a slope that is hardly known widens
    the interval only as far as stages are from the crossing."""
    inflated = sure / NORMAL
    spread = sqrt(max(v[1][1], 1e-12)) * inflated
    rest = sqrt(max(v[0][0] - v[0][1] ** 2 / max(v[1][1], 1e-12), 0.0)) * inflated
    nodes: list[tuple[float, float, float]] = []  # weight, x, its standard error
    for place in range(NODES):
        z = 6.0 * place / (NODES - 1) - 3.0
        steep = slope + z * spread
        if SLOPES[0] <= steep <= SLOPES[1]:
            at = level - offset - v[0][1] / max(v[1][1], 1e-12) * (steep - slope)
            nodes.append((exp(-z * z / 2), at / steep, max(rest / steep, 1e-9)))
    if not nodes:
        return None
    whole = sum(weight for weight, _, _ in nodes)

    def quantile(share: float) -> float:
        low, high = min(x - 5 * error for _, x, error in nodes), max(x + 5 * error for _, x, error in nodes)
        for _ in range(40):
            middle = (low + high) / 2
            mass = sum(weight * (1 + erf((middle - x) / error / sqrt(2))) / 2 for weight, x, error in nodes)
            low, high = (middle, high) if mass < share * whole else (low, middle)
        return (low + high) / 2

    return quantile(0.5), quantile(0.025), quantile(0.975)
