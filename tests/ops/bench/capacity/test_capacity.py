"""What one worker carries: who is blamed for a stall, the tables, and each command run briefly."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ops.bench.capacity import hits, memory, streams
from ops.bench.capacity.__main__ import parsed
from ops.bench.capacity.streams import beat, carried, limit, row_of
from ops.bench.capacity.table import Result, markdown, picture
from ops.bench.client import Tally
from tests.kit.missing import lacking, module
from tests.kit.patience import run_process
from tests.kit.running import PATIENT, until

ROOT = Path(__file__).parents[4]

MINE = ("--command", f"mine={sys.executable} -m ops.bench.peers.naive_proxy --port {{port}} --engine {{engine}}")


def row(subject: str = "gateway", count: int = 8, round_: int = 0, **more: Any) -> streams.Row:
    plain: dict[str, Any] = {
        "answers": 8, "broken": 0, "frames": 536, "stalls": 0, "ttft_ms": (21.0, 22.0, 23.0),
        "gap_ms": (20.0, 21.0, 22.0), "cpu_us": 30.0, "busy": 0.1, "waited": 0.0, "client_busy": 0.2,
        "client_late_ms": 1.0, "engine_late_ms": 1.0,
    }  # fmt: skip
    return streams.Row(subject=subject, streams=count, round=round_, **(plain | more))


@pytest.mark.parametrize(
    ("of", "direct", "said"),
    [
        (row(), row("direct"), ""),
        (row(stalls=1), row("direct"), "the subject"),
        (row(broken=1), row("direct"), "the subject"),
        (row(answers=0), row("direct"), "the subject"),
        (row(stalls=1), None, "the subject"),
        (row(stalls=1), row("direct", stalls=1), "the machine"),
        (row(stalls=1, client_late_ms=20.5), row("direct"), "the machine"),
        (row(stalls=1, engine_late_ms=20.5), row("direct"), "the machine"),
        (row(stalls=1, waited=0.06), row("direct"), "the machine"),
        (row(stalls=1, client_late_ms=20.0, engine_late_ms=20.0, waited=0.05), row("direct"), "the subject"),
        (row("direct", stalls=1), None, "the machine"),
    ],
)
def test_a_stall_is_blamed_on_the_subject_only_where_nothing_else_was_late(
    of: streams.Row, direct: streams.Row | None, said: str
) -> None:
    assert limit(of, direct) == said


def test_what_is_carried_is_whole_in_every_round_and_below() -> None:
    rows = [row(count=count, round_=n) for count in (1, 8, 32, 128) for n in range(2)]
    assert carried(rows, "gateway") == (128, "")
    broken = [msgspec.structs.replace(one, stalls=int((one.streams, one.round) == (32, 1))) for one in rows]
    assert carried(broken, "gateway") == (8, "the subject")
    kept = [msgspec.structs.replace(one, waited=0.5) for one in broken]
    assert carried(kept, "gateway") == (8, "the machine")
    assert carried([], "gateway") == (0, "")


def test_gaps_over_twice_the_pace_are_stalls() -> None:
    tally = Tally(done=2, events=134, gaps=[0.02, 0.04, 0.0401, 0.9], ttft=[0.021], seconds=2.0)
    made = row_of("x", 2, 0, tally, cpu_s=0.01, waited_s=0.1, client_s=0.5, client_late=0.003, engine_late=2.0)
    assert (made.stalls, made.whole) == (2, False)
    assert (made.busy, made.waited, made.client_busy) == (0.005, 0.05, 0.25)
    assert (made.client_late_ms, made.engine_late_ms) == (3.0, 2.0)


async def test_a_loop_that_is_held_is_late() -> None:
    late: list[float] = []
    beating = asyncio.create_task(beat(late))
    await until(lambda: bool(late))
    late.clear()
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.05
    while loop.time() < end:
        pass
    await until(lambda: bool(late))
    beating.cancel()
    await asyncio.wait([beating])
    assert max(late) > 0.03


def result(**more: Any) -> Result:
    return Result(command="a command", machine="A machine", versions={"nginx": "1"}, seconds=3.0, **more)


def test_the_tables_say_what_was_whole_and_what_was_the_limit() -> None:
    names, rounds = ("direct", "nginx", "gateway"), range(2)
    rows = [row(name, count, n) for n in rounds for name in names for count in (1, 1024)]
    rows[-1] = row("gateway", 1024, 1, stalls=7, broken=2, ttft_ms=(31.5, 40.0, 50.0), words=["cut"])
    rows[5] = row("gateway", 1024, 0, ttft_ms=(31.5, 40.0, 50.0))
    text = markdown(result(streams=rows))
    assert "`a command` (3 s). A machine." in text
    assert "nginx **1,024** (all that were tried); gateway **1** (then the subject)." in text
    assert "| 1,024 | whole | whole | 7 stalls in 1,072 frames, 2 of 18 answers broken: the subject |" in text
    same, cpu = "0.00 (0.00 to 0.00), no finding", "30.0 (30.0 to 30.0)"
    first, last = "10.50 (10.50 to 10.50)", "18.00 (18.00 to 18.00)"
    line = f"| 1,024 | {same} | {first} | {same} | {last} | {same} | {same} | {cpu} | {cpu} |"
    assert line in text
    assert "Versions: nginx: 1." in text


def test_a_subject_that_failed_in_the_middle_keeps_its_rows() -> None:
    rows = [row(name, count) for name in ("direct", "gateway") for count in (1, 8)]
    text = markdown(result(streams=rows[:-1], failures=["round 1, gateway: connection refused"]))
    assert "gateway **1** (then not measured)" in text
    assert "| 8 | whole | – |" in text
    assert "| 8 | – | – | – | – |" in text
    assert "- FAILED round 1, gateway: connection refused" in text


def test_hits_name_the_part_that_had_no_time_left() -> None:
    plain: dict[str, Any] = {"kind": "body", "per_s": 5000.0, "cpu_us": 200.0, "hit_share": 1.0, "wrong": 0}
    rows = [
        hits.Hits(round=0, busy=0.95, client_busy=0.5, **plain),
        hits.Hits(round=1, busy=0.5, client_busy=0.95, **plain),
        hits.Hits(round=2, busy=0.5, client_busy=0.5, **plain),
    ]
    assert [hits.limit(one) for one in rows] == ["the gateway", "the client", "the machine"]
    line = markdown(result(hits=rows[:1])).splitlines()[4]
    assert line == "| a JSON body | 5000 | 200 | 5000 | 0.95 | 0.50 | 100.0% | 0 | the gateway |"


def test_memory_is_that_of_each() -> None:
    rows = [
        memory.Memory(subject="gateway", what=what, round=0, count=1000, before_mb=60, after_mb=80, each_kb=20)
        for what in (memory.STREAM, memory.QUEUED)
    ]
    lines = markdown(result(memory=rows)).splitlines()
    assert "| gateway | an open stream, 1,000 at once | 20.0 | 60 | 80 |" in lines
    assert "| gateway | a queued request, 1,000 at once | 20.0 | 60 | 80 |" in lines


def test_the_plot_has_the_bound_of_a_stall() -> None:
    module("matplotlib", "plots")
    drawn = picture([row(name, count) for name in ("direct", "gateway") for count in (1, 8)])
    assert drawn is not None
    assert "stall" in drawn.decode()
    assert picture([]) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["streams", "--counts", "0"], "whole numbers from 1 to 8192"),
        (["streams", "--counts", "1,x"], "whole numbers from 1 to 8192"),
        (["streams", "--rounds", "0"], "--rounds at least 1"),
        (["streams", "--seconds", "nan"], "--seconds from 0.1 to 60"),
        (["memory", "--count", "9000"], "--count is from 1 to 8192"),
        (["memory", "--subjects", "direct"], "no process of its own"),
        (["hits", "--subjects", "nginx"], "only `gateway` stores answers"),
        (["streams", "--subjects", "envoy"], "unknown peer 'envoy'"),
        (["streams", "--subjects", "nginx", "--home", "/nowhere"], "nginx is not installed"),
        (["streams", "--subjects", "mine", "--command", "mine=run"], "is not NAME=COMMAND with {port}"),
    ],
)
def test_a_wrong_command_line_is_refused(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(flags)
    assert words in " ".join(capsys.readouterr().err.split())


def test_more_streams_than_file_descriptors_are_refused_with_the_limit_to_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 1024))
    with pytest.raises(SystemExit, match="2"):
        parsed(["streams", "--subjects", "direct"])
    assert "1024 streams need 2248 file descriptors" in " ".join(capsys.readouterr().err.split())


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        (["streams", "--subjects", "direct,gateway,mine", "--counts", "2", "--seconds", "0.1", *MINE], 3),
        (["hits", "--seconds", "0.3"], 2),
        (["memory", "--subjects", "gateway", "--count", "12"], 2),
    ],
)
def test_each_command_measures_briefly(flags: list[str], rows: int, tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        lacking("redis-server", "apt-get install redis-server")
    argv = [sys.executable, "-m", "ops.bench.capacity", *flags, "--rounds", "1", "--out", str(tmp_path)]
    env = os.environ | PATIENT  # else a look-up may be late and a miss, where each must be a hit
    done = run_process(argv, cwd=ROOT, capture_output=True, text=True, seconds=120, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = msgspec.json.decode((tmp_path / f"{flags[0]}.json").read_bytes(), type=Result)
    assert len([*found.streams, *found.hits, *found.memory]) == rows
    assert found.command.startswith(f"python -m ops.bench.capacity {flags[0]} ")
    assert str(tmp_path.parent) not in found.command
    assert all(one.answers > 0 and not one.broken for one in found.streams)
    assert all(one.per_s > 0 and one.hit_share == 1 for one in found.hits)
    assert done.stdout.strip() == markdown(found)


def test_a_subject_that_does_not_start_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    command = f"mine={sys.executable} -c 'raise SystemExit(\"my last words\")' {{port}}"
    flags = ["streams", "--subjects", "mine", "--command", command, "--out", str(tmp_path)]
    argv = [sys.executable, "-m", "ops.bench.capacity", *flags]
    done = run_process(argv, cwd=ROOT, capture_output=True, text=True, seconds=50)
    assert done.returncode == 1
    assert "round 1, mine: " in done.stderr
    assert "is not ready; its output ends with: my last words" in done.stderr
    assert "- FAILED round 3, mine: " in done.stdout
