"""`python -m ops.bench.micro.pair`: two checkouts or interpreters in turns, and what is said of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ops.bench.micro import pair
from ops.bench.micro.pair import ROOT, Pair, Side, compare, table


def test_both_run_in_each_round_and_each_runs_first_in_every_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def cpu_of(side: Side, ground: object, workload: object, scale: float) -> float:
        order.append(side.tree.name)
        return 10.0 if side.tree.name == "before" else 7.0

    monkeypatch.setattr(pair, "cpu_of", cpu_of)
    pairs = compare((Side(Path("/a/before")), Side(Path("/a/now"))), ["json"], 2, 1.0)
    assert order == ["before", "now"] * 2 + ["now", "before"] * 2
    assert pairs == [
        Pair(f"json, {shared}", 10.0, 7.0) for _ in range(2) for shared in ("nothing shared", "look-up and store")
    ]


def test_a_row_has_the_median_of_each_side_and_of_the_rounds_ratios() -> None:
    rows = [Pair("json", 100.0, 60.0), Pair("json", 200.0, 100.0), Pair("json", 120.0, 90.0)]
    assert table(rows).splitlines()[2:] == [
        "| json | 120.0 (100.0 to 200.0) | 90.0 (60.0 to 100.0) | 0.60 (0.50 to 0.75) |"
    ]


def test_a_checkout_compared_with_itself_answers_all_requests() -> None:
    pairs = compare((Side(), Side()), ["json"], 1, 0.02)
    assert [each.workload for each in pairs] == ["json, nothing shared", "json, look-up and store"]
    assert all(each.before > 0 and each.now > 0 for each in pairs)


def test_the_other_interpreter_runs_the_gateway_of_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho x >> {tmp_path}/used\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.argv", ["pair", "--python", str(python), "--rounds", "1", "--scale", "0.02"])
    assert pair.main() == 0
    assert (tmp_path / "used").read_text() == "x\n" * 2  # once a row, not for the side of before
    assert "| json, look-up and store |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "name a checkout (--against), an interpreter (--python), or both"),
        (["--python", "/no/python"], "/no/python is no program"),
        (["--against", str(ROOT / "proxy")], "is no checkout"),
        (["--against", str(ROOT), "--workloads", "json,none"], "unknown workload: none"),
        (["--against", str(ROOT), "--rounds", "0"], "must be above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    flags: list[str], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pair", *flags])
    with pytest.raises(SystemExit) as exit:
        pair.main()
    assert exit.value.code == 2
    assert why in capsys.readouterr().err
