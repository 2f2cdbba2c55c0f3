"""The end of a measurement: its verdict, its files and reports, the results on the terminal, the exit code."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from loadgen import store
from loadgen.analysis import (
    BadGoodput,
    count,
    in_order,
    measure_records,
    parse_goodput,
    summarise_measured,
)
from loadgen.cli.terminal.results import WIDTH, text_of
from loadgen.drive import (
    Fault,
    WorkerError,
    beyond_calibration,
    judge_self_error,
    lag_of,
    load_calibration,
)
from loadgen.errors import UsageError
from loadgen.record import CUT_OFF, Record, Run
from loadgen.report import HOW_TO, Files, plots_available, report_of, write_report
from loadgen.spec import Limits

OK: Final = 0
FAILED: Final = 1
INVALID: Final = 3
INTERRUPTED: Final = 130


class Reported(NamedTuple):
    """What a report said, and whether a file of it could not be written."""

    result: dict[str, Any]  # result.json
    lost: bool


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


def silent(args: argparse.Namespace) -> bool:
    """Whether stderr gets warnings and errors only: --json with --quiet."""
    return bool(args.json and args.quiet)


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
    faults: list[Fault] = []
    stages = list(dict.fromkeys(record.stage for record in records if not record.warmup))
    for number, stage in enumerate(stages):
        part = records if len(stages) == 1 else [record for record in records if record.stage == stage]
        stage_errors = worker_errors if len(stages) == 1 else worker_errors[number : number + 1]
        lag = lag_of(part, stage_errors)
        steps = max((error.step_ns for error in stage_errors), default=0)
        stage_faults, warnings = judge_self_error(lag, part, limits, steps, open_loop=open_loop)
        faults += stage_faults
        name = f"{stage}: " if stage else ""
        run.invalid += [name + fault.text for fault in stage_faults]
        run.warnings += [name + text for text in warnings]
    if all(fault.touches for fault in faults):
        run.touched = sorted(frozenset().union(*(fault.touches for fault in faults)))
    if all(record.warmup for record in records):
        run.invalid.append("nothing was measured")
    known = load_calibration()
    if known is not None:
        run.lag.floor_ms = known.floor_ms
        run.warnings += beyond_calibration(known, records, workers=run.workers)
    measured = [record for record in records if not record.warmup]
    resent = [record.resent for record in measured if record.resent]
    if resent:
        run.warnings.append(
            f"{len(resent)} of the requests were sent again ({count(sum(resent), 'time')} altogether) because the "
            "server had closed their kept-alive connection"
        )
    over = [at for record in measured for at in (record.end_ns, record.closed_ns) if at is not None]
    run.duration_ns = max(over) - min(record.due_ns for record in measured) if over else 0


def exit_code(run: Run, records: Sequence[Record], max_error_rate: float, *, lost: bool = False) -> int:
    """130 after Ctrl-C; 1 if `--max-errors` ended it, too many requests failed, none ended, a file was `lost`, or
    an engine went on after clients had left; 3 if the measurement is invalid; else 0."""
    ended = [record for record in records if not record.warmup and record.failure != "cancelled"]
    measured = [record for record in ended if record.failure not in CUT_OFF]
    failed = sum(record.failure is not None for record in measured)
    if run.interrupted:
        return INTERRUPTED
    if run.stopped:
        return FAILED
    went_on = any(check.problem is not None for check in run.cancel_checks)
    if lost or went_on or not ended or failed > max_error_rate * len(measured):
        return FAILED
    return INVALID if run.invalid else OK


def report(
    folder: Path,
    run: Run,
    records: Sequence[Record],
    objectives: Sequence[str] | None,
    *,
    as_json: bool = False,
    brief: bool = False,
) -> Reported:
    """Print the results on stdout and what concerns the run itself on stderr; write run.json and the reports.

    `as_json`: stdout gets result.json alone, and stderr the results. `brief`: stderr gets warnings only. A full
    disk costs files and no figures.
    """
    measured = measure_records(records)
    summary = summarise_measured(run, measured, parse_goodput(objectives or ()))
    report = report_of(run, in_order(measured), summary)
    if as_json:
        sys.stdout.write(f"{msgspec.json.encode(report.result).decode()}\n")
    if not brief:
        print(f"{text_of(report.view, _width())}\n", file=sys.stderr if as_json else sys.stdout, flush=True)
    lines = [] if brief else [_own_error(run)]
    for line in [*lines, *(f"warning: {text}" for text in report.view.warnings)]:
        print(line, file=sys.stderr)
    files = Files(folder)
    files.write(store.RUN, store.encoded_run(run))
    write_report(report, files)
    for text in files.lost:
        print(f"could not write {text}", file=sys.stderr)
    if not brief:
        without = f", without {count(len(files.lost), 'file')}" if files.lost else ""
        print(*([] if plots_available() else [HOW_TO]), f"written to {folder}{without}", sep="\n", file=sys.stderr)
    return Reported(report.result, bool(files.lost))


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH


def _own_error(run: Run) -> str:
    lag = run.lag
    error = [f"receive clock {lag.clock}, send clock {lag.send_clock}"]
    for name, values in (
        ("loop lag", lag.loop_ms),
        ("kernel to program", lag.read_ms),
        ("sent late", lag.late_ms),
        ("sending", lag.sending_ms),
    ):
        if values:
            error.append(f"{name} p50 {values['p50']:.3f} p99 {values['p99']:.3f} ms")
    error.append(f"merged reads {lag.censored:.1%}, CPU {lag.cpu:.0%}")
    return f"own error: {'; '.join(error)}"


def now() -> datetime:
    return datetime.now(UTC)
