"""Starts the programs under test: mock engine, Redis, gateway; and any other command until it is ready."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

READY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Started:
    """A running process that answers."""

    pid: int
    port: int
    seconds: float  # from exec to the first answer


@dataclass(frozen=True, slots=True)
class Command:
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def answers(port: int, path: str, headers: Mapping[str, str]) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=2) as response:  # noqa: S310 - loopback
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def listens(port: int) -> bool:
    """Whether the port of 127.0.0.1 accepts a connection."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def end_on_sigterm() -> None:
    """Have SIGTERM run every `finally`, which ends the children."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


class _Kept:
    """Defers SIGTERM and SIGINT until `act`: before the `finally` that ends the child, it would outlive us."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before = {
            number: signal.signal(number, lambda number, _: self._came.append(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def act(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for came in self._came:
            signal.raise_signal(came)


@contextmanager
def started(
    command: Command,
    port: int,
    cpus: set[int],
    *,
    ready: Callable[[], bool],
    log: Path,
    patience: float = READY_SECONDS,
) -> Iterator[Started]:
    """Run the command, pinned to `cpus`, until the block ends; then its process group is terminated.

    Raises RuntimeError with the end of its output if it is not ready within `patience` seconds.
    """
    with log.open("ab") as out:
        began = time.monotonic()
        kept = _Kept()
        try:
            child = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, sorted(cpus))), *command.argv],
                env={**os.environ, **command.env},
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        except OSError:
            kept.act()
            raise
        try:
            kept.act()
            while not ready():
                if child.poll() is not None or time.monotonic() - began > patience:
                    said = log.read_text("utf-8", "replace")[-500:]
                    raise RuntimeError(f"{command.argv[0]} is not ready; its output ends with: {said}")
                time.sleep(0.01)
            yield Started(child.pid, port, time.monotonic() - began)
        finally:
            try:
                os.killpg(child.pid, signal.SIGTERM)
                child.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()


def gateway(port: int, engine: int, redis: str, *extra: str) -> Command:
    """The gateway with everything on: sharing, metrics, log lines (to a file), Redis look-up and store."""
    return Command(
        [
            sys.executable, "-m", "proxy", "--port", str(port), "--backend", f"http://127.0.0.1:{engine}",
            "--redis", redis, "--queue-limit", "4096", "--max-inflight", "4096", *extra,
        ]
    )  # fmt: skip


def engine_command(port: int) -> Command:
    return Command([sys.executable, "-m", "ops.bench.engine", "--port", str(port)])


def redis_command(folder: Path) -> tuple[Command, str]:
    """A private Redis on a Unix socket, without persistence; the command and its URL."""
    server = shutil.which("redis-server")
    if server is None:
        raise RuntimeError("redis-server is not installed: apt-get install redis-server")
    path = folder / "redis.sock"
    return (
        Command(
            [server, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no",
             "--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru"],
            cwd=folder,
        ),
        f"unix://{path}",
    )  # fmt: skip
