"""What a person sees: one line, one table, and a pipe that never holds the loop."""

from __future__ import annotations

import io
import sys

import msgspec
from rich.console import Console

from loadgen.cli.terminal.live import Lines, line_of, table_of, view
from loadgen.drive.capture.exchange import Exchange
from loadgen.drive.progress import Progress
from loadgen.record import Record
from loadgen.snapshot import Snapshot, merged
from tests.kit.patience import run_process

SNAPSHOT = Snapshot(
    stage="rate=8",
    seconds=10.0,
    total=100,
    due=90,
    sent=80,
    done=70,
    under_way=10,
    waiting=10,
    requested_rate=8.0,
    failed={"timeout": 2, "refused": 1},
    tokens=700,
    ttft_ms=[30.0, 10.0, 20.0],
    lag_ms=0.25,
)


def test_a_line_says_everything_that_is_known() -> None:
    assert line_of(SNAPSHOT) == (
        "[rate=8] 10 s, 70/100 done, 8.0 of 8 req/s sent, 10 in flight, 10 waiting, TTFT p50 20.0 ms, 70 tok/s, "
        "errors refused 1 timeout 2, own lag p99 0.25 ms"
    )
    assert line_of(Snapshot()) == "0 s, 0 done, 0.0 req/s sent, 0 in flight, errors none"


def test_a_table_is_drawn_of_any_snapshot() -> None:
    console = Console(file=io.StringIO(), width=100)
    for snapshot in (SNAPSHOT, Snapshot()):
        console.print(table_of(snapshot))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "70 of 100 in 10.0 s" in text
    assert "refused 1 timeout 2" in text


def test_lines_come_every_few_seconds_and_not_more_often() -> None:
    now, out = [0.0], io.StringIO()
    lines = Lines(out, every=5.0, now=lambda: now[0])
    for at in (1.0, 4.9, 5.0, 5.1, 9.9, 10.0):
        now[0] = at
        lines(SNAPSHOT)
    assert len(out.getvalue().splitlines()) == 2


def test_no_terminal_gets_lines_and_quiet_gets_nothing() -> None:
    with view(quiet=True) as none:
        assert none is None
    with view(quiet=False, out=io.StringIO()) as shown:
        assert isinstance(shown, Lines)


def test_the_drawing_process_draws_what_it_is_fed_and_ends_with_its_input() -> None:
    fed = msgspec.json.encode(SNAPSHOT) + b"\nnonsense\n"
    done = run_process(
        [sys.executable, "-m", "loadgen.cli.terminal.live"], input=fed, capture_output=True, seconds=30, check=True
    )
    assert b"Traceback" not in done.stderr


def ended(status: int = 200, first_ms: float = 0, tail: bytes = b"", failure: str | None = None) -> Exchange:
    exchange = Exchange(Record(index=0, id="", prompt="", due_ns=0))
    exchange.status, exchange.wrote_ns, exchange.first_ns = status, 1, 1 + round(first_ms * 1e6)
    exchange.parts = [tail]
    if failure:
        exchange.fail(failure, "")  # type: ignore[arg-type]
    return exchange


def test_progress_counts_ends_failures_and_tokens_by_usage() -> None:
    progress = Progress()
    progress.ended(
        ended(first_ms=5, tail=b'{"usage":{"completion_tokens": 3}} {"usage":{"completion_tokens":12}}')
    )
    progress.ended(ended(status=500))
    progress.ended(ended(failure="timeout"))
    snapshot = progress.snapshot()
    assert (snapshot.done, snapshot.tokens, snapshot.failed) == (3, 12, {"status": 1, "timeout": 1})
    assert snapshot.ttft_ms[0] == 5.0


def test_workers_snapshots_add_up() -> None:
    both = merged([SNAPSHOT, SNAPSHOT])
    assert (both.done, both.total, both.sent, both.requested_rate) == (140, 200, 160, 8.0)
    assert both.failed == {"timeout": 4, "refused": 2}
    assert both.ttft_p50_ms == 20.0
    assert merged([SNAPSHOT]) is SNAPSHOT
