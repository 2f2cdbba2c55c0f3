"""A run on several machines, each a process here: one schedule, one report, an exact merge, lost shares."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.analysis import measure_records, summarise_measured
from loadgen.cli.flags import values
from loadgen.cli.main import main, parser_for
from loadgen.cli.runs.machines import INDEX, check_machines, clocks_in_words
from loadgen.drive import WorkerError
from loadgen.errors import UsageError
from loadgen.record import Machine, Record, Run, Share
from loadgen.store import append, read_records, read_run, write_run
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script, timed_script
from tests.kit.ports import free_port
from tests.kit.running import until
from tests.loadgen.cli.test_bad_input import LENIENT, ROOT
from tests.loadgen.kit.program import program
from tests.loadgen.kit.sampling import Load, records, run_of

MACHINES = 3


Begin = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Starts machine `machine` of a run; those still running are killed at the end."""
    started: list[asyncio.subprocess.Process] = []

    async def begun(engine: Engine, port: int, machine: int, *words: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *program("run", "--base-url", engine.url, "--model", "m1", *LENIENT[:-2]),
            *("--machines", str(MACHINES), "--meet", f"127.0.0.1:{port}"),
            *("--result-dir", str(tmp_path / str(machine)), *words),
            cwd=ROOT,
            env={**os.environ, INDEX: str(machine)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield begun
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.fixture
async def echo() -> AsyncIterator[Engine]:
    async with Engine(echo_script(tokens=4)) as engine:
        yield engine


def folder_of(out: Path, machine: int) -> Path:
    (folder,) = (out / str(machine)).iterdir()
    return folder


def measured(folder: Path) -> tuple[Run, list[Record], dict[str, Any]]:
    result = folder / "result.json"
    document = json.loads(result.read_text()) if result.exists() else {}
    return read_run(folder), [record for record in read_records(folder) if not record.warmup], document


async def test_machines_send_one_schedule_and_machine_0_reports_all_of_it(
    tmp_path: Path, echo: Engine, begin: Begin
) -> None:
    port, words = free_port(), ("--num-prompts", "30", "--request-rate", "60", "--num-warmups", "3", "--unique")
    processes = [await begin(echo, port, machine, *words) for machine in (2, 0, 1)]
    said = dict(zip((2, 0, 1), [await ended(process) for process in processes], strict=True))
    assert {code for code, _ in said.values()} == {0}, said
    run, records, result = measured(folder_of(tmp_path, 0))
    assert [record.index for record in records] == list(range(30))
    assert [record.worker for record in records] == [number % MACHINES for number in range(30)]
    assert [machine.number for machine in run.machines] == [0, 1, 2]
    assert all(0 < machine.clock_error_ms < 1000 for machine in run.machines[1:])
    assert (run.workers, run.share, result["completed"]) == (MACHINES, None, 30)
    assert "3 machines: their clocks agree to " in said[0][1]
    shares = {machine: measured(folder_of(tmp_path, machine))[1] for machine in (1, 2)}
    assert {len(share) for share in shares.values()} == {10}
    assert all(record in records for share in shares.values() for record in share)
    summary = summarise_measured(run, measure_records(records))
    ttft = summary.whole.stats["ttft"].at(50)
    assert ttft is not None
    assert result["median_ttft_ms"] == pytest.approx(ttft.value)
    prompts = [json.dumps(turn.json()["messages"]) for turn in echo.requests if turn.method == "POST"]
    assert len(set(prompts)) == len(prompts) == 33


async def test_machines_with_other_flags_are_refused(echo: Engine, begin: Begin) -> None:
    port, words = free_port(), ("--meet-timeout", "8", "--request-rate", "9")
    leader = await begin(echo, port, 0, "--num-prompts", "9", *words)
    other = await begin(echo, port, 1, "--num-prompts", "10", *words)
    code, said = await ended(other)
    assert (code, "machine 0 refuses this one: its flags, model or files differ" in said) == (2, True)
    code, said = await ended(leader)
    assert (code, "missing: 1, 2" in said) == (2, True)
    assert [turn for turn in echo.requests if turn.method == "POST"] == []


async def test_a_lost_machine_0_ends_the_run_and_every_share_is_kept(tmp_path: Path, begin: Begin) -> None:
    async with Engine(timed_script(ttft=0.05, itl=0.01, tokens=8)) as engine:
        port, words = free_port(), ("--num-prompts", "3000", "--request-rate", "30")
        processes = [await begin(engine, port, machine, *words) for machine in range(MACHINES)]
        await until(lambda: len(engine.requests) >= 12)
        processes[0].send_signal(signal.SIGKILL)
        said = [await ended(process) for process in processes]
    assert [code for code, _ in said[1:]] == [2, 2]
    assert all("`python -m loadgen merge` joins the shares" in text for _, text in said[1:])
    shares = [read_run(folder_of(tmp_path, machine)).share for machine in (1, 2)]
    assert [share and (share.machine, share.machines) for share in shares] == [(1, MACHINES), (2, MACHINES)]
    assert len({share and share.run for share in shares}) == 1


def shares_of(folder: Path, run: Run, records: list[Record], machines: int) -> list[Path]:
    """The run as if each of so many machines had kept its share."""
    made = []
    for machine in range(machines):
        place = folder / f"share-{machine}"
        place.mkdir()
        with (place / "events.jsonl").open("wb") as file:
            for record in records:
                if record.index % machines == machine:
                    append(file, record)
        run.share = Share(run="lg1", machine=machine, machines=machines)
        run.share.worker_error = {"loop_ns": [1000 * machine], "cpu": 0.1 * machine}
        msgspec.convert(run.share.worker_error, WorkerError)
        write_run(place, run)
        made.append(place)
    run.share = None
    return made


def merged(tmp_path: Path, *words: object) -> int:
    return main(["merge", *map(str, words), "--result-dir", str(tmp_path / "out")])


def test_a_merge_is_the_run_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of()
    everything = [record for record in records(Load(requests=200)) if not record.warmup]
    shares = shares_of(tmp_path, run, everything, 3)
    assert merged(tmp_path, shares[2], shares[0], shares[1]) in (0, 1, 3)
    (folder,) = (tmp_path / "out").iterdir()
    joined, found, result = measured(folder)
    assert found == sorted(everything, key=lambda record: record.index)
    assert (joined.workers, joined.share) == (3, None)
    assert joined.lag.cpu == pytest.approx(0.2)
    whole = summarise_measured(joined, measure_records(everything)).whole
    assert result["completed"] == whole.completed
    assert result["mean_ttft_ms"] == pytest.approx(whole.stats["ttft"].mean)
    assert any("is not known" in warning for warning in joined.warnings)


def test_a_merge_of_what_is_no_whole_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of()
    a, b, c = shares_of(tmp_path, run, list(records(Load(requests=30, warmups=0))), 3)
    cases = [
        ([a, b], "of 3 machines, 2 missing"),
        ([a, b, b, c], "of 3 machines, 1 twice"),
        ([a, b, tmp_path / "none"], "none"),
    ]
    for words, said in cases:
        assert merged(tmp_path, *words) == 2
        assert said in capsys.readouterr().err
    other = read_run(c)
    other.config["temperature"] = 0.7
    write_run(c, other)
    assert merged(tmp_path, a, b, c) == 2
    assert "with other flags" in capsys.readouterr().err
    write_run(c, run)
    assert merged(tmp_path, a, b, c) == 2
    assert "is a whole run" in capsys.readouterr().err


def checked(*words: str, environ: Mapping[str, str] | None = None) -> argparse.Namespace:
    args = parser_for(["run"]).parse_args(["run", *words])
    check_machines(args, environ or {})
    return args


RIGHT = ("--machines", "2", "--meet", "h:1", "--num-prompts", "9")


def test_a_machine_s_number_comes_from_its_flag_or_from_kubernetes() -> None:
    assert checked(*RIGHT, "--machine", "1", environ={INDEX: "0"}).machine == 1
    assert checked(*RIGHT, environ={INDEX: "0"}).machine == 0
    assert checked().machines == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--meet h:1", "need --machines N"),
        ("--machine 1", "need --machines N"),
        (f"{' '.join(RIGHT)}", "needs --machine, or JOB_COMPLETION_INDEX"),
        (f"{' '.join(RIGHT)} --machine 2", "0 to 1"),
        ("--machines 2 --machine 0 --num-prompts 9", "needs --meet"),
        ("--machines 2 --machine 0 --meet h:1", "needs --num-prompts"),
        (f"{' '.join(RIGHT)} --machine 0 --max-concurrency 1", "must be at least --machines 2"),
        (f"{' '.join(RIGHT)} --machine 0 --workers 2", "neither --workers nor --repeat"),
        (f"{' '.join(RIGHT)} --machine 0 --repeat 2", "neither --workers nor --repeat"),
    ],
)
def test_flags_that_make_no_run_on_machines_are_refused(words: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        checked(*words.split(), environ={INDEX: "x"})


@pytest.mark.parametrize("text", ["h", "h:0", "h:99999", "h:x", ":1", "h:1/x", "a@h:1", "http://h:1", ""])
def test_a_place_to_meet_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not HOST:PORT"):
        values.address(text)
    assert values.address("[::1]:7") == ("::1", 7)


def test_the_clocks_error_is_the_worst_machines() -> None:
    machines = [
        Machine(number=0, host="a"),
        Machine(number=1, host="b", clock_error_ms=0.25, clock_drift_ms=-0.2),
        Machine(number=2, host="c", clock_error_ms=0.75, clock_drift_ms=0.1),
    ]
    words = clocks_in_words(machines)
    assert "3 machines: their clocks agree to 0.75 ms" in words
    assert "-0.200 ms" in words
