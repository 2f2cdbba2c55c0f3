"""Two runs compared: shifts with intervals, verdicts in words, and the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from loadgen.analysis import (
    PER_REQUEST,
    Bounds,
    Group,
    Measured,
    Quantile,
    Shift,
    Stat,
    Summary,
    cliffs_delta,
    digits,
    sample_of,
    shift,
    signed,
    size_of,
)
from loadgen.record import Run
from loadgen.report.result import FLAT
from loadgen.report.tables import NAMES

MEASURES: Final = ("ttft", "ttft_due", "tpot", "itl", "e2el", "e2el_due")
POINTS: Final = (50.0, 95.0, 99.0, 99.9)
THROUGHPUTS: Final = ("request_throughput", "output_throughput", "total_token_throughput")
SAME: Final = ("model", "endpoint", "seed", "workers")
"""Fields of a run that have to be equal for a comparison to be meaningful."""
EXPECTED: Final = frozenset(
    {
        "label",
        "unique_salt",
        "base_url",
        "host",
        "port",
        "a",
        "b",
        "result_dir",
        "result_filename",
        "metadata",
        "header",
        "quiet",
    }
    | {"knee", "limit", "json", "goodput", "machine load_1m", "probe", "chosen_by_probe"}
)
"""Settings that are often what is compared, or do not matter: listed without a warning."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of both runs."""

    metric: str  # flat name, as in result.json
    name: str
    a: float | None
    b: float | None
    shift: Shift | None
    words: str


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """How often a request of B takes longer than one of A, over all pairs: Cliff's delta."""

    name: str
    delta: float
    words: str


class Comparison(msgspec.Struct, kw_only=True):
    a: str
    b: str
    warnings: list[str]
    lines: list[Line]
    effects: list[Effect]
    config: dict[str, tuple[str, str]]  # what differs

    @property
    def intervals(self) -> dict[str, Bounds]:
        return {line.metric: line.shift.interval for line in self.lines if line.shift is not None}


