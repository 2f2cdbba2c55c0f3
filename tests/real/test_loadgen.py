"""The load generator against a real vLLM: each endpoint's answers, a conversation, and cancelled requests, at the
engine and through the gateway.

`VLLM_URL` names a vLLM that runs already; else one is started by ops/vllm.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loadgen.record import GENERATED, Record
from loadgen.store import read_records
from tests.kit.client import get
from tests.kit.running import gateway

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
COMMON = (
    *("--limit-error-ms", "1e9", "--limit-late-ms", "1e9", "--limit-cpu", "1e9", "--limit-censored", "1"),
    *(
        "--quiet",
        "--model",
        "smollm2",
        "--temperature",
        "0",
        "--dataset-name",
        "random",
        "--random-input-len",
        "20",
    ),
)


async def run(tmp_path: Path, *words: str) -> tuple[list[Record], dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadgen", *words, *COMMON, "--result-dir", str(tmp_path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return written(tmp_path)


def written(base: Path) -> tuple[list[Record], dict[str, Any]]:
    """The records of the one run, and what result.json has under `loadgen`."""
    (folder,) = base.iterdir()
    return list(read_records(folder)), json.loads((folder / "result.json").read_bytes())["loadgen"]


@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses", "messages"])
@pytest.mark.parametrize("stream", [True, False])
async def test_each_endpoint_is_read_to_its_usage(
    tmp_path: Path, engine: str, endpoint: str, stream: bool
) -> None:
    words = () if stream else ("--no-stream",)
    records, told = await run(
        *(tmp_path, "run", "--base-url", engine, "--endpoint", endpoint, "--num-prompts", "3"),
        *("--random-output-len", "8", *words),
    )
    assert [record.completion_tokens for record in records] == [8, 8, 8]
    assert all((record.prompt_tokens or 0) >= 20 for record in records)
    counts = {sum(event.kind in GENERATED for event in record.events) for record in records}
    assert counts <= ({7, 8} if stream else {1})
    assert told["summary"]["whole"]["stats"]["ttft"]["n"] == (3 if stream else 0)


@pytest.mark.parametrize("endpoint", ["chat", "responses", "messages"])
async def test_a_later_turn_finds_the_earlier_ones_in_the_engines_cache(
    tmp_path: Path, engine: str, endpoint: str
) -> None:
    records, told = await run(
        *(tmp_path, "run", "--base-url", engine, "--endpoint", endpoint, "--num-prompts", "2", "--turns", "3"),
        *("--random-output-len", "16", "--unique"),
    )
    assert told["summary"]["loads"]["conversations"]["completed"] == 2
    sizes = [record.prompt_tokens or 0 for record in sorted(records, key=lambda record: record.index)]
    assert sizes[0] + 16 <= sizes[1]
    assert sizes[1] + 16 <= sizes[2]


@pytest.mark.parametrize("through", ["engine", "gateway"])
async def test_the_engine_stops_when_a_client_leaves(tmp_path: Path, engine: str, through: str) -> None:
    words = ("--num-prompts", "12", "--max-concurrency", "4", "--random-output-len", "300", "--ignore-eos")
    cancel = ("--cancel", "1.0", "--cancel-after", "5tokens", "--cancel-within", "5")
    if through == "engine":
        records, told = await run(tmp_path, "run", "--base-url", engine, *words, *cancel)
    else:
        async with gateway(engine) as app:
            metrics = [word for url in (engine, app.url) for word in ("--cancel-metrics", f"{url}/metrics")]
            records, told = await run(tmp_path, "run", "--base-url", app.url, *words, *cancel, *metrics)
    assert {record.failure for record in records} == {"left"}
    checks = told["run"]["cancel_checks"]
    assert len(checks) == (1 if through == "engine" else 2)
    for check in checks:
        assert check["settle_s"] is not None
        assert check["excess"] <= 0
    if through == "gateway":
        assert checks[1]["aborted"] == 12


async def test_the_gateway_answers_as_the_engine_does(tmp_path: Path, engine: str) -> None:
    async with gateway(engine) as app:
        _, told = await run(
            *(tmp_path, "ab", "--a", engine, "--b", app.url, "--num-prompts", "6", "--max-concurrency", "1"),
            *("--random-output-len", "12"),
        )
    answers = told["summary"]["loads"]["answers"]
    assert (answers["compared"], answers["identical"]) == (6, 6)


async def test_the_engine_has_the_metrics_that_are_read(engine: str) -> None:
    page = (await get(engine, "/metrics")).body
    assert b"vllm:num_requests_running{" in page
    assert b'finished_reason="abort"' in page
