"""What `calibrate` measured on this machine: kept in the user's cache, compared with what a run asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from loadgen.record import GENERATED, Record

FILE: Final = "streaming-gateway/calibration.json"
VERSION: Final = 1


class Calibration(msgspec.Struct, kw_only=True):
    """One machine's error floor and capacity, for one worker process. Milliseconds; rates per second."""

    version: int = VERSION
    date: str
    machine: dict[str, object]
    floor_ms: dict[str, float]  # ttft_p50, ttft_p99, itl_p50, itl_p99
    requests_per_s: float  # the highest rate tried that stayed within the error limits
    events_per_s: float
    requests_bounded: bool = True  # False: every rate tried stayed within the limits
    events_bounded: bool = True


def path(environ: Mapping[str, str] = os.environ) -> Path:
    """Raises RuntimeError for a user without a home."""
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / FILE


def load_calibration(file: Path | None = None) -> Calibration | None:
    """None if this machine was not calibrated, or was by another version of the file."""
    try:
        calibration = msgspec.json.decode((file or path()).read_bytes(), type=Calibration)
    except (OSError, RuntimeError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return calibration if calibration.version == VERSION else None


def save_calibration(calibration: Calibration, file: Path | None = None) -> Path:
    """Raises OSError, and RuntimeError for a user without a home."""
    target = file or path()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n")
    part.replace(target)
    return target


def beyond_calibration(known: Calibration, records: Sequence[Record], *, workers: int = 1) -> list[str]:
    """Warnings where a run's mean rates, over the time in which it sent, exceed the calibrated capacity."""
    sent = [record.sent_ns for record in records if record.sent_ns is not None and not record.warmup]
    times = [e.at_ns for r in records if not r.warmup for e in r.events if e.kind in GENERATED]
    warnings = []
    for what, values, limit in (
        ("requests", sent, known.requests_per_s),
        ("events", times, known.events_per_s),
    ):
        span = (max(values) - min(values)) / 1e9 if len(values) > 100 else 0.0
        rate = len(values) / span if span > 0.1 else 0.0
        if rate > limit * workers:
            warnings.append(
                f"{rate:.0f} {what}/s exceed the {limit * workers:.0f} that calibrate measured as accurate "
                f"on this machine with {workers} worker{'s' if workers > 1 else ''}"
            )
    return warnings
