"""The few figures at the top of a report: different ones for a run, a sweep and an `ab`."""

from __future__ import annotations

from loadgen.analysis import (
    Answers,
    Goodput,
    Group,
    Pairs,
    Summary,
    amount,
    by_rate,
    digits,
    focus,
    interval_text,
    limit_of,
    percent,
    rate,
    signed,
    time_text,
)
from loadgen.record import Run
from loadgen.report.sections.found import amount_of, found_of, load_text
from loadgen.report.tables import touches

Tile = tuple[str, str, str]  # label, value, detail


def headline(run: Run, summary: Summary, pairs: Pairs | None = None) -> list[Tile]:
    if pairs is not None and summary.by_target:
        return [*_overhead(pairs), *rates(summary)]
    _, stage, latency = focus(summary)
    where = ""
    if summary.focus:
        return [*_found(run), *_latency(run, latency, f" at {stage}"), *rates(summary)]
    if stage:
        limit = limit_of(summary)
        where = " at the knee" if limit.knee else ", highest rate" if limit.kept else ", lowest rate"
    return [*_latency(run, latency, where), *rates(summary)]


def _found(run: Run) -> list[Tile]:
    """A search's answer."""
    found = found_of(run)
    if found is None:
        return []
    name = "highest rate" if found.by == "rate" else "most users"
    if found.load is None or found.low is None or found.high is None:
        return [(name, found.state, f"tried up to {load_text(found, (found.tried or (0, 0))[1])}")]
    ends = f"95 %: {amount_of(found, found.low)}–{amount_of(found, found.high)}"
    return [(name, load_text(found, found.load), ends)]


def rates(summary: Summary) -> list[Tile]:
    """The tiles that are no latencies: throughput, tokens, what was saved, errors, goodput."""
    if summary.by_target:
        parts = summary.by_target.items()
        saved = (tile for name, part in parts for tile in _saved(part, f" at {name}"))
        errors = (_errors(part, f" at {name}") for name, part in parts)
        return [*saved, *errors, *_same_answers(summary.loads.answers)]
    whole = summary.whole
    if by_rate(summary.by_stage):
        stages = [group for _, group in by_rate(summary.by_stage)]
        limit = limit_of(summary)
        knee = f"{limit.knee:.4g} req/s" if limit.knee else "not found"
        done = f"{limit.done:.3g} done/s; " if limit.done else ""
        return [
            ("knee", knee, str(limit) if limit.knee is None else f"{done}{limit.over:.4g} req/s was too much"),
            (
                "most completed",
                f"{rate(max(stage.request_throughput for stage in stages))} req/s",
                f"at most {amount(whole.peak_in_flight)} in flight",
            ),
            *_tokens(max(stages, key=lambda stage: stage.output_throughput), ", best rate"),
            *_saved(whole, ""),
            _errors(whole, ""),
        ]
    if summary.focus:
        stages = list(summary.by_stage.values())
        most = max(stages, key=lambda stage: stage.output_throughput)
        done = rate(max(stage.request_throughput for stage in stages))
        return [
            ("most completed", f"{done} req/s", f"at most {amount(whole.peak_in_flight)} in flight"),
            *_tokens(most, ", best stage"),
            *_saved(whole, ""),
            _errors(whole, ""),
        ]
    return [
        (
            "throughput",
            f"{rate(whole.request_throughput)} req/s",
            f"at most {amount(whole.peak_in_flight)} in flight",
        ),
        *_tokens(whole, ""),
        *_saved(whole, ""),
        _errors(whole, ""),
        *_goodput(whole.goodput),
    ]


def _goodput(good: Goodput | None) -> list[Tile]:
    if good is None:
        return []
    per_second = "could not be judged" if good.per_second is None else f"{rate(good.per_second)} good req/s"
    return [("goodput", percent(good.attainment), per_second)]


def _latency(run: Run, group: Group, where: str) -> list[Tile]:
    shown = [("TTFT", "ttft"), ("E2E", "e2el")]
    return [
        (
            f"{name}{' (unsound)' if touches(run, measure) else ''} p50{where}",
            time_text(stat.at(50)),
            f"p95 {time_text(stat.at(95))}, p99 {time_text(stat.at(99))}",
        )
        for name, measure in shown
        if (stat := group.stats[measure]).n
    ]


def _tokens(group: Group, where: str) -> list[Tile]:
    """Output tokens; for embeddings, which have none, input tokens."""
    if group.output_tokens:
        peak = f"peak {rate(group.peak_output_throughput)}"
        return [(f"output{where}", f"{rate(group.output_throughput)} tok/s", peak)]
    if group.input_tokens:
        return [(f"input{where}", f"{rate(group.total_token_throughput)} tok/s", "no output by usage")]
    return [(f"output{where}", "…", "no usage reported")] if group.completed else []


def _saved(group: Group, where: str) -> list[Tile]:
    """The share of the output that a gateway answered from its cache or from a generation under way."""
    shared = group.output_tokens - group.generated_tokens
    if not shared:
        return []
    tokens = f"{amount(shared)} of {amount(group.output_tokens)} tokens were not generated again"
    return [(f"saved{where}", percent(shared / group.output_tokens), tokens)]


def _same_answers(answers: Answers | None) -> list[Tile]:
    """Where both sides of an `ab` were to generate the same text."""
    if answers is None:
        return []
    pairs = f"{amount(answers.identical)} of {answers.compared:,} pairs"
    return [("same answer at both", percent(answers.share), pairs)]


def _errors(group: Group, where: str) -> Tile:
    return (
        f"errors{where}",
        percent(group.error_rate),
        f"{amount(group.failed)} of {group.completed + group.failed:,}",
    )


def _overhead(pairs: Pairs) -> list[Tile]:
    tiles = []
    for name, title in (("ttft", "TTFT"), ("e2el", "E2E")):
        paired = pairs.measures[name]
        middle = paired.adjusted or paired.difference.at(50)
        if not paired.n or middle is None or middle.value is None:
            continue
        if middle.interval is None:
            few = f"{amount(paired.n)} pairs: too few for an interval"
            tiles.append((f"{title}, b − a", f"~{signed(middle.value)} ms", few))
            continue
        interval = interval_text(middle.interval, sign=True)
        if middle.interval.low <= 0 <= middle.interval.high:
            tiles.append(
                (f"{title} difference, b − a", "none seen", f"{signed(middle.value)} ms, 95 %: {interval}")
            )
        else:
            tiles.append((f"{title}, b − a", f"{signed(middle.value)} ms", f"95 %: {interval}"))
        if name == "ttft" and paired.a_p50 is not None and paired.b_p50 is not None:
            tiles.append(("TTFT p50, a", f"{digits(paired.a_p50)} ms", f"b {digits(paired.b_p50)}"))
    return tiles
