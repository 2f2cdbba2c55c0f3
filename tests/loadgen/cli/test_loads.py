"""Loads that are more than single requests, through `python -m loadgen` and sockets: conversations, requests that
their clients cancel, models, images."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from corpus.draw import Draw
from loadgen.record import Record
from loadgen.store import read_run
from loadgen.workload import Options, open_workload
from tests.golden import load
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script, timed_script
from tests.kit.engine_turn import ClientGone
from tests.kit.running import gateway
from tests.loadgen.cli.test_bad_input import LENIENT, Seen, loadgen

QUIET = LENIENT[:-2]
SMALL = ("--dataset-name", "random", "--random-input-len", "12", "--random-output-len", "3")


@pytest.fixture
async def echo() -> AsyncIterator[Engine]:
    async with Engine(echo_script(tokens=4)) as engine:
        yield engine


async def command(tmp_path: Path, *words: str, code: int = 0) -> Seen:
    seen = await loadgen(tmp_path, *words, "--model", "m", *QUIET)
    assert seen.code == code, seen.said
    return seen


async def run(tmp_path: Path, engine: Engine, *words: str, code: int = 0) -> Seen:
    seen = await loadgen(tmp_path, "run", "--base-url", engine.url, "--model", "m", *QUIET, *words)
    assert seen.code == code, seen.said
    return seen


def result(tmp_path: Path) -> dict[str, Any]:
    (folder,) = (tmp_path / "out").iterdir()
    found: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
    return found


# Conversations


async def test_a_later_turn_carries_the_models_own_answers(tmp_path: Path, echo: Engine) -> None:
    seen = await run(tmp_path, echo, *SMALL, "--turns", "3", "--num-prompts", "2", "--max-concurrency", "1")
    sent = [turn.json()["messages"] for turn in echo.requests]
    assert [[m["role"] for m in messages] for messages in sent[:3]] == [
        ["user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user", "assistant", "user"],
    ]
    assert sent[1][:1] == sent[0]
    assert sent[2][:3] == sent[1]
    assert len(sent) == 6
    assert all(len(m["content"].split()) == 3 for messages in sent for m in messages if m["role"] == "assistant")
    assert len({json.dumps(messages[-1]) for messages in sent}) == 6
    records = sorted(seen.records, key=lambda record: record.index)
    assert [(record.turn, record.turns) for record in records] == [(1, 3), (2, 3), (3, 3)] * 2
    assert len({record.conversation for record in records}) == 2
    told = result(tmp_path)["loadgen"]["summary"]["loads"]["conversations"]
    assert (told["begun"], told["completed"], told["failed"], told["not_sent"]) == (2, 2, 0, 0)
    assert [part["completed"] for part in told["turns"].values()] == [2, 2, 2]
    assert "By turn of a conversation" in seen.report


async def test_a_turn_is_due_a_think_time_after_the_answer(tmp_path: Path, echo: Engine) -> None:
    seen = await run(
        *(tmp_path, echo, *SMALL, "--turns", "2", "--num-prompts", "4", "--think-time", "uniform:0.05-0.06"),
        *("--conversation-rate", "100"),
    )
    (folder,) = (tmp_path / "out").iterdir()
    loop_ms = read_run(folder).lag.loop_ms["max"]  # how long the machine held the generator up
    by_name: dict[str, list[Record]] = {}
    for record in sorted(seen.records, key=lambda record: record.index):
        by_name.setdefault(record.conversation, []).append(record)
    assert len(by_name) == 4
    for first, second in by_name.values():
        assert first.end_ns is not None
        assert 50e6 <= second.due_ns - first.end_ns <= 80e6 + loop_ms * 1e6
        assert second.sent_ns is not None
        assert second.sent_ns >= second.due_ns


async def test_a_failed_turn_ends_its_conversation(tmp_path: Path) -> None:
    def script(turn: Turn) -> Any:
        messages = turn.json()["messages"]
        if len(messages) == 3:
            return turn.respond(500, {"error": {"message": "out of luck"}})
        return echo_script(tokens=4)(turn)

    async def answer(turn: Turn) -> None:
        await script(turn)

    async with Engine(answer) as engine:
        seen = await run(
            *(tmp_path, engine, *SMALL, "--turns", "4", "--num-prompts", "3", "--max-concurrency", "2"), code=1
        )
        assert len(engine.requests) == 6
    told = result(tmp_path)["loadgen"]["summary"]["loads"]["conversations"]
    assert (told["begun"], told["completed"], told["failed"], told["not_sent"]) == (3, 0, 3, 6)
    assert "3 conversations: 3 failed; 6 requests of those that ended early were not sent" in seen.report


async def test_a_files_conversations_carry_its_answers_where_that_is_asked(tmp_path: Path, echo: Engine) -> None:
    path = tmp_path / "sharegpt.json"
    turns = [("human", "What is red?"), ("gpt", "A colour."), ("human", "And seven?"), ("gpt", "A number indeed.")]
    path.write_text(json.dumps([{"conversations": [{"from": who, "value": text} for who, text in turns]}]))
    words = ("--dataset-name", "sharegpt", "--dataset-path", str(path), "--turns", "all")
    await run(tmp_path / "file", echo, *words, "--history", "file")
    await run(tmp_path / "own", echo, *words)
    second = [turn.json()["messages"] for turn in echo.requests if len(turn.json()["messages"]) == 3]
    assert [message["content"] for message in second[0]] == ["What is red?", "A colour.", "And seven?"]
    assert second[1][1]["content"] != "A colour."
    assert second[1][2]["content"] == "And seven?"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--turns", "0"), "--turns '0': give N, LOW-HIGH or all"),
        (("--turns", "3-2"), "--turns '3-2': give N"),
        (("--turns", "2", "--think-time", "soon"), "--think-time 'soon': give SECONDS"),
        (("--turns", "2", "--think-time", "uniform:3-1"), "--think-time 'uniform:3-1'"),
        (("--think-time", "2"), "--think-time and --history are for conversations"),
        (("--turns", "2", "--request-rate", "3"), "give --conversation-rate"),
        (("--conversation-rate", "3"), "--conversation-rate needs conversations"),
        (("--turns", "all"), "--turns all is for a file"),
        (("--turns", "2", "--history", "file"), "--history file needs a file"),
        (("--turns", "2", "--endpoint", "embeddings"), "embeddings has no conversations"),
        (("--cancel", "10%"), "--cancel needs --cancel-after"),
        (("--cancel-after", "3tokens"), "--cancel-after needs --cancel"),
        (("--cancel", "11", "--cancel-after", "3tokens"), "out of range"),
        (("--cancel", "0.5", "--cancel-after", "soon"), "such as 20tokens, 1.5s or 300ms"),
        (("--cancel", "0.5", "--cancel-after", "2tokens", "--no-stream"), "needs a stream"),
        (("--cancel", "0.5", "--cancel-after", "2tokens", "--endpoint", "rerank"), "generates no tokens"),
    ],
)
async def test_flags_that_make_no_sense_are_refused(
    tmp_path: Path, echo: Engine, words: tuple[str, ...], told: str
) -> None:
    seen = await run(tmp_path, echo, "--num-prompts", "2", *words, code=2)
    assert told in seen.said
    assert echo.requests == []


# Cancelled requests


class Endless:
    """An engine that generates a token every few milliseconds and shows how many requests it runs. One that does
    not stop goes on after its client has left. The prompts of `leaving` (their messages) get tokens until their
    client has left: on a slow machine the others' 40 tokens end before it is seen leaving."""

    def __init__(self, *, stops: bool = True, leaving: Sequence[Any] = ()) -> None:
        self.engine = Engine(self._answer)
        self.engine.take("/metrics")
        self.released = asyncio.Event()
        self._generate = timed_script(ttft=0.005, itl=0.005, tokens=40)
        self._stops = stops
        self._leaving = leaving
        self.running = self.aborted = 0

    async def _answer(self, turn: Turn) -> None:
        if turn.path == "/metrics":
            text = f'vllm:num_requests_running{{engine="0"}} {self.running}.0\nvllm:num_requests_waiting 0.0\n'
            text += f'vllm:request_success_total{{finished_reason="abort"}} {self.aborted}.0\n'
            await turn.respond(200, text.encode())
            return
        self.running += 1
        try:
            while turn.json()["messages"] in self._leaving:
                await asyncio.sleep(0.005)
                await turn.send("word ")
            await self._generate(turn)
        except ClientGone:
            self.aborted += self._stops
            if not self._stops:
                await self.released.wait()
            raise
        finally:
            self.running -= 1


