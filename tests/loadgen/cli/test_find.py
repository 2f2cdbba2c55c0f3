"""`loadgen find`, `quick`, `sweep --concurrencies` and `--engine-metrics` as processes, against servers of known
size."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import time
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from loadgen.analysis import Found, Plan, Search
from loadgen.cli.find import Driver, stage_of
from loadgen.cli.quick import Look, complete, exit_code, sentences
from loadgen.cli.report import main_report
from loadgen.drive import WorkerError
from loadgen.record import Record
from loadgen.store import read_run, write_run
from tests.kit.engine import Engine, Script, Turn
from tests.kit.engine_scripts import echo_script, timed_script
from tests.loadgen.analysis.test_definitions import ev, record
from tests.loadgen.cli.test_results import hanging_after
from tests.loadgen.kit.program import program
from tests.loadgen.kit.sampling import run_of
from tests.loadgen.kit.servers import GOOD, answering, read_request, serving, whole

pytestmark = pytest.mark.timeout(
    300
)  # a search takes half a minute, and its process as long as the machine is busy
ROOT = Path(__file__).parent.parent.parent.parent
LENIENT = (  # this machine is noisy: what a run says of itself is not under test here
    *("--limit-error-ms", "1e9", "--limit-late-ms", "1e9", "--limit-cpu", "1e9", "--limit-censored", "1"),
    *("--quiet", "--model", "m1"),
)
PAGE = b"""\
# HELP vllm:num_requests_running Number of requests.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:num_preemptions_total{engine="0"} 11.0
vllm:prefix_cache_queries_total{engine="0"} 100.0
vllm:prefix_cache_hits_total{engine="0"} 40.0
"""


def with_places(count: int, seconds: float, *, refuses: bool = False) -> Script:
    """A server of so many places, each taken for so long by a response. One that refuses answers 503 where all are
    taken, so that what it can do is no matter of the machine's pace; after a moment, or its users would use up the
    prompts."""
    places, generate = asyncio.Semaphore(count), timed_script(ttft=0.0, itl=seconds, tokens=2)

    async def script(turn: Turn) -> None:
        if refuses and places.locked():
            await asyncio.sleep(0.05)
            await turn.respond(503, {"error": {"message": "all places are taken"}})
            return
        async with places:
            await generate(turn)

    return script


@asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """How much later than asked, in seconds, this loop woke up each fifth of a second."""
    late: list[float] = []

    async def measure() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.2)
            late.append(time.monotonic() - began - 0.2)

    task = asyncio.create_task(measure())
    try:
        yield late
    finally:
        task.cancel()


async def loadgen(out: Path, *words: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, all output, and result.json if there is one."""
    process = await asyncio.create_subprocess_exec(
        *program(*words, "--result-dir", str(out)),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(), result_of(out)


def result_of(out: Path) -> dict[str, Any]:
    """The run's result.json; empty without one."""
    result: dict[str, Any] = next((json.loads(path.read_bytes()) for path in out.glob("*/result.json")), {})
    return result


def report_of(out: Path) -> str:
    return next(out.glob("*/report.md")).read_text()


def left_over(out: Path) -> list[Path]:
    return list(out.glob("*/metrics-*"))


def relabelled(folder: Path, to: Path, label: str) -> Path:
    """A copy of a run under another name."""
    shutil.copytree(folder, to)
    write_run(to, msgspec.structs.replace(read_run(to), label=label))
    return to


def folder_of(out: Path) -> Path:
    return next(out.iterdir())


async def test_the_highest_rate_of_two_places_is_found(tmp_path: Path) -> None:
    """Two places of 200 ms: 10 requests a second at most. The limit is short, since of a stage of 24 requests nine
    of ten are within 400 ms at up to 12.2 a second."""
    for attempt in range(4):  # where either side stood still, the server was not the one asked about
        out = tmp_path / str(attempt)
        async with stalls() as late, Engine(with_places(2, 0.2)) as engine:
            code, said, result = await loadgen(
                out,
                *("find", "--base-url", engine.url, "--goodput", "ttft:400", "--attainment", "90%"),
                *("--precision", "5%", "--max-minutes", "0.6", "--start-rate", "4"),
                *("--num-prompts", "2000", *LENIENT),
            )
        assert code in (0, 1), said
        loop_ms = read_run(folder_of(out)).lag.loop_ms["max"]
        if max([*late, loop_ms / 1e3]) <= 0.2:
            break
    found = result["loadgen"]["found"]
    assert code == (1 if None in (found["low"], found["high"]) else 0), said
    assert found["state"] in ("found", "unsure")
    assert 4 < found["load"] < 13, said
    assert found["first"] == "ttft"
    assert said.count("highest rate: ") == 1, said
    assert "TTFT breaks first: met by " in said
    assert "TTFT ≤ 400 ms for 90.0 % of requests" in report_of(out)
    assert result["loadgen"]["run"]["focus"] in said


async def test_no_limit_and_not_met_are_said_plainly(tmp_path: Path) -> None:
    """The limit of the first search is so high that the machine's stalls do not unsettle its stages."""
    async with Engine(echo_script(tokens=2)) as engine:
        words = ("find", "--base-url", engine.url, "--num-prompts", "3000", "--max-minutes", "2", *LENIENT)
        code, said, result = await loadgen(
            tmp_path / "a", *words, "--goodput", "e2el:1000000000", "--start-rate", "20", "--top-rate", "40"
        )
        assert code == 0, said
        assert result["loadgen"]["found"]["state"] == "no limit"
        assert "no limit found up to 40.0 req/s, which still meets E2E ≤ 1e+09 ms" in said
        code, said, result = await loadgen(
            tmp_path / "b", *words, "--goodput", "ttft:0.001", "e2el:60000", "--concurrency"
        )
    assert code == 1, said
    assert result["loadgen"]["found"]["state"] == "not met"
    assert "not met even at 1 user" in said
    assert "TTFT breaks first: met by 0 %" in said


async def test_the_most_users_of_three_places_are_found(tmp_path: Path) -> None:
    async with Engine(with_places(3, 0.2, refuses=True)) as engine:
        code, said, result = await loadgen(
            tmp_path,
            *("find", "--base-url", engine.url, "--goodput", "ttft:10000", "--concurrency"),
            *("--max-minutes", "1.5"),
            *("--num-prompts", "3000", *LENIENT),
        )
    assert code == 0, said
    assert result["loadgen"]["found"]["load"] in (2, 3), said
    assert said.count("highest number of users: ") == 1, said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "find needs objectives, such as --goodput ttft:500 tpot:50"),
        (("--goodput", "speed:1"), "unknown objective 'speed'"),
        (("--goodput", "ttft:9", "--attainment", "95"), "95 is out of range; give a share between 0 and 1"),
        (("--goodput", "ttft:9", "--precision", "x%"), "'x%' is not a share"),
        (("--goodput", "ttft:9", "--start-rate", "9", "--top-rate", "3"), "--top-rate 3 is below --start-rate 9"),
        (("--goodput", "tpot:9", "--no-stream"), "--no-stream has no tpot: remove it"),
        (("--goodput", "ttft:9", "--max-seconds", "3"), "a search ends after --max-minutes"),
    ],
)
async def test_a_wrong_search_is_refused_with_what_would_be_right(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, said, _ = await loadgen(tmp_path, "find", "--base-url", "http://127.0.0.1:9", *words)
    assert code == 2, said
    assert message in said
    assert "Traceback" not in said


async def test_a_sweep_of_users_shows_throughput_against_speed_and_others_beside_it(tmp_path: Path) -> None:
    async with Engine(with_places(2, 0.02)) as engine:
        code, said, result = await loadgen(
            tmp_path,
            *(
                "sweep",
                "--base-url",
                engine.url,
                "--concurrencies",
                "4,1,2",
                "--stage-seconds",
                "1",
                "--gpus",
                "2",
            ),
            *("--num-prompts", "3000", "--label", "one", *LENIENT),
        )
    assert code == 0, said
    assert list(result["loadgen"]["summary"]["by_stage"]) == ["1 user", "2 users", "4 users"]
    assert "By number of users" in said
    assert "of a GPU" in said
    first = folder_of(tmp_path)
    second = relabelled(first, tmp_path / "other", "two")
    assert main_report([str(first), "--beside", str(second)]) == 0
    pareto = (first / "plots" / "pareto.svg").read_text()
    assert "one" in pareto
    assert "two" in pareto


async def test_the_engines_metrics_stand_beside_the_clients(tmp_path: Path) -> None:
    async with Engine(timed_script(ttft=0.02, itl=0.01, tokens=10)) as engine:
        engine.metrics = PAGE
        code, said, result = await loadgen(
            tmp_path, *("run", "--base-url", engine.url, "--num-prompts", "40", "--max-concurrency", "4", *LENIENT)
        )
    assert code == 0, said
    (scraped,) = result["loadgen"]["run"]["scraped"]
    assert (scraped["kind"], scraped["missed"]) == ("vllm", 0)
    _, figures = scraped["readings"][0]
    assert figures == {
        "running": 5, "waiting": 7, "kv_use": 0.5, "preemptions": 11, "prefix_queries": 100, "prefix_hits": 40,
    }  # fmt: skip
    assert "The engine's own figures" in report_of(tmp_path)
    assert not left_over(tmp_path)


async def test_metrics_that_are_asked_for_must_answer_and_off_reads_none(tmp_path: Path) -> None:
    async with Engine(echo_script(tokens=2)) as engine:  # its /metrics is 404
        words = ("run", "--base-url", engine.url, "--num-prompts", "3", *LENIENT)
        code, said, _ = await loadgen(tmp_path / "b", *words, "--engine-metrics", engine.url)
        assert code == 2, said
        assert "--engine-metrics" in said
        assert "status 404; give a vLLM's or a gateway's address, or `off`" in said
        engine.metrics = PAGE
        code, said, result = await loadgen(tmp_path / "c", *words, "--engine-metrics", "off")
    assert code == 0, said
    assert result["loadgen"]["run"]["scraped"] == []


async def test_a_metrics_page_that_never_ends_does_not_delay_the_load(tmp_path: Path) -> None:
    """The page drips; the load through another connection goes on, and the process that reads is ended."""
    asked = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not asked.is_set():
            asked.set()
            writer.write(whole("200 OK", PAGE, b"connection: close"))
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nvllm:")
        await writer.drain()
        await reader.read()

    async with Engine(timed_script(ttft=0.0, itl=0.02, tokens=20)) as engine, serving(endless) as url:
        code, said, result = await loadgen(
            tmp_path,
            *("run", "--base-url", engine.url, "--num-prompts", "16", "--max-concurrency", "2"),
            *("--engine-metrics", f"{url}/metrics", *LENIENT),
        )
    assert code == 0, said
    assert result["completed"] == 16
    (scraped,) = result["loadgen"]["run"]["scraped"]
    assert len(scraped["readings"]) == 1
    assert result["duration"] < 60


async def test_quick_says_three_sentences(tmp_path: Path) -> None:
    async with Engine(with_places(4, 0.25, refuses=True)) as engine:
        engine.metrics = PAGE
        code, said, _ = await loadgen(tmp_path, "quick", engine.url, "--goodput", "ttft:10000")
    assert code == 0, said
    lines = said.splitlines()
    assert f"This is vLLM at {engine.url}, serving m1." in lines
    assert any(line.startswith("One user alone waits ") and "tokens per second" in line for line in lines)
    assert any("users at once get TTFT ≤ 10000 ms" in line for line in lines), said


@pytest.mark.parametrize("command", ["find", "sweep", "users"])
async def test_an_objective_that_the_server_gives_no_figure_for_is_refused_at_the_first_stage(
    command: str, tmp_path: Path
) -> None:
    """`find` said “not met even at 1 user” of a fast server without usage."""
    words = {
        "find": ("find", "--concurrency"),
        "sweep": ("sweep", "--rates", "20", "--stage-seconds", "0.2"),
        "users": ("sweep", "--concurrencies", "1", "--stage-seconds", "0.2"),
    }[command]
    async with serving(answering(GOOD)) as url:
        given = ("--base-url", url, "--goodput", "ttft:60000", "tpot:50", "--num-prompts", "1000", *LENIENT)
        code, said, _ = await loadgen(tmp_path, *words, *given)
    assert code == 2, said
    assert "TPOT cannot be measured: the server reports no usage; remove it from --goodput" in said
    assert "not met" not in said


class GivenStages:
    """Stages whose records are known."""

    elapsed = 0.0
    worker_errors: Final[list[WorkerError]] = []

    def __init__(self, records: list[Record]) -> None:
        self._records = records

    async def run(self, *_: object) -> tuple[list[Record], bool]:
        return self._records, False


async def test_quick_judges_by_the_objectives_that_can_be_measured() -> None:
    """Users of a server without usage were “Not even one user at a time gets …”."""
    seen = [record(ev(20), ev(30), due=10, stage="1 user") for _ in range(30)]
    args = complete(argparse.Namespace(api_key=None, goodput=["ttft:1000", "tpot:100"], result_dir="out"))
    search = Search(attainment=0.9, precision=0.05, start=1.0, top=64.0, seconds=9.0, least=1.0, by="users")
    session: Any = argparse.Namespace(stopped=False)
    stages: Any = GivenStages(seen)
    driver = Driver(args, search, stages, session, drops=True)
    stage = await driver.stage(Plan(1.0, 30, near=False, seconds=1.0))
    assert stage is not None
    assert (stage.share, driver.slos) == (0.0, {"ttft": 1000.0})
    assert driver.unmeasured == {"tpot": "the server reports no usage"}
    found = Found(by="users", state="no limit", attainment=0.9, precision=0.05, tried=(1, 64))
    look = Look("http://gpu-1:8000", "m1", "vLLM")
    assert sentences(look, seen, found, driver.slos, driver.unmeasured)[1:] == [
        "One user alone waits 10.0 ms for the first token.",
        "At least 64 users at once get TTFT ≤ 1000 ms; more were not tried.",
        "TPOT cannot be measured: the server reports no usage.",
    ]


async def test_quick_with_no_objective_that_can_be_measured_says_nothing_of_several_users(tmp_path: Path) -> None:
    models = whole("200 OK", b'{"data":[{"id":"m1"}]}')

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(GOOD if (await read_request(reader)).startswith(b"POST") else models)

    async with serving(handle) as url:
        code, said, _ = await loadgen(tmp_path, "quick", url, "--goodput", "tpot:50")
    assert code == 0, said
    assert "Nothing is known of several users.\nTPOT cannot be measured: the server reports no usage.\n" in said
    assert read_run(folder_of(tmp_path)).config["goodput"] == []


@pytest.mark.parametrize("answered", [0, 8])
async def test_quick_that_is_interrupted_says_only_what_it_saw(tmp_path: Path, answered: int) -> None:
    """It called the server too slow, or the user's answers no streams."""
    async with Engine(hanging_after(answered)) as engine:
        command = program("quick", engine.url, "--result-dir", str(tmp_path))
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=STDOUT)
        await engine.until(lambda: engine.generations > answered)
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
    said = output.decode()
    assert process.returncode == 130, said
    assert "It was interrupted" in said
    assert ("One user alone waits" in said) is bool(answered)
    for false in ("too slow", "was answered as a stream", "users at once"):
        assert false not in said


