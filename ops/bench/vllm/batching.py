"""Measures batching on a real vLLM: merged duplicates, embeddings in arrays, completions in arrays; with the CPU
time of vLLM's processes."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import aiohttp

from ops.bench import subjects as start
from ops.bench.account import cpu_ns
from ops.bench.table import machine
from ops.bench.vllm.tables import batching_page, batching_picture

ROOT: Final = Path(__file__).resolve().parents[3]
FOLDER: Final = ROOT / "out" / "sample" / "batching"
START_SECONDS: Final = 300.0
WORDS: Final = (ROOT / "LICENSE").read_text().split()
TWINS: Final = (2, 4, 8, 16)
CLIENTS: Final = (1, 2, 4, 8, 16, 32)
CALLS: Final = (1, 2, 4, 8, 32)
WINDOW_MS: Final = "5"  # the batch window, with merging and without it: nothing else differs
CHOICE: Final = re.compile(rb'"index":(\d+)')

Row = dict[str, Any]


def drawing(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - prompts, not secrets


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


async def streamed(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> list[float]:
    """Seconds to the first event with text of each choice; the answer is read to its end."""
    began, first = time.perf_counter(), dict[bytes, float]()
    async with session.post(url, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if (b'"content":"' in line or b'"text":"' in line) and b'"content":""' not in line:
                number = CHOICE.search(line)
                if number is not None and number[1] not in first:
                    first[number[1]] = time.perf_counter() - began
    return list(first.values())


async def embedded(session: aiohttp.ClientSession, url: str, given: str) -> float:
    began = time.perf_counter()
    async with session.post(f"{url}/v1/embeddings", json={"model": "minilm", "input": given}) as answer:
        answer.raise_for_status()
        await answer.read()
    return time.perf_counter() - began


async def bursts(url: str, k: int, count: int, seed: int, words: int) -> list[float]:
    """Bursts of K identical sampled requests, one after the other; the TTFT of each request."""
    draw, found = drawing(seed), list[float]()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for _ in range(count):
            body = {
                "model": "smollm2", "messages": [{"role": "user", "content": text(draw, words)}], "max_tokens": 16,
                "temperature": 1.0, "ignore_eos": True, "stream": True,
            }  # fmt: skip
            one = [streamed(session, f"{url}/v1/chat/completions", body) for _ in range(k)]
            found += chain.from_iterable(await asyncio.gather(*one))
    return found


async def prompts(url: str, k: int, count: int, seed: int, array: bool) -> list[float]:
    """K different prompts at once, as K requests or as one; the TTFT of each prompt."""
    draw, found = drawing(seed), list[float]()
    more = {"model": "smollm2", "max_tokens": 16, "temperature": 0, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for _ in range(count):
            texts = [text(draw, 40) for _ in range(k)]
            bodies = [{**more, "prompt": texts}] if array else [{**more, "prompt": one} for one in texts]
            made = await asyncio.gather(*(streamed(session, f"{url}/v1/completions", body) for body in bodies))
            found += chain.from_iterable(made)
    return found


async def clients(url: str, n: int, count: int, seed: int, duplicates: float) -> list[float]:
    """N clients, each sending one text after the other; the latency of each request."""
    draw = drawing(seed)
    texts = [text(draw, 12) for _ in range(count)]
    for at in range(1, count):
        if draw.random() < duplicates:
            texts[at] = texts[draw.randrange(at)]
    waiting, found = iter(texts), list[float]()

    async def client(session: aiohttp.ClientSession) -> None:
        for given in waiting:
            found.append(await embedded(session, url, given))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(n)))
    return found


def measured(pid: int, answers: int, work: Callable[[], Coroutine[Any, Any, list[float]]]) -> Row:
    """Run one part; its latencies, and the CPU time of the engine's processes."""
    before, api, began = cpu_ns(pid), own_cpu(pid), time.perf_counter()
    values = asyncio.run(work())
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "per_second": answers / seconds,
        "p50_ms": statistics.median(values) * 1000,
        "p99_ms": sorted(values)[min(len(values) - 1, int(len(values) * 0.99))] * 1000,
        "cpu_ms": (cpu_ns(pid) - before) / 1e6 / answers,
        "api_cpu_ms": (own_cpu(pid) - api) / 1e6 / answers,
        "values_ms": [round(value * 1000, 2) for value in values],
    }


