"""What a person sees: one line, one table, and a pipe that never holds the loop."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios

import msgspec
import pytest
from rich.console import Console

from loadgen.cli.terminal.live import Drawn, Lines, Message, Notes, line_of, table_of, view
from loadgen.drive.capture.exchange import Exchange
from loadgen.drive.progress import Progress
from loadgen.record import Record
from loadgen.snapshot import Snapshot, merged, time_left
from tests.kit.patience import run_process

MS = 1_000_000
SNAPSHOT = Snapshot(
    stage="rate=8",
    seconds=10.0,
    seconds_left=3.4,
    total=100,
    due=90,
    sent=80,
    done=70,
    good=35,
    under_way=10,
    waiting=10,
    requested_rate=8.0,
    sent_rate=8.0,
    done_rate=7.0,
    token_rate=70.0,
    failed={"timeout": 2, "refused": 1},
    tokens=700,
    ttft_ms={"a": [30.0, 10.0, 20.0]},
    lag_ms=0.25,
)


def test_a_line_says_everything_that_is_known() -> None:
    assert line_of(SNAPSHOT) == (
        "[rate=8] 10 s, 70/100 done, 8.0 of 8 req/s sent, 10 in flight, 10 waiting, TTFT p50 20.0 p95 30.0 ms, "
        "70 tok/s, goodput 50%, failed refused 1 timeout 2, 3 s left, own lag p99 0.25 ms"
    )
    assert line_of(Snapshot()) == "0 s, 0 done, 0.0 req/s sent, 0 in flight, failed none"


def test_a_run_that_has_sent_everything_does_not_look_slow() -> None:
    assert "all sent" in line_of(msgspec.structs.replace(SNAPSHOT, sent=100, sent_rate=0.0))


def test_the_two_targets_of_a_pair_are_told_apart() -> None:
    both = msgspec.structs.replace(SNAPSHOT, ttft_ms={"b": [900.0], "a": [20.0]})
    assert "TTFT a p50 20.0 p95 20.0 ms, TTFT b p50 900.0" in line_of(both)


@pytest.mark.parametrize("width", [40, 100])
def test_a_table_is_drawn_of_any_snapshot_in_the_width_there_is(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    for snapshot in (SNAPSHOT, Snapshot()):
        console.print(table_of(snapshot))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    for words in ("70 of 100, 10 in flight", "p50 20.0 p95 30.0 ms", "about 3 s left", "70 tok/s", "50%"):
        assert words in text
    assert "refused 1 timeout 2" in text


def test_lines_come_every_few_seconds_and_not_more_often() -> None:
    now, out = [0.0], io.StringIO()
    lines = Lines(out, every=5.0, now=lambda: now[0])
    for at in (1.0, 4.9, 5.0, 5.1, 9.9, 10.0):
        now[0] = at
        lines(SNAPSHOT)
    assert len(out.getvalue().splitlines()) == 2


def test_no_terminal_gets_lines_and_quiet_gets_the_lines_that_stay() -> None:
    out = io.StringIO()
    with view(quiet=True, out=out) as notes:
        assert isinstance(notes, Notes)
        notes(SNAPSHOT)
        notes.note("stage 1")
    assert out.getvalue() == "stage 1\n"
    with view(quiet=False, out=io.StringIO()) as shown:
        assert isinstance(shown, Lines)


# The terminal


class Terminal:
    """What stands on a terminal after these bytes: enough of a VT100 for lines that are drawn again in place."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> Terminal:
        for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\s\S]", text):
            if token.startswith("\x1b"):
                self._control(token)
            elif token == "\n":
                self._down()
            elif token == "\r":
                self.column = 0
            else:
                self._put(token)
        return self

    def _control(self, token: str) -> None:
        number = int(re.sub(r"\D", "", token) or 1)
        if token.endswith("A"):
            self.row = max(self.row - number, 0)
        elif token == "\x1b[2K":
            self.lines[self.row] = ""

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _put(self, character: str) -> None:
        if self.column == self.width:
            self.column = 0
            self._down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1