@asynccontextmanager
async def endless(*, stops: bool = True, leaving: Sequence[Any] = ()) -> AsyncIterator[Endless]:
    made = Endless(stops=stops, leaving=leaving)
    async with made.engine:
        yield made
        made.released.set()


CANCEL = (*SMALL[:4], "--random-output-len", "40", "--num-prompts", "12", "--max-concurrency", "4")


def cancelled() -> list[Any]:
    """The messages of those of CANCEL's requests that `--cancel 50%` draws."""
    options = Options(dataset_name="random", random_input_len=12, random_output_len=40, num_prompts=12)
    return [
        item.prompt.fields["messages"]
        for index, item in enumerate(open_workload(options).requests())
        if Draw(0, "cancel", index, "a").unit() < 0.5
    ]


async def test_a_share_of_the_requests_is_cancelled_after_so_many_tokens(tmp_path: Path) -> None:
    async with endless(leaving=cancelled()) as server:
        seen = await run(tmp_path, server.engine, *CANCEL, "--cancel", "50%", "--cancel-after", "5tokens")
        assert server.aborted == sum(record.failure == "left" for record in seen.records)
    left = [record for record in seen.records if record.cancel]
    assert 0 < len(left) < 12
    assert {record.failure for record in left} == {"left"}
    for record in left:
        read = [event.user_ns for event in record.events if event.kind == "content"]
        assert sum(at < read[-1] for at in read) < 5 <= len(read), "it left in the read of the fifth token"
    assert {record.failure for record in seen.records if not record.cancel} == {None}
    told = result(tmp_path)
    assert (told["completed"], told["failed"]) == (12 - len(left), 0)
    summary = told["loadgen"]["summary"]
    assert summary["whole"]["stats"]["ttft"]["n"] == 12
    assert summary["whole"]["stats"]["e2el"]["n"] == 12 - len(left)
    assert summary["loads"]["cancellations"]["left"] == len(left)
    (check,) = told["loadgen"]["run"]["cancel_checks"]
    assert check["settle_s"] is not None
    assert (check["excess"], check["aborted"], check["left"]) == (0, len(left), len(left))
    assert "stopped: back at 0 requests" in seen.report


