"""A run's files: what was written is what is read, and a broken line is named by its number."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import msgspec
import pytest

from loadgen import store
from loadgen.errors import StoreError
from loadgen.record import Event, Kind, Record, Run
from loadgen.store import EVENTS, RUN, EventsFile, append, read_records, read_run, write_run

RECORD = Record(
    index=1, id="x", prompt="p", due_ns=5, events=[Event(3, 1, 4, Kind.CONTENT, 2, 1)], failure="truncated"
)
OTHER = msgspec.structs.replace(RECORD, index=2, id="y")
RUN_OF_NOTHING = Run(
    date="d", label="l", command=[], config={}, targets={}, model="m", endpoint="/v1/chat/completions"
)


def written(folder: Path, *records: Record) -> Path:
    with (folder / EVENTS).open("wb") as file:
        for record in records:
            append(file, record)
    return folder


def test_records_and_runs_come_back_as_they_were(tmp_path: Path) -> None:
    written(tmp_path, RECORD, OTHER)
    write_run(tmp_path, RUN_OF_NOTHING)
    assert list(read_records(tmp_path)) == list(read_records(tmp_path / EVENTS)) == [RECORD, OTHER]
    assert read_run(tmp_path) == read_run(tmp_path / RUN) == RUN_OF_NOTHING


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_leaves_whole_lines_and_the_records_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """The third write stops in the middle of a line."""
    monkeypatch.setattr(store, "BUFFER", 300)
    room = [1000]
    write = os.write

    def limited(fd: int, data: bytes) -> int:
        part = bytes(data[: max(room[0], 0)])
        if not part:
            raise OSError(error, os.strerror(error))
        room[0] -= len(part)
        return write(fd, part)

    monkeypatch.setattr(os, "write", limited)
    records = [msgspec.structs.replace(RECORD, index=index) for index in range(20)]
    with EventsFile(tmp_path / EVENTS) as file:
        for record in records:
            file.append(record)
    kept = list(read_records(tmp_path / EVENTS))
    assert 0 < len(kept) < 20
    assert kept + file.unwritten == records
    assert file.warning == (
        f"could not write all of {EVENTS}: {os.strerror(error)}; it lacks {len(file.unwritten)} requests"
    )


def test_a_file_that_cannot_be_opened_lacks_everything(tmp_path: Path) -> None:
    with EventsFile(tmp_path / "nowhere" / EVENTS) as file:
        file.append(RECORD)
    assert file.unwritten == [RECORD]
    assert "No such file" in file.warning


def test_a_whole_file_has_no_warning(tmp_path: Path) -> None:
    with EventsFile(tmp_path / EVENTS) as file:
        records = [msgspec.structs.replace(RECORD, index=number, id=str(number)) for number in range(1000)]
        for record in records:
            file.append(record)
    assert (file.warning, file.unwritten) == ("", [])
    assert list(read_records(tmp_path)) == records


def test_a_gzipped_file_is_read_too(tmp_path: Path) -> None:
    written(tmp_path, RECORD)
    packed = gzip.compress((tmp_path / EVENTS).read_bytes())
    (tmp_path / f"{EVENTS}.gz").write_bytes(packed)
    (tmp_path / EVENTS).unlink()
    assert list(read_records(tmp_path)) == [RECORD]
    (tmp_path / f"{EVENTS}.gz").write_bytes(packed[:-9])
    with pytest.raises(StoreError, match=EVENTS):
        list(read_records(tmp_path))


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    written(tmp_path, RECORD)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b"\n{nonsense}\n")
    with pytest.raises(StoreError, match=r"events.jsonl, line 3: not a record"):
        list(read_records(tmp_path))


def test_a_line_that_was_cut_off_is_said_to_be(tmp_path: Path) -> None:
    written(tmp_path, RECORD)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"index":2,"id')
    with pytest.raises(StoreError, match=r"line 2.*cut off"):
        list(read_records(tmp_path))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no events\.jsonl"):
        list(read_records(tmp_path))
    with pytest.raises(StoreError, match=r"has no run\.json; give a run's folder$"):
        read_run(tmp_path)
    with pytest.raises(StoreError, match="No such file"):
        read_run(tmp_path / "none")


def test_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path, RUN_OF_NOTHING)
    text = (tmp_path / RUN).read_text().replace('"schema": 1', '"schema": 9')
    (tmp_path / RUN).write_text(text)
    with pytest.raises(StoreError, match="schema 9; this version reads schema 1"):
        read_run(tmp_path)


def test_a_request_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """A file that was copied into itself had twice the throughput."""
    written(tmp_path, RECORD, OTHER, RECORD)
    with pytest.raises(StoreError, match=r"line 3: the request 'x' is there twice"):
        list(read_records(tmp_path))
    warm_up = msgspec.structs.replace(RECORD, index=-1, id="w", warmup=True)
    written(tmp_path, warm_up, RECORD, OTHER, msgspec.structs.replace(RECORD, target="b"))
    assert len(list(read_records(tmp_path))) == 4