def drawn(messages: list[Message | int], width: int) -> list[str]:
    """The terminal's lines after these messages; a number is a new width of the terminal."""
    parent, child = pty.openpty()
    resized(child, width)
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen.cli.terminal.live"],
        stdin=subprocess.PIPE,
        stderr=child,
        env={name: text for name, text in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"},
    )
    assert process.stdin is not None
    shown = b""
    for number, message in enumerate(messages):
        if isinstance(message, int):
            resized(child, message)
            continue
        process.stdin.write(msgspec.json.encode(message) + b"\nnonsense\n")
        process.stdin.write(msgspec.json.encode(Message(note=f"mark {number}")) + b"\n")
        process.stdin.flush()
        while f"mark {number}".encode() not in shown:  # one message after the other, as in time
            assert select.select([parent], [], [], 30)[0], shown
            shown += os.read(parent, 65536)
    process.stdin.close()
    os.close(child)
    try:
        while data := os.read(parent, 65536):
            shown += data
    except OSError:  # the other side is closed
        pass
    os.close(parent)
    assert process.wait() == 0
    return Terminal(width).feed(shown.decode()).lines


def resized(terminal: int, width: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))


@pytest.mark.parametrize("width", [40, 80])
def test_the_view_never_draws_over_itself_and_leaves_only_the_notes(width: int) -> None:
    stage = "   10.00 req/s requested"
    later = msgspec.structs.replace(SNAPSHOT, ttft_ms={"a": [1.0], "b": [2.0]}, done=90)
    messages: list[Message | int] = [
        Message(snapshot=SNAPSHOT),
        Message(note=stage),
        Message(snapshot=later),
        Message(note=stage),
        Message(snapshot=SNAPSHOT),
    ]
    left = [line.rstrip() for line in drawn(messages, width) if line.strip()]
    assert [line for line in left if not line.startswith("mark ")] == [stage, stage]
    assert len(left) == 7


def test_after_a_resize_no_line_of_the_users_is_lost() -> None:
    messages: list[Message | int] = [Message(note="before"), Message(snapshot=SNAPSHOT), 40, Message(note="after")]
    left = [line.rstrip() for line in drawn(messages, 80)]
    assert "before" in left
    assert "after" in left


def test_the_drawing_process_draws_what_it_is_fed_and_ends_with_its_input() -> None:
    fed = msgspec.json.encode(Message(snapshot=SNAPSHOT)) + b"\nnonsense\n"
    done = run_process(
        [sys.executable, "-m", "loadgen.cli.terminal.live"], input=fed, capture_output=True, seconds=30, check=True
    )
    assert b"Traceback" not in done.stderr


def test_a_snapshot_always_fits_into_the_pipe() -> None:
    written: list[bytes] = []

    class Kept(Drawn):
        def __init__(self) -> None:
            """Without a process."""

        def _write(self, line: bytes) -> None:
            written.append(line)

    many = {"a": [1234.567] * 1000}
    Kept()(msgspec.structs.replace(SNAPSHOT, ttft_ms=many))
    Kept().note("x" * 100_000)
    assert all(len(line) <= 4096 for line in written)
    assert msgspec.json.decode(written[0], type=Message).snapshot is not None


# Counting


def ended(
    status: int = 200, first_ms: float = 0, last_ms: float = 0, tail: bytes = b"", failure: str | None = None
) -> Exchange:
    exchange = Exchange(Record(index=0, id="", prompt="", due_ns=0))
    exchange.status, exchange.wrote_ns, exchange.first_ns = status, 1, 1 + round(first_ms * MS)
    exchange.last_ns = 1 + round(last_ms * MS)
    exchange.parts, exchange.content_type = [tail], "text/event-stream"
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
    assert snapshot.ttft_ms["a"][0] == 5.0
    assert snapshot.good is None


