"""Every fuzz target holds on its corpus and near it, in bounded time and memory; the command runs one."""

from __future__ import annotations

import json
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import seeds as making
from tests.fuzz.__main__ import table
from tests.fuzz.inputs import inputs
from tests.fuzz.targets import CORPUS, TARGETS, seeds
from tests.kit.cpu import cpu_seconds
from tests.kit.patience import run_process

MEMORY = 200  # bytes for each byte of an input: JSON's smallest values, as Python's objects
SPARE = 4_000_000
ONCE = 1.0  # CPU seconds for the largest input that is looked at
LARGE = 64 * 1024


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_holds_in_bounded_time_and_memory(name: str) -> None:
    TARGETS[name].run(b"")
    for data in seeds(name):
        assert cpu_seconds(partial(TARGETS[name].run, data)) < ONCE
    tracemalloc.start()
    try:
        for data in seeds(name):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            TARGETS[name].run(data)
            assert tracemalloc.get_traced_memory()[1] - before < MEMORY * len(data) + SPARE
    finally:
        tracemalloc.stop()


def seconds(name: str, data: bytes, size: int) -> float:
    """CPU time for an input made as large, by its own repetition."""
    large = data[:1] + (data[1:] * (size // len(data) + 1))[:size]
    return cpu_seconds(partial(TARGETS[name].run, large))


@pytest.mark.parametrize("name", TARGETS)
def test_the_time_is_linear_in_the_bytes(name: str) -> None:
    for data in seeds(name):
        if len(data) > 1:
            assert seconds(name, data, LARGE) < 8 * seconds(name, data, LARGE // 4) + ONCE / 10


@pytest.mark.parametrize("name", TARGETS)
def test_near_the_corpus_it_holds_too(name: str) -> None:
    @settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(data=inputs(name))
    def holds(data: bytes) -> None:
        TARGETS[name].run(data)

    holds()


def test_the_corpora_are_small_and_their_seeds_are_what_the_program_writes() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == TARGETS.keys()
    assert sum(path.stat().st_size for path in files) <= 61_440
    for name, made in making.made().items():
        kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("seed-*"))]
        assert kept == made, f"{name}: python -m tests.fuzz.seeds"


def test_the_table_has_a_row_for_each_target_and_marks_the_one_that_fails() -> None:
    rows = [
        {"target": "a", "executions": 1234, "seconds": 5, "coverage": 7, "failed": False},
        {"target": "b", "seconds": 6, "failed": True},  # nothing was told before it failed
    ]
    assert table(rows, {"a": "same", "b": "other"}).splitlines()[2:] == [
        "| `a` | same | 1,234 | 5 | 7 | none |",
        "| `b` | other | 0 | 6 | – | **yes** |",
    ]


@pytest.mark.parametrize("words", [["nonsense"], ["sse", "--seconds", "1"]])
def test_the_command_fuzzes_a_target_and_knows_no_other(words: list[str], tmp_path: Path) -> None:
    ran = run_process(
        [sys.executable, "-m", "tests.fuzz", *words, "--found", str(tmp_path)],
        capture_output=True,
        text=True,
        seconds=50,
    )
    if words == ["nonsense"]:
        assert ran.returncode == 2
        assert "sse" in ran.stderr
        return
    row = json.loads(ran.stdout)
    assert (ran.returncode, row["target"], row["failed"]) == (0, "sse", False), ran.stderr
    assert row["executions"] > 50
    assert list(tmp_path.iterdir()) == []
