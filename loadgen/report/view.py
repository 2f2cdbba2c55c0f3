"""What a report says, in words and tables, once for every format."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from loadgen.analysis import (
    LINGER_MS,
    Bin,
    Group,
    Measured,
    Pairs,
    Summary,
    amount,
    by_rate,
    count,
    focus,
    percent,
    unsteady_warning_of,
)
from loadgen.record import CUT_OFF, Run
from loadgen.report import tables
from loadgen.report.headline import Tile, headline, rates
from loadgen.report.loads import load_tables
from loadgen.report.sections.by_load import by_load, users_tables
from loadgen.report.sections.engine import engine_tables
from loadgen.report.sections.found import found_of, found_sentence, found_tables
from loadgen.report.settings import plain, settings_rows
from loadgen.report.tables import NAMES, Table

DEFINITIONS: Final = (
    ("TTFT", "from the request's last byte sent to the first non-empty content, reasoning or tool-call delta. A "
     "bare role does not count (“TTFT to role” ends there). “From due” counts from when the request was due."),
    ("TPOT", "(E2E − TTFT) / (tokens − 1), per request, tokens by the server's usage."),
    ("ITL", "gaps between tokens of one stream, all streams pooled; a chunk of k tokens counts as k gaps if usage "
     "reports k, else these are gaps between chunks."),
    ("E2E", "from the request's last byte sent to the stream's last event, or to the last byte of a body that is "
     "not a stream."),
    ("sending", "from the request's first byte written to its last byte sent: long where the server does not read "
     "its socket. In no TTFT and E2E, but in those from due, and above 5 ms in the objectives."),
    ("(a–b)", "95 % interval: order statistics for percentiles, block bootstrap for means, widened for merged "
     "reads and for dependent neighbours. It describes this run, not the next one."),
    ("~", "the sample is too small for an interval: p50 needs 6 independent values, p90 36, p95 72, p99 368, "
     "p99.9 3,688. The figure is that of this sample; another run may give a very different one."),
    ("…", "not measured."),
    ("failed", "requests without a complete response, or whose answer the engine aborted. Their latency is in no "
     "percentile; goodput counts them."),
    ("unsound", "the generator's own error, above its limit, touches this figure: do not use it."),
)  # fmt: skip

Grade = Literal["good", "part", "bad"]


@dataclass(frozen=True)
class View:
    """A report as plain text; the renderers escape it."""

    title: str
    date: str
    grade: Grade  # of the measurement: whether the generator's own error is within its limits, for every figure
    measurement: str
    good: bool  # the run ended by itself and every request completed
    result: str
    ran: str
    command: str
    headline: Sequence[Tile]
    warnings: Sequence[str]
    tables: Sequence[Table]
    self_error: Table
    config: Sequence[tuple[str, str]]
    results: Sequence[Table]  # for a terminal
    rates: Sequence[Tile]  # the headline without its latencies
    failures: Sequence[str]  # "2 timeout: no byte in 30 s", the most frequent first
    histogram: tuple[str, Sequence[Bin]]  # what is counted, and in which bins
    definitions: Sequence[tuple[str, str]] = field(default=DEFINITIONS)


def view(
    run: Run,
    summary: Summary,
    pairs: Pairs | None = None,
    details: Mapping[str, str] | None = None,
    histogram: tuple[str, Sequence[Bin]] = ("", ()),
    requests: Sequence[Measured] = (),
) -> View:
    """The report. `details`: an example text for each kind of error."""
    which, _, latency = focus(summary)
    single = not summary.by_target
    examples = details or {}
    stages = [*found_tables(run, summary), *users_tables(run, summary)]
    if summary.by_stage and not stages:
        stages = [tables.stages(run, summary)]
    shown = [
        *([tables.differences(pairs)] if pairs else []),
        *([] if single else [tables.sides(run, summary)]),
        *stages,
        *([tables.latency(run, latency, which), *tables.lengths(latency, which)] if single else []),
        *load_tables(run, summary),
        *engine_tables(run, requests),
        *([tables.shared(summary)] if len(summary.by_shared) > 1 else []),
        tables.totals(summary),
        *([tables.errors(summary.whole, examples)] if summary.whole.errors else []),
        *([tables.tails(run, latency, which)] if single else []),
    ]
    grade, measurement = _measurement(run)
    return View(
        title=run.label or "run",
        date=_moment(run.date),
        grade=grade,
        measurement=measurement,
        good=_good(run, summary.whole),
        result=_result(run, summary.whole),
        ran=_ran(run, summary),
        command=shlex.join(run.command),
        headline=headline(run, summary, pairs),
        warnings=[*run.warnings, *_own_warnings(run, summary)],
        tables=shown,
        self_error=Table(
            "Own error", ("measure", "value", "meaning"), tables.own_error(run, summary), words=(0, 1, 2)
        ),
        config=settings_rows(run),
        results=_results(run, summary, pairs, which, latency),
        rates=rates(summary),
        failures=[
            f"{amount(number)} {kind}" + (f": {examples[kind]}" if kind in examples else "")
            for kind, number in summary.whole.errors.items()
            if kind != "cancelled"
        ],
        histogram=histogram,
    )


def _results(run: Run, summary: Summary, pairs: Pairs | None, which: str, latency: Group) -> list[Table]:
    if summary.by_target:
        sides = [
            tables.results(run, part, f"{name}: {run.targets.get(name, '')}, ms")
            for name, part in summary.by_target.items()
        ]
        return [*sides, *([tables.brief_differences(pairs)] if pairs else [])]
    stages = [*found_tables(run, summary, brief=True), *users_tables(run, summary)]
    if summary.by_stage and not stages:
        stages = [tables.brief_stages(run, summary)]
    return [*stages, tables.results(run, latency, f"ms, {which}" if which else "ms")]


def _moment(date: str) -> str:
    """An ISO time in UTC as people write it; any other text unchanged."""
    return date.replace("T", " ", 1).replace("+00:00", " UTC") if date.endswith("+00:00") else date


def _measurement(run: Run) -> tuple[Grade, str]:
    """About the generator alone: a sound measurement may well be of a bad result."""
    if not run.invalid:
        return "good", "Measurement: sound, the generator's own error is within its limits"
    reasons = "; ".join(run.invalid)
    named = [NAMES[name] for name in NAMES if name in run.touched]
    if not named:
        return "bad", f"Measurement: INVALID, do not use these figures: {reasons}"
    touched = f"{', '.join(named[:-1])} and {named[-1]}" if named[1:] else named[0]
    return "part", f"Measurement: sound, but do not use {touched}: {reasons}"


def _good(run: Run, whole: Group) -> bool:
    found = found_of(run)
    if found is not None and not run.interrupted:
        return found.state in ("found", "no limit")
    return bool(whole.completed) and not whole.failed and not run.interrupted


def _result(run: Run, whole: Group) -> str:
    """What became of the requests; of a search, its answer."""
    found = found_of(run)
    if found is not None:
        words = found_sentence(found, whole.goodput.slos if whole.goodput else {})
        return f"Result: {'INTERRUPTED, until then ' if run.interrupted else ''}{words}"
    ended = whole.completed + whole.failed
    if whole.failed:
        kinds = ", ".join(f"{amount(n)} {kind}" for kind, n in whole.errors.items() if kind not in CUT_OFF)
        words = f"{amount(whole.failed)} of {amount(ended)} requests FAILED ({kinds})"
    else:
        words = f"all {count(ended, 'request')} completed" if ended else "no request completed"
    if run.stopped:
        words = f"STOPPED EARLY ({run.stopped}), until then {words}"
    if run.interrupted:
        words = f"INTERRUPTED, until then {words}"
    if whole.cancelled:
        words += f", {amount(whole.cancelled)} cancelled"
    if whole.left:
        words += f", {amount(whole.left)} cancelled by their clients"
    if whole.goodput and whole.goodput.unmeasured:
        words += f"; the objectives could not be judged: {tables.unmeasured_text(whole.goodput.unmeasured)}"
    elif whole.goodput:
        words += f"; {percent(whole.goodput.attainment)} met the objectives"
    problems = [check.problem for check in run.cancel_checks if check.problem is not None]
    if problems:
        words += "; the engine DID NOT STOP when clients left: " + "; ".join(problems)
    return f"Result: {words}"


def _ran(run: Run, summary: Summary) -> str:
    whole = summary.whole
    targets = " and ".join(f"{url} ({name})" for name, url in run.targets.items()) if summary.by_target else ""
    where = targets or next(iter(run.targets.values()), "?")
    words = [
        f"{count(whole.requests, 'request')} in {amount(whole.seconds)} s",
        _load(run, summary),
        f"model {run.model or '?'} at {where}{run.endpoint}" if not targets else f"model {run.model} at {targets}",
    ]
    if chosen := run.config.get("chosen_by_probe"):
        words.append(
            "sized by a probe: "
            + " and ".join(f"{name.replace('_', ' ')} {plain(run.config.get(name))}" for name in chosen)
        )
    if summary.warmups:
        words.append(f"{count(summary.warmups, 'warm-up request')} excluded")
    if summary.definitions != "loadgen":
        words.append(f"with the definitions of {summary.definitions}")
    return ", ".join(words) + "."


def _load(run: Run, summary: Summary) -> str:
    config = run.config
    loads = by_load(summary.by_stage)
    stages = by_rate(summary.by_stage)
    if loads and not stages:
        return f"{count(len(loads), 'stage')} from {loads[0][0]} to {loads[-1][0]}"
    if stages:
        if len(stages) == 1:
            return f"{stages[0][0]:g} requests/s"
        return f"{len(stages)} rates from {stages[0][0]:g} to {stages[-1][0]:g}/s"
    requested, cap = config.get("request_rate"), config.get("max_concurrency")
    unit = "requests"
    if config.get("arrivals") == "as recorded":
        return "at their recorded times" + (f", at most {cap} in flight" if cap else "")
    if summary.loads.conversations is not None and config.get("conversation_rate"):
        requested, unit = config["conversation_rate"], "conversations"
    elif summary.loads.conversations is not None and cap:
        return f"{count(cap, 'user')}, each with one conversation at a time"
    if requested in (None, "inf", float("inf")):
        return f"at most {cap} in flight" if cap else "all at once"
    burstiness = config.get("burstiness", 1.0)
    how = {1: "Poisson", "inf": "evenly spaced"}.get(burstiness, f"burstiness {burstiness}")
    return f"{requested:g} {unit}/s ({how})" + (f", at most {cap} in flight" if cap else "")


def _own_warnings(run: Run, summary: Summary) -> list[str]:
    whole = summary.whole
    warnings: list[str] = []
    if whole.empty:
        warnings.append(
            f"{amount(whole.empty)} of {amount(whole.completed)} responses had no token: they are in no latency "
            "and meet no objective; requests/s includes them"
        )
    if whole.without_usage:
        warnings.append(
            f"{amount(whole.without_usage)} of {amount(whole.completed)} responses had no usage, or one of 0 "
            "tokens: their tokens are not counted, and they have no TPOT"
        )
    if whole.lingering:
        warnings.append(
            f"{amount(whole.lingering)} of {amount(whole.completed)} responses went on for more than "
            f"{LINGER_MS:g} ms after their last event: that time is in no latency"
        )
    if whole.miscounted:
        warnings.append(
            f"{amount(whole.miscounted)} of {amount(whole.completed)} responses had counts of tokens in their "
            "chunks that do not grow with them: their ITL is by chunks"
        )
    if whole.cancelled:
        warnings.append(
            f"{count(whole.cancelled, 'request')} had not ended when the run did: requests that take long are "
            "missing, so latencies and lengths are too low"
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
