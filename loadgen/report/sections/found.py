"""The answer of a search in words, and as a table of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from loadgen.analysis import Found, Group, Summary, amount, cell, digits, percent, rate
from loadgen.record import Run
from loadgen.report.sections.by_load import load_of
from loadgen.report.tables import NAMES, Table

UNITS: Final = {"rate": "req/s", "users": "users"}


def found_of(run: Run) -> Found | None:
    return None if run.found is None else msgspec.convert(run.found, Found)


def found_sentence(found: Found, slos: Mapping[str, float]) -> str:
    """What was found, or plainly that nothing was."""
    what = "rate" if found.by == "rate" else "number of users"
    aims = f"{objectives(slos)} for {percent(found.attainment)} of requests"
    if found.state == "nothing" or found.tried is None:
        return "nothing found: no stage ended"
    low, high = (load_text(found, load) for load in found.tried)
    broke = _broke(found)
    match found.state:
        case "failed":
            until = f"; until then up to {load_text(found, found.load)} met {aims}" if found.load else ""
            return f"the server failed: {_failures(found)} at {load_text(found, found.broke_at or 0)}{until}"
        case "no limit":
            return f"no limit found up to {high}, which still meets {aims}"
        case "all met":
            return f"no limit found up to {high} in the time given: raise --max-minutes; wanted {aims}"
        case "not met":
            where = "" if found.by == "users" else ", where requests do not delay each other"
            return f"not met even at {low}{where}: {broke}; wanted {aims}"
        case "all missed":
            lower = "lower --start-rate or " if found.by == "rate" else ""
            return (
                f"missed at every {what} that was run, down to {low}, in the time given: {broke}; {lower}raise "
                f"--max-minutes; wanted {aims}"
            )
        case _:
            return _limit(found, what, aims, broke)


def _limit(found: Found, what: str, aims: str, broke: str) -> str:
    ends = "" if found.low is None or found.high is None else (
        f" (95 %: {amount_of(found, found.low)}–{amount_of(found, found.high)})"
    )  # fmt: skip
    about = "" if ends else "about "
    words = f"highest {what}: {about}{load_text(found, found.load or 0)}{ends} meets {aims}"
    if found.state == "unsure":
        words += f"; less sure than the {percent(found.precision)} asked for: raise --max-minutes"
    if broke:
        words += f"; above it {broke}"
    if found.fault:
        words += f". The generator itself was at its limit there ({found.fault}): the server may take more"
    return words


def amount_of(found: Found, load: float) -> str:
    return digits(load) if found.by == "rate" else f"{load:,.0f}"


def load_text(found: Found, load: float) -> str:
    unit = "user" if found.by == "users" and load == 1 else UNITS[found.by]
    return f"{amount_of(found, load)} {unit}"


def objectives(slos: Mapping[str, float]) -> str:
    return " and ".join(f"{NAMES[name]} ≤ {limit:g} ms" for name, limit in slos.items())


def _broke(found: Found) -> str:
    """What was missed, and where."""
    if found.first is None or found.broke_at is None:
        return ""
    at = load_text(found, found.broke_at)
    missed = 1 - found.broke[found.first]
    if sum(found.failures.values()) >= missed / 2:
        return f"requests fail: {_failures(found)} at {at}"
    others = [f"{NAMES[name]} {percent(each)}" for name, each in found.broke.items() if name != found.first]
    rest = f" ({', '.join(others)})" if others else ""
    return f"{NAMES[found.first]} breaks first: met by {percent(found.broke[found.first])} at {at}{rest}"


def _failures(found: Found) -> str:
    return ", ".join(f"{percent(share)} {kind}" for kind, share in found.failures.items()) or "no answer"


def found_tables(run: Run, summary: Summary, *, brief: bool = False) -> list[Table]:
    """The stages in the order of their load, under the answer, which a brief report has in its result already;
    empty if the run is no search."""
    found = found_of(run)
    if found is None or summary.whole.goodput is None:
        return []
    slos = summary.whole.goodput.slos
    stages = sorted(summary.by_stage.items(), key=lambda named: load_of(named[0]) or 0.0)
    names = list(slos)
    rows = [_row(name, group, names) for name, group in stages]
    columns = ["load", "n", "met all", *(f"{NAMES[name]} met" for name in names), "TTFT p95", "tok/s"]
    notes = [
        f"{amount(found.stages)} stages, {amount(found.requests)} requests, {digits(found.seconds)} s. A stage's "
        "share includes its beginning, while the server filled; the search leaves that out."
    ]
    if found.controlled:
        notes.append(
            "The luck of the arrivals was subtracted by simulated servers that got the same arrivals, so the "
            "interval is narrower than the shares in this table show."
        )
    if brief:
        return [Table("stages", columns, rows)]
    sentence = found_sentence(found, slos)
    return [Table(sentence[0].upper() + sentence[1:], columns, rows, notes)]


def _row(name: str, group: Group, names: list[str]) -> list[str]:
    good = group.goodput
    shares = [percent(good.attainment), *(percent(good.by_slo.get(each)) for each in names)] if good else []
    return [
        name, amount(group.requests), *shares,
        cell(group.stats["ttft"].at(95)), rate(group.output_throughput),
    ]  # fmt: skip
