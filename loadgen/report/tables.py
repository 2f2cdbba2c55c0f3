"""The tables of a report: latency, lengths, rates, stages of a sweep, differences of an `ab`, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadgen.analysis import (
    UNKNOWN,
    Group,
    Pairs,
    Stat,
    Summary,
    amount,
    by_rate,
    cell,
    count,
    digits,
    interval_text,
    limit_of,
    ms,
    percent,
    point,
    rate,
    signed,
)
from loadgen.record import Run

NAMES: Final[Mapping[str, str]] = {
    "ttft": "TTFT",
    "ttft_due": "TTFT from due",
    "ttft_role": "TTFT to role",
    "tpot": "TPOT",
    "itl": "ITL",
    "chunk_gap": "chunk gap",
    "e2el": "E2E",
    "e2el_due": "E2E from due",
}
LENGTHS: Final[Mapping[str, str]] = {"input_tokens": "input tokens", "output_tokens": "output tokens"}
SHOWN: Final = ("ttft", "ttft_due", "tpot", "itl", "e2el", "e2el_due")
BRIEF: Final = ("ttft", "tpot", "itl", "e2el")
POINTS: Final = (50.0, 90.0, 95.0, 99.0)
GOOD_SHARE: Final = 0.95  # of the requests that met all objectives, for the highest rate that is named for it

PACE: Final = (
    "“done/s” and “tok/s” count from a stage's first request to its last response. “Pace” is how fast requests "
    "ended relative to how fast they arrived, without the drain after the last one: below 95 % the queue grows."
)
CLOCKS: Final = {
    "kernel": "the kernel's stamp of each read (SO_TIMESTAMPING)",
    "user": "the program's, after the read: its own delays are in every figure",
    "mixed": "the kernel's for some reads, the program's for others",
}


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    words: Sequence[int] = (0,)  # columns of text; the others are numbers
    wide: Sequence[int] = ()  # columns that a narrow page leaves out


def named(measure: str, run: Run, group: Group | None = None) -> str:
    """A measure's name, with a mark where the generator's own error touches it."""
    name = NAMES[measure]
    if group is not None and measure == "itl" and group.itl_by != "none":
        name += f" by {group.itl_by[:-1]}"
    return f"{name} (unsound)" if touches(run, measure) else name


def unmeasured_text(unmeasured: Mapping[str, str]) -> str:
    """Which objectives have no value in any response, and why."""
    names = " and ".join(NAMES[name] for name in unmeasured)
    return f"{names} cannot be measured: {next(iter(unmeasured.values()))}"


def touches(run: Run, measure: str) -> bool:
    """Whether the generator's own error, above its limit, touches this measure."""
    return bool(run.invalid) and (not run.touched or measure in run.touched)


def results(run: Run, group: Group, title: str = "ms") -> Table:
    """The latencies and lengths of a group without their intervals: the table for a terminal."""
    rows = [
        [name, point(stat), *(point(stat.at(p)) for p in POINTS), ms(stat.max)]
        for measure in (*BRIEF, *LENGTHS)
        if (stat := group.stats[measure]).n
        for name in [LENGTHS.get(measure) or named(measure, run)]
    ]
    return Table(title, ("", "mean", "p50", "p90", "p95", "p99", "max"), rows)


def latency(run: Run, group: Group, which: str) -> Table:
    rows = [
        [named(measure, run, group), *_figures(group.stats[measure])]
        for measure in SHOWN
        if group.stats[measure].n and not _repeats(group, measure)
    ]
    columns = ("", "p50", "p90", "p95", "p99", "max", "mean", "n")
    return Table(_of("Latency in ms", which), columns, rows, _dependent(group), wide=(2, 7))


def _figures(stat: Stat) -> list[str]:
    return [*(cell(stat.at(p)) for p in POINTS), ms(stat.max), cell(stat), amount(stat.n)]


def _repeats(group: Group, measure: str) -> bool:
    """Whether a latency from due is the same as that from sending: no request waited or was late."""
    return measure.endswith("_due") and group.stats[measure] == group.stats[measure.removesuffix("_due")]


