"""The pressure benchmark: bounded attacks, each against a fresh gateway, and a row with their effect."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ops.bench.hostile.attacks import ATTACKS
from ops.bench.hostile.pressure import Row, markdown, megabytes
from tests.kit.patience import run_process


@pytest.mark.timeout(150)
def test_an_attack_is_measured_and_ends_in_its_time(tmp_path: Path) -> None:
    words = ["--only", "f", "--out", str(tmp_path)]
    ran = run_process(
        [sys.executable, "-m", "ops.bench.hostile.pressure", *words], capture_output=True, text=True, seconds=140
    )
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads((tmp_path / "pressure.json").read_text())
    assert row["attackers"] == 60
    assert row["asked"] > 0
    assert 0 < row["before_mb"] <= row["peak_mb"]
    assert row["health"] > 0
    assert "(f) 60 engine streams" in ran.stdout


def test_every_attack_is_bounded() -> None:
    assert [attack.letter for attack in ATTACKS] == [*"abccdefgh"]
    assert sum(attack.seconds for attack in ATTACKS) < 600


def test_a_row_says_growth_by_budget_and_what_is_left() -> None:
    row = Row("(x) y", before_mb=50, peak_mb=318.4, after_mb=60, budget_mb=megabytes("256MiB"))
    row.health_ok = (5, 6)
    row.health, row.health_ended, row.served, row.asked = 1.5, False, 3, 4
    row.connected, row.attackers, row.responses, row.note = 2, 9, {"503": 7}, "late"
    assert row.line() == "| (x) y | 50 | 318 | 60 | 1.00 | over 1.50 | 5 of 6 | 3 of 4 | 2 of 9 | 7 × 503; late |"
    assert "`--memory-budget 256MiB`" in markdown([row], "256MiB")
    row.budget_mb = 0
    assert "| – |" in row.line()
    assert "has no such setting" in markdown([row], "256MiB")


@pytest.mark.parametrize(("text", "found"), [("256MiB", 268.435456), ("1GiB", 1073.741824), ("1000000", 1.0)])
def test_sizes_are_read(text: str, found: float) -> None:
    assert megabytes(text) == pytest.approx(found)
