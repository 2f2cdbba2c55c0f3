"""The generator's own error as rows: clock, lag, lateness, merged reads, CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadgen.analysis import Summary, ms, percent
from loadgen.record import Run

CLOCKS: Final = {
    "kernel": "the kernel's stamp of each read (SO_TIMESTAMPING)",
    "user": "the program's, after the read: its own delays are in every figure",
    "mixed": "the kernel's for some reads, the program's for others",
}


def own_error(run: Run, summary: Summary) -> list[list[str]]:
    lag = run.lag
    rows = [
        ["receive clock", lag.clock, CLOCKS[lag.clock]],
        ["send clock", lag.send_clock, CLOCKS[lag.send_clock].replace("read", "send")],
        ["event-loop lag", _spread(lag.loop_ms), "how late the event loop ran its callbacks"],
        ["kernel to program", _spread(lag.read_ms), "the delay that the program's clock would have added"],
        ["sent late", _spread(lag.late_ms), "sent − due, of requests that did not wait for the cap"],
        [
            "censored",
            _censored(summary),
            "events whose time is an interval, because the kernel merged their reads",
        ],
        ["interval width", _spread(lag.censored_width_ms), "of those intervals"],
        ["CPU", percent(lag.cpu), "of one core, the busiest worker"],
        ["clock drift", _drift(lag.clock_drift_ms), "realtime against monotonic clock, over the run"],
    ]
    if lag.floor_ms:
        floor = ", ".join(f"{_named(name)} {ms(value)}" for name, value in lag.floor_ms.items())
        rows.append(["error floor", f"{floor} ms", "from `loadgen calibrate` on this machine"])
    else:
        rows.append(["error floor", "unknown", "run `loadgen calibrate` to measure it"])
    return rows


def _spread(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ms(value)}" for name, value in values.items()) + " ms" if values else "not measured"


def _censored(summary: Summary) -> str:
    """Shared responses arrive in one piece, which is not this program's error: the share without them comes
    first."""
    whole = percent(summary.whole.censored)
    return whole if summary.fresh is None else f"{percent(summary.fresh.censored)}; {whole} with shared responses"


def _drift(milliseconds: float) -> str:
    return "below 0.001 ms" if abs(milliseconds) < 0.001 else f"{ms(milliseconds)} ms"


def _named(figure: str) -> str:
    """ "TTFT p99" of ttft_p99."""
    name, _, point = figure.partition("_")
    return f"{name.upper()} {point}".strip()
