"""Reads the /metrics of engines and gateways once a second, in a process of its own for each: reading and
decoding 70 KB in the measuring loop would delay it, and a slow or endless response holds nothing but its own
process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from loadgen.errors import UsageError
from loadgen.record import Reading, Scraped
from loadgen.scraper import MOST, TIMEOUT, Began, Order, Source
from loadgen.secrets import without_userinfo

EVERY: Final = 1.0  # seconds between two readings
START_TIMEOUT: Final = 20.0  # seconds for the first one, with the start of its process on a busy machine


@asynccontextmanager
async def scraping(sources: Sequence[Source], folder: Path, every: float = EVERY) -> AsyncIterator[list[Scraped]]:
    """Reads the sources meanwhile; the list is filled at the end, with those that have metrics.

    Raises UsageError if a required one has none.
    """
    scraped: list[Scraped] = []
    started: list[tuple[Source, Process, Path, Began]] = []
    try:
        for number, source in enumerate(sources):
            path = folder / f"metrics-{number}.jsonl"
            process, began = await _start(source, path, every)
            started.append((source, process, path, began))
            if began.error and source.required:
                raise UsageError(
                    f"--engine-metrics {source.url}: {began.error}; give a vLLM's or a gateway's address, or `off`"
                )
        yield scraped
    finally:
        for _, process, _, _ in started:
            await _end(process)
        for source, _, path, began in started:
            if not began.error:
                scraped.append(_gathered(source, began.kind, path))
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


async def _start(source: Source, path: Path, every: float) -> tuple[Process, Began]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadgen", "scrape"),
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(msgspec.json.encode(Order(source=source, path=str(path), every=every)) + b"\n")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT)
        return process, msgspec.json.decode(line, type=Began)
    except (TimeoutError, msgspec.MsgspecError):
        return process, Began(error=f"no complete response within {START_TIMEOUT:g} s")


async def _end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), TIMEOUT + 1)
    except TimeoutError:
        process.kill()
        await process.wait()


def _gathered(source: Source, kind: str, path: Path) -> Scraped:
    readings: list[Reading] = []
    with contextlib.suppress(OSError, msgspec.MsgspecError):  # a line that a full disk cut ends them
        for line in path.read_bytes().splitlines():
            readings.append(msgspec.json.decode(line, type=Reading))
    missed = sum(not reading.figures for reading in readings)
    readings = [reading for reading in readings if reading.figures]
    return Scraped(
        name=source.name,
        url=without_userinfo(source.url),
        kind=kind,
        readings=readings[:: -(-len(readings) // MOST) or 1],
        missed=missed,
    )
