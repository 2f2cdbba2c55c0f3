"""The end of a run: its folder, its verdict, its exit code."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli import finish
from loadgen.drive.self_error import WorkerError
from loadgen.errors import UsageError
from loadgen.record import Record, Run
from loadgen.spec import Limits

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)


def run(**more: Any) -> Run:
    return Run(
        date="", label="", command=[], config={}, targets={}, model="m", endpoint="/v1/chat/completions", **more
    )


def record(index: int = 0, **more: Any) -> Record:
    return Record(index=index, id="", prompt="", **({"due_ns": 0, "sent_ns": 0, "end_ns": 10} | more))


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    first, second = (finish.make_folder(str(tmp_path), "a/b c!", NOW) for _ in range(2))
    assert (first.name, second.name) == ("20260401-120000-a-b-c", "20260401-120000-a-b-c-1")


def test_a_folder_that_cannot_be_made_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to --result-dir"):
        finish.make_folder(str(tmp_path / "file"), "", NOW)


@pytest.mark.parametrize(("label", "slug"), [("../../etc", "etc"), ("", "run"), ("ü", "run"), ("a=1", "a=1")])
def test_a_label_cannot_leave_the_folder(label: str, slug: str) -> None:
    assert finish.slug(label) == slug


@pytest.mark.parametrize(
    ("made", "failures", "rate", "code"),
    [
        (run(), [None, None], 0.0, 0),
        (run(), [None, "timeout"], 0.0, 1),
        (run(), [None, "timeout"], 0.5, 0),
        (run(invalid=["x"]), [None], 0.0, 3),
        (run(invalid=["x"]), ["timeout"], 0.0, 1),
        (run(interrupted=True, invalid=["x"]), ["cancelled"], 0.0, 130),
        (run(), [], 1.0, 1),
        (run(), [None, "cancelled"], 0.0, 0),  # --max-seconds
        (run(), ["cancelled"], 1.0, 1),
    ],
)
def test_the_exit_code_says_the_worst_that_is_true(made: Run, failures: list[Any], rate: float, code: int) -> None:
    records = [record(i, failure=failure) for i, failure in enumerate(failures)]
    records.append(record(-1, warmup=True, failure="timeout"))
    assert finish.exit_code(made, records, rate) == code


def test_each_stage_is_judged_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "load_calibration", lambda: None)
    made = run()
    late = [record(i, stage="rate=2", due_ns=i, sent_ns=9_000_000) for i in range(3)]
    finish.judge(
        made, [record(9, stage="rate=1"), *late], [WorkerError(), WorkerError()], Limits(), open_loop=True
    )
    assert made.invalid
    assert all(text.startswith("rate=2: ") for text in made.invalid)


def test_a_runs_duration_leaves_its_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "load_calibration", lambda: None)
    made = run()
    records = [record(-1, warmup=True, end_ns=10**12), record(0, due_ns=5, end_ns=105)]
    finish.judge(made, records, [WorkerError()], Limits(), open_loop=False)
    assert made.duration_ns == 100
    assert made.warnings == []


def test_requests_that_were_sent_again_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 requests "573 were sent again"."""
    monkeypatch.setattr(finish, "load_calibration", lambda: None)
    made = run()
    finish.judge(made, [record(0, resent=3), record(1, resent=2), record(2)], [], Limits(), open_loop=False)
    assert made.warnings[0].startswith("2 of the requests were sent again (5 times altogether)")


def test_a_run_lasts_until_the_last_request_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "load_calibration", lambda: None)
    made = run()
    hung = record(1, end_ns=None, closed_ns=7_000, failure="timeout")
    finish.judge(made, [record(0, end_ns=100), hung], [], Limits(), open_loop=False)
    assert made.duration_ns == 7_000


def test_a_run_that_was_ended_in_its_warm_up_is_not_called_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "load_calibration", lambda: None)
    made = run()
    finish.judge(made, [record(-1, warmup=True)], [WorkerError()], Limits(), open_loop=False)
    assert made.invalid == ["nothing was measured"]


def test_the_machine_is_told() -> None:
    machine = finish.machine()
    assert machine["cores"] >= 1
    assert machine["versions"]["aiohttp"].startswith("3.14")