@pytest.mark.parametrize(("waited_ms", "judged"), [(4000, 8), (150, 0)])
def test_users_whose_server_hung_missed_the_objectives(waited_ms: int, judged: int) -> None:
    """They were left out: 8 users of a server that gave no answer any more were “100 % of 0 good, met”."""
    hung = [
        Record(
            index=user, id=str(user), prompt="", due_ns=0, sent_ns=0, closed_ns=waited_ms * 1_000_000,
            failure="cancelled",
        )
        for user in range(8)
    ]  # fmt: skip
    stage = stage_of(8.0, hung, {"ttft": 200.0}, seconds=4.0, aborted=False, open_loop=False, fault="")
    assert (len(stage), sum(stage.bad)) == (judged, judged)


@pytest.mark.parametrize(
    ("state", "failures", "lost", "code"),
    [
        ("found", [None], False, 0),
        ("all met", [None, "status"], False, 0),
        ("failed", [None, "refused"], False, 1),
        ("nothing", ["refused"], False, 1),
        ("found", [None], True, 1),
    ],
)
def test_quick_ends_with_1_where_the_server_or_the_disk_failed(
    state: Any, failures: list[Any], lost: bool, code: int
) -> None:
    records = [Record(index=0, id="", prompt="", due_ns=0, failure=failure) for failure in failures]
    found = Found(by="users", state=state, attainment=0.9, precision=0.05, seconds=50.0, requests=9, stages=3)
    assert exit_code(run_of(), records, found, lost=lost) == code
    interrupted = msgspec.structs.replace(run_of(), interrupted=True)
    assert exit_code(interrupted, records, found, lost=lost) == 130


async def test_quick_without_a_server_says_where_it_looked(tmp_path: Path) -> None:
    code, said, _ = await loadgen(tmp_path, "quick", "http://127.0.0.1:9")
    assert code == 2
    assert "http://127.0.0.1:9/v1/models does not list models" in said
