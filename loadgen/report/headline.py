"""The few figures at the top of a report: different ones for a run, a sweep and an `ab`."""

from __future__ import annotations

from loadgen.analysis import (
    Group,
    Pairs,
    Summary,
    amount,
    by_rate,
    digits,
    done_rate,
    focus,
    interval_text,
    knee_of,
    ms,
    percent,
    rate,
    signed,
    token_rate,
)

Tile = tuple[str, str, str]  # label, value, detail


def headline(summary: Summary, pairs: Pairs | None = None) -> list[Tile]:
    if pairs is not None and summary.by_target:
        saved = (tile for name, part in summary.by_target.items() for tile in _saved(part, f" at {name}"))
        errors = (_errors(part, f" at {name}") for name, part in summary.by_target.items())
        return [*_overhead(pairs), *saved, *errors]
    _, stage, latency = focus(summary)
    whole = summary.whole
    if stage:
        rates = by_rate(summary.by_stage)
        most = max(done_rate(requested, part) for requested, part in rates)
        tokens = max(token_rate(requested, part) for requested, part in rates)
        knee = knee_of(summary)
        return [
            ("knee", f"{knee:.4g} req/s" if knee else "none", "the highest rate the server kept up with"),
            *_latency(latency, " at the knee" if knee else ", lightest rate"),
            ("peak completed", f"{rate(most)} req/s", f"at most {amount(whole.peak_in_flight)} in flight"),
            ("output", f"{rate(tokens)} tok/s", "at the best rate"),
            *_saved(whole, ""),
            _errors(whole, ""),
        ]
    good = whole.goodput
    peak = f"peak {rate(whole.peak_output_throughput)}" if whole.output_tokens else "no usage reported"
    return [
        *_latency(latency, ""),
        (
            "throughput",
            f"{rate(whole.request_throughput)} req/s",
            f"at most {amount(whole.peak_in_flight)} in flight",
        ),
        ("output", f"{rate(whole.output_throughput)} tok/s" if whole.output_tokens else "…", peak),
        *_saved(whole, ""),
        _errors(whole, ""),
        *([("goodput", percent(good.attainment), f"{rate(good.per_second)} good req/s")] if good else []),
    ]


def _latency(group: Group, where: str) -> list[Tile]:
    shown = [("TTFT", group.stats["ttft"]), ("E2E", group.stats["e2el"])]
    return [
        (f"{name} p50{where}", f"{ms(stat.at(50))} ms", f"p95 {ms(stat.at(95))}, p99 {ms(stat.at(99))}")
        for name, stat in shown
        if stat.n
    ]


def _saved(group: Group, where: str) -> list[Tile]:
    """The share of the output that a gateway answered from its cache or from a generation under way."""
    shared = group.output_tokens - group.generated_tokens
    if not shared:
        return []
    tokens = f"{amount(shared)} of {amount(group.output_tokens)} tokens were not generated again"
    return [(f"saved{where}", percent(shared / group.output_tokens), tokens)]


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
        middle = paired.evened or paired.difference.at(50)
        if not paired.n or middle is None:
            continue
        if middle.value is None or middle.interval is None:
            tiles.append((f"{title}, b − a", "…", f"{amount(paired.n)} pairs: not enough"))
            continue
        tiles.append(
            (f"{title}, b − a", f"{signed(middle.value)} ms", f"95 %: {interval_text(middle.interval, sign=True)}")
        )
        if name == "ttft" and paired.a_p50 is not None and paired.b_p50 is not None:
            tiles.append(("TTFT p50, a", f"{digits(paired.a_p50)} ms", f"b {digits(paired.b_p50)}"))
    return tiles
