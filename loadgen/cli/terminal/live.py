"""The live view of a run: a table on a terminal, plain lines elsewhere. `python -m loadgen.cli.terminal.live`
draws the table in a process of its own from snapshots as JSON lines, since drawing in the loop would delay the
measurement."""

from __future__ import annotations

import contextlib
import json
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


def line_of(snapshot: Snapshot) -> str:
    s = snapshot
    total = "" if s.total is None else f"/{s.total}"
    requested = "" if s.requested_rate is None else f" of {s.requested_rate:g}"
    parts = [
        f"{max(s.seconds, 0):.0f} s",
        f"{s.done}{total} done",
        f"{s.rate:.1f}{requested} req/s sent",
        f"{s.under_way} in flight",
    ]
    if s.waiting:
        parts.append(f"{s.waiting} waiting")
    if s.ttft_p50_ms is not None:
        parts.append(f"TTFT p50 {s.ttft_p50_ms:.1f} ms")
    if s.seconds > 0 and s.tokens:
        parts.append(f"{s.tokens / s.seconds:.0f} tok/s")
    parts.append(f"errors {errors_of(s)}")
    if s.lag_ms is not None:
        parts.append(f"own lag p99 {s.lag_ms:.2f} ms")
    return (f"[{s.stage}] " if s.stage else "") + ", ".join(parts)


def errors_of(snapshot: Snapshot) -> str:
    return " ".join(f"{kind} {count}" for kind, count in sorted(snapshot.failed.items())) or "none"


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
            print(line_of(snapshot), file=self._out, flush=True)


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
        line = msgspec.json.encode(snapshot) + b"\n"
        if len(line) > 4000:  # up to PIPE_BUF a pipe takes all or nothing
            line = msgspec.json.encode(msgspec.structs.replace(snapshot, ttft_ms=[])) + b"\n"
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
def view(*, quiet: bool, out: IO[str] = sys.stderr) -> Iterator[View | None]:
    """No view, a table if `out` is a terminal, else lines."""
    if quiet:
        yield None
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
    table.add_column(style="dim")
    table.add_column()
    if s.total:
        table.add_row(s.stage or "run", ProgressBar(total=s.total, completed=s.done, width=40))
    count = f"{s.done}" + (f" of {s.total}" if s.total is not None else "")
    table.add_row("done", f"{count} in {max(s.seconds, 0):.1f} s, {s.under_way} in flight, {s.waiting} waiting")
    requested = "" if s.requested_rate is None else f", {s.requested_rate:g} requested"
    table.add_row("sent", f"{s.rate:.2f} req/s{requested}")
    ttft = "–" if s.ttft_p50_ms is None else f"{s.ttft_p50_ms:.1f} ms"
    table.add_row("TTFT p50", f"{ttft} (of the last {len(s.ttft_ms)}, approximate)")
    table.add_row("tokens", f"{s.tokens / s.seconds:.1f} tok/s" if s.seconds > 0 else "–")
    table.add_row("errors", f"[red]{errors_of(s)}[/]" if s.failed else "none")
    table.add_row("own lag p99", "–" if s.lag_ms is None else f"{s.lag_ms:.2f} ms")
    return table


def main() -> None:
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for line in sys.stdin.buffer:
            with contextlib.suppress(json.JSONDecodeError, msgspec.MsgspecError):
                live.update(table_of(msgspec.json.decode(line, type=Snapshot)), refresh=True)


if __name__ == "__main__":
    main()
