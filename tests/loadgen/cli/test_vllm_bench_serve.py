"""`python -m loadgen vllm-bench-serve` as a process: what it sends, the file that it writes, its exit code."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.loadgen.cli.test_vllm_flags import ROOT
from tests.loadgen.kit.program import program

LISTS = (
    *("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors", "latencies"),
    "queue_times",
)


class Seen(NamedTuple):
    code: int
    said: str


@pytest.fixture
async def echo() -> AsyncIterator[Engine]:
    async with Engine(echo_script(tokens=4)) as engine:
        yield engine


async def bench(folder: Path, echo: Engine, *words: str) -> Seen:
    process = await asyncio.create_subprocess_exec(
        *program("vllm-bench-serve", "--base-url", echo.url, "--model", "m1", *words),
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return Seen(process.returncode, output.decode())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def json_files(folder: Path) -> list[Path]:
    return list(folder.glob("*.json"))


async def test_the_file_is_vllms_with_its_lists_at_the_top_level(tmp_path: Path, echo: Engine) -> None:
    seen = await bench(
        tmp_path,
        echo,
        *("--backend", "openai-chat", "--dataset-name", "random", "--random_input_len", "5", "--output-len", "3"),
        *("--num-prompts", "6", "--max_concurrency", "2", "--metadata", "tp=1", "date=today", "--save-detailed"),
        *("--save-result", "--metric-percentiles", "25,99", "--header", "x-a=1", "x-b=2", "--min-p", "0.5"),
        *("--request-id-prefix", "job-", "--served-model-name", "m1", "--goodput", "ttft:60000"),
    )
    assert seen.code in (0, 3), seen.said  # 3: this machine is busy
    (path,) = json_files(tmp_path)
    assert path.name.startswith("openai-chat-infqps-concurrency2-m1-20")
    (result,) = lines(path)
    assert {name: len(result[name]) for name in LISTS} == dict.fromkeys(LISTS, 6)
    assert (result["completed"], result["output_lens"], result["errors"]) == (6, [3] * 6, [""] * 6)
    assert all(len(text.split()) == 3 for text in result["generated_texts"])
    assert (result["tp"], result["date"], result["rtfx"]) == ("1", "today", 0.0)
    assert 0 < result["p25_ttft_ms"] <= result["median_ttft_ms"]
    assert result["request_goodput"] == result["request_throughput"]
    sent = [turn for turn in echo.requests if turn.method == "POST"]
    assert {turn.headers["x-request-id"] for turn in sent} == {f"job-{number}" for number in range(6)}
    assert {(turn.headers["x-a"], turn.headers["x-b"]) for turn in sent} == {("1", "2")}
    body = sent[0].json()
    assert (body["max_tokens"], body["min_p"], body["ignore_eos"], body["stream"]) == (3, 0.5, True, True)


async def test_a_result_is_appended_as_a_line(tmp_path: Path, echo: Engine) -> None:
    words = (
        "--num-prompts",
        "2",
        "--random-input-len",
        "3",
        "--result-filename",
        "all.jsonl",
        "--result-dir",
        "r",
    )
    for number in (1, 2):
        seen = await bench(tmp_path, echo, *words, "--append-result", "--label", str(number))
        assert seen.code in (0, 3), seen.said
    assert [result["label"] for result in lines(tmp_path / "r" / "all.jsonl")] == ["1", "2"]
    assert all("ttfts" not in result for result in lines(tmp_path / "r" / "all.jsonl"))
    seen = await bench(tmp_path, echo, *words, "--save-result")
    assert len(lines(tmp_path / "r" / "all.jsonl")) == 1


@pytest.mark.parametrize(("more", "times"), [((), 5), (("--no-oversample",), 2)])
async def test_a_file_with_too_few_prompts_is_repeated_as_in_vllm(
    tmp_path: Path, echo: Engine, more: tuple[str, ...], times: int
) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    seen = await bench(
        tmp_path, echo, "--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "5", *more
    )
    assert seen.code in (0, 3), seen.said
    sent = Counter(turn.json()["prompt"] for turn in echo.requests if turn.method == "POST")
    assert sent.total() == times
    assert set(sent) == {"one", "two"}


async def test_a_burst_is_not_invalid_for_being_sent_one_after_the_other(tmp_path: Path, echo: Engine) -> None:
    seen = await bench(tmp_path, echo, "--num-prompts", "300", "--random-input-len", "3", "--output-len", "1")
    assert "sent late" in seen.said
    assert "requests were sent" not in seen.said


async def test_a_result_file_without_a_place_is_refused_before_the_run(tmp_path: Path, echo: Engine) -> None:
    (tmp_path / "f").write_text("")
    seen = await bench(tmp_path, echo, "--save-result", "--result-dir", "f")
    assert (seen.code, seen.said) == (2, "loadgen: f is not a folder, so no result file can be written there\n")
    seen = await bench(tmp_path, echo, "--result-filename", "x.json")
    assert (seen.code, "needs --save-result" in seen.said) == (2, True)
    assert [turn for turn in echo.requests if turn.method == "POST"] == []