async def test_a_request_cancelled_after_a_time_is_in_no_latency(tmp_path: Path) -> None:
    async with endless() as server:
        seen = await run(tmp_path, server.engine, *CANCEL, "--cancel", "0.5", "--cancel-after", "60ms")
    left = [record for record in seen.records if record.failure == "left"]
    assert left
    assert all("after 0.06 s (--cancel)" in record.detail for record in left)
    stats = result(tmp_path)["loadgen"]["summary"]["whole"]["stats"]
    assert stats["ttft"]["n"] == stats["e2el"]["n"] == 12 - len(left)


async def test_an_engine_that_goes_on_fails_the_run(tmp_path: Path) -> None:
    async with endless(stops=False) as server:
        seen = await run(
            *(tmp_path, server.engine, *CANCEL, "--cancel", "50%", "--cancel-after", "3tokens"),
            *("--cancel-within", "0.3"),
            code=1,
        )
    assert "DID NOT STOP" in seen.said
    (check,) = result(tmp_path)["loadgen"]["run"]["cancel_checks"]
    assert check["settle_s"] is None


async def test_metrics_that_are_named_must_be_there(tmp_path: Path, echo: Engine) -> None:
    words = ("--num-prompts", "2", "--cancel", "1", "--cancel-after", "1tokens")
    seen = await run(tmp_path, echo, *words, "--cancel-metrics", f"{echo.url}/nothing", code=2)
    assert "has no metrics of running requests" in seen.said
    seen = await run(tmp_path, echo, *words)
    assert "Whether the engine stopped was not checked" in seen.report