def compare_runs(
    a: tuple[Run, Summary],
    b: tuple[Run, Summary],
    *,
    requests: tuple[Sequence[Measured], Sequence[Measured]] | None = None,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compare two runs. Latencies are of responses that were not shared, if a run had shared ones."""
    (run_a, sum_a), (run_b, sum_b) = a, b
    one, two = _comparable(sum_a), _comparable(sum_b)
    lines = []
    for measure in MEASURES:
        left, right = one.stats[measure], two.stats[measure]
        if left.n or right.n:
            flat = (
                measure
                if measure in FLAT
                else measure.replace("e2el_due", "e2el_from_due").replace("ttft_due", "ttft_from_due")
            )
            lines += [_quantile(NAMES[measure], flat, left.at(p), right.at(p), p) for p in POINTS]
            lines.append(_mean(NAMES[measure], flat, left, right))
    lines += [_plain(name, getattr(sum_a.whole, name), getattr(sum_b.whole, name)) for name in THROUGHPUTS]
    lines.append(_share("error_rate", sum_a.whole, sum_b.whole))
    return Comparison(
        a=names[0],
        b=names[1],
        warnings=comparability_warnings(a, b, names),
        lines=lines,
        effects=_effects(requests) if requests else [],
        config=config_difference(run_a, run_b),
    )


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a `result.json` that a rule can name: the flat ones and a few of the summary."""
    flat = {
        name: value
        for name, value in result.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }
    whole = result["loadgen"]["summary"]["whole"]
    for name in ("error_rate", "censored", "requests", "cancelled"):
        flat[name] = whole[name]
    flat["goodput_attainment"] = whole["goodput"]["attainment"] if whole.get("goodput") else None
    return flat


def metrics_of(
    comparison: Comparison, flat: Mapping[str, float | None], side: Literal["a", "b"]
) -> dict[str, float | None]:
    """The metrics that a rule can name, of one side. Latencies are those of the comparison's lines."""
    lines = {line.metric: getattr(line, side) for line in comparison.lines}
    medians = {f"median{metric[3:]}": value for metric, value in lines.items() if metric.startswith("p50_")}
    return {**flat, **lines, **medians}


def _comparable(summary: Summary) -> Group:
    return summary.fresh or summary.whole


def _quantile(name: str, flat: str, a: Quantile | None, b: Quantile | None, p: float) -> Line:
    title = f"p{p:g} {name}"
    metric = f"p{p:g}_{flat}_ms"
    if a is None or b is None or a.value is None or b.value is None or a.interval is None or b.interval is None:
        few = [
            f"{side} has {q.effective:,} of {q.needs:,}"
            for side, q in (("A", a), ("B", b))
            if q and q.interval is None
        ]
        return Line(
            metric=metric,
            name=title,
            a=a.value if a else None,
            b=b.value if b else None,
            shift=None,
            words=f"{title}: not enough samples" + (f" ({', '.join(few)})" if few else ""),
        )
    difference = shift(a.value, a.interval, b.value, b.interval)
    return Line(
        metric=metric, name=title, a=a.value, b=b.value, shift=difference, words=f"{title} {in_words(difference)}"
    )


def _mean(name: str, flat: str, a: Stat, b: Stat) -> Line:
    title, metric = f"mean {name}", f"mean_{flat}_ms"
    if a.mean is None or b.mean is None or a.mean_interval is None or b.mean_interval is None:
        words = f"{title}: not enough samples"
        return Line(metric=metric, name=title, a=a.mean, b=b.mean, shift=None, words=words)
    difference = shift(a.mean, a.mean_interval, b.mean, b.mean_interval)
    return Line(
        metric=metric, name=title, a=a.mean, b=b.mean, shift=difference, words=f"{title} {in_words(difference)}"
    )


def in_words(difference: Shift, unit: str = "ms") -> str:
    """`3.1 ms lower (95 %: 2.2 to 4.0)`, or that there is no significant difference."""
    low, high = difference.interval.low, difference.interval.high
    if difference.side == "unclear":
        return f"no significant difference (95 %: {signed(low)} to {signed(high)} {unit})"
    ends = sorted((abs(low), abs(high)))
    return (
        f"{digits(abs(difference.value))} {unit} {difference.side} (95 %: {digits(ends[0])} to {digits(ends[1])})"
    )


def _plain(name: str, a: float, b: float) -> Line:
    title = name.replace("_", " ")
    change = f"{signed(100 * (b - a) / a, ' %')}" if a else f"from 0 to {digits(b)}"
    words = f"{title} {digits(a)} → {digits(b)} /s, {change}"
    return Line(metric=name, name=title, a=a, b=b, shift=None, words=words)


def _share(name: str, a: Group, b: Group) -> Line:
    words = f"errors {a.failed} of {a.completed + a.failed} → {b.failed} of {b.completed + b.failed}"
    return Line(metric=name, name="error rate", a=a.error_rate, b=b.error_rate, shift=None, words=words)


def _effects(requests: tuple[Sequence[Measured], Sequence[Measured]]) -> list[Effect]:
    effects = []
    for name in ("ttft", "tpot", "e2el"):
        a, b = (
            sample_of(
                (request for request in side if request.completed and request.fresh), PER_REQUEST[name]
            ).values
            for side in requests
        )
        delta = cliffs_delta(a, b)
        if delta is not None:
            way = "slower" if delta > 0 else "faster"
            share = 50 + 50 * abs(delta)
            words = f"{NAMES[name]}: {size_of(delta)}, Cliff's delta {signed(delta)}"
            words += f" (a request of B is {way} than one of A in {share:.0f} of 100 cases, ties halved)"
            effects.append(Effect(name=name, delta=delta, words=words))
    return effects


# How the runs were made


def config_difference(a: Run, b: Run) -> dict[str, tuple[str, str]]:
    left, right = _settings(a), _settings(b)
    names = [*left, *(name for name in right if name not in left)]
    return {
        name: (left.get(name, "not set"), right.get(name, "not set"))
        for name in names
        if left.get(name) != right.get(name)
    }


def _settings(run: Run) -> dict[str, str]:
    facts: dict[str, Any] = {name: getattr(run, name) for name in SAME}
    facts |= {f"target {name}": url for name, url in run.targets.items()}
    facts |= {f"machine {name}": value for name, value in run.machine.items()}
    facts |= {f"sent {name}": value for name, value in run.sent_stats.items()}
    facts |= {"clock": run.lag.clock, **run.config}
    return {name: str(value) for name, value in facts.items() if value is not None}


def comparability_warnings(
    a: tuple[Run, Summary], b: tuple[Run, Summary], names: tuple[str, str] = ("A", "B")
) -> list[str]:
    """Why the two runs may not be comparable."""
    (run_a, sum_a), (run_b, sum_b) = a, b
    warnings = []
    for name, run in zip(names, (run_a, run_b), strict=True):
        if run.invalid:
            warnings.append(f"{name} is INVALID: {'; '.join(run.invalid)}")
        if run.interrupted:
            warnings.append(f"{name} was interrupted")
    for name, (left, right) in config_difference(run_a, run_b).items():
        if name not in EXPECTED and not name.startswith("target "):
            warnings.append(f"{name} differs: {left} and {right}")
    if sum_a.definitions != sum_b.definitions:
        warnings.append(f"definitions differ: {sum_a.definitions} and {sum_b.definitions}")
    if (sum_a.fresh is None) != (sum_b.fresh is None):
        warnings.append("only one run had shared responses: latencies exclude them, throughput includes them")
    return warnings
