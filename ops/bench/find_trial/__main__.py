"""The command line: start each server of a list, search it with each seed, print what was found in what time.

The list is TOML. The search gets `find` of it only:

    [[server]]
    name = "four places"
    command = "python -m somewhere.places --count 4"   # prints its URL first, serves until it is killed
    find = "--goodput ttft:300 --attainment 95% --max-tokens 2"   # flags of `loadgen find`
    limit = 36.2   # optional: the true limit, for the column of errors
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ops.bench.find_trial.table import Answer, render

ROOT: Final = Path(__file__).parents[3]
READY_SECONDS: Final = 60.0
TIED: Final = (sys.executable, "-m", "ops.bench.find_trial.tied")


class Server(msgspec.Struct, forbid_unknown_fields=True):
    """One server of the list."""

    name: str
    command: str
    find: str
    limit: float | None = None


class Servers(msgspec.Struct, forbid_unknown_fields=True):
    server: list[Server]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every search gave a load, and one within --within of each limit that is known; 1 if not; 2 for a wrong
    command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.find_trial",
        description="Runs `loadgen find` several times against each server of a list and prints what it found.",
    )
    parser.add_argument("--servers", type=Path, required=True, metavar="FILE", help="TOML; see the module's text")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="searches of each server (default 10)")
    parser.add_argument("--only", metavar="NAME", help="this server only")
    parser.add_argument(
        "--within", type=float, default=0.03, help="allowed error of a limit (default %(default)g)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start the server anew for each search, not once for all"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append each answer to this file, as JSON lines")
    args = parser.parse_args(arguments)
    try:
        servers = msgspec.convert(tomllib.loads(args.servers.read_text()), Servers).server
    except (OSError, ValueError, RecursionError) as error:
        parser.error(f"{args.servers}: {error}")
    chosen = [server for server in servers if args.only in (None, server.name)]
    if not chosen or args.seeds < 1:
        parser.error(f"no server {args.only!r} in {args.servers}" if args.only else "nothing to run")
    answers: list[Answer] = []
    for server in chosen:
        for answer in searches(server, args.seeds, fresh=args.fresh):
            answers.append(answer)
            print(f"{server.name}, seed {answer.seed}: {answer.said}", file=sys.stderr, flush=True)
            if args.out is not None:
                with args.out.open("ab") as file:
                    file.write(msgspec.json.encode(answer) + b"\n")
    print(render(answers, args.within))
    return int(any(not answer.within(args.within) for answer in answers))


def searches(server: Server, seeds: int, *, fresh: bool) -> Iterator[Answer]:
    """One server's answers, in the order of the seeds."""
    if fresh:
        for seed in range(seeds):
            with serving(server.command) as url:
                yield search(server, url, seed)
        return
    with serving(server.command) as url:
        for seed in range(seeds):
            yield search(server, url, seed)


@contextlib.contextmanager
def serving(command: str) -> Iterator[str]:
    """The URL that the command prints as its first line; its process group is killed after the block, or with this
    process. Raises RuntimeError if it prints none in READY_SECONDS."""
    child = subprocess.Popen(
        [*TIED, *shlex.split(command)], cwd=ROOT, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        ready, _, _ = select.select([child.stdout], [], [], READY_SECONDS)
        url = child.stdout.readline().decode().strip() if ready else ""
        if not url.startswith("http"):
            raise RuntimeError(f"{command!r} must print its URL first, within {READY_SECONDS:g} s; got {url!r}")
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()


def search(server: Server, url: str, seed: int) -> Answer:
    """One search in a process of its own, as a person runs it."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            *TIED, sys.executable, "-m", "loadgen", "find", "--base-url", url, *shlex.split(server.find),
            "--seed", str(seed), "--result-dir", folder, "--quiet",
        ]  # fmt: skip
        began = time.monotonic()
        with subprocess.Popen(
            argv, cwd=ROOT, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            output = child.stdout.read().decode(errors="replace")
        seconds = time.monotonic() - began
        results = list(Path(folder).glob("*/result.json"))
        found: dict[str, Any] = {}
        if results:
            loadgen = json.loads(results[0].read_bytes())["loadgen"]
            found = loadgen["found"]
            found["sound"] = not loadgen["run"].get("invalid")
    lines = [line for line in output.splitlines() if line.strip()]
    said = next((line for line in lines if line.strip().startswith("Result:")), [*lines, "nothing"][-1])
    return Answer(
        server=server.name,
        seed=seed,
        seconds=seconds,
        code=child.returncode,
        said=said.strip(),
        limit=server.limit,
        state=found.get("state", "no result"),
        by=found.get("by", ""),
        load=found.get("load"),
        low=found.get("low"),
        high=found.get("high"),
        requests=found.get("requests", 0),
        sound=found.get("sound", False),
    )


if __name__ == "__main__":
    sys.exit(main())
