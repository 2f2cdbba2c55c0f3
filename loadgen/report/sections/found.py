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
    unit = UNITS[found.by]
    what = "rate" if found.by == "rate" else "number of users"
    aims = f"{objectives(slos)} for {percent(found.attainment)} of requests"
    if found.state == "nothing" or found.tried is None:
        return "nothing found: no stage ended"
    low, high = (amount_of(found, load) for load in found.tried)
    if found.state == "no limit":
        return f"no limit found up to {high} {unit}, which still meets {aims}"
    if found.state == "not met":
        return (
            f"not met even at {low} {unit}, where requests do not delay each other: {_broke(found)}; wanted {aims}"
        )
    if found.load is None:
        return f"no limit found between {low} and {high} {unit} in the time given: raise --max-minutes"
    ends = "" if found.low is None or found.high is None else (
        f" (95 %: {amount_of(found, found.low)}–{amount_of(found, found.high)})"
    )  # fmt: skip
    about = "" if ends else "about "
    words = f"highest {what}: {about}{amount_of(found, found.load)} {unit}{ends} meets {aims}"
    if found.state == "unsure":
        words += f"; less sure than the {percent(found.precision)} asked for: raise --max-minutes"
    broke = _broke(found)
    return f"{words}; above it {broke}" if broke else words


def amount_of(found: Found, load: float) -> str:
    return digits(load) if found.by == "rate" else f"{load:,.0f}"


def objectives(slos: Mapping[str, float]) -> str:
    return " and ".join(f"{NAMES[name]} ≤ {limit:g} ms" for name, limit in slos.items())


def _broke(found: Found) -> str:
    if found.first is None or found.broke_at is None:
        return ""
    share = percent(found.broke[found.first])
    others = [f"{NAMES[name]} {percent(each)}" for name, each in found.broke.items() if name != found.first]
    rest = f" ({', '.join(others)})" if others else ""
    at = f"{amount_of(found, found.broke_at)} {UNITS[found.by]}"
    return f"{NAMES[found.first]} breaks first: met by {share} at {at}{rest}"


def found_tables(run: Run, summary: Summary, *, brief: bool = False) -> list[Table]:
    """The answer with its stages in the order of their load; empty if the run is no search."""
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
            "The luck of the arrivals was subtracted by a simulated queue that got the same arrivals, so the "
            "interval is narrower than the shares in this table show."
        )
    sentence = found_sentence(found, slos)
    return [Table(sentence[0].upper() + sentence[1:], columns, rows, [] if brief else notes)]


def _row(name: str, group: Group, names: list[str]) -> list[str]:
    good = group.goodput
    shares = [percent(good.attainment), *(percent(good.by_slo[each]) for each in names)] if good else []
    return [
        name, amount(group.requests), *shares,
        cell(group.stats["ttft"].at(95)), rate(group.output_throughput),
    ]  # fmt: skip
