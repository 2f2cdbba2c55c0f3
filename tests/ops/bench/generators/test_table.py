"""The comparison of load generators: its table and its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ops.bench.generators import table
from ops.bench.generators.__main__ import Kept, main
from ops.bench.generators.parts import Part


def part_of(tool: str, workload: str, round_: int = 0, p50: float = 1.0, **more: Any) -> Part:
    plain: dict[str, Any] = {
        "asked": 100, "compared": 100, "failed": 0, "error_ms": (p50, 2 * p50, 3 * p50), "late_share": 1.0,
        "truth_ms": 100.0, "arrived_per_s": 40.0, "events_per_s": 320.0, "cpu_s": 0.1, "cpu_all_s": 0.2,
        "censored": 0.125 if tool == "ours" else None, "intervals": 0, "covered": 0, "verdict": [], "wrong": [],
    }  # fmt: skip
    return Part(tool=tool, workload=workload, round=round_, **(plain | more))


def rendered(*parts: Part) -> str:
    names = dict.fromkeys(part.tool for part in parts)
    return table.render(parts, {name: f"{name} 1.0" for name in names}, "A machine", ["a command"])


def test_the_table_has_medians_with_their_spread_and_how_many_times_ours() -> None:
    text = rendered(
        *(part_of("ours", "hog20", n, p50, intervals=3, covered=2) for n, p50 in enumerate((0.02, 0.01, 0.03))),
        *(part_of("vllm", "hog20", n, p50) for n, p50 in enumerate((30.0, 20.0, 10.0))),
    )
    assert "A machine. 3 rounds" in text
    assert "    a command" in text
    assert "| 0.02 (0.01–0.03) / 0.04 (0.02–0.06) | 20.00 (10.00–30.00) / 40.00 (20.00–60.00) | 1,000× |" in text
    assert "| 12.5 (12.5–12.5) % | 9 of 300 | 6 of 9 | valid |" in text
    assert "- vllm: vllm 1.0" in text


def test_the_highest_honest_rate_ends_at_the_first_that_is_not() -> None:
    parts = [
        *(part_of("ours", f"rate{rate}", p50=0.1, arrived_per_s=rate) for rate in (100, 200, 400, 800)),
        *(part_of("vllm", f"rate{rate}", p50=0.6, arrived_per_s=rate) for rate in (100, 200, 400)),
        part_of("guidellm", "rate100", p50=0.1, arrived_per_s=100.0),
        part_of("guidellm", "rate200", p50=0.1, arrived_per_s=120.0),
        part_of("guidellm", "rate400", p50=0.1, arrived_per_s=400.0),
    ]
    lines = rendered(*parts).splitlines()
    assert "| highest with p50 error ≤ 1 ms | 800 requests/s | 400 requests/s | 100 requests/s |" in lines
    assert "| highest with p99 error ≤ 1 ms | 800 requests/s | none | 100 requests/s |" in lines


def test_what_one_more_costs_is_the_difference_of_two_sizes() -> None:
    text = rendered(
        part_of("ours", "requests400", compared=400, cpu_s=0.1, cpu_all_s=1.0),
        part_of("ours", "requests1600", compared=1600, cpu_s=0.4, cpu_all_s=1.6),
        part_of("ours", "events32", compared=32, cpu_s=0.1, cpu_all_s=1.0),
        part_of("ours", "events128", compared=128, cpu_s=0.32, cpu_all_s=1.48),
    )
    for line in (
        "| per request, while it runs | 250 |",
        "| per request, in total | 500 |",
        "| per event, while it runs | 25 |",
        "| per event, in total | 50 |",
        "| requests/s that one core can do | 4,000 |",
        "| events/s that one core can do | 40,000 |",
    ):
        assert line in text


def test_a_part_that_went_wrong_is_said_and_not_averaged() -> None:
    text = rendered(part_of("ours", "idle"), part_of("ours", "idle", 1, compared=0, p50=0.0, wrong=["no answer"]))
    assert "- WRONG ours idle, round 2: no answer" in text
    assert "| not slowed down | 1.00 / 2.00 |" in text


# The command line


def test_unknown_names_are_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["run", "--tools", "x"], ["install", "x"], ["run", "--tools", "ours", "--workloads", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert "choose from " in capsys.readouterr().err


def test_what_is_not_installed_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vllm", "guidellm"):
        with pytest.raises(SystemExit) as ended:
            main(["--home", str(tmp_path), "--vllm-home", str(tmp_path), "run", "--tools", name])
        assert ended.value.code == 2
        assert f"python -m ops.bench.generators install {name}" in capsys.readouterr().err


def test_parts_that_were_kept_make_the_table_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [
        Kept(part_of(name, "idle", n), {"ours": "o", "vllm": "v"}, "A machine", "a command")
        for n in range(2)
        for name in ("vllm", "ours")
    ]
    path = tmp_path / "parts.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in kept))
    assert main(["table", str(path)]) == 0
    text = capsys.readouterr().out
    assert "| added to the loop | ours | vllm | vllm ÷ ours |" in text
    assert text.count("    a command") == 1
    assert "A machine; load average before the parts 0.0 (0.0–0.0)" in text
