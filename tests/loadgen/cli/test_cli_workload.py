"""What is asked, by flags and to the server: datasets and traces through `python -m loadgen run` as a process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.loadgen.cli.test_bad_input import LENIENT, Seen, loadgen

ENOUGH = LENIENT[:-2]  # without its cap


@pytest.fixture
async def echo() -> AsyncIterator[Engine]:
    async with Engine(echo_script(tokens=4)) as engine:
        yield engine


async def run(tmp_path: Path, echo: Engine, *words: str) -> Seen:
    seen = await loadgen(tmp_path, "run", "--base-url", echo.url, "--model", "m", *ENOUGH, *words)
    assert seen.code == 0, seen.said
    return seen


def bodies(echo: Engine) -> list[dict[str, Any]]:
    return [turn.json() for turn in echo.requests]


async def test_a_trace_is_replayed_at_its_times_with_its_lengths(tmp_path: Path, echo: Engine) -> None:
    rows = [(0, 40, [0]), (40, 700, [1, 2]), (80, 40, [0]), (200, 600, [1, 3])]
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"timestamp": at, "input_length": length, "output_length": 3, "hash_ids": blocks}) + "\n"
            for at, length, blocks in rows
        )
    )
    seen = await run(tmp_path, echo, "--dataset-name", "trace", "--dataset-path", str(path), "--trace-speed", "2")
    records = sorted(seen.records, key=lambda record: record.index)
    assert [record.due_ns for record in records] == [0, 20_000_000, 40_000_000, 100_000_000]
    assert all(record.sent_ns is not None and record.sent_ns >= record.due_ns for record in records)
    assert [record.completion_tokens for record in records] == [3] * 4
    assert records[0].prompt == records[2].prompt
    sent = {turn.headers["x-request-id"]: turn.json() for turn in echo.requests}
    texts = [sent[record.id]["messages"][-1]["content"] for record in records]
    assert texts[0] == texts[2]
    assert len(texts[0]) < len(texts[3]) < len(texts[1])
    assert {body["max_tokens"] for body in bodies(echo)} == {3}


async def test_a_rate_that_is_asked_for_goes_before_the_traces_times(tmp_path: Path, echo: Engine) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 9, "output_length": 2, "hash_ids": [0]}\n' * 3)
    seen = await run(
        *(tmp_path, echo, "--dataset-name", "trace", "--dataset-path", str(path)),
        *("--request-rate", "100", "--burstiness", "inf"),
    )
    assert sorted(record.due_ns for record in seen.records) == [0, 10_000_000, 20_000_000]


async def test_a_custom_file_is_sent_in_its_order_each_line_once(tmp_path: Path, echo: Engine) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "question {n}", "output_tokens": {n + 1}}}\n' for n in range(3)))
    seen = await run(
        *(tmp_path, echo, "--dataset-name", "custom", "--dataset-path", str(path), "--disable-shuffle"),
        *("--custom-output-len", "-1", "--max-concurrency", "1"),
    )
    assert [body["messages"][-1]["content"] for body in bodies(echo)] == [f"question {n}" for n in range(3)]
    assert [record.completion_tokens for record in seen.records] == [1, 2, 3]


async def test_duplicates_reach_the_server_as_the_same_bytes(tmp_path: Path, echo: Engine) -> None:
    await run(
        *(tmp_path, echo, "--dataset-name", "random", "--random-input-len", "20", "--random-output-len", "2"),
        *("--num-prompts", "20", "--duplicates", "0.5", "--seed", "4"),
    )
    times = Counter(turn.body for turn in echo.requests)
    assert (times.total(), len(times)) == (20, 10)


async def test_unique_prompts_are_the_same_again_only_with_the_same_salt(tmp_path: Path, echo: Engine) -> None:
    words = ("--corpus-set", "short-chat", "--num-prompts", "4", "--unique", "--max-concurrency", "1")
    sent: list[list[bytes]] = []
    for number, salt in enumerate(("a", "a", "b")):
        before = len(echo.requests)
        await run(tmp_path / str(number), echo, *words, "--unique-salt", salt)
        sent.append([turn.body for turn in echo.requests[before:]])
    assert sent[0] == sent[1]
    assert not set(sent[0]) & set(sent[2])


async def test_the_same_prompts_go_out_whole_however_many_workers_send_them(tmp_path: Path, echo: Engine) -> None:
    words = ("--corpus-set", "code", "--num-prompts", "12", "--seed", "3")
    for number, workers in enumerate(("1", "3")):
        await run(tmp_path / str(number), echo, *words, "--workers", workers)
    prompts = [json.dumps(body["messages"]) for body in bodies(echo)]
    assert sorted(prompts[:12]) == sorted(prompts[12:])