def own_cpu(pid: int) -> int:
    """CPU time of vLLM's API server alone: the process started here, without the engine process it started."""
    return sum(int(path.read_text("ascii").split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


@contextmanager
def engine(kind: str, log: Path) -> Iterator[tuple[str, int]]:
    """vLLM on this CPU: its URL and its process id."""
    port = start.free_port()
    # float32: without bfloat16 instructions in the CPU, bfloat16 takes minutes per request.
    argv = [sys.executable, str(ROOT / "ops" / "vllm.py"), "serve", "--port", str(port), "--dtype", "float32"]
    command = start.Command([*argv, *(["--embed"] if kind == "embed" else [])])
    ready = lambda: start.answers(port, "/health", {})  # noqa: E731
    with start.started(command, port, {0, 1}, ready=ready, log=log, patience=START_SECONDS) as running:
        yield f"http://127.0.0.1:{port}", running.pid


@contextmanager
def gateway(url: str, log: Path, *flags: str) -> Iterator[str]:
    port = start.free_port()
    command = start.Command(
        [sys.executable, "-m", "proxy", "--port", str(port), "--backend", url, *flags], cwd=ROOT
    )
    ready = lambda: start.answers(port, "/ready", {})  # noqa: E731
    with start.started(command, port, {0, 1}, ready=ready, log=log):
        yield f"http://127.0.0.1:{port}"


def twins(url: str, pid: int, log: Path, rounds: int) -> list[Row]:
    rows = []
    window = ("--batch-window-ms", WINDOW_MS, "--redis", "off")
    with (
        gateway(url, log, "--merge-max", "16", *window) as on,
        gateway(url, log, "--merge-max", "1", *window) as off,
    ):
        for through in (on, off):
            asyncio.run(bursts(through, 2, 1, 0, 20))
        for n in range(rounds):
            for k in TWINS:
                order = [("merged", on), ("separate", off)]
                for name, through in order[:: 1 if n % 2 else -1]:
                    count = max(1, 8 // k)
                    seed = 1000 * n + 10 * k + len(name)
                    row = measured(pid, k * count, partial(bursts, through, k, count, seed, 150))
                    rows.append({"k": k, "how": name, "round": n, **row})
                    said(rows[-1])
    return rows


def completions(url: str, pid: int, log: Path, rounds: int) -> list[Row]:
    rows = []
    asyncio.run(prompts(url, 2, 1, 0, False))
    for n in range(rounds):
        for k in TWINS:
            for array in (bool(n % 2), not n % 2):
                count, seed = max(1, 8 // k), 1000 * n + 10 * k + array
                row = measured(pid, k * count, partial(prompts, url, k, count, seed, array))
                rows.append({"k": k, "how": "array" if array else "separate", "round": n, **row})
                said(rows[-1])
    return rows


def embeddings(url: str, pid: int, log: Path, rounds: int) -> list[Row]:
    rows = []
    with gateway(url, log) as on, gateway(url, log, "--embed-batch-items", "1") as off:
        targets = {"direct": url, "gateway, off": off, "gateway, on": on}
        for through in targets.values():
            asyncio.run(clients(through, 8, 40, 7, 0.0))
        for n in range(rounds):
            for duplicates in (0.0, 0.5):
                for k in CLIENTS if not duplicates else (8, 32):
                    for m, (name, through) in enumerate([*targets.items()][:: 1 if n % 2 else -1]):
                        count, seed = (
                            (60, 120, 200)[(k > 1) + (k > 4)],
                            10_000 * n + 100 * k + 10 * m + round(10 * duplicates),
                        )
                        row = measured(pid, count, partial(clients, through, k, count, seed, duplicates))
                        rows.append({"k": k, "how": name, "duplicates": duplicates, "round": n, **row})
                        said(rows[-1])
    return rows


def calls(url: str, pid: int, log: Path, rounds: int) -> list[Row]:
    """The effect of the number of arrays in flight."""
    rows = []
    for n in range(rounds):
        for at_once in CALLS:
            with gateway(url, log, "--embed-batch-calls", str(at_once)) as through:
                asyncio.run(clients(through, 8, 40, 7 + n, 0.0))
                for k in (4, 16, 32):
                    seed = 10_000 * n + 100 * k + at_once
                    row = measured(pid, 200, partial(clients, through, k, 200, seed, 0.0))
                    rows.append({"k": k, "how": f"{at_once}", "round": n, **row})
                    said(rows[-1])
    return rows


PARTS: Final[Mapping[str, tuple[str, Callable[[str, int, Path, int], list[Row]]]]] = {
    "twins": ("chat", twins),
    "completions": ("chat", completions),
    "embeddings": ("embed", embeddings),
    "calls": ("embed", calls),
}


def said(row: Row) -> None:
    shown = {name: round(value, 1) if isinstance(value, float) else value for name, value in row.items()}
    shown.pop("values_ms")
    print(json.dumps(shown), file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.vllm.batching", description=__doc__)
    parser.add_argument(
        "part", choices=[*PARTS, "table"], help="what to measure; table: only write the page again"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--note", default="", help="a note for the table, such as other load on the machine")
    args = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.part != "table":
        kind, part = PARTS[args.part]
        with tempfile.TemporaryDirectory() as temporary:
            log = Path(temporary) / "log"
            with engine(kind, log) as (url, pid):
                rows = part(url, pid, log, args.rounds)
        made = {"part": args.part, "machine": machine(), "note": args.note, "rounds": args.rounds, "rows": rows}
        (FOLDER / f"{args.part}.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    page = batching_page(found)
    (FOLDER / "batching.md").write_text(page)
    drawn = batching_picture(found)
    if drawn is not None:
        (FOLDER / "batching.svg").write_bytes(drawn)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
