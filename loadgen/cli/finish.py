"""The end of a measurement: its verdict, its files and reports, the summary on the terminal, the exit code."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from loadgen import store
from loadgen.analysis import BadGoodput, parse_goodput, summarise
from loadgen.drive import (
    WorkerError,
    beyond_calibration,
    judge_self_error,
    lag_of,
    load_calibration,
)
from loadgen.errors import UsageError
from loadgen.record import Record, Run
from loadgen.report import write_reports
from loadgen.spec import Limits

OK: Final = 0
FAILED: Final = 1
INVALID: Final = 3
INTERRUPTED: Final = 130


def make_folder(base: str, label: str, now: datetime) -> Path:
    """Create `out/20260401-120000-label`. Raises UsageError if that fails."""
    name = now.strftime("%Y%m%d-%H%M%S") + (f"-{slug(label)}" if label else "")
    for attempt in range(100):
        folder = Path(base) / (name if not attempt else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"cannot write to --result-dir {base}: {error.strerror}") from None
        return folder
    raise UsageError(f"--result-dir {base} already has a hundred runs with this second's name")


def slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", label).strip("-.")[:60] or "run"


def check_goodput(words: Sequence[str] | None) -> None:
    """Raises UsageError, before a run starts, for objectives that cannot be parsed."""
    try:
        parse_goodput(words or ())
    except BadGoodput as error:
        raise UsageError(str(error)) from None


def machine() -> dict[str, Any]:
    """The machine that measures, for the report."""
    versions = {name: version(name) for name in ("aiohttp", "msgspec")}
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "versions": versions,
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"model name\s*:\s*(.+)", text)
    return model.group(1).strip() if model else platform.machine()


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def judge(
    run: Run, records: Sequence[Record], worker_errors: Sequence[WorkerError], limits: Limits, *, open_loop: bool
) -> None:
    """Set the run's own error, its validity and its warnings.

    Each stage of a sweep is judged by itself, with its own entry of `worker_errors`.
    """
    run.lag = lag_of(records, worker_errors)
    stages = list(dict.fromkeys(record.stage for record in records if not record.warmup))
    for number, stage in enumerate(stages):
        part = records if len(stages) == 1 else [record for record in records if record.stage == stage]
        stage_errors = worker_errors if len(stages) == 1 else worker_errors[number : number + 1]
        lag = lag_of(part, stage_errors)
        steps = max((error.step_ns for error in stage_errors), default=0)
        invalid, warnings = judge_self_error(lag, part, limits, steps, open_loop=open_loop)
        name = f"{stage}: " if stage else ""
        run.invalid += [name + text for text in invalid]
        run.warnings += [name + text for text in warnings]
    if all(record.warmup for record in records):
        run.invalid.append("nothing was measured")
    known = load_calibration()
    if known is not None:
        run.lag.floor_ms = known.floor_ms
        run.warnings += beyond_calibration(known, records, workers=run.workers)
    resent = sum(record.resent for record in records if not record.warmup)
    if resent:
        run.warnings.append(
            f"{resent} requests were sent again because the server had closed their kept-alive connection"
        )
    without_usage = sum(record.completion_tokens is None for record in _completed(records))
    if without_usage and run.endpoint.endswith("completions"):
        run.warnings.append(f"{without_usage} responses had no usage: their tokens are not counted")
    end_times = [record.end_ns for record in records if record.end_ns is not None and not record.warmup]
    due_times = [record.due_ns for record in records if not record.warmup]
    run.duration_ns = max(end_times) - min(due_times) if end_times else 0


def _completed(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.failure is None and not record.warmup]


def exit_code(run: Run, records: Sequence[Record], max_error_rate: float) -> int:
    """130 after Ctrl-C; 1 if `--max-errors` ended it, too many requests failed, or none ended; 3 if the
    measurement is invalid; else 0."""
    measured = [record for record in records if not record.warmup and record.failure != "cancelled"]
    failed = sum(record.failure is not None for record in measured)
    if run.interrupted:
        return INTERRUPTED
    if run.stopped:
        return FAILED
    if not measured or failed > max_error_rate * len(measured):
        return FAILED
    return INVALID if run.invalid else OK


def report(folder: Path, run: Run, records: Sequence[Record], objectives: Sequence[str] | None) -> None:
    """Write run.json and the reports, and print the verdicts, the headline and the own error on stderr."""
    store.write_run(folder, run)
    view = write_reports(folder, run, records, summarise(run, records, parse_goodput(objectives or ()))).view
    lines = [view.measurement, view.result]
    lines += [f"  {name:<18} {value} ({detail})" for name, value, detail in view.headline]
    details = {record.failure: record.detail for record in reversed(records) if not record.warmup}
    lines += [f"  {failure}: {detail}" for failure, detail in details.items() if failure is not None]
    lag = run.lag
    error = [f"receive clock {lag.clock}, send clock {lag.send_clock}"]
    for name, values in (
        ("loop lag", lag.loop_ms),
        ("kernel to program", lag.read_ms),
        ("sent late", lag.late_ms),
    ):
        if values:
            error.append(f"{name} p50 {values['p50']:.3f} p99 {values['p99']:.3f} ms")
    error.append(f"merged events {lag.censored:.1%}, CPU {lag.cpu:.0%}")
    lines.append(f"own error: {'; '.join(error)}")
    lines += [f"warning: {text}" for text in view.warnings]
    lines.append(f"written to {folder}")
    print("\n".join(lines), file=sys.stderr)


def now() -> datetime:
    return datetime.now(UTC)
