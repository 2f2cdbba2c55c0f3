"""Sections of a report: a search's answer in words, loads side by side, the engine's own figures."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.analysis import Found, measure_records
from loadgen.record import Event, Kind, Reading, Record, Run, Scraped
from loadgen.report.sections.by_load import Point, frontier, load_of
from loadgen.report.sections.engine import engine_tables, growth, hit_rate, rate_series, splits
from loadgen.report.sections.found import found_sentence

SLOS = {"ttft": 200.0, "tpot": 20.0}
AIMS = "TTFT ≤ 200 ms and TPOT ≤ 20 ms for 95.0 % of requests"


def found(**facts: Any) -> Found:
    known: dict[str, Any] = {"by": "rate", "attainment": 0.95, "precision": 0.02, "tried": (1.0, 64.0)}
    return Found(**known | {"state": "found"} | facts)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            found(load=22.6, low=22.2, high=23.0, first="ttft", broke_at=26.9, broke={"ttft": 0.91, "tpot": 0.99}),
            f"highest rate: 22.6 req/s (95 %: 22.2–23.0) meets {AIMS}; "
            "above it TTFT breaks first: met by 91.0 % at 26.9 req/s (TPOT 99.0 %)",
        ),
        (found(state="no limit"), f"no limit found up to 64.0 req/s, which still meets {AIMS}"),
        (
            found(state="not met", first="tpot", broke_at=1.0, broke={"ttft": 1.0, "tpot": 0.2}),
            "not met even at 1.00 req/s, where requests do not delay each other: TPOT breaks first: met by 20.0 % "
            f"at 1.00 req/s (TTFT 100 %); wanted {AIMS}",
        ),
        (
            found(state="unsure", by="users", load=12.0, low=10.0, high=14.0),
            f"highest number of users: 12 users (95 %: 10–14) meets {AIMS}; "
            "less sure than the 2.0 % asked for: raise --max-minutes",
        ),
        (
            found(state="all met"),
            f"no limit found up to 64.0 req/s in the time given: raise --max-minutes; wanted {AIMS}",
        ),
        (
            found(state="all missed", first="ttft", broke_at=1.0, broke={"ttft": 0.5, "tpot": 1.0}),
            "missed at every rate that was run, down to 1.00 req/s, in the time given: TTFT breaks first: met by "
            f"50.0 % at 1.00 req/s (TPOT 100 %); lower --start-rate or raise --max-minutes; wanted {AIMS}",
        ),
        (
            found(state="all missed", by="users", tried=(1, 4), first="ttft", broke_at=1.0, broke={"ttft": 0.5}),
            "missed at every number of users that was run, down to 1 user, in the time given: TTFT breaks first: "
            f"met by 50.0 % at 1 user; raise --max-minutes; wanted {AIMS}",
        ),
        (
            found(
                state="not met",
                by="users",
                tried=(1, 4),
                first="ttft",
                broke_at=1.0,
                broke={"ttft": 0.5},
                failures={"status": 0.5},
            ),
            f"not met even at 1 user: requests fail: 50.0 % status at 1 user; wanted {AIMS}",
        ),
        (
            found(
                state="failed",
                load=12.0,
                first="ttft",
                broke_at=16.0,
                broke={"ttft": 0.0},
                failures={"refused": 0.9, "truncated": 0.1},
            ),
            "the server failed: 90.0 % refused, 10.0 % truncated at 16.0 req/s; until then up to 12.0 req/s met "
            f"{AIMS}",
        ),
        (
            found(state="failed", first="ttft", broke_at=16.0, broke={"ttft": 0.0}, failures={"refused": 1.0}),
            "the server failed: 100 % refused at 16.0 req/s",
        ),
        (
            found(
                load=19.0,
                low=18.8,
                high=19.2,
                first="ttft",
                broke_at=20.0,
                broke={"ttft": 0.9, "tpot": 0.9},
                failures={"status": 0.08},
            ),
            f"highest rate: 19.0 req/s (95 %: 18.8–19.2) meets {AIMS}; above it requests fail: 8.0 % status "
            "at 20.0 req/s",
        ),
        (
            found(
                load=19.0,
                low=18.8,
                high=19.2,
                first="ttft",
                broke_at=20.0,
                broke={"ttft": 0.9},
                fault="the generator used 97% of a core",
            ),
            f"highest rate: 19.0 req/s (95 %: 18.8–19.2) meets {AIMS}; above it TTFT breaks first: met by 90.0 % "
            "at 20.0 req/s. The generator itself was at its limit there (the generator used 97% of a core): "
            "the server may take more",
        ),
        (found(state="nothing", tried=None), "nothing found: no stage ended"),
    ],
)
def test_an_answer_is_a_sentence(answer: Found, words: str) -> None:
    assert found_sentence(answer, SLOS) == words


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("8 users", 8),
        ("1 user", 1),
        ("8 users (2)", 8),
        ("22.6 req/s", 22.6),
        ("rate=4", 4),
        ("a and b", None),
        ("", None),
    ],
)
def test_a_stage_has_the_load_that_its_name_says(name: str, load: float | None) -> None:
    assert load_of(name) == load


def test_the_frontier_leaves_out_what_another_stage_exceeds_in_both() -> None:
    points = [Point("1", 1, 50, 50, None), Point("4", 4, 40, 160, None), Point("5", 5, 39, 150, None),
              Point("16", 16, 20, 300, None)]  # fmt: skip
    assert [point.name for point in frontier(points)] == ["16", "4", "1"]
    assert frontier([]) == []


def run_with(readings: list[dict[str, float]]) -> Run:
    return Run(
        date="", label="", command=[], config={}, targets={}, model="m", endpoint="/v1/chat/completions",
        start_unix_ns=10**9 * 100,
        scraped=[Scraped(name="server", url="", kind="vllm", missed=2, readings=[
            Reading(100.0 + place, figures) for place, figures in enumerate(readings)
        ])],
    )  # fmt: skip


def test_counters_grow_and_a_restart_is_no_growth() -> None:
    run = run_with([
        {"preemptions": 5, "prefix_queries": 100, "prefix_hits": 0, "running": 1},
        {"preemptions": 9, "prefix_queries": 200, "prefix_hits": 50, "running": 3},
        {"preemptions": 1, "prefix_queries": 0, "prefix_hits": 0, "running": 2},
    ])  # fmt: skip
    (source,) = run.scraped
    assert growth(run, source, "preemptions") == 4
    assert hit_rate(run, source) == 0.5
    assert rate_series(run, source, "preemptions") == ([1.0, 2.0], [4.0, 0.0])
    (table,) = engine_tables(run)
    assert table.rows == [["server (vllm)", "2.00", "3.00", "–", "–", "–", "4", "50.0 %", "3"]]
    assert table.notes == ["2 readings failed or came too late."]
    assert engine_tables(run_with([])) == []


def request(number: int, ttft_ms: float, queue: float | None, prefill: float | None) -> Record:
    first, last = round(ttft_ms * 1e6), round(ttft_ms * 1e6) + 10**7
    return Record(
        index=number, id="", prompt="", due_ns=0, sent_ns=0, end_ns=last,
        events=[Event(first, first, first, Kind.CONTENT), Event(last, last, last, Kind.DONE)],
        engine_queue_ms=queue, engine_prefill_ms=prefill,
    )  # fmt: skip


def test_ttft_is_the_sum_of_network_queue_and_prefill() -> None:
    requests = [each for each in measure_records([
        request(0, 30.0, 5.0, 20.0), request(1, 60.0, 25.0, 30.0), request(2, 90.0, None, None),
    ]) if each is not None]  # fmt: skip
    fast, slow = splits(requests)
    assert (fast.network, fast.queue, fast.prefill) == (5, 5, 20)
    assert (slow.network, slow.queue, slow.prefill, slow.ttft) == (5, 25, 30, 60)
    (table,) = engine_tables(run_with([]), requests)
    assert [row[0] for row in table.rows] == [
        "network and the server's front", "the engine's queue", "prefill, to the first token",
    ]  # fmt: skip
    assert [row[1] for row in table.rows] == ["5.00", "15.0", "25.0"]
    assert splits([]) == []
