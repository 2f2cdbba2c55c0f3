"""`python -m loadgen` as a process: its files, its words, its exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from loadgen.drive import calibration
from loadgen.record import GENERATED, Record, Run
from loadgen.store import read_records, read_run
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.loadgen.kit.program import program
from tests.loadgen.kit.servers import EVENT, HEAD, chunk, read_request, serving

ROOT = Path(__file__).parent.parent.parent.parent
LENIENT = (  # this machine is noisy: what a run says of itself is not under test here
    *("--limit-error-ms", "1e9", "--limit-late-ms", "1e9", "--limit-cpu", "1e9", "--limit-censored", "1"),
    *("--quiet", "--model", "m1"),
)


class Process:
    """One `python -m loadgen`, its output kept."""

    def __init__(self, process: asyncio.subprocess.Process, out: Path) -> None:
        self.process = process
        self.out = out

    async def wait(self) -> tuple[int, str]:
        """Exit code, and stderr."""
        output, error = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, (output + error).decode()

    def folder(self) -> Path:
        (folder,) = self.out.iterdir()
        return folder

    def run(self) -> Run:
        return read_run(self.folder())

    def records(self) -> list[Record]:
        return list(read_records(self.folder()))


Start = Callable[..., "asyncio.Future[Process]"]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    started: list[asyncio.subprocess.Process] = []

    async def begin(*words: str, home: Path | None = None, plots: bool = False, **env: str) -> Process:
        out = tmp_path / f"out{len(started)}"
        given = () if words[0] in ("calibrate",) or "--help" in words else ("--result-dir", str(out))
        process = await asyncio.create_subprocess_exec(
            *program(*words, *given, plots=plots),
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(home or tmp_path / "cache"), **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return Process(process, out)

    yield begin
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def echo() -> AsyncIterator[Engine]:
    async with Engine(echo_script(tokens=5)) as engine:
        yield engine


@pytest.mark.usefixtures("stamping")
async def test_a_run_leaves_its_records_and_its_run_and_exits_0(start: Start, echo: Engine) -> None:
    process = await start(
        *("run", "--base-url", echo.url, "--num-prompts", "20", "--num-warmups", "3", "--max-concurrency", "4"),
        *("--label", "a b", "--metadata", "k=v", *LENIENT),
        plots=True,
    )
    code, said = await process.wait()
    assert code == 0, said
    run, records = process.run(), process.records()
    assert process.folder().name.endswith("-a-b")
    assert (run.config["metadata"], run.model, run.interrupted) == ({"k": "v"}, "m1", False)
    assert sorted(record.index for record in records if record.warmup) == [-3, -2, -1]  # as they end
    measured = [record for record in records if not record.warmup]
    assert sorted(record.index for record in measured) == list(range(20))
    assert {record.completion_tokens for record in measured} == {5}
    assert {sum(e.kind in GENERATED for e in record.events) for record in measured} == {5}
    assert run.duration_ns > 0
    assert "written to" in said
    if sys.platform.startswith("linux"):
        assert (run.lag.clock, run.lag.send_clock) == ("kernel", "kernel")


async def test_the_programs_own_clock_is_said_to_be_that(start: Start, echo: Engine) -> None:
    process = await start("run", "--base-url", echo.url, "--num-prompts", "4", "--clock", "user", *LENIENT)
    code, said = await process.wait()
    assert code == 0, said
    assert process.run().lag.clock == "user"


async def test_the_model_is_asked_for_where_it_is_not_given(start: Start, echo: Engine) -> None:
    words = [word for word in LENIENT if word not in ("--model", "m1")]
    process = await start("run", "--base-url", echo.url, "--num-prompts", "2", *words)
    code, said = await process.wait()
    assert code == 0, said
    assert process.run().model == "m1"
    assert {turn.json()["model"] for turn in echo.requests} == {"m1"}


async def test_an_open_loop_asks_at_its_rate(start: Start, echo: Engine) -> None:
    process = await start(
        *(
            "run",
            "--base-url",
            echo.url,
            "--num-prompts",
            "30",
            "--request-rate",
            "200",
            "--burstiness",
            "inf",
            *LENIENT,
        )
    )
    code, said = await process.wait()
    assert code == 0, said
    assert [record.due_ns for record in sorted(process.records(), key=lambda r: r.index)] == [
        number * 5_000_000 for number in range(30)
    ]


async def test_workers_share_a_schedule_and_merge_exactly(start: Start, echo: Engine) -> None:
    process = await start(
        *("run", "--base-url", echo.url, "--num-prompts", "30", "--request-rate", "300", "--burstiness", "inf"),
        *("--workers", "3", "--num-warmups", "3", *LENIENT),
    )
    code, said = await process.wait()
    assert code == 0, said
    records = process.records()
    measured = [record for record in records if not record.warmup]
    assert [record.index for record in measured] == list(range(30))
    assert [record.worker for record in measured] == [0, 1, 2] * 10
    assert [record.due_ns for record in measured] == [round(number / 300 * 1e9) for number in range(30)]
    assert sum(record.warmup for record in records) == 3
    assert sorted(path.name for path in process.folder().glob("events*")) == ["events.jsonl"]
    assert process.run().workers == 3


async def test_ab_pairs_the_same_requests_to_both(start: Start, echo: Engine) -> None:
    async with Engine(echo_script(tokens=5)) as other:
        process = await start("ab", "--a", echo.url, "--b", other.url, "--num-prompts", "10", *LENIENT)
        code, said = await process.wait()
        assert code == 0, said
        assert sorted(turn.body for turn in echo.requests) == sorted(turn.body for turn in other.requests)
    records = process.records()
    assert len(records) == 20
    pairs = {(record.pair, record.target) for record in records}
    assert pairs == {(pair, target) for pair in range(10) for target in "ab"}


async def test_a_sweep_has_its_stages_by_name_on_one_axis(start: Start, echo: Engine) -> None:
    process = await start(
        *("sweep", "--base-url", echo.url, "--rates", "40,80", "--stage-seconds", "0.3", "--num-prompts", "500"),
        *("--burstiness", "inf", *LENIENT),
    )
    code, said = await process.wait()
    assert code == 0, said
    assert "knee: " in said
    records = process.records()
    first, second = ([r for r in records if r.stage == f"rate={rate}"] for rate in (40, 80))
    assert (len(first), len(second)) == (12, 24)
    assert max(r.end_ns or 0 for r in first) < min(r.due_ns for r in second)
    assert len({record.index for record in records}) == 36


# Exit codes


async def test_failed_requests_exit_1_with_a_report_of_what_there_is(start: Start) -> None:
    async def script(turn: Turn) -> None:
        await turn.respond(503, {"error": {"message": "busy"}})

    async with Engine(script) as engine:
        process = await start("run", "--base-url", engine.url, "--num-prompts", "5", *LENIENT)
        code, said = await process.wait()
        assert code == 1
        assert "503: busy" in said
        assert [record.failure for record in process.records()] == ["status"] * 5
        lenient = await start(
            "run", "--base-url", engine.url, "--num-prompts", "5", "--max-error-rate", "1", *LENIENT
        )
        assert (await lenient.wait())[0] == 0


async def test_a_server_that_is_gone_exits_1_when_the_model_was_given(start: Start) -> None:
    process = await start("run", "--base-url", "http://127.0.0.1:1", "--num-prompts", "3", *LENIENT)
    code, said = await process.wait()
    assert code == 1
    assert [record.failure for record in process.records()] == ["refused"] * 3
    assert "3 refused" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "--base-url", "nonsense"), "give http://HOST:PORT"),
        (("run", "--base-url", "http://127.0.0.1:1"), "Is the server running?"),
        (("run", "--base-url", "http://127.0.0.1:1", "--model", "m", "--shed"), "--shed needs an open loop"),
        (("run", "--max-concurrency", "99999999", "--model", "m"), "run `ulimit -n"),
        (("ab", "--a", "http://127.0.0.1:1"), "--b"),
        (("sweep", "--start-rate", "9", "--top-rate", "3"), "is below"),
        (("nonsense",), "'nonsense' is not one of run, ab, sweep"),
    ],
)
async def test_wrong_usage_exits_2_before_anything_starts(start: Start, words: tuple[str, ...], said: str) -> None:
    process = await start(*words)
    code, output = await process.wait()
    assert (code, said in output) == (2, True), output
    assert not process.out.exists()
    assert "Traceback" not in output


async def test_a_key_that_is_missing_is_asked_for_before_starting(start: Start) -> None:
    async def script(turn: Turn) -> None:
        await turn.respond(401, {"error": {"message": "no"}})

    async with Engine(script) as engine:
        engine.take("/v1/models")
        process = await start("run", "--base-url", engine.url)
        code, said = await process.wait()
    assert (code, "set OPENAI_API_KEY" in said) == (2, True), said


async def test_an_invalid_measurement_exits_3_and_says_why(start: Start, echo: Engine) -> None:
    process = await start(
        *("run", "--base-url", echo.url, "--num-prompts", "10", "--request-rate", "100", *LENIENT),
        *("--limit-cpu", "0"),
    )
    code, said = await process.wait()
    assert code == 3
    assert "INVALID, do not use these figures: the generator used" in said
    assert process.run().invalid


async def test_ctrl_c_ends_the_run_with_a_report_of_what_there_is(start: Start) -> None:
    seen = asyncio.Event()

    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(EVENT))
        seen.set()
        await reader.read()

    for workers in ("1", "2"):
        seen.clear()
        async with serving(stalls) as url:
            process = await start(
                *(
                    "run",
                    "--base-url",
                    url,
                    "--num-prompts",
                    "9",
                    "--max-concurrency",
                    "4",
                    "--workers",
                    workers,
                    "--engine-metrics",
                    "off",
                    *LENIENT,
                )
            )
            await seen.wait()
            process.process.send_signal(signal.SIGINT)
            code, said = await process.wait()
        assert code == 130, said
        assert process.run().interrupted
        assert {record.failure for record in process.records()} == {"cancelled"}


async def test_a_secret_is_in_no_file_and_in_no_output(start: Start) -> None:
    async def script(turn: Turn) -> None:
        await turn.respond(401, {"error": {"message": f"bad key {turn.headers['authorization']}"}})

    async with Engine(script) as engine:
        words = ("run", "--base-url", engine.url, "--num-prompts", "2", "--api-key", "sk-hush", *LENIENT)
        process = await start(*words, plots=True)
        code, said = await process.wait()
        assert engine.requests[0].headers["authorization"] == "Bearer sk-hush"
    assert code == 1
    assert "sk-hush" not in said
    for path in process.folder().iterdir():
        assert path.is_dir() or b"sk-hush" not in path.read_bytes(), path


# Calibrate


async def test_calibrate_finds_a_floor_and_keeps_it_for_the_runs_after(
    start: Start, echo: Engine, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    process = await start(
        *("calibrate", "--seconds", "0.3", "--start-requests", "20", "--start-streams", "2", "--max-rate", "200"),
        home=home,
    )
    code, said = await process.wait()
    assert code == 0, said
    assert "error floor: TTFT p50" in said
    found = calibration.load_calibration(home / calibration.FILE)
    assert found is not None
    assert set(found.floor_ms) == {"ttft_p50", "ttft_p99", "itl_p50", "itl_p99"}
    run = await start("run", "--base-url", echo.url, "--num-prompts", "3", *LENIENT, home=home)
    assert (await run.wait())[0] == 0
    assert run.run().lag.floor_ms == found.floor_ms