def lengths(group: Group, which: str) -> list[Table]:
    rows = [[name, *_figures(stat)] for key, name in LENGTHS.items() if (stat := group.stats[key]).n]
    columns = ("by usage", "p50", "p90", "p95", "p99", "max", "mean", "n")
    return [Table(_of("Tokens per request", which), columns, rows, wide=(2, 7))] if rows else []


def _dependent(group: Group) -> list[str]:
    """Why a percentile has no interval although there are enough requests."""
    notes = []
    for measure in ("ttft_due", "e2el_due"):
        stat = group.stats[measure]
        missing = next((q for p in POINTS if (q := stat.at(p)) is not None and q.interval is None), None)
        if missing is not None and stat.n >= missing.needs:
            notes.append(
                f"{NAMES[measure]}: requests in a queue depend on each other. These {amount(stat.n)} equal "
                f"{missing.effective} independent ones, and an interval of p{missing.p:g} needs {missing.needs:,}."
            )
    return notes


def _of(title: str, which: str) -> str:
    return f"{title}, {which}" if which else title


def tails(run: Run, group: Group, which: str) -> Table:
    rows = [
        [named(name, run), cell(stat.at(99.9)), *map(ms, (stat.min, stat.std)), percent(stat.censored)]
        for name in NAMES
        if (stat := group.stats[name]).n
        and not (name == "chunk_gap" and stat == group.stats["itl"])
        and not _repeats(group, name)
    ]
    notes = [
        "“Interval only”: share of the values that are known as an interval, because several packets were read at "
        "once."
    ]
    columns = ("", "p99.9", "min", "std", "interval only")
    return Table(_of("More of each measure, ms", which), columns, rows, notes)


def shared(summary: Summary) -> Table:
    rows = [
        [name, amount(part.completed), percent(part.completed / max(summary.whole.completed, 1)),
         *(cell(part.stats["ttft"].at(p)) for p in (50, 99)), cell(part.stats["e2el"].at(50))]
        for name, part in summary.by_shared.items()
        if part.completed
    ]  # fmt: skip
    columns = ("x-gateway-cache", "n", "share", "TTFT p50", "TTFT p99", "E2E p50")
    return Table("By the gateway's cache verdict", columns, rows)


def totals(summary: Summary) -> Table:
    """Rates and counts: of the run, or of each target of an `ab`."""
    if not summary.by_target:
        return Table("Throughput", ("", ""), _totals(summary.whole, summary), words=(0, 1))
    sides = [dict(_totals(part, None)) for part in summary.by_target.values()]
    rows = [[label, *(side.get(label, "") for side in sides)] for label in sides[0]]
    return Table("Throughput", ("", *summary.by_target), rows, words=tuple(range(len(sides) + 1)))


def _totals(group: Group, summary: Summary | None) -> list[tuple[str, str]]:
    rows = [
        ("requests", f"{amount(group.completed)} completed, {amount(group.failed)} failed"
         + (f", {amount(group.cancelled)} still open at the end" if group.cancelled else "")
         + (f", {amount(group.left)} cancelled by their clients" if group.left else "")),
        ("error rate", percent(group.error_rate)),
        ("throughput", f"{rate(group.request_throughput)} requests/s"),
    ]  # fmt: skip
    if group.output_tokens:
        peak = rate(group.peak_output_throughput)
        rows += [
            ("output", f"{rate(group.output_throughput)} tokens/s, peak {peak}"),
            ("input and output", f"{rate(group.total_token_throughput)} tokens/s"),
        ]
    elif group.input_tokens:
        rows.append(("input", f"{rate(group.total_token_throughput)} tokens/s"))
    if group.stats["tokens_per_second"].n:
        rows.append(("per stream", f"{cell(group.stats['tokens_per_second'].at(50))} tokens/s at p50"))
    rows.append(("tokens", f"{amount(group.input_tokens)} in, {amount(group.output_tokens)} out"))
    if summary is not None and summary.fresh is not None:
        rows.append(("generated", f"{amount(group.generated_tokens)} tokens, the others were shared"))
    rows.append(("in flight", f"at most {amount(group.peak_in_flight)}"))
    if group.cached_tokens is not None and group.input_tokens:
        rows.append(("prefix cache", f"{percent(group.cached_tokens / group.input_tokens)} of prompt tokens"))
    if group.goodput:
        good = group.goodput
        by = ", ".join(f"{name} ≤ {good.slos[name]:g} ms: {percent(share)}" for name, share in good.by_slo.items())
        met = f"{percent(good.attainment)} of {amount(good.attempted)} met all ({by})"
        if good.per_second is None:
            judged = f"; {by}" if by else ""
            rows.append(("goodput", f"could not be judged: {unmeasured_text(good.unmeasured)}{judged}"))
        else:
            rows.append(("goodput", f"{rate(good.per_second)} requests/s; {met}"))
    return rows