# Models, images, endpoints


async def test_models_get_their_shares_and_their_figures(tmp_path: Path, echo: Engine) -> None:
    seen = await run(
        tmp_path, echo, *SMALL, "--num-prompts", "40", "--lora-modules", "a:0.75", "b:25%", "--seed", "5"
    )
    models = [turn.json()["model"] for turn in echo.requests]
    assert {"a", "b"} == {*models}
    assert 22 <= models.count("a") <= 38
    told = result(tmp_path)["loadgen"]["summary"]["loads"]["models"]
    assert {name: part["completed"] for name, part in told.items()} == {m: models.count(m) for m in ("a", "b")}
    assert "By model" in seen.report


async def test_pictures_are_pngs_of_the_size_asked_and_no_two_alike(tmp_path: Path, echo: Engine) -> None:
    await run(tmp_path, echo, *SMALL, "--num-prompts", "2", "--images", "2", "--image-size", "70x33")
    urls = [
        part["image_url"]["url"]
        for turn in echo.requests
        for part in turn.json()["messages"][-1]["content"]
        if part["type"] == "image_url"
    ]
    assert len({*urls}) == 4
    for url in urls:
        data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", data[16:24]) == (70, 33)
        size = int.from_bytes(data[33:37], "big")
        assert len(zlib.decompress(data[41 : 41 + size])) == 33 * (1 + 3 * 70)


async def test_a_rerank_request_has_a_query_and_its_documents(tmp_path: Path) -> None:
    async def ranked(turn: Turn) -> None:
        documents = turn.json()["documents"]
        results = [{"index": n, "relevance_score": 0.5} for n in range(len(documents))]
        await turn.respond(200, {"results": results, "usage": {"prompt_tokens": 30, "total_tokens": 30}})

    async with Engine(ranked) as engine:
        seen = await run(
            *(tmp_path, engine, "--endpoint", "rerank", "--dataset-name", "random", "--random-input-len", "5"),
            *("--num-prompts", "3", "--rerank-documents", "4"),
        )
        bodies = [turn.json() for turn in engine.requests]
        assert {turn.path for turn in engine.requests} == {"/v1/rerank"}
    assert [len(body["documents"]) for body in bodies] == [4, 4, 4]
    texts = [text for body in bodies for text in (body["query"], *body["documents"])]
    assert len({*texts}) == 15
    assert {record.prompt_tokens for record in seen.records} == {30}


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
async def test_an_endpoint_is_sent_its_own_form_and_read_to_its_end(tmp_path: Path, endpoint: str) -> None:
    frames = load(f"{endpoint}-stream").frames()

    async def replayed(turn: Turn) -> None:
        await turn.start(role=False)
        await turn.end(*frames)

    async with Engine(replayed) as engine:
        seen = await run(tmp_path, engine, *SMALL, "--endpoint", endpoint, "--num-prompts", "2")
        body = engine.requests[0].json()
        assert {turn.path for turn in engine.requests} == {f"/v1/{endpoint}"}
    assert body["stream"] is True
    assert "stream_options" not in body
    assert (body.get("max_output_tokens"), body.get("max_tokens")) == (
        (3, None) if endpoint == "responses" else (None, 3)
    )
    assert [record.completion_tokens for record in seen.records] == [8, 8]
    stats = result(tmp_path)["loadgen"]["summary"]["whole"]["stats"]
    assert stats["ttft"]["n"] == stats["tpot"]["n"] == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--lora-modules", "a:0.5", "b"), "give a share to every model or to none"),
        (("--lora-modules", "a", "a"), "a model is named twice"),
        (("--lora-assignment", "zipf"), "--lora-assignment needs several models"),
        (("--images", "1", "--image-size", "big"), "--image-size 'big': give WIDTHxHEIGHT"),
        (("--images", "1", "--endpoint", "completions"), "completions takes no pictures"),
    ],
)
async def test_flags_of_models_and_pictures_are_checked(
    tmp_path: Path, echo: Engine, words: tuple[str, ...], told: str
) -> None:
    seen = await run(tmp_path, echo, "--num-prompts", "2", *words, code=2)
    assert told in seen.said


