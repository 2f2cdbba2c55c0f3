"""The comparisons on an overloaded engine: what is counted, and the tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ops.bench.vllm.admission import summed
from ops.bench.vllm.prefixes import table as prefix_table
from ops.bench.vllm.tables import admission_picture, admission_table, percentile
from tests.kit.missing import module
from tests.kit.patience import run_process

ROOT = Path(__file__).parents[4]
SAMPLE = ROOT / "out" / "sample"


def request(due_ms: float, *events: tuple[float, str], status: int | None = 200) -> str:
    """One line of raw events: milliseconds since the start of the run, and the kind of event."""
    told = [[int(ms * 1e6), 0, 0, what] for ms, what in events]
    return json.dumps({"due_ns": int(due_ms * 1e6), "events": told, "status": status})


def test_good_is_what_ended_whole_with_its_first_token_in_time_from_when_it_was_due() -> None:
    lines = [
        request(0, (5, "role"), (90, "content"), (200, "content"), (210, "done")),
        request(50, (160, "content"), (170, "done")),  # late: 110 ms
        request(0, (10, "content")),  # cut
        request(0, status=503),
        request(0, status=None),
    ]
    assert summed(lines, 100.0) == {
        "requests": 5,
        "whole": 2,
        "good": 1,
        "not_whole_by_status": {"200": 1, "503": 1, "none": 1},
        "ttfts_ms": [90.0, 110.0],
    }


def phase(load: float, way: str, number: int, good: tuple[int, int], **more: Any) -> dict[str, Any]:
    tenants = {
        name: {"requests": 10, "whole": count, "good": count, "ttfts_ms": [10.0 * n for n in range(1, count + 1)]}
        for name, count in zip(("heavy", "light"), good, strict=True)
    }
    engine = {"queries": 100.0, "hits": 25.0}
    return (
        {"load": load, "way": way, "round": number, "seconds": 10.0, "limit": 0.0, "engine": engine}
        | tenants
        | more
    )


PHASES = [
    phase(1.0, "direct", 0, (10, 10)),
    phase(4.0, "direct", 0, (1, 0)),
    phase(4.0, "--max-inflight auto", 0, (9, 10), limit=8.0),
    phase(4.0, "--max-inflight auto", 1, (5, 10), limit=10.0),
    phase(4.0, "direct", 1, (3, 0)),
]


def test_a_row_has_the_rounds_median_and_all_their_requests() -> None:
    lines = admission_table(PHASES).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2:] == [
        "| 1× | direct | 2.00 | 2.00 | 10 of 10 | 50 / 100 | 10 of 10 | 50 / 100 | 25% | – |",
        "| 4× | direct | 0.20 (0.10 to 0.30) | 2.00 (2.00 to 2.00) | 0 of 20 | – / – "
        "| 4 of 20 | 10 / 30 | 25% | – |",
        "| 4× | `--max-inflight auto` | 1.70 (1.50 to 1.90) | 2.00 (2.00 to 2.00) | 20 of 20 | 50 / 100 "
        "| 14 of 20 | 40 / 90 | 25% | 9 (8 to 10) |",
    ]


@pytest.mark.parametrize(("p", "value"), [(1, 1.0), (50, 2.0), (51, 3.0), (99, 4.0), (100, 4.0)])
def test_a_percentile_is_of_the_sample_by_nearest_rank(p: float, value: float) -> None:
    assert percentile([4.0, 2.0, 1.0, 3.0], p) == value
    assert percentile([], p) is None


def test_the_picture_has_each_way_with_its_name() -> None:
    module("matplotlib", "plots")
    complete = [one for one in PHASES if one["load"] == 4.0]
    picture = admission_picture(complete, 2.0)
    assert picture is not None
    text = picture.decode()
    for word in ("direct", "--max-inflight auto", "capacity", "Good answers/s", "4×"):
        assert word in text
    assert admission_picture(complete, 2.0) == picture, "the same figures give the same bytes"


def test_what_begins_alike_has_a_row_a_way() -> None:
    row = {"per_second": 1.0, "ttft_p50_ms": 1000.0, "ttft_p99_ms": 2500.0, "queries": 200.0, "hits": 50.0}
    rows = [{"way": way, "round": n} | row for n in range(2) for way in ("direct", "gateway")]
    assert prefix_table(rows).splitlines()[2:] == [
        f"| {way} | 1.00 (1.00 to 1.00) | 1.0 (1.0 to 1.0) | 2.5 (2.5 to 2.5) | 25 (25 to 25) % |"
        for way in ("direct", "gateway")
    ]


def test_the_samples_are_what_their_own_figures_make() -> None:
    phases = json.loads((SAMPLE / "admission" / "admission.json").read_text())["phases"]
    assert (SAMPLE / "admission" / "admission.md").read_text().endswith(f"\n\n{admission_table(phases)}\n")
    rows = json.loads((SAMPLE / "prefixes" / "prefixes.json").read_text())
    assert (SAMPLE / "prefixes" / "prefixes.md").read_text().endswith(f"\n\n{prefix_table(rows)}\n")


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("admission", ["--seconds", "1", "--loads", "2", "--full", "4", "--gateway=--max-inflight auto"]),
        ("prefixes", ["--requests", "8", "--clients", "4", "--before", str(ROOT)]),
    ],
)
def test_both_run_on_a_fake_engine(program: str, flags: list[str], tmp_path: Path) -> None:
    """Run the commands: processes, tables, plots."""
    small = ["--toy", "--engine-flags=--prefill 0.01 --step 0.001", "--rounds", "1", "--out", str(tmp_path)]
    argv = [sys.executable, "-m", f"ops.bench.vllm.{program}", *small, *flags]
    done = run_process(argv, cwd=ROOT, capture_output=True, text=True, seconds=55)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / f"{program}.md").read_text()
    assert table.strip() == done.stdout.strip()
    assert "| direct | " in table
    assert json.loads((tmp_path / f"{program}.json").read_text())