def errors(whole: Group, details: Mapping[str, str]) -> Table:
    rows = [[kind, amount(count), details.get(kind, "")] for kind, count in whole.errors.items()]
    return Table("Errors", ("kind", "n", "example"), rows, words=(0, 2))


def stages(run: Run, summary: Summary) -> Table:
    rows = []
    objectives = summary.whole.goodput is not None
    rates = by_rate(summary.by_stage)
    named_rates = [(f"{requested:.4g}/s", stage) for requested, stage in rates] or [*summary.by_stage.items()]
    for name, stage in named_rates:
        ttft = stage.stats["ttft_due"] if stage.stats["ttft_due"].n else stage.stats["e2el_due"]
        rows.append([
            name,
            *(cell(ttft.at(p)) for p in (50, 95, 99)),
            rate(stage.request_throughput),
            rate(stage.output_throughput),
            percent(stage.kept_up),
            percent(stage.error_rate),
            amount(stage.requests),
            *([percent(stage.goodput.attainment)] if stage.goodput is not None else []),
        ])  # fmt: skip
    measure = "ttft_due" if any(stage.stats["ttft_due"].n for _, stage in named_rates) else "e2el_due"
    columns = ("rate", "p50", "p95", "p99", "done/s", "tok/s", "pace", "errors", "n")
    return Table(
        f"By rate: {named(measure, run)}, ms",
        (*columns, *(["goodput"] if objectives else [])),
        rows,
        [*_findings(summary), PACE] if rates else (),
        wide=(7, 8),
    )


def _findings(summary: Summary) -> list[str]:
    """The knee, and how many requests met the objectives there."""
    rates = by_rate(summary.by_stage)
    limit = limit_of(summary)
    notes = [f"Knee: {limit}."] if rates else []
    kept = limit.kept
    at_knee = next((stage for requested, stage in rates if kept and abs(requested / kept - 1) < 1e-4), None)
    if at_knee is None or at_knee.goodput is None or at_knee.goodput.attainment is None:
        return notes
    good: float | None = None
    for requested, stage in rates:
        if stage.goodput is None or (stage.goodput.attainment or 0.0) < GOOD_SHARE:
            break
        good = requested
    best = (
        f"{percent(GOOD_SHARE)} did at up to {good:.4g} req/s" if good else f"{percent(GOOD_SHARE)} did at no rate"
    )
    return [*notes, f"At {kept:.4g} req/s {percent(at_knee.goodput.attainment)} met the objectives; {best}."]


def brief_stages(run: Run, summary: Summary) -> Table:
    """The stages without intervals: the table for a terminal."""
    table = stages(run, summary)
    rows = [[text.partition(" (")[0] for text in row] for row in table.rows]
    return Table(table.title, table.columns, rows, _findings(summary))


def sides(run: Run, summary: Summary) -> Table:
    rows = [
        [f"{name}: {run.targets.get(name, '')}", amount(part.completed), amount(part.failed),
         *(cell(part.stats[measure].at(50)) for measure in ("ttft", "tpot", "e2el"))]
        for name, part in summary.by_target.items()
    ]  # fmt: skip
    return Table("The two targets, p50 in ms", ("target", "completed", "failed", "TTFT", "TPOT", "E2E"), rows)


