"""What people complain of in load generators, end to end; and the README's table of complaints, held to its tests.

Most complaints are held by the tests of the part that would be at fault: the table names them.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from corpus.__main__ import main as compose
from loadgen.analysis.summary import summarise
from loadgen.drive.capture.client import Client
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.decode import decode_exchange
from loadgen.drive.requests import ScheduledRequest
from loadgen.record import Run
from loadgen.report.view import view
from loadgen.workload.model import Prompt
from tests.loadgen.analysis.test_definitions import ev, record
from tests.loadgen.cli.test_cli import LENIENT, Start, start
from tests.loadgen.kit.running import on_our_loop
from tests.loadgen.kit.sampling import Load, records, run_of
from tests.loadgen.kit.servers import GOOD, QUICK, builder_for, read_request, serving

HERE = Path(__file__).parent
README = HERE.parent.parent / "loadgen/README.md"

__all__ = ["start"]  # the fixture


def complaints() -> list[tuple[str, str]]:
    """(file, test) for each test that the README's table names."""
    found = re.findall(r"`(test_\w+)\.py::(test_\w+)`", README.read_text())
    assert len(found) > 20
    return found


@pytest.mark.parametrize(("file", "test"), complaints())
def test_every_complaint_in_the_readme_has_the_test_it_names(file: str, test: str) -> None:
    (path,) = [path for folder in (HERE, HERE.parent / "corpus") for path in folder.rglob(f"{file}.py")]
    assert re.search(rf"^(?:async )?def {test}\(", path.read_text(), re.MULTILINE)


@on_our_loop
async def test_a_prompt_of_a_megabyte_costs_only_its_own_sending() -> None:
    """Sent is when its last byte left; what comes back is stamped as after a short one."""
    bodies: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            bodies.append(len(await read_request(reader)))
            writer.write(GOOD)
            await writer.drain()

    long = Prompt("long", "chat", {"messages": [{"role": "user", "content": "word " * 200_000}]})
    async with serving(handle) as url:
        client = Client(QUICK, kernel=True)
        exchange = await client.send(builder_for(url).build(ScheduledRequest(0, long)))
        await client.close()
    seen = decode_exchange(exchange, Clock())
    assert bodies[0] > 1_000_000
    assert seen.failure is None, seen.detail
    assert seen.sent_ns is not None
    assert seen.head_ns is not None
    assert (seen.write_ns or 0) < seen.sent_ns <= seen.head_ns
    assert [event.at_ns >= seen.sent_ns for event in seen.events] == [True] * 3


async def test_warm_ups_keep_to_the_cap_and_have_ended_before_the_run_begins(start: Start) -> None:
    under_way = 0
    seen: list[int] = []  # for each request, how many were under way with it
    three = asyncio.Barrier(3)  # warm-ups are answered by threes: fewer places than that would get no answer

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way
        while True:
            await read_request(reader)
            under_way += 1
            seen.append(under_way)
            if len(seen) <= 9:
                await three.wait()
            under_way -= 1
            writer.write(GOOD)
            await writer.drain()

    async with serving(handle) as url:
        process = await start(
            *("run", "--base-url", url, "--num-prompts", "10", "--num-warmups", "9", "--max-concurrency", "3"),
            *("--request-timeout", "30", "--engine-metrics", "off", *LENIENT),
        )
        code, said = await process.wait()
    assert code == 0, said
    assert len(seen) == 19
    assert max(seen) <= 3
    assert seen[9] == 1, "the run begins when the last warm-up has ended"


async def test_a_trace_is_replayed_without_the_cap_of_a_closed_loop(start: Start, tmp_path: Path) -> None:
    """Twenty are due at once; each is answered when all are there."""
    trace = tmp_path / "w.jsonl"
    assert compose(["compose", "--num-prompts", "20", "--input-len", "20", "--out", str(trace)]) == 0
    there, all_there = 0, asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal there
        await read_request(reader)
        there += 1
        if there == 20:
            all_there.set()
        await all_there.wait()
        writer.write(GOOD)
        await writer.drain()

    async with serving(handle) as url:
        process = await start(
            *("run", "--base-url", url, "--dataset-name", "trace", "--dataset-path", str(trace)),
            *("--trace-speed", "1000", "--request-timeout", "30", *LENIENT),
        )
        code, said = await process.wait()
    assert code == 0, said
    assert "waited" not in said


def test_one_stall_is_seen_in_the_gaps_though_no_mean_moves() -> None:
    smooth = [record(*(ev(100 + 10 * place) for place in range(100)), index=number) for number in range(20)]
    stalled = record(*(ev(100 + 10 * place + (2000 if place > 50 else 0)) for place in range(100)), index=20)
    whole = summarise(run_of(), [*smooth, stalled]).whole
    assert whole.stats["itl"].max == 2010
    middle = whole.stats["itl"].at(50)
    assert middle is not None
    assert middle.value == 10


def test_a_warm_prefix_cache_is_warned_of() -> None:
    run: Run = run_of()
    seen = list(records(Load(requests=40, fault=0)))
    for found in seen:
        found.cached_tokens = found.prompt_tokens
    assert any("TTFT is that of a warm cache" in text for text in view(run, summarise(run, seen)).warnings)
    for found in seen:
        found.cached_tokens = 0
    assert not any("warm" in text for text in view(run, summarise(run, seen)).warnings)
