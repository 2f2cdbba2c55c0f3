"""The live view of a run: a table on a terminal, plain lines elsewhere. `python -m loadgen.cli.terminal.live`
draws the table in a process of its own from snapshots as JSON lines, since drawing in the loop would delay the
measurement."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

import msgspec
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from loadgen.snapshot import Snapshot, View

LINE_EVERY: Final = 5.0  # seconds
PIPE: Final = 4000  # bytes; up to PIPE_BUF a pipe takes all of a line or nothing


class Message(msgspec.Struct, omit_defaults=True):
    """One line to the process that draws: a snapshot, or a line that stays above the table."""

    snapshot: Snapshot | None = None
    note: str = ""


def line_of(snapshot: Snapshot) -> str:
    s = snapshot
    total = "" if s.total is None else f"/{s.total}"
    parts = [f"{max(s.seconds, 0):.0f} s", f"{s.done}{total} done", _sending(s), f"{s.under_way} in flight"]
    if s.waiting:
        parts.append(f"{s.waiting} waiting")
    parts += [f"{name} {text}" for name, text in _latencies(s)]
    if s.tokens:
        parts.append(f"{s.token_rate:.0f} tok/s")
    if (good := _goodput(s)) is not None:
        parts.append(f"goodput {good}")
    parts.append(f"failed {failures_of(s)}")
    if s.seconds_left is not None:
        parts.append(f"{s.seconds_left:.0f} s left")
    if s.lag_ms is not None:
        parts.append(f"own lag p99 {s.lag_ms:.2f} ms")
    return (f"[{s.stage}] " if s.stage else "") + ", ".join(parts)


def failures_of(snapshot: Snapshot) -> str:
    return " ".join(f"{kind} {count}" for kind, count in sorted(snapshot.failed.items())) or "none"


def _sending(s: Snapshot) -> str:
    if s.total is not None and s.sent >= s.total:
        return "all sent"
    requested = "" if s.requested_rate is None else f" of {s.requested_rate:g}"
    return f"{s.sent_rate:.1f}{requested} req/s sent"


def _latencies(s: Snapshot) -> list[tuple[str, str]]:
    rows = []
    for target, values in sorted(s.ttft_ms.items()):
        ordered = sorted(values)
        p50, p95 = ordered[len(ordered) // 2], ordered[min(len(ordered) * 95 // 100, len(ordered) - 1)]
        rows.append((f"TTFT {target}" if len(s.ttft_ms) > 1 else "TTFT", f"p50 {p50:.1f} p95 {p95:.1f} ms"))
    return rows


def _goodput(s: Snapshot) -> str | None:
    ended = s.done - s.failed.get("cancelled", 0)
    return None if s.good is None or not ended else f"{s.good / ended:.0%}"


class Lines:
    """Prints a line every few seconds; 18 µs each."""

    def __init__(self, out: IO[str], every: float = LINE_EVERY, now: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._every = every
        self._now = now
        self._next = now() + every

    def __call__(self, snapshot: Snapshot) -> None:
        if self._now() >= self._next:
            self._next = self._now() + self._every
            self.note(line_of(snapshot))

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class Notes:
    """No view, but the lines that stay."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def __call__(self, snapshot: Snapshot) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class Drawn:
    """Passes snapshots to a process that draws them: drawing takes 3 ms (measured), which would delay the loop.

    If the pipe is full the snapshot is dropped.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadgen.cli.terminal.live"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        self._fd = self._process.stdin.fileno()
        os.set_blocking(self._fd, False)

    def __call__(self, snapshot: Snapshot) -> None:
        line = msgspec.json.encode(Message(snapshot=snapshot)) + b"\n"
        if len(line) > PIPE:
            line = msgspec.json.encode(Message(snapshot=msgspec.structs.replace(snapshot, ttft_ms={}))) + b"\n"
        self._write(line)

    def note(self, text: str) -> None:
        self._write(msgspec.json.encode(Message(note=text[: PIPE // 4])) + b"\n")

    def _write(self, line: bytes) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def view(*, quiet: bool, out: IO[str] = sys.stderr) -> Iterator[View]:
    """Only the lines that stay, a table if `out` is a terminal, else lines."""
    if quiet:
        yield Notes(out)
    elif out.isatty():
        drawn = Drawn()
        try:
            yield drawn
        finally:
            drawn.close()
    else:
        yield Lines(out)


def table_of(snapshot: Snapshot) -> Table:
    s = snapshot
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    if s.total:
        table.add_row(s.stage or "run", ProgressBar(total=s.total, completed=s.done, width=24))
    count = f"{s.done}" + (f" of {s.total}" if s.total is not None else "")
    waiting = f", {s.waiting} waiting" if s.waiting else ""
    table.add_row("done", f"{count}, {s.under_way} in flight{waiting}")
    left = "" if s.seconds_left is None else f", about {s.seconds_left:.0f} s left"
    table.add_row("time", f"{max(s.seconds, 0):.0f} s{left}")
    table.add_row("sent", _sending(s))
    for name, text in _latencies(s) or [("TTFT", "–")]:
        table.add_row(name, text)
    table.add_row("output", f"{s.token_rate:.0f} tok/s")
    if (good := _goodput(s)) is not None:
        table.add_row("goodput", good)
    table.add_row("failed", f"[red]{failures_of(s)}[/]" if s.failed else "none")
    table.add_row("own lag", "–" if s.lag_ms is None else f"p99 {s.lag_ms:.2f} ms")
    return table


class Screen:
    """A table that is drawn again in its place, with notes above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = console.width
        self._live = self._started()

    def _started(self) -> Live:
        live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        live.start()
        return live

    def show(self, message: Message) -> None:
        if self._console.width != self._width:
            # The terminal has broken the drawn lines anew, so that nobody knows where they are: leave them.
            self._width, self._live.transient = self._console.width, False
            self._live.stop()
            self._live = self._started()
        if message.note:
            self._console.print(message.note, markup=False, highlight=False)
        if message.snapshot is not None:
            self._live.update(table_of(message.snapshot), refresh=True)

    def close(self) -> None:
        self._live.stop()


def main() -> None:
    screen = Screen(Console(stderr=True))
    try:
        for line in sys.stdin.buffer:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                screen.show(msgspec.json.decode(line, type=Message))
    finally:
        screen.close()


if __name__ == "__main__":
    main()