def differences(pairs: Pairs) -> Table:
    rows = []
    for name, paired in pairs.measures.items():
        stat, adjusted = paired.difference, paired.adjusted
        middle = adjusted or stat.at(50)
        relative = "…"
        if middle is not None and middle.value is not None and paired.a_p50:
            relative = signed(100 * middle.value / paired.a_p50, " %")
        label = "mean gap" if name == "itl" else NAMES[name]
        even = (
            "…"
            if adjusted is None
            else f"{signed(adjusted.value)} ({interval_text(adjusted.interval, sign=True)})"
        )
        raw = (cell(stat.at(p), sign=True) for p in (50, 95))
        rows.append([label, amount(paired.n), even, relative, *raw, percent(paired.higher)])
    lost = pairs.only_a + pairs.only_b + pairs.neither
    notes = [f"{amount(pairs.paired)} pairs in which both completed."]
    second = pairs.measures["ttft"].second or pairs.measures["e2el"].second
    if second is not None:
        notes.append(
            f"Half of the pairs sent to a first, half to b; the second request was {digits(abs(second))} ms "
            f"{'faster' if second < 0 else 'slower'}. “Adjusted” is the mean of both halves' medians, in which "
            "this cancels out; in the other columns it adds noise."
        )
    if pairs.shared:
        notes.append(f"Excluded: {amount(pairs.shared)} pairs with a shared response.")
    if lost:
        notes.append(f"Excluded: {pairs.only_b} where only a failed, {pairs.only_a} only b, {pairs.neither} both.")
    columns = ("b − a, ms", "pairs", "adjusted", "of a's p50", "median", "p95", "b slower")
    return Table("Paired difference", columns, rows, notes)


def brief_differences(pairs: Pairs) -> Table:
    """The differences for a terminal."""
    rows = []
    for name, paired in pairs.measures.items():
        middle = paired.adjusted or paired.difference.at(50)
        if middle is None or middle.value is None:
            continue
        interval = middle.interval
        seen = interval is not None and not interval.low <= 0 <= interval.high
        verdict = "too few pairs" if interval is None else "" if seen else "no difference seen"
        between = interval_text(interval, sign=True) if interval is not None else UNKNOWN
        label = "mean gap" if name == "itl" else NAMES[name]
        rows.append([label, signed(middle.value), between, percent(paired.higher), verdict])
    columns = ("b − a, ms", "median", "95 %", "b slower", "")
    return Table(f"{count(pairs.paired, 'pair')} in which both completed", columns, rows, words=(0, 4))


# The generator's own error


def own_error(run: Run, summary: Summary) -> list[list[str]]:
    lag = run.lag
    rows = [
        ["receive clock", lag.clock, CLOCKS[lag.clock]],
        ["send clock", lag.send_clock, CLOCKS[lag.send_clock].replace("read", "send")],
        ["event-loop lag", _spread(lag.loop_ms), "how late the event loop ran its callbacks"],
        ["kernel to program", _spread(lag.read_ms), "the delay that the program's clock would have added"],
        ["sent late", _spread(lag.late_ms), "first byte written − due, of requests that did not wait for the cap"],
        [
            "sending",
            _spread(lag.sending_ms),
            "last byte sent − first byte written: how fast the server takes requests",
        ],
        [
            "merged reads",
            _censored(summary),
            "events whose time is an interval, because several packets were read at once",
        ],
        ["interval width", _spread(lag.censored_width_ms), "of those intervals"],
        ["CPU", percent(lag.cpu), "of one core, the busiest worker"],
        ["clock drift", _drift(lag.clock_drift_ms), "realtime against monotonic clock, over the run"],
    ]
    if lag.floor_ms:
        floor = ", ".join(f"{_named(name)} {ms(value)}" for name, value in lag.floor_ms.items())
        rows.append(["error floor", f"{floor} ms", "from `loadgen calibrate` on this machine"])
    else:
        rows.append(["error floor", "unknown", "run `loadgen calibrate` to measure it"])
    return rows


def _spread(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ms(value)}" for name, value in values.items()) + " ms" if values else "not measured"


def _censored(summary: Summary) -> str:
    """Shared responses arrive in one piece, which is not this program's error: the share without them comes
    first."""
    whole = percent(summary.whole.censored)
    return whole if summary.fresh is None else f"{percent(summary.fresh.censored)}; {whole} with shared responses"


def _drift(milliseconds: float) -> str:
    return "below 0.001 ms" if abs(milliseconds) < 0.001 else f"{ms(milliseconds)} ms"


def _named(figure: str) -> str:
    """ "TTFT p99" of ttft_p99."""
    name, _, percentile = figure.partition("_")
    return f"{name.upper()} {percentile}".strip()
