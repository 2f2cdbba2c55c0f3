"""A load that sizes itself: what is measured, what is chosen by it, and that a flag that was given is kept."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.analysis import SweepStage, find_limit
from loadgen.cli import sizing
from loadgen.cli.main import parser_for
from loadgen.cli.run import Chooser, job_of
from loadgen.cli.sizing import (
    Speed,
    choose_find,
    choose_run,
    choose_sweep,
    choose_users,
    lacks_length,
    most_stages,
    needs_probe,
    probe,
    speed_of,
)
from loadgen.cli.sweep import stage_of
from loadgen.drive import Job
from loadgen.errors import UsageError
from loadgen.record import Event, Kind, Record
from loadgen.secrets import Hide
from loadgen.spec import Http
from loadgen.store import read_records, read_run
from loadgen.workload import open_workload
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import timed_script
from tests.kit.redis_server import redis_server
from tests.kit.running import gateway
from tests.loadgen.cli.test_find import loadgen
from tests.loadgen.kit.program import program
from tests.loadgen.kit.running import on_our_loop
from tests.loadgen.kit.servers import (
    DONE,
    END,
    EVENT,
    GOOD,
    HEAD,
    LAST,
    Handler,
    answering,
    chunk,
    read_request,
    serving,
    whole,
)

ROOT = Path(__file__).parent.parent.parent.parent
MS = 1_000_000
LENIENT = ("--limit-error-ms", "1e9", "--limit-late-ms", "1e9", "--limit-cpu", "1e9", "--limit-censored", "1")


def speed(users: int = 8, first: float = 0.5, gap: float = 0.1) -> Speed:
    return Speed(users=users, requests=16, completed=16, seconds=3.0, first=first, gap=gap)


def given(words: str, targets: int = 1, command: str = "run") -> tuple[argparse.Namespace, Job]:
    args = parser_for([command]).parse_args([command, *words.split()])
    if command == "sweep":
        args.request_rate, args.shed, args.ramp_up_strategy, args.trace_speed = 1.0, False, None, 1.0
        args.ramp_up_start_rps = args.ramp_up_end_rps = None
    urls = {name: f"http://{name}" for name in "ab"[:targets]}
    return args, job_of(args, urls, Http(), "m")


# What is chosen


@pytest.mark.parametrize(
    ("words", "speed", "chosen"),
    [
        ("", speed(), {"max_tokens": 26, "num_prompts": 80}),  # 8 users, 3 s a request
        ("", speed(first=0.05, gap=0.005), {"max_tokens": 128, "num_prompts": 350}),
        ("", speed(first=9.0, gap=2.0), {"max_tokens": 24, "num_prompts": 8}),
        ("", speed(users=1, first=9.0, gap=2.0), {"max_concurrency": 1, "max_tokens": 24, "num_prompts": 8}),
        ("--max-concurrency 1", speed(users=1, first=0.1, gap=0.02), {"max_tokens": 24, "num_prompts": 54}),
        ("--max-tokens 10", speed(), {"num_prompts": 171}),
        ("--corpus-output-len 10", speed(), {"num_prompts": 171}),
        ("--dataset-name random --random-output-len 10", speed(), {"num_prompts": 171}),
        ("--request-rate 4", speed(), {"max_tokens": 24, "num_prompts": 120}),
        ("--request-rate 1", speed(gap=0.01), {"max_tokens": 128, "num_prompts": 30}),
        ("--request-rate inf --max-tokens 10", speed(), {"num_prompts": 171}),
        ("--max-seconds 5 --max-tokens 10", speed(), {"num_prompts": 29}),
        ("--backend openai-embeddings", speed(first=0.1, gap=0.0), {"num_prompts": 2400}),
        ("", speed(first=0.0, gap=0.0), {"max_tokens": 128, "num_prompts": 20_000}),
    ],
)
def test_length_and_count_of_a_run_follow_from_the_pace(words: str, speed: Speed, chosen: dict[str, int]) -> None:
    args, job = given(words)
    assert needs_probe(args, job)
    assert choose_run(args, job, speed).flags == chosen


def test_each_pair_is_two_requests() -> None:
    args, job = given("", targets=2)
    choice = choose_run(args, job, speed())
    assert str(choice) == "--max-tokens 26 --num-prompts 40 (about 30 s at that pace)"


@pytest.mark.parametrize(
    ("words", "speed", "chosen"),
    [
        (
            "",
            speed(),
            {
                "max_tokens": 24,
                "start_rate": 1.4,
                "stage_seconds": 9.0,
                "burstiness": math.inf,
                "num_prompts": 5143,
            },
        ),
        (
            "--duplicates 0.5",
            speed(),
            {
                "max_tokens": 24,
                "start_rate": 1.4,
                "stage_seconds": 9.0,
                "burstiness": math.inf,
                "num_prompts": 411,
            },
        ),
        ("--start-rate 1 --max-tokens 6 --burstiness 2", speed(), {"stage_seconds": 9.0, "num_prompts": 14_400}),
        (
            "--stage-seconds 3 --top-rate 2 --max-tokens 6",
            speed(),
            {"start_rate": 2.0, "burstiness": math.inf, "num_prompts": 4800},
        ),
        (
            "--max-seconds 9 --max-tokens 6",
            speed(),
            {"start_rate": 4.0, "stage_seconds": 2.2, "burstiness": math.inf, "num_prompts": 3520},
        ),
    ],
)
def test_a_sweep_begins_at_half_of_what_the_probe_reached(
    words: str, speed: Speed, chosen: dict[str, Any]
) -> None:
    args, job = given(words, command="sweep")
    assert needs_probe(args, job)
    assert choose_sweep(args, job, speed).flags == chosen


def test_a_slow_servers_sweep_is_as_long_as_it_has_to_be_and_says_so() -> None:
    args, job = given("", command="sweep")
    choice = choose_sweep(args, job, speed(users=1, first=9.0, gap=1.0))
    assert choice.flags["start_rate"] * choice.flags["stage_seconds"] == pytest.approx(6, rel=0.02)
    assert choice.seconds == 4 * choice.flags["stage_seconds"]
    assert [most_stages(seconds) for seconds in (1.0, 6.0, 9.0, 500.0)] == [36, 6, 4, 4]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run", "--num-prompts 5"),
        ("run", "--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 2"),
        ("sweep", "--num-prompts 5"),
        ("sweep", "--rates 1,2"),
    ],
)
def test_a_load_of_a_given_size_needs_no_probe(command: str, words: str) -> None:
    assert not needs_probe(*given(words, command=command))


def test_a_file_says_itself_how_many_requests_there_are(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n')
    assert not needs_probe(*given(f"--dataset-name custom --dataset-path {path}"))


@pytest.mark.parametrize(
    ("words", "lacks"),
    [
        ("", True),
        ("--prompt hi", True),
        ('--extra-body {"max_completion_tokens":5}', False),
        ("--dataset-name random", False),
        ("--backend openai-embeddings", False),
    ],
)
def test_a_length_is_chosen_where_there_is_none(words: str, lacks: bool) -> None:
    assert lacks_length(given(words)[1]) == lacks


def answered(index: int, due_ms: float, took_ms: float, shared: str) -> Record:
    end = round((due_ms + took_ms) * MS)
    event = Event(end, end, end, Kind.CONTENT)
    return Record(
        index=index, id="", prompt="", due_ns=round(due_ms * MS), end_ns=end, events=[event], shared=shared
    )


def test_hits_are_no_yardstick_of_a_stage() -> None:
    """Half of the requests are hits of 1 ms; the server takes 200 ms and keeps up, or falls behind."""
    for behind, pace in ((0.0, 1.0), (1.0, 0.5)):
        records = [
            answered(i, i * 100, 1 if i % 2 else 200 + behind * i * 100, "hit" if i % 2 else "miss")
            for i in range(80)
        ]
        stage = stage_of(10.0, records)
        assert stage.pace == pytest.approx(pace, rel=0.03)
        assert (stage.ttft_p50_ms or 0) >= 200


@pytest.mark.parametrize(
    ("paces", "words"),
    [
        ([1, 1, 0.75], "2 req/s; 4 was too much"),
        ([1, 1, 1], "no limit found up to 4 req/s"),
        ([0.1, 1, 0.75], "below 1 req/s, the lowest rate tried"),
    ],
)
def test_a_knee_says_what_was_tried_above_it(paces: list[float], words: str) -> None:
    stages = [
        SweepStage(requested=rate, pace=pace, ttft_p50_ms=9.0)
        for rate, pace in zip((1.0, 2.0, 4.0), paces, strict=True)
    ]
    assert str(find_limit(stages)) == words


# What is measured


def record(*at_ms: float, failure: Any = None, kind: Kind = Kind.CONTENT, **more: Any) -> Record:
    events = [Event(round(at * MS), round(at * MS), round(at * MS), kind) for at in at_ms]
    return Record(index=-1, id="", prompt="", due_ns=0, sent_ns=100 * MS, events=events, failure=failure, **more)


@pytest.mark.parametrize(
    ("records", "first", "gap", "completed"),
    [
        ([record(300, 350, 400)], 0.2, 0.05, 1),
        ([record(300, 400, completion_tokens=5)], 0.2, 0.025, 1),  # several tokens in a chunk
        ([record(300, 400, failure="cancelled")], 0.2, 0.1, 0),
        ([record(300, failure="cancelled")], 0.2, 1.7, 0),  # the second token took longer than was left
        ([record(300), record(failure="cancelled")], 1.05, 0.0, 1),  # median of 0.2 and of at least 1.9
        ([record(300, failure="timeout")], 0.2, 0.0, 0),
        ([record(900, kind=Kind.WHOLE, completion_tokens=8, stream=False)], 0.1, 0.1, 1),
        ([record(900, kind=Kind.WHOLE)], 0.8, 0.0, 1),  # an embedding
    ],
)
def test_the_speed_is_the_median_of_what_was_seen(
    records: list[Record], first: float, gap: float, completed: int
) -> None:
    found = speed_of(records, 8, 2.0)
    assert found is not None
    assert (found.first, found.gap) == pytest.approx((first, gap))
    assert (found.completed, found.requests, found.users) == (completed, len(records), 8)


def test_without_a_token_there_is_no_speed() -> None:
    assert speed_of([], 1, 1.0) is None
    assert speed_of([record(failure="cancelled")], 1, 1.0) is None


@pytest.mark.parametrize("tokens", [1, 8, 128, 10**6])
def test_a_rate_is_finite_whatever_was_measured(tokens: int) -> None:
    for found in (speed(first=0.0, gap=0.0), speed(first=1e9, gap=1e9), speed(gap=1e-12)):
        assert 0 < found.rate(tokens) < math.inf
        assert 24 <= found.tokens_within(4.0) <= 128


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def first_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(HEAD + chunk(EVENT))
    await reader.read()


async def probed(handler: Handler, words: str = "") -> Speed:
    async with serving(handler) as url:
        _, job = given(words)
        job.targets = {"a": url}
        return await probe(job, Hide([]), users=None)


@on_our_loop
async def test_a_server_without_a_token_or_with_errors_only_is_refused_before_the_load() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizing, "ALONE_SECONDS", 0.3)
        with pytest.raises(UsageError, match=r"no token from http://\S+ within 0.3 s.*--num-prompts"):
            await probed(silent)
        patch.setattr(sizing, "ALONE_SECONDS", 4.0)  # a slow machine too has the first token by then
        alone = await probed(first_only)  # one token, and silence: slow, so nothing more is sent
        assert (alone.users, alone.completed) == (1, 0)
        patch.setattr(sizing, "ALONE_SECONDS", 20.0)  # the answer, not the time, ends this one
        with pytest.raises(UsageError, match=r"failed \(status\): 503: loading"):
            await probed(answering(whole("503 Busy", b'{"error":{"message":"loading"}}')))


@on_our_loop
async def test_a_server_that_answers_without_any_token_is_not_called_slow() -> None:
    """It was “no token within 20 s: is the server overloaded?”, after a few milliseconds."""
    with pytest.raises(UsageError, match=r"^the server answers without any token: http://\S+$"):
        await probed(answering(HEAD + chunk(END) + chunk(DONE) + LAST))


@on_our_loop
async def test_where_nothing_listens_the_probe_says_what_to_give() -> None:
    async with serving(silent) as url:
        pass
    _, job = given("")
    job.targets = {"a": url}
    with pytest.raises(UsageError, match=r"failed \(refused\): .*\. --base-url URL names another server$"):
        await probe(job, Hide([]), users=None, advice="--base-url URL names another server")


@on_our_loop
async def test_the_probe_knows_which_objectives_have_no_value() -> None:
    found = await probed(answering(GOOD), "--goodput ttft:500 tpot:50")
    assert found.unmeasured == {"tpot": "the server reports no usage"}


@pytest.mark.parametrize(
    ("choose", "words"),
    [(choose_sweep, "sweep"), (choose_users, "sweep --concurrencies 1,2"), (choose_find, "find")],
)
def test_what_cannot_be_judged_is_refused_at_the_probe(choose: Chooser, words: str) -> None:
    lacking = msgspec.structs.replace(speed(), unmeasured={"tpot": "the server reports no usage"})
    command, _, more = words.partition(" ")
    args = parser_for([command]).parse_args([command, *more.split()])
    _, job = given("--goodput tpot:50")
    with pytest.raises(UsageError, match=r"^TPOT cannot be measured: the server reports no usage; remove it from"):
        choose(args, job, lacking)


@on_our_loop
async def test_the_probe_shares_no_prompt_with_the_run_and_is_as_short_as_it_may_be() -> None:
    async with Engine(timed_script(ttft=0, itl=0, tokens=50)) as engine:
        _, job = given("--num-warmups 3 --temperature 0")
        job.targets = {"a": engine.url}
        found = await probe(job, Hide([]), users=2)
        bodies = [turn.json() for turn in engine.requests]
    assert (found.users, found.requests, found.completed, len(bodies)) == (2, 4, 4, 5)
    assert {body["max_tokens"] for body in bodies} == {16}
    assert {body["temperature"] for body in bodies} == {0}
    texts = [json.dumps(body["messages"]) for body in bodies]
    assert len({text[:60] for text in texts}) == len(texts)
    warm = [json.dumps(item.prompt.fields["messages"]) for item in open_workload(job.workload).warmups(3)]
    assert not {text[:60] for text in texts} & {text[:60] for text in warm}


# The commands of the documentation


def only(folder: Path) -> Path | None:
    return next(folder.iterdir(), None)


def documented(command: str) -> list[str]:
    text = (ROOT / "loadgen/README.md").read_text()
    line = re.search(rf"^python -m loadgen ({command} (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert line is not None
    return shlex.split(line[1].replace("\\\n", " "), comments=True)


@pytest.mark.parametrize("command", ["run", "sweep", "ab"])
async def test_the_commands_of_the_readme_size_themselves_and_show_what_is_saved(
    command: str, tmp_path: Path
) -> None:
    script = timed_script(ttft=0.02, itl=0.002, tokens=40)
    async with Engine(script) as engine, redis_server() as redis, gateway(engine, redis=f"unix://{redis}") as app:
        urls = {"http://127.0.0.1:8080": app.url, "http://gpu-1:8000": engine.url}
        words = [urls.get(word, word) for word in documented(command)]
        assert set(urls.values()) & {*words}
        for seconds in (4, 16, 64):  # a slow machine needs more of them until a prompt is repeated
            folder = tmp_path / str(seconds)
            code, said, _ = await loadgen(folder, *words, *LENIENT, "--quiet", "--max-seconds", str(seconds))
            assert code == 0, said
            (result,) = folder.iterdir()
            records = list(read_records(result))
            asked = Counter((record.target, record.prompt) for record in records if record.shared is not None)
            if max(asked.values(), default=0) > 1:
                break
    assert re.search(r"^probed: .* requests completed in [\d.]+ s: TTFT \d+ ms, ", said, re.MULTILINE), said
    assert re.search(r"^chosen: --.* \(about \d+ s at that pace\)$", said, re.MULTILINE), said
    assert re.search(r"^  saved.* tokens were not generated again\)$", said, re.MULTILINE), said
    assert "Result: all " in said
    run = read_run(result)
    chosen = run.config["chosen_by_probe"]
    assert {"num_prompts", "max_tokens"} <= {*chosen}
    assert "--max-seconds" not in chosen
    assert len(records) <= run.config["num_prompts"] * len(run.targets)
    # Whether a repetition is a hit, or joins the first while that is under way, is a matter of the machine's pace.
    verdicts: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.shared is not None:
            verdicts.setdefault((record.target, record.prompt), []).append(record.shared)
    assert all(
        shared.count("miss") == 1 and {*shared} <= {"miss", "hit", "attached"} for shared in verdicts.values()
    )
    assert any(len(shared) > 1 for shared in verdicts.values())
    report = (result / "report.md").read_text()
    for name in chosen:
        value = str(run.config[name]).removesuffix(".0")
        row = rf"^\| {name.replace('_', ' ')} +\| {value} \(chosen by the probe\) +\|$"
        assert re.search(row, report, re.MULTILINE), (row, report)


async def test_a_server_of_errors_ends_the_command_before_the_load(tmp_path: Path) -> None:
    async def script(turn: Turn) -> None:
        await turn.respond(401, {"error": {"message": "no key"}})

    async with Engine(script) as engine:
        process = await asyncio.create_subprocess_exec(
            *program("run", "--base-url", engine.url, "--model", "m", "--result-dir", str(tmp_path)),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        _, output = await process.communicate()
    assert process.returncode == 2
    assert (
        output.decode().splitlines()[-1]
        == f"loadgen: the first requests to {engine.url} failed (status): 401: no key"
    )
    assert only(tmp_path) is None
