"""Runs each attack against a fresh gateway, engine and Redis, and reports the gateway's memory, and how other
clients are served, during the attack and after it. Linux only."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from ops.bench.account import rss_mb
from ops.bench.hostile.attacks import ATTACKS, Attack, Attackers
from ops.bench.table import machine
from ops.chaos.load import Load
from ops.chaos.stage import Stage, known, stage
from ops.chaos.wire import Ask

BUDGET_FLAG: Final = "--memory-budget"
AFTER: Final = 6.0  # seconds after the attackers have disconnected
LONGEST: Final = 60.0  # seconds to wait for /health
BYSTANDER_TAGS: Final = 1 << 40  # the first tag of their prompts
BYSTANDER_SECONDS: Final = 10.0  # that another client waits
HEAD: Final = (
    "| attack | RSS before, MB | peak | after | growth ÷ budget | longest /health, s | /health 200 "
    "| other clients served | attackers still connected | responses to attackers |\n" + "|---" * 10 + "|"
)


@dataclass
class Row:
    """The effect of one attack."""

    attack: str
    before_mb: float = 0.0
    peak_mb: float = 0.0
    after_mb: float = 0.0
    budget_mb: float = 0.0
    health: float = 0.0
    health_ended: bool = True  # the last /health was answered
    health_ok: tuple[int, int] = (0, 0)  # how many of how many were 200
    served: int = 0
    asked: int = 0
    connected: int = 0
    attackers: int = 0
    responses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""

    def line(self) -> str:
        growth = f"{(self.peak_mb - self.before_mb) / self.budget_mb:.2f}" if self.budget_mb else "–"
        responses = ", ".join(f"{count} × {what}" for what, count in sorted(self.responses.items())) or "none"
        cells = [
            self.attack,
            f"{self.before_mb:.0f}",
            f"{self.peak_mb:.0f}",
            f"{self.after_mb:.0f}",
            growth,
            ("" if self.health_ended else "over ") + f"{self.health:.2f}",
            f"{self.health_ok[0]} of {self.health_ok[1]}",
            f"{self.served} of {self.asked}",
            f"{self.connected} of {self.attackers}",
            responses + (f"; {self.note}" if self.note else ""),
        ]
        return "| " + " | ".join(cells) + " |"


class Bystander:
    """Three threads during an attack: one polls /health, one sends chats as another client, one samples memory."""

    def __init__(self, on: Stage) -> None:
        self.health: list[float] = []
        self.health_statuses: list[int] = []
        self.statuses: list[int] = []  # of chats; 0: no answer in time
        self.peak = 0.0
        self._asked_at = 0.0  # when the pending /health was sent; 0: none is pending
        self._on = on
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(what, pause), daemon=True)
            for what, pause in ((self._health, 0.03), (self._chat, 0.2), (self._memory, 0.05))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> tuple[float, bool]:
        """Stop; the longest /health in seconds, and whether it was answered."""
        self._over.set()
        for thread in self._threads:
            thread.join(1.0)
        hanging = time.monotonic() - self._asked_at if self._asked_at else 0.0
        longest = max([0.0, *self.health])
        return (longest, True) if longest >= hanging else (hanging, False)

    def _repeat(self, what: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause):
            what()

    def _ask(self, method: str, path: str, body: bytes | None, patience: float) -> int:
        connection = http.client.HTTPConnection(self._on.host, self._on.port, timeout=patience)
        try:
            connection.request(method, path, body, {"content-type": "application/json", "connection": "close"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def _health(self) -> None:
        self._asked_at = time.monotonic()
        self.health_statuses.append(self._ask("GET", "/health", None, LONGEST))
        self.health.append(time.monotonic() - self._asked_at)
        self._asked_at = 0.0

    def _chat(self) -> None:
        ask = Ask(2 * BYSTANDER_TAGS + len(self.statuses), stream=False, tokens=2, gap_ms=0)
        self.statuses.append(self._ask("POST", ask.path, ask.body(), BYSTANDER_SECONDS))

    def _memory(self) -> None:
        self.peak = max(self.peak, rss_mb(self._on.pid))


def highest_mb(pid: int) -> float:
    """Peak resident memory of the process itself, from the kernel."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        if found:
            return int(found[1]) * 1024 / 1e6
    return 0.0


