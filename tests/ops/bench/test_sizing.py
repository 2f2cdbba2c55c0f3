"""What a load needs, by the formulas; and that 1 and 2 workers are compared round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ops.bench import sizing, workers
from ops.bench.sizing import Costs, Demand, plan

COSTS = Costs(
    command="", machine="", request_us=300, event_us=10, hit_us=400, redis_miss_us=50, redis_hit_us=20,
    redis_miss_commands=2, redis_hit_commands=1, redis_miss_bytes=30_000, redis_hit_bytes=20_000,
    stored_bytes=30_000, idle_mb=70, stream_kb=20, queued_kb=10,
)  # fmt: skip
LOAD = Demand(requests=100, events=256, seconds=10, hits=0.5, shared=0.5, ttl=60, queued=100, busy=0.5)


def test_a_load_needs_what_its_parts_cost() -> None:
    needs = plan(COSTS, LOAD)
    assert needs.cores == pytest.approx((50 * (300 + 255 * 10) + 50 * 400 * 2) / 1e6)
    assert (needs.workers, needs.streams, needs.redis_commands) == (1, 500, 25 * 2 + 50)
    assert needs.memory_mb == pytest.approx(70 + 500 * 0.02 + 1)
    assert needs.redis_cores == pytest.approx((25 * 50 + 50 * 20) / 1e6)
    assert needs.redis_mbit == pytest.approx((25 * 30_000 + 50 * 20_000) * 2 * 8 / 1e6)
    assert needs.redis_mb == pytest.approx(25 * 60 * 0.03 * 2)


def test_nothing_asked_needs_one_idle_worker() -> None:
    needs = plan(COSTS, msgspec.structs.replace(LOAD, requests=0, queued=0))
    assert (needs.cores, needs.workers, needs.memory_mb, needs.redis_mb) == (0, 1, 70, 0)


def test_the_program_prints_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = tmp_path / "costs.json"
    costs.write_bytes(msgspec.json.encode(COSTS))
    assert sizing.main(["plan", "--costs", str(costs), "--requests", "1000", "--events", "256"]) == 0
    assert "| workers, each with a core | 5 |" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "no JSON", "{}"])
def test_costs_that_cannot_be_read_are_named(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = tmp_path / "costs.json"
    if text is not None:
        costs.write_text(text)
    assert sizing.main(["plan", "--costs", str(costs)]) == 2
    assert str(costs) in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--hits=1.1", "--busy=0", "--requests=-1", "--events=nan", "--shared=x"])
def test_a_load_that_cannot_be_is_refused(flag: str) -> None:
    with pytest.raises(SystemExit) as ended:
        sizing.main(["plan", flag])
    assert ended.value.code == 2


def row(workers_: int, round_: int, cpu_us: float, **more: Any) -> workers.Row:
    plain: dict[str, Any] = {
        "workload": "json", "unit": "request", "per_s": 1000.0, "gateway_busy": 0.3, "client_busy": 0.2,
        "engine_busy": 0.1, "wrong": 0,
    }  # fmt: skip
    return workers.Row(workers=workers_, round=round_, cpu_us=cpu_us, **(plain | more))


def test_workers_are_compared_within_each_round() -> None:
    rows = [row(1, 0, 100), row(2, 0, 105), row(1, 1, 200), row(2, 1, 220), row(1, 2, 300), row(2, 2, 300)]
    assert workers.ratio(rows, "json") == pytest.approx(1.05)
    assert "| json, a request | 2 | 220.0 (105.0 to 300.0) | 1.05 |" in workers.table(rows)


@pytest.mark.parametrize("flags", [["--workloads=no"], ["--rounds=0"], ["--scale=0"]])
def test_a_wrong_command_line_of_the_comparison_is_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        workers.main(flags)
    assert ended.value.code == 2
