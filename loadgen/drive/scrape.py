"""Reads the /metrics of engines and gateways once a second, in a process of its own for each: reading and
decoding 70 KB in the measuring loop would delay it, and a slow or endless response holds nothing but its own
process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import select
import signal
import ssl
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from loadgen.errors import UsageError
from loadgen.record import Reading, Scraped

EVERY: Final = 1.0  # seconds between two readings
TIMEOUT: Final = 2.0  # seconds for one reading
START_TIMEOUT: Final = 6.0  # seconds for the first one, with the start of its process
MAX_BYTES: Final = 8 * 1024 * 1024  # of one response
MOST: Final = 600
"""Readings that are kept. With twice as many every second one is dropped, and half as many are taken."""

_NUMBER: Final = rb" ([0-9.eE+-]+|NaN)"
_LABELS: Final = rb"(?:\{[^\n]*\})?"
FIGURES: Final[Mapping[str, tuple[str, Callable[[Sequence[float]], float]]]] = {
    "running": (r"(?:vllm:num_requests_running|gateway_flights)", sum),
    "waiting": (r"(?:vllm:num_requests_waiting|gateway_queue_depth)", sum),
    "kv_use": (r"(?:vllm:(?:gpu|kv)_cache_usage_perc|gateway_backend_kv_cache_usage)", max),
    "preemptions": (r"vllm:num_preemptions_total", sum),
    "prefix_queries": (r"vllm:prefix_cache_queries_total", sum),
    "prefix_hits": (r"vllm:prefix_cache_hits_total", sum),
    "generated": (r"(?:vllm:generation_tokens_total|gateway_generated_tokens_total)", sum),
    "subscribers": (r"gateway_subscribers", sum),
    "backend_running": (r"gateway_backend_requests_running", sum),
    "backend_waiting": (r"gateway_backend_requests_waiting", sum),
    "coalesced": (r"gateway_coalesced_total", sum),
    "answers_hit": (r"gateway_cache_operations_total\{[^\n]*op=\"hit\"[^\n]*\}", sum),
    "answers_miss": (r"gateway_cache_operations_total\{[^\n]*op=\"miss\"[^\n]*\}", sum),
}
"""Our name -> the metric's, of vLLM and of the gateway, and how the values of several engines are joined."""
_PATTERNS: Final = {
    name: re.compile(rb"^" + pattern.encode() + (b"" if "{" in pattern else _LABELS) + _NUMBER, re.MULTILINE)
    for name, (pattern, _) in FIGURES.items()
}


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What to read. `required`: whether a person asked for it, so that it must answer."""

    name: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    insecure: bool = False
    required: bool = False


class _Order(msgspec.Struct, kw_only=True):
    """A process's order: what to read, and the file that the readings go to."""

    source: Source
    path: str
    every: float


class _Began(msgspec.Struct, kw_only=True):
    """The process's one line: whether the first reading has figures, or why not."""

    kind: str = ""
    error: str = ""


def figures_of(text: bytes) -> dict[str, float]:
    """The figures of a page in Prometheus' text format, by our names; empty if it has none of them."""
    figures = {}
    for name, (_, join) in FIGURES.items():
        values = [value for found in _PATTERNS[name].findall(text) if (value := float(found)) == value]
        if values:
            figures[name] = float(join(values))
    return figures


def kind_of_page(text: bytes) -> str:
    """ "vllm", "gateway", or "" for a page of something else."""
    if b"\nvllm:" in text or text.startswith(b"vllm:"):
        return "vllm"
    return "gateway" if b"gateway_flights" in text else ""


# In the process


def scrape_main() -> int:
    """Read until stdin ends. Its first reading is told on stdout, all of them go to the file."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Order)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent ends it by closing stdin, after the run
    signal.signal(signal.SIGALRM, _too_late)
    try:
        text = _page(order.source)
        began = _Began(kind=kind_of_page(text)) if figures_of(text) else _Began(error="it has no known metrics")
    except (OSError, http.client.HTTPException, ValueError) as error:
        text, began = b"", _Began(error=str(error) or type(error).__name__)
    sys.stdout.buffer.write(msgspec.json.encode(began) + b"\n")
    sys.stdout.buffer.flush()
    if not began.error:
        with contextlib.suppress(OSError), Path(order.path).open("wb", buffering=0) as file:
            _read_on(order, figures_of(text), file.write)
    return 0


def _read_on(order: _Order, figures: dict[str, float], write: Callable[[bytes], object]) -> None:
    """Readings at absolute times, until stdin ends or the disk is full. A late one does not delay the others."""
    every, count, due = order.every, 0, time.monotonic()
    while True:
        write(msgspec.json.encode(Reading(time.time(), figures)) + b"\n")
        count += 1
        if count % (2 * MOST) == 0:
            every *= 2
        now = time.monotonic()
        due += max(every, every * -(-(now - due) // every))
        if select.select([sys.stdin], [], [], max(due - now, 0.0))[0]:
            return
        try:
            figures = figures_of(_page(order.source))
        except (OSError, http.client.HTTPException, ValueError):
            figures = {}


def _too_late(*_: object) -> NoReturn:
    raise TimeoutError(f"no complete response within {TIMEOUT:g} s")


def _page(source: Source) -> bytes:
    """The page, within TIMEOUT as a whole, however slowly it drips. Raises OSError, HTTPException or
    ValueError."""
    parts = urlsplit(source.url)
    host, path = parts.hostname or "", parts.path or "/metrics"
    connection: http.client.HTTPConnection
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    try:
        if parts.scheme == "https":
            context = ssl._create_unverified_context() if source.insecure else ssl.create_default_context()  # noqa: S323, SLF001
            connection = http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT, context=context)
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=dict(source.headers))
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            text = response.read(MAX_BYTES + 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if len(text) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return text


# In the measuring process


@asynccontextmanager
async def scraping(sources: Sequence[Source], folder: Path, every: float = EVERY) -> AsyncIterator[list[Scraped]]:
    """Reads the sources meanwhile; the list is filled at the end, with those that have metrics.

    Raises UsageError if a required one has none.
    """
    scraped: list[Scraped] = []
    started: list[tuple[Source, Process, Path, _Began]] = []
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


async def _start(source: Source, path: Path, every: float) -> tuple[Process, _Began]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadgen", "scrape"),
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(msgspec.json.encode(_Order(source=source, path=str(path), every=every)) + b"\n")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT)
        return process, msgspec.json.decode(line, type=_Began)
    except (TimeoutError, msgspec.MsgspecError):
        return process, _Began(error=f"no complete response within {START_TIMEOUT:g} s")


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
        url=source.url,
        kind=kind,
        readings=readings[:: -(-len(readings) // MOST) or 1],
        missed=missed,
    )