def connected(port: int, peers: set[int]) -> int:
    """How many connections from these ports to `port` are still open at its process."""
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(fields[at].rpartition(":")[2], 16) for at in (1, 2))
        open_ = fields[3] in ("01", "08")  # established; closed by the client alone
        count += local == port and remote in peers and open_ and fields[9] != "0"
    return count


async def measure(attack: Attack, budget: str, logs: Path) -> Row:
    """Run one attack; it ends in its time, whatever happens."""
    row = Row(f"({attack.letter}) {attack.name}")
    flags = [*attack.flags, "--log-level", "error"]
    for option, value in (*attack.optional, (BUDGET_FLAG, budget)):
        if await known(option):
            flags += [option, value]
    if BUDGET_FLAG in flags:
        row.budget_mb = megabytes(budget)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="press-") as name:
        log = logs / f"gateway-{attack.letter}.log"
        async with stage(Path(name), 1, flags, log, engine_flags=attack.engine) as on:
            with suppress(TimeoutError):
                async with asyncio.timeout(15):
                    await _warm(on)
            await _attacked(row, on, attack)
    row.seconds = time.monotonic() - began
    return row


async def _warm(on: Stage) -> None:
    load = Load(on.host, on.port, 1, 10.0)
    await load.asks([Ask(BYSTANDER_TAGS + at, stream=False, tokens=2, gap_ms=0) for at in range(50)])
    await asyncio.sleep(0.5)


async def _attacked(row: Row, on: Stage, attack: Attack) -> None:
    row.before_mb = rss_mb(on.pid)
    bystander, attackers = Bystander(on), Attackers(on.host, on.port)
    bystander.start()
    try:
        try:
            async with asyncio.timeout(attack.seconds):
                await attack.run(attackers)
        except TimeoutError:
            row.note = f"stopped after {attack.seconds:.0f} s"
        row.attackers = len(attackers.sockets)
        row.connected = connected(on.port, attackers.ports())
        row.responses = dict(attackers.responses)
    finally:
        attackers.close()
    await asyncio.sleep(AFTER)
    row.after_mb = rss_mb(on.pid)
    row.peak_mb = max(bystander.peak, highest_mb(on.pid))
    row.health, row.health_ended = await asyncio.to_thread(bystander.stop)
    row.health_ok = (bystander.health_statuses.count(200), len(bystander.health_statuses))
    row.served, row.asked = bystander.statuses.count(200), len(bystander.statuses)
    if not on.alive:
        row.note = f"the gateway exited with {on.gateway.child.returncode}"


def megabytes(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)?B?", text).groups()  # type: ignore[union-attr]
    return int(number) * {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, None: 1}[unit] / 1e6


def markdown(rows: Sequence[Row], budget: str) -> str:
    known_ = any(row.budget_mb for row in rows)
    words = f"`--memory-budget {budget}`" if known_ else "no memory budget: this gateway has no such setting"
    return "\n".join([f"{machine()}. {words}.", "", HEAD, *(row.line() for row in rows), ""])


async def run(only: str, budget: str, logs: Path) -> list[Row]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    rows = []
    for attack in ATTACKS:
        if only and attack.letter not in only:
            continue
        row = await measure(attack, budget, logs)
        print(f"{row.seconds:.0f} s {row.line()}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.hostile.pressure", description=__doc__)
    names = ", ".join(f"{attack.letter}: {attack.name}" for attack in ATTACKS)
    parser.add_argument("--only", default="", help=f"letters of the attacks to run; {names}")
    parser.add_argument("--budget", default="256MiB", help="value of --memory-budget, if the gateway has it")
    parser.add_argument("--out", type=Path, help="folder for the numbers and the logs of the gateways")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        logs = args.out or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        try:
            rows = asyncio.run(run(args.only, args.budget, logs))
        except asyncio.CancelledError:  # SIGTERM; all child processes have ended
            return 128 + signal.SIGTERM
    page = markdown(rows, args.budget)
    print(page)
    if args.out:
        (args.out / "pressure.md").write_text(page)
        (args.out / "pressure.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