@pytest.mark.parametrize(
    ("body", "stream", "kind"),
    [
        (b'{"error":{"message":"boom"}}', True, "error_frame"),
        (b' {"error": {"message": "boom"}}', False, "error_frame"),
        (b'{"object":"error","message":"boom"}', False, "error_frame"),
        (b'{"choices":[]}', True, "garbage"),
        (b'{"choices":[],"error":null}', False, None),
        (b'{"choices":[{"text":"an \\"error\\""}]}', False, None),
        (b"<html>", True, None),
    ],
)
def test_an_error_in_a_body_of_status_200_counts_while_the_run_goes_on(
    body: bytes, stream: bool, kind: str | None
) -> None:
    """`--max-errors` did not see it: the run went on to its end with a server that answered errors only."""
    progress = Progress()
    exchange = ended(tail=body)
    exchange.content_type, exchange.record.stream, exchange.size = "application/json", stream, len(body)
    progress.ended(exchange)
    assert progress.snapshot().failed == ({kind: 1} if kind else {})
    assert progress.errors == (kind is not None)


def test_progress_moves_with_tokens_before_any_request_has_ended() -> None:
    progress = Progress()
    streaming = ended(first_ms=40)
    for _ in range(30):
        streaming.add_read(0, 2 * MS, 0)
    waiting = Exchange(Record(index=1, id="", prompt="", due_ns=0))
    snapshot = progress.snapshot([streaming, waiting], seconds=2.0, sent=2)
    assert (snapshot.done, snapshot.tokens, snapshot.token_rate) == (0, 30, 15.0)
    assert snapshot.ttft_ms == {"a": [40.0]}


def test_live_rates_are_those_of_the_last_seconds() -> None:
    progress = Progress()
    for second in range(21):
        snapshot = progress.snapshot(seconds=float(second), sent=min(second * 10, 100))
    assert snapshot.sent_rate == 0, "all was sent ten seconds ago"
    progress = Progress()
    for second in range(8):
        snapshot = progress.snapshot(seconds=float(second), sent=second * 10)
    assert snapshot.sent_rate == pytest.approx(10)


def test_goodput_counts_what_met_every_objective() -> None:
    progress = Progress({"ttft": 50.0, "tpot": 10.0})
    usage = b'{"usage":{"completion_tokens":11}}'
    progress.ended(ended(first_ms=40, last_ms=130, tail=usage))
    progress.ended(ended(first_ms=60, last_ms=130, tail=usage))
    progress.ended(ended(first_ms=40, last_ms=150, tail=usage))
    progress.ended(ended(first_ms=1, failure="timeout"))
    snapshot = progress.snapshot()
    assert (snapshot.good, snapshot.done) == (1, 4)


def test_goodput_leaves_out_how_long_a_response_stays_open_after_its_body() -> None:
    progress = Progress({"e2el": 100.0})
    exchange = ended(first_ms=40, tail=b"data: [DONE]\n\n")
    for size, at in ((10, 40), (30, 90), (30, 590), (30, 600)):
        exchange.size = size
        exchange.add_read(0, 1 + at * MS, 0)
    progress.ended(exchange)
    assert progress.good == 1


@pytest.mark.parametrize(
    ("changes", "limit", "left"),
    [
        ({}, None, 10 / 8),  # 10 of 100 are not due yet, at 8/s
        ({"due": 100}, None, 30 / 7),  # all are due; they end at 7/s
        ({"requested_rate": None}, None, 30 / 7),
        ({"total": None}, None, None),
        ({"total": None}, 60.0, 50.0),
        ({"due": 100}, 11.0, 1.0),
        ({"due": 100, "done_rate": 0.0}, None, None),
    ],
)
def test_the_time_left_is_by_arrivals_or_by_pace(
    changes: dict[str, float | None], limit: float | None, left: float | None
) -> None:
    assert time_left(msgspec.structs.replace(SNAPSHOT, **changes), limit) == left


def test_workers_snapshots_add_up() -> None:
    both = merged([SNAPSHOT, SNAPSHOT])
    assert (both.done, both.total, both.sent, both.requested_rate) == (140, 200, 160, 8.0)
    assert (both.good, both.token_rate, both.seconds_left) == (70, 140.0, 3.4)
    assert both.failed == {"timeout": 4, "refused": 2}
    assert sorted(both.ttft_ms["a"]) == [10.0, 10.0, 20.0, 20.0, 30.0, 30.0]
    assert merged([SNAPSHOT]) is SNAPSHOT
