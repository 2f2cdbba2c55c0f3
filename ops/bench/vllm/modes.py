"""Measures what sharing costs a client: a stream and bodies of one request at the same time, with the gateway and
direct. `python -m ops.bench.vllm.modes [--engine URL] [--bodies 5]` prints for each kind of request the engine's
generations, the seconds until the slowest body was complete, and the generations of a stream, then bodies one by
one. Neither generations nor seconds may be more than direct; it exits 1 where generations are."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from ops.bench.vllm.ways import Gateway, arguments, ways

HEAD_START: Final = 0.4  # seconds between the stream and the bodies that meet it
PATIENCE: Final = 600.0  # seconds for one answer
WAIT: Final = 120.0  # seconds for the gateway to know the engine's answers
_DONE: Final = re.compile(r"^vllm:request_success_total\{.*?\} ([\d.e+]+)$", re.MULTILINE)

Request = Mapping[str, Any]
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_FORCED: Final = {"type": "function", "function": {"name": "weather"}}
_SCHEMA: Final = {"name": "city", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
KINDS: Final[dict[str, tuple[str, Request]]] = {
    "chat": ("chat", {}),
    "chat, sampled with a seed": ("chat", {"temperature": 0.8, "seed": 7}),
    "chat, stop": ("chat", {"stop": [" the"]}),
    "chat, logprobs": ("chat", {"logprobs": True, "top_logprobs": 2}),
    "chat, JSON schema": ("chat", {"response_format": {"type": "json_schema", "json_schema": _SCHEMA}}),
    "chat, token ids": ("chat", {"return_token_ids": True}),
    "chat, n = 2": ("chat", {"n": 2, "temperature": 0.8, "seed": 7}),
    "chat, a forced tool": ("chat", {"tools": [_TOOL], "tool_choice": _FORCED}),
    "chat, tools it may call": ("chat", {"tools": [_TOOL]}),
    "completion": ("completions", {}),
    "completion, logprobs": ("completions", {"logprobs": 2}),
    "completion, echo": ("completions", {"echo": True}),
    "completion, two prompts": ("completions", {"prompts": 2}),
}


def request(kind: str, number: int, model: str, tokens: int) -> tuple[str, dict[str, Any]]:
    """Path and body; `number` makes the prompt another one than every other's."""
    endpoint, fields = KINDS[kind]
    prompt = f"Request {number} ({kind}). Tell a long story about a lighthouse."
    body = {"model": model, "max_tokens": tokens, "temperature": 0} | dict(fields)
    if endpoint == "chat":
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}
    several = int(str(body.pop("prompts", 1)))
    return "/v1/completions", body | {
        "prompt": prompt if several == 1 else [f"{prompt} {n}" for n in range(several)]
    }


async def answer(client: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> float:
    """Seconds until the answer is whole. Raises RuntimeError for any other answer than 200."""
    began = time.monotonic()
    async with client.post(url, json=body) as response:
        text = await response.read()
        if response.status != 200 or not text:
            raise RuntimeError(f"{url}: {response.status} {text[:300]!r}")
    return time.monotonic() - began


async def generations(client: aiohttp.ClientSession, engine: str) -> float:
    async with client.get(f"{engine}/metrics") as response:
        return sum(map(float, _DONE.findall(await response.text())))


async def together(
    client: aiohttp.ClientSession, engine: str, url: str, path: str, body: dict[str, Any], bodies: int
) -> tuple[float, float]:
    """A stream, and bodies a moment later: the engine's generations, and the seconds of the slowest body."""
    before = await generations(client, engine)
    stream = asyncio.ensure_future(answer(client, url + path, body | {"stream": True}))
    await asyncio.sleep(HEAD_START)
    seconds = await asyncio.gather(*(answer(client, url + path, body) for _ in range(bodies)))
    await stream
    return await generations(client, engine) - before, max(seconds)


async def after(
    client: aiohttp.ClientSession, engine: str, url: str, path: str, body: dict[str, Any], bodies: int
) -> float:
    """A stream, and once it has ended bodies one after the other: the engine's generations."""
    before = await generations(client, engine)
    await answer(client, url + path, body | {"stream": True})
    for _ in range(bodies):
        await answer(client, url + path, body)
    return await generations(client, engine) - before


async def known(client: aiohttp.ClientSession, gateway: str) -> None:
    """Until the gateway knows how the engine's answers are made up."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        async with client.get(f"{gateway}/metrics") as response:
            if "gateway_backend_folds{" in await response.text():
                return
        await asyncio.sleep(1.0)


async def measure(args: argparse.Namespace, urls: Mapping[str, str]) -> list[tuple[str, list[float]]]:
    """For each kind: generations and seconds direct and through the gateway, then of one after the other."""
    engine, gateway = urls["direct"], urls["gateway"]
    rows: list[tuple[str, list[float]]] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as client:
        async with client.get(f"{engine}/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        await known(client, gateway)
        number = args.seed * 1000
        for kind in args.only or KINDS:
            cells: list[float] = []
            one = 0.0
            for way in (engine, gateway):
                number += 1
                path, body = request(kind, number, model, args.tokens)
                made, seconds = await together(client, engine, way, path, body, args.bodies)
                one = one or made / (1 + args.bodies)  # what one request counts for: `n` and lists count several
                cells += [made / one, seconds]
            number += 1
            path, body = request(kind, number, model, args.tokens)
            cells.append(await after(client, engine, gateway, path, body, args.bodies) / one)
            rows.append((kind, cells))
            print(
                json.dumps({"kind": kind, "cells": [round(cell, 2) for cell in cells]}),
                file=sys.stderr,
                flush=True,
            )
    return rows


def table(rows: Sequence[tuple[str, Sequence[float]]], bodies: int) -> str:
    lines = [
        f"| a stream and {bodies} bodies | generations direct | gateway | slowest body direct | gateway "
        f"| generations of a stream, then {bodies} bodies |",
        "|---|---|---|---|---|---|",
    ]
    for kind, (direct, direct_s, made, seconds, stored) in rows:
        lines.append(f"| {kind} | {direct:.0f} | {made:.0f} | {direct_s:.1f} s | {seconds:.1f} s | {stored:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.vllm.modes", description=__doc__)
    arguments(parser)
    parser.add_argument("--bodies", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="of one answer")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts: another one is found in no store")
    parser.add_argument("--only", action="append", choices=KINDS, help="this kind of request (again for others)")
    args = parser.parse_args()
    gateways = {"gateway": Gateway(flags=("--redis", "auto"))}
    with tempfile.TemporaryDirectory() as folder, ways(args, Path(folder), gateways) as (_, urls):
        rows = asyncio.run(measure(args, urls))
    print(table(rows, args.bodies))
    worse = [kind for kind, (direct, _, made, _, _) in rows if made > direct]
    if worse:
        print(f"more generations than direct: {', '.join(worse)}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    raise SystemExit(main())