# Through the gateway, and by several processes


async def test_the_gateway_stops_the_engine_when_clients_leave(tmp_path: Path) -> None:
    async with endless(leaving=cancelled()) as server, gateway(server.engine) as app:
        metrics = [word for url in (app.url, server.engine.url) for word in ("--cancel-metrics", f"{url}/metrics")]
        seen = await loadgen(
            *(tmp_path, "run", "--base-url", app.url, "--model", "m1", *QUIET, *CANCEL),
            *("--cancel", "50%", "--cancel-after", "5tokens", *metrics),
        )
        assert seen.code == 0, seen.said
        left = sum(record.failure == "left" for record in seen.records)
        assert 0 < left < 12
        assert server.aborted == left
    checks = result(tmp_path)["loadgen"]["run"]["cancel_checks"]
    assert [(check["aborted"], check["excess"] <= 0, check["settle_s"] is not None) for check in checks] == [
        (left, True, True),
        (left, True, True),
    ]


async def test_workers_share_conversations_and_keep_each_whole(tmp_path: Path, echo: Engine) -> None:
    seen = await run(tmp_path, echo, *SMALL, "--turns", "2", "--num-prompts", "5", "--workers", "2")
    records = sorted(seen.records, key=lambda record: record.index)
    assert [record.index for record in records] == list(range(10))
    workers: dict[str, set[int]] = {}
    for record in records:
        workers.setdefault(record.conversation, set()).add(record.worker)
    assert sorted(workers.values(), key=min) == [{0}, {0}, {0}, {1}, {1}]


async def test_an_agents_calls_start_after_those_they_wait_for(tmp_path: Path, echo: Engine) -> None:
    requests = [
        {"t": 0, "type": "s", "in": 20, "out": 3, "hash_ids": [1, 2]},
        {"type": "subagent", "t": 0.1, "requests": [{"t": 0, "type": "s", "in": 10, "out": 2, "hash_ids": [9]}]},
        {"t": 1, "type": "s", "in": 30, "out": 3, "hash_ids": [1, 2], "think_time": 0.05},
    ]
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({"id": "run", "block_size": 16, "requests": requests}))
    seen = await run(
        tmp_path, echo, "--dataset-name", "trace", "--dataset-path", str(path), "--max-concurrency", "1"
    )
    first, sub, last = sorted(seen.records, key=lambda record: record.index)
    assert [record.completion_tokens for record in (first, sub, last)] == [3, 2, 3]
    assert first.end_ns is not None
    assert sub.end_ns is not None
    assert sub.due_ns >= first.end_ns
    assert last.due_ns >= sub.end_ns + 50e6


# The same answer at both


