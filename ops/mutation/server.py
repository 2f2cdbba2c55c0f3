"""A process that has imported what every test run imports, and forks one child for each run of pytest: it saves
two seconds a run. It must not import the gateway or the tests, which each child imports as the mutant has them."""

from __future__ import annotations

import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

IMPORTED: Final = (
    "aiohttp.web", "aioprometheus", "coverage", "hiredis", "httptools", "hypothesis.strategies", "msgspec.json",
    "pytest", "redis.asyncio", "rich.console", "ssl", "unittest.mock", "uvloop",
)  # fmt: skip
OUTPUT: Final = "MUTATION_OUTPUT"  # the environment variable that names the file for what pytest prints


class Pytests:
    """Runs pytest in `root`, one run after the other."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ops.mutation.server"],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], limit: float
    ) -> tuple[int | None, str]:
        """Exit status (None after `limit` seconds) and output. Processes in pytest's session end with it."""
        wanted, given = self._process.stdin, self._process.stdout
        assert wanted is not None
        assert given is not None
        wanted.write(json.dumps([list(arguments), dict(environment), limit]) + "\n")
        wanted.flush()
        status, output = json.loads(given.readline())
        return status, output

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        arguments, environment, limit = json.loads(line)
        output = Path(environment[OUTPUT])
        child = os.fork()
        if child == 0:
            _child(arguments, environment, output)
        status = wait(child, limit)
        print(json.dumps([status, output.read_text(errors="replace")]), flush=True)


def _child(arguments: list[str], environment: Mapping[str, str], output: Path) -> None:
    os.setsid()
    random.seed()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd, to in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(fd, to)
    os.close(nothing)
    os.close(file)
    status = 3  # pytest's status for an internal error
    try:
        status = int(importlib.import_module("pytest").main(arguments))
        sys.stdout.flush()
    finally:
        os._exit(status)


def wait(child: int, limit: float) -> int | None:
    """Exit status of a child that leads its session (None after `limit` seconds); its processes end with it."""
    ended = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        over = not poll.poll(limit * 1000)
    finally:
        os.close(ended)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if over else status


if __name__ == "__main__":
    serve()
