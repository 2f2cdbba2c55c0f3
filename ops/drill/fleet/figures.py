"""What a fleet without faults does and costs: `python -m ops.drill.fleet.figures [PART...]`. The parts:
`followers` (1,000 readers of one flight at 4 gateways), `gateways` (200 at 2), `workers` (200 at 4 workers of one)
and `unique` (prompts that nobody shares, with and without the fleet, in turns). All on loopback; each prints one
line of JSON. About 4 minutes."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from ops.drill.fleet.readers import ask
from ops.drill.fleet.stage import START_SECONDS, Member, Stage, stage, until
from ops.drill.fleet.texts import prompt_of
from ops.drill.fleet.verdict import Answer, judge
from proxy.config import Settings

TOKENS: Final = 40
ROUNDS: Final = 20
FLIGHTS: Final = 60  # of a round
AT_ONCE: Final = 6
TICK: Final = os.sysconf("SC_CLK_TCK")


def share(values: Sequence[float], part: float) -> float:
    """The value that this part of all values does not exceed, in milliseconds; NaN without any."""
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))], 1) if ordered else float("nan")


def latencies(answers: Sequence[Answer]) -> dict[str, float]:
    """Times to the first event, and between two, in milliseconds."""
    first = [answer.times[0] - answer.began for answer in answers]
    gaps = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:], strict=False)]
    return {
        "readers": len(answers),
        "ttft_p50": share(first, 0.5),
        "ttft_p99": share(first, 0.99),
        "gap_p50": share(gaps, 0.5),
        "gap_p99": share(gaps, 0.99),
    }


def behind(answers: Sequence[Answer], leaders: Sequence[Answer]) -> dict[str, float]:
    """How much later an event is at these readers than at the leader's, on average of those, in milliseconds."""
    at = [statistics.fmean(times) for times in zip(*(answer.times for answer in leaders), strict=False)]
    later = [b - a for answer in answers for a, b in zip(at, answer.times, strict=False)]
    return {"behind_p50": share(later, 0.5), "behind_p99": share(later, 0.99)}


async def _read(session: aiohttp.ClientSession, node: Member, prompt: str) -> Answer:
    return await ask(session, node, Answer(prompt, node.name), timed=True)


async def _twins(on: Stage, readers: int, *, begun: bool) -> dict[str, Any]:
    """So many twins over all gateways. `begun`: all but one come once the stream is under way."""
    prompt = prompt_of(f"t{readers}", TOKENS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        tasks = []
        if begun:
            tasks.append(asyncio.create_task(_read(session, on.nodes[0], prompt)))
            await until(lambda: _begun(on), START_SECONDS, "the first stream has begun")
        for n in range(len(tasks), readers):
            tasks.append(asyncio.create_task(_read(session, on.nodes[n % len(on.nodes)], prompt)))
        answers = await asyncio.gather(*tasks)
    verdicts = Counter(judge(answer, own_gateway_ended=False).kind for answer in answers)
    leader = on.leader_of(answers[0].fingerprints[0])[1] if answers[0].fingerprints else ""
    at_leader = [answer for answer in answers if answer.node == leader and answer.times]
    followers = [answer for answer in answers if answer.node != leader and answer.times]
    found: dict[str, Any] = {"answers": verdicts, "generations": _generations(on)[prompt]}
    found["leader"] = latencies(at_leader)
    if followers:
        found["followers"] = latencies(followers) | behind(followers, at_leader)
    return found


async def _begun(on: Stage) -> bool:
    return sum(_generations(on).values()) > 0


def _generations(on: Stage) -> Counter[str]:
    return Counter(note.prompt for ledger in on.ledgers for note in ledger.notes() if note.what == "begin")


async def followers(folder: Path) -> dict[str, Any]:
    async with stage(folder, (), nodes=4, engines=1, pace=0.25) as on:
        return await _twins(on, 1000, begun=True)


async def gateways(folder: Path) -> dict[str, Any]:
    async with stage(folder, (), nodes=2, engines=1, pace=0.1) as on:
        return await _twins(on, 200, begun=False)


async def workers(folder: Path) -> dict[str, Any]:
    async with stage(folder, (), nodes=1, engines=1, pace=0.1, flags=("--workers", "4")) as on:

        async def all_live() -> bool:
            node = on.nodes[0]  # each worker has its part of the queue
            complete = await node.figure("gateway_queue_limit") == Settings().queue_limit
            return complete and await node.figure("gateway_fleet_live") == 1

        await until(all_live, START_SECONDS, "all workers share generations")
        return await _twins(on, 200, begun=False)


async def unique(folder: Path) -> dict[str, Any]:
    """Two gateways of one Redis in turns; the second one has the fleet off."""
    async with stage(folder, (), nodes=2, engines=1, pace=0.0, alone=1) as on:
        seconds: dict[str, list[float]] = {"on": [], "off": []}
        commands: dict[str, Counter[str]] = {"on": Counter(), "off": Counter()}
        timeout = aiohttp.ClientTimeout(total=START_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for number in range(ROUNDS + 1):
                for name, node in zip(seconds, on.nodes, strict=True):
                    before, had = _cpu(node.pid), await _commands(on)
                    await _flights(session, node, f"u{name}{number}")
                    if number:  # the first round warms up
                        seconds[name].append(_cpu(node.pid) - before)
                        commands[name].update(await _commands(on) - had)
        ratios = [a / b for a, b in zip(seconds["on"], seconds["off"], strict=True)]
        flights = ROUNDS * FLIGHTS
        return {
            "flights": flights,
            "tokens": TOKENS,
            "cpu_ms_a_flight": {name: round(1000 * sum(cpu) / flights, 3) for name, cpu in seconds.items()},
            "cpu_on_by_off": {
                "median": round(statistics.median(ratios), 4),
                "mean": round(sum(seconds["on"]) / sum(seconds["off"]), 4),
            },
            "redis_commands_a_flight": {
                name: {what: round(n / flights, 2) for what, n in sorted(counts.items())}
                for name, counts in commands.items()
            },
        }


async def _flights(session: aiohttp.ClientSession, node: Member, name: str) -> None:
    async def some(numbers: Iterable[int]) -> None:
        for number in numbers:
            answer = await ask(session, node, Answer(prompt_of(f"{name}x{number}", TOKENS), node.name))
            if (verdict := judge(answer, own_gateway_ended=False)).kind != "exact":
                raise RuntimeError(f"{answer.prompt}: {verdict}")

    await asyncio.gather(*(some(range(first, FLIGHTS, AT_ONCE)) for first in range(AT_ONCE)))


def _cpu(pid: int) -> float:
    """Seconds of CPU of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


async def _commands(on: Stage) -> Counter[str]:
    """Commands that the masters have run, by name; those inside scripts too."""
    counts: Counter[str] = Counter()
    for server in await on.masters():
        for line in (await server.call("INFO", "commandstats")).decode().splitlines():
            name, _, facts = line.removeprefix("cmdstat_").partition(":calls=")
            if name in ("evalsha", "eval", "mget", "set", "del", "publish", "zadd", "append"):
                counts[name] += int(facts.partition(",")[0])
    return counts


PARTS: Final[dict[str, Callable[[Path], Coroutine[None, None, dict[str, Any]]]]] = {
    "followers": followers,
    "gateways": gateways,
    "workers": workers,
    "unique": unique,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.drill.fleet.figures", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: all")
    names = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            found = asyncio.run(PARTS[name](Path(folder)))
        load = os.getloadavg()[0]
        print(json.dumps({"part": name, **found, "load": round(load, 1), "cpus": os.cpu_count()}), flush=True)


if __name__ == "__main__":
    main()