@pytest.mark.parametrize(("seed", "identical"), [(0, 6), (1, 0)])
async def test_ab_compares_the_answers_at_temperature_0(tmp_path: Path, seed: int, identical: int) -> None:
    async with Engine(echo_script(tokens=6)) as a, Engine(echo_script(tokens=6, seed=seed)) as b:
        seen = await loadgen(
            *(tmp_path, "ab", "--a", a.url, "--b", b.url, "--model", "m", *QUIET, *SMALL[:-1], "6"),
            *("--num-prompts", "6", "--max-concurrency", "1", "--temperature", "0"),
        )
    assert seen.code == 0, seen.said
    told = result(tmp_path)["loadgen"]["summary"]["loads"]["answers"]
    assert (told["compared"], told["identical"]) == (6, identical)
    (words,) = re.findall(r"same answer at both +(.*)", seen.said)
    assert words == {6: "100 % (6 of 6 pairs)", 0: "0 % (0 of 6 pairs)"}[identical]
    assert ("first difference" in seen.report) == (identical == 0)
    if not identical:
        assert told["a"][: told["at"]] == told["b"][: told["at"]]
        assert told["a"] != told["b"]


async def test_sampled_answers_are_not_compared(tmp_path: Path, echo: Engine) -> None:
    seen = await loadgen(
        *(tmp_path, "ab", "--a", echo.url, "--b", echo.url, "--model", "m", *QUIET, *SMALL, "--num-prompts", "2"),
        *("--max-concurrency", "1"),
    )
    assert result(tmp_path)["loadgen"]["summary"]["loads"]["answers"] is None
    assert {record.answer for record in seen.records} == {None}


async def test_ab_sends_each_conversation_to_both_and_pairs_their_turns(tmp_path: Path, echo: Engine) -> None:
    async with Engine(echo_script(tokens=2)) as other:
        seen = await command(
            tmp_path, "ab", "--a", echo.url, "--b", other.url, *SMALL, "--turns", "3", "--num-prompts", "4",
        )  # fmt: skip
        assert [len(engine.requests) for engine in (echo, other)] == [12, 12]
        firsts = [
            sorted(
                sent[0]["content"]
                for turn in engine.requests
                for sent in [turn.json()["messages"]]
                if not sent[1:]
            )
            for engine in (echo, other)
        ]
    assert firsts[0] == firsts[1]
    loadgen_result = result(tmp_path)["loadgen"]
    told = loadgen_result["summary"]["loads"]["conversations"]
    assert (told["begun"], told["completed"]) == (8, 8)
    assert list(told["turns"]) == ["1 at a", "1 at b", "2 at a", "2 at b", "3 at a", "3 at b"]
    assert loadgen_result["paired"]["paired"] == 12
    assert "--turns" not in seen.said


async def test_a_sweep_begins_conversations_at_its_rates_of_requests(tmp_path: Path, echo: Engine) -> None:
    await command(
        tmp_path, "sweep", "--base-url", echo.url, *SMALL, "--turns", "4", "--num-prompts", "500",
        "--rates", "20,40", "--stage-seconds", "1",
    )  # fmt: skip
    stages = result(tmp_path)["loadgen"]["summary"]["by_stage"]
    assert {name: stage["requests"] for name, stage in stages.items()} == {"rate=20": 20, "rate=40": 40}


async def test_a_sweep_of_users_gives_each_a_conversation(tmp_path: Path, echo: Engine) -> None:
    await command(
        tmp_path, "sweep", "--base-url", echo.url, *SMALL, "--turns", "2", "--num-prompts", "5000",
        "--concurrencies", "1,3", "--stage-seconds", "0.4",
    )  # fmt: skip
    assert max(len(turn.json()["messages"]) for turn in echo.requests) == 3
    told = result(tmp_path)["loadgen"]["summary"]
    assert told["loads"]["conversations"]["turns"]["2"]["completed"] > 1
    assert list(told["by_stage"]) == ["1 user", "3 users"]


async def test_a_search_sends_no_conversations(tmp_path: Path, echo: Engine) -> None:
    seen = await command(
        tmp_path, "find", "--base-url", echo.url, *SMALL, "--num-prompts", "2", "--goodput", "ttft:9",
        "--turns", "2", code=2,
    )  # fmt: skip
    assert (seen.code, echo.requests) == (2, [])
    assert "are for `run`, `ab` and `sweep`" in seen.said
    assert not (tmp_path / "out").exists()
