"""`python -m loadgen scrape`: reads one /metrics page again and again. It starts with each run, so it imports
little: a third of the CPU that importing what sends requests takes."""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import signal
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from loadgen.record import Reading

TIMEOUT: Final = 2.0  # seconds for one reading
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


class Order(msgspec.Struct, kw_only=True):
    """The order: what to read, and the file that the readings go to."""

    source: Source
    path: str
    every: float


class Began(msgspec.Struct, kw_only=True):
    """Its one line: whether the first reading has figures, or why not."""

    kind: str = ""
    error: str = ""


def figures_of(text: bytes) -> dict[str, float]:
    """The figures of a page in Prometheus' text format, by our names; empty if it has none of them. One that is
    not finite is none: JSON has no word for it, and the readings after it would be lost."""
    figures = {}
    for name, (_, join) in FIGURES.items():
        values = [value for found in _PATTERNS[name].findall(text) if (value := float(found)) == value]
        if values and isfinite(joined := float(join(values))):
            figures[name] = joined
    return figures


def kind_of_page(text: bytes) -> str:
    """ "vllm", "gateway", or "" for a page of something else."""
    if b"\nvllm:" in text or text.startswith(b"vllm:"):
        return "vllm"
    return "gateway" if b"gateway_flights" in text else ""


def scrape_main() -> int:
    """Read until stdin ends. Its first reading is told on stdout, all of them go to the file."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent ends it by closing stdin, after the run
    signal.signal(signal.SIGALRM, _too_late)
    try:
        text = _page(order.source)
        began = Began(kind=kind_of_page(text)) if figures_of(text) else Began(error="it has no known metrics")
    except (OSError, http.client.HTTPException, ValueError) as error:
        text, began = b"", Began(error=str(error) or type(error).__name__)
    sys.stdout.buffer.write(msgspec.json.encode(began) + b"\n")
    sys.stdout.buffer.flush()
    if not began.error:
        with contextlib.suppress(OSError), Path(order.path).open("wb", buffering=0) as file:
            _read_on(order, figures_of(text), file.write)
    return 0


def _read_on(order: Order, figures: dict[str, float], write: Callable[[bytes], object]) -> None:
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
