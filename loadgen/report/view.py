"""What a report says, in words and tables, once for every format."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from loadgen.analysis import (
    Group,
    Pairs,
    Stat,
    Summary,
    amount,
    by_rate,
    cell,
    digits,
    done_rate,
    focus,
    interval_text,
    knee_of,
    ms,
    percent,
    rate,
    rate_of,
    signed,
    token_rate,
    unsteady_warning_of,
)
from loadgen.record import Run
from loadgen.report.headline import headline

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
SHOWN: Final = ("ttft", "ttft_due", "tpot", "itl", "e2el", "e2el_due")
DEFINITIONS: Final = (
    ("TTFT", "from the request's last byte sent to the first non-empty content, reasoning or tool-call delta. A "
     "bare role does not count (“TTFT to role” ends there). “From due” counts from when the request was due."),
    ("TPOT", "(E2E − TTFT) / (tokens − 1), per request, tokens by the server's usage."),
    ("ITL", "gaps between tokens of one stream, all streams pooled; a chunk of k tokens counts as k gaps if usage "
     "reports k, else these are gaps between chunks."),
    ("E2E", "from the request's last byte sent to the response's last byte."),
    ("(a–b)", "95 % interval: order statistics for percentiles, block bootstrap for means, widened for merged "
     "reads and for dependent neighbours. It describes this run, not the next one."),
    ("…", "not enough samples: p50 needs 6 independent values, p90 36, p95 72, p99 368, p99.9 3,688."),
    ("failed", "requests without a complete response. Their latency is in no percentile; goodput counts them."),
)  # fmt: skip

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


@dataclass(frozen=True)
class View:
    """A report as plain text; the renderers escape it."""

    title: str
    date: str
    sound: bool  # the generator's own error is within its limits
    measurement: str
    good: bool  # the run ended by itself and every request completed
    result: str
    ran: str
    command: str
    headline: Sequence[tuple[str, str, str]]  # label, value, detail
    warnings: Sequence[str]
    tables: Sequence[Table]
    self_error: Table
    config: Sequence[tuple[str, str]]
    definitions: Sequence[tuple[str, str]] = field(default=DEFINITIONS)


def view(run: Run, summary: Summary, pairs: Pairs | None = None, details: Mapping[str, str] | None = None) -> View:
    """The report. `details`: an example text for each kind of error."""
    which, _, latency = focus(summary)
    tables = [
        *([_paired(pairs)] if pairs else []),
        *([_sides(run, summary)] if summary.by_target else []),
        *([_stages(summary)] if summary.by_stage else []),
        *([_latency(latency, which)] if not summary.by_target else []),
        *([_shared(summary)] if summary.by_shared else []),
        _totals(summary),
        *([_errors(summary.whole, details or {})] if summary.whole.errors else []),
        *([_tails(latency, which)] if not summary.by_target else []),
    ]
    return View(
        title=run.label or "run",
        date=_moment(run.date),
        sound=not run.invalid,
        measurement=_measurement(run),
        good=_good(run, summary.whole),
        result=_result(run, summary.whole),
        ran=_ran(run, summary),
        command=shlex.join(run.command),
        headline=headline(summary, pairs),
        warnings=[*run.warnings, *_own_warnings(run, summary)],
        tables=tables,
        self_error=Table("Own error", ("measure", "value", "meaning"), own_error(run, summary), words=(0, 1, 2)),
        config=config_rows(run),
    )


def _moment(date: str) -> str:
    """An ISO time in UTC as people write it; any other text unchanged."""
    return date.replace("T", " ", 1).replace("+00:00", " UTC") if date.endswith("+00:00") else date


def _measurement(run: Run) -> str:
    """About the generator alone: a sound measurement may well be of a bad result."""
    if run.invalid:
        return "Measurement: INVALID, do not use these figures: " + "; ".join(run.invalid)
    return "Measurement: sound, the generator's own error is within its limits"


def _good(run: Run, whole: Group) -> bool:
    return bool(whole.completed) and not whole.failed and not run.interrupted


def _result(run: Run, whole: Group) -> str:
    """What became of the requests."""
    ended = whole.completed + whole.failed
    if whole.failed:
        kinds = ", ".join(f"{amount(n)} {kind}" for kind, n in whole.errors.items() if kind != "cancelled")
        words = f"{amount(whole.failed)} of {amount(ended)} requests FAILED ({kinds})"
    else:
        words = f"all {amount(ended)} requests completed" if ended else "no request completed"
    if run.stopped:
        words = f"STOPPED EARLY ({run.stopped}), until then {words}"
    if run.interrupted:
        words = f"INTERRUPTED, until then {words}"
    if whole.cancelled:
        words += f", {amount(whole.cancelled)} cancelled"
    if whole.goodput:
        words += f"; {percent(whole.goodput.attainment)} met the objectives"
    return f"Result: {words}"


def _ran(run: Run, summary: Summary) -> str:
    whole = summary.whole
    targets = " and ".join(f"{url} ({name})" for name, url in run.targets.items()) if summary.by_target else ""
    where = targets or next(iter(run.targets.values()), "?")
    words = [
        f"{amount(whole.requests)} requests in {amount(whole.seconds)} s",
        _load(run, summary),
        f"model {run.model or '?'} at {where}{run.endpoint}" if not targets else f"model {run.model} at {targets}",
    ]
    if chosen := run.config.get("chosen_by_probe"):
        words.append(
            "sized by a probe: "
            + " and ".join(f"{name.replace('_', ' ')} {_plain(run.config.get(name))}" for name in chosen)
        )
    if summary.warmups:
        words.append(f"{summary.warmups} warm-up requests excluded")
    if whole.cancelled:
        words.append(f"{whole.cancelled} cancelled, counted separately")
    if summary.definitions != "loadgen":
        words.append(f"with the definitions of {summary.definitions}")
    return ", ".join(words) + "."


def _load(run: Run, summary: Summary) -> str:
    config = run.config
    stages = by_rate(summary.by_stage)
    if stages:
        return f"{len(stages)} rates from {stages[0][0]:g} to {stages[-1][0]:g}/s"
    requested, cap = config.get("request_rate"), config.get("max_concurrency")
    if requested in (None, "inf", float("inf")):
        return f"at most {cap} in flight" if cap else "all at once"
    burstiness = config.get("burstiness", 1.0)
    how = "Poisson" if burstiness == 1 else f"burstiness {burstiness}"
    return f"{requested:g} requests/s ({how})" + (f", at most {cap} in flight" if cap else "")


def _own_warnings(run: Run, summary: Summary) -> list[str]:
    whole = summary.whole
    warnings: list[str] = []
    if whole.without_usage:
        warnings.append(
            f"{amount(whole.without_usage)} of {amount(whole.completed)} responses had no usage: their tokens "
            "are not counted, and they have no TPOT"
        )
    if (warning := unsteady_warning_of(summary)) is not None:
        warnings.append(warning)
    if summary.fresh is not None:
        share = 1 - summary.fresh.completed / whole.completed if whole.completed else 0.0
        warnings.append(
            f"{percent(share)} of the responses were shared (cache hit or attached). Latency excludes them; "
            "throughput includes them"
        )
    if whole.cached_tokens and whole.input_tokens and whole.cached_tokens / whole.input_tokens > 0.5:
        warnings.append(
            "more than half of the prompt tokens came from the engine's prefix cache: TTFT is that of a warm cache"
        )
    return warnings


def _row(name: str, stat: Stat, points: Sequence[float]) -> list[str]:
    return [name, amount(stat.n), *(cell(stat.at(p)) for p in points)]


def _latency(group: Group, which: str) -> Table:
    rows = []
    for name in SHOWN:
        stat = group.stats[name]
        if not stat.n:
            continue
        label = NAMES[name] + (f" by {group.itl_by[:-1]}" if name == "itl" and group.itl_by != "none" else "")
        rows.append([*_row(label, stat, (50, 95, 99)), cell(stat)])
    return Table(_of("Latency in ms", which), ("", "n", "p50", "p95", "p99", "mean"), rows, _dependent(group))


def _dependent(group: Group) -> list[str]:
    """Why a percentile is missing although there are enough requests."""
    stat = group.stats["ttft_due"] if group.stats["ttft_due"].n else group.stats["e2el_due"]
    missing = next((q for p in (50, 95, 99) if (q := stat.at(p)) is not None and q.value is None), None)
    if missing is None or stat.n < missing.needs:
        return []
    return [
        f"Requests in a queue depend on each other: these {amount(stat.n)} equal {missing.effective} independent "
        f"ones, and p{missing.p:g} needs {missing.needs}."
    ]


def _of(title: str, which: str) -> str:
    return f"{title}, {which}" if which else title


def _tails(group: Group, which: str) -> Table:
    rows = [
        [NAMES[name], *(cell(stat.at(p)) for p in (90, 99.9)), *map(ms, (stat.min, stat.max, stat.std)),
         percent(stat.censored)]
        for name in NAMES
        if (stat := group.stats[name]).n and not (name == "chunk_gap" and stat == group.stats["itl"])
    ]  # fmt: skip
    return Table(_of("Other percentiles, ms", which), ("", "p90", "p99.9", "min", "max", "std", "censored"), rows)


def _shared(summary: Summary) -> Table:
    rows = [
        [name, amount(part.completed), percent(part.completed / max(summary.whole.completed, 1)),
         *(cell(part.stats["ttft"].at(p)) for p in (50, 99)), cell(part.stats["e2el"].at(50))]
        for name, part in summary.by_shared.items()
        if part.completed
    ]  # fmt: skip
    columns = ("x-gateway-cache", "n", "share", "TTFT p50", "TTFT p99", "E2E p50")
    return Table("By the gateway's cache verdict", columns, rows)


def _totals(summary: Summary) -> Table:
    whole = summary.whole
    rows = [
        ["requests", f"{amount(whole.completed)} completed, {amount(whole.failed)} failed"
         + (f", {amount(whole.cancelled)} cancelled" if whole.cancelled else "")],
        ["error rate", percent(whole.error_rate)],
        ["throughput", f"{rate(whole.request_throughput)} requests/s"],
        ["output", f"{rate(whole.output_throughput)} tokens/s, peak {rate(whole.peak_output_throughput)}"],
        ["input and output", f"{rate(whole.total_token_throughput)} tokens/s"],
        ["per stream", f"{cell(whole.stats['tokens_per_second'].at(50))} tokens/s at p50"],
        ["tokens", f"{amount(whole.input_tokens)} in, {amount(whole.output_tokens)} out"],
        ["in flight", f"at most {amount(whole.peak_in_flight)}"],
    ]  # fmt: skip
    if summary.fresh is not None:
        rows.insert(7, ["generated", f"{amount(whole.generated_tokens)} tokens, the others were shared"])
    if summary.prefix_cached_share is not None:
        rows.append(["prefix cache", f"{percent(summary.prefix_cached_share)} of prompt tokens"])
    if whole.goodput:
        good = whole.goodput
        by = ", ".join(f"{name} ≤ {good.slos[name]:g} ms: {percent(share)}" for name, share in good.by_slo.items())
        rows.append(["goodput", f"{rate(good.per_second)} requests/s; {percent(good.attainment)} of {amount(good.attempted)} met all ({by})"])  # fmt: skip  # noqa: E501
    return Table("Throughput", ("", ""), rows, words=(0, 1))


def _errors(whole: Group, details: Mapping[str, str]) -> Table:
    rows = [[kind, amount(count), details.get(kind, "")] for kind, count in whole.errors.items()]
    return Table("Errors", ("kind", "n", "example"), rows, words=(0, 2))


def _stages(summary: Summary) -> Table:
    rows = []
    objectives = summary.whole.goodput is not None
    for name, stage in sorted(summary.by_stage.items(), key=lambda named: rate_of(named[0]) or 0.0):
        requested, ttft = rate_of(name), stage.stats["ttft_due"]
        done = stage.request_throughput if requested is None else done_rate(requested, stage)
        tokens = stage.output_throughput if requested is None else token_rate(requested, stage)
        rows.append([
            name if requested is None else f"{requested:.4g}/s",
            amount(stage.requests),
            rate(done),
            *(cell(ttft.at(p)) for p in (50, 95, 99)),
            rate(tokens),
            percent(stage.error_rate),
            *([percent(stage.goodput.attainment)] if stage.goodput is not None else []),
        ])  # fmt: skip
    knee = knee_of(summary)
    notes = [f"Knee: {knee:.4g} requests/s is the highest rate that the server kept up with."] if knee else []
    columns = ("requested", "n", "completed/s", "TTFT p50", "p95", "p99", "tok/s", "errors")
    return Table("By rate: TTFT from due, ms", (*columns, *(["goodput"] if objectives else [])), rows, notes)


def _sides(run: Run, summary: Summary) -> Table:
    rows = [
        [f"{name}: {run.targets.get(name, '')}", amount(part.completed), amount(part.failed),
         *(cell(part.stats[measure].at(50)) for measure in ("ttft", "tpot", "e2el"))]
        for name, part in summary.by_target.items()
    ]  # fmt: skip
    return Table("The two targets, p50 in ms", ("target", "completed", "failed", "TTFT", "TPOT", "E2E"), rows)


def _paired(pairs: Pairs) -> Table:
    rows = []
    for name, paired in pairs.measures.items():
        stat, evened = paired.difference, paired.evened
        middle = evened or stat.at(50)
        relative = "…"
        if middle is not None and middle.value is not None and paired.a_p50:
            relative = signed(100 * middle.value / paired.a_p50, " %")
        label = "mean gap" if name == "itl" else NAMES[name]
        even = "…" if evened is None else f"{signed(evened.value)} ({interval_text(evened.interval, sign=True)})"
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


# The generator's own error


def own_error(run: Run, summary: Summary) -> list[list[str]]:
    lag = run.lag
    rows = [
        ["receive clock", lag.clock, CLOCKS[lag.clock]],
        ["send clock", lag.send_clock, CLOCKS[lag.send_clock].replace("read", "send")],
        ["event-loop lag", _spread(lag.loop_ms), "how late the event loop ran its callbacks"],
        ["kernel to program", _spread(lag.read_ms), "the delay that the program's clock would have added"],
        ["sent late", _spread(lag.late_ms), "sent − due, of requests that did not wait for the cap"],
        [
            "censored",
            _censored(summary),
            "events whose time is an interval, because the kernel merged their reads",
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
    name, _, point = figure.partition("_")
    return f"{name.upper()} {point}".strip()


# Configuration


def config_rows(run: Run) -> list[tuple[str, str]]:
    """(setting, value) of every setting that is set."""
    facts: dict[str, Any] = {
        "command": shlex.join(run.command),
        "seed": run.seed,
        "workers": run.workers,
        **{f"target {name}": url for name, url in run.targets.items()},
        **{f"machine {key}": value for key, value in run.machine.items()},
        **{f"sent {key}": value for key, value in run.sent_stats.items()},
        **run.config,
    }
    chosen = facts.pop("chosen_by_probe", None) or ()
    pairs = ((key, _plain(value)) for key, value in facts.items())
    return [
        (key.replace("_", " "), f"{text} (chosen by the probe)" if key in chosen else text)
        for key, text in pairs
        if text
    ]


def _plain(value: Any) -> str:
    """A setting as text; empty for None, an empty list and an empty table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:,.6g}"
    return "" if value is None else str(value)
