"""What a report says of conversations, cancelled requests and an engine that went on."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.analysis import summarise
from loadgen.record import CancelCheck, Record, Run
from loadgen.report.loads import check_words
from loadgen.report.settings import settings_rows
from loadgen.report.view import view
from tests.loadgen.analysis.test_loads import record, turn


def shown(run: Run, *records: Record) -> Any:
    return view(run, summarise(run, records))


def run_of(**config: Any) -> Run:
    return Run(
        date="2026-11-29T12:00:00+00:00", label="", command=["loadgen"], config=config, targets={"a": "http://h"},
        model="m", endpoint="/v1/chat/completions",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"conversation_rate": 0.5, "request_rate": "inf"}, "0.5 conversations/s (Poisson)"),
        ({"max_concurrency": 3, "request_rate": "inf"}, "3 users, each with one conversation at a time"),
        ({"arrivals": "as recorded", "request_rate": "inf"}, "at their recorded times"),
    ],
)
def test_the_load_is_named_for_what_it_is(config: dict[str, Any], words: str) -> None:
    report = shown(run_of(**config), turn("c", 1), turn("c", 2))
    assert words in report.ran
    (table,) = [table for table in report.tables if table.title == "By turn of a conversation"]
    assert [row[0] for row in table.rows] == ["1", "2"]
    assert table.notes[0] == "1 conversation: 1 completed."


def test_an_engine_that_goes_on_is_in_the_result() -> None:
    run = run_of()
    run.cancel_checks = [CancelCheck(url="http://h/metrics", within_s=1, before=0, after=3, left=1)]
    report = shown(run, record(0, "left", cancel="tokens"), record(1))
    assert "1 cancelled by their clients" in report.result
    assert "DID NOT STOP" in report.result
    assert "still had 3 requests (0 before) 1 s after the run" in report.result
    assert "had not ended" not in " ".join(report.warnings)


def test_a_check_says_what_it_saw() -> None:
    check = CancelCheck(url="u", within_s=1, before=1, after=1, settle_s=0.02, readings=12, left=3, aborted=3)
    assert check_words(check) == (
        "stopped: back at 1 request 0.02 s after the last one ended, in 12 readings never above those in flight; "
        "it counts 3 as aborted"
    )


def test_settings_of_another_kind_of_load_are_left_out() -> None:
    config = {"turns": None, "think_time": "0", "history": "own", "cancel_within": 1.0, "rerank_documents": 10}
    names = {name for name, _ in settings_rows(run_of(**config, image_size="512x512", lora_assignment="random"))}
    assert not names & {
        "think time",
        "history",
        "cancel within",
        "rerank documents",
        "image size",
        "lora assignment",
    }
    rows = dict(settings_rows(run_of(turns="3", think_time="exponential:2", history="own")))
    assert rows["think time"] == "exponential:2"
