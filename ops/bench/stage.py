"""Sets up one subject: the mock engine, Redis where the gateway needs it, and the subject, each on its CPU."""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

from ops.bench import subjects as start
from ops.bench.client import same_bytes, same_text
from ops.bench.peers import InstallError, peer

DIRECT: Final = "direct"
OURS: Final = ("gateway", "gateway-private")
"""`gateway`: prompts may be shared, so each costs key, look-up and store. `gateway-private`: sampled prompts."""


class StageError(Exception):
    """A subject cannot be set up; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Cpus:
    """CPU numbers. With two, everything but the subject shares one."""

    engine: int
    subject: int
    client: int
    redis: int


def cpus(spare: bool) -> Cpus:
    """CPUs of this process for each part. `spare`: use a third and a fourth for client and Redis where there are.

    Raises StageError with less than two.
    """
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise StageError("2 CPUs are required: one is reserved for the subject")
    client, redis = (found[2], found[-1]) if spare and len(found) > 2 else (found[0], found[0])
    return Cpus(found[0], found[1], client, redis)


@dataclass(frozen=True, slots=True)
class Choice:
    """Where subjects come from: the folder of the peers, and commands of the user's own by name.

    A command contains `{port}` and may contain `{engine}`, the engine's URL. `engine_port`: 0 is a free one.
    """

    home: Path
    commands: Mapping[str, str] = field(default_factory=dict)
    engine_port: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A subject that answers. `subject` is None for direct."""

    port: int
    engine_port: int
    headers: Mapping[str, str]
    check: Callable[[bytes, bytes], bool]
    subject: start.Started | None
    version: str


def choose(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a Choice."""
    home = Path.home() / ".cache/streaming-gateway/bench"
    parser.add_argument("--home", type=Path, default=home, help="where the peers are installed")
    parser.add_argument(
        "--command", action="append", default=[], metavar="NAME=COMMAND",
        help="another subject: it listens on {port} of 127.0.0.1; {engine} is the engine's URL (again for others)",
    )  # fmt: skip
    parser.add_argument(
        "--engine-port", type=int, default=0, metavar="PORT",
        help="port of the mock engine, for a subject in which it is fixed (default: a free one)",
    )  # fmt: skip


def chosen_of(args: argparse.Namespace, names: Sequence[str]) -> Choice:
    """The choice of a command line.

    Raises StageError if a command or a name is wrong, or a peer is not installed.
    """
    commands = {}
    for text in args.command:
        name, _, command = text.partition("=")
        if not name or "{port}" not in command:
            raise StageError(f"--command {text!r} is not NAME=COMMAND with {{port}} in the command")
        commands[name] = command
    for name in names:
        if name not in (DIRECT, *OURS, *commands):
            try:
                peer(name).version(args.home)
            except (KeyError, InstallError) as error:
                raise StageError(error.args[0]) from error
    return Choice(args.home, commands, args.engine_port)


@contextmanager
def stage(name: str, choice: Choice, on: Cpus, flags: Sequence[str] = ()) -> Iterator[Stage]:
    """Fresh processes of one subject until the block ends. `flags`: further flags of the gateway.

    Raises RuntimeError with the end of its output if one is not ready.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine_port, port = choice.engine_port or start.free_port(), start.free_port()
        engine = f"http://127.0.0.1:{engine_port}"
        stack.enter_context(
            start.started(
                start.engine_command(engine_port), engine_port, {on.engine},
                ready=lambda: start.answers(engine_port, "/health", {}), log=work / "engine.log",
            )
        )  # fmt: skip
        if name == DIRECT:
            yield Stage(engine_port, engine_port, {}, same_bytes, None, "the mock engine")
            return
        headers: dict[str, str] = {}
        check = same_bytes
        ready: Callable[[], bool] = partial(start.answers, port, "/ready", {})
        if name in OURS:
            redis, url = start.redis_command(work)
            log = work / "redis.log"
            stack.enter_context(start.started(redis, 0, {on.redis}, ready=(work / "redis.sock").exists, log=log))
            command = start.gateway(port, engine_port, url, *flags)
            words = f"aiohttp {version('aiohttp')}, uvloop {version('uvloop')}"
        elif name in choice.commands:
            argv = shlex.split(choice.commands[name].replace("{port}", str(port)).replace("{engine}", engine))
            command, words = start.Command(argv), "a command of the user's own"
            ready = partial(start.listens, port)
        else:
            other = peer(name)
            command = other.command(choice.home, work, port, engine)
            headers, words = other.headers(engine), other.version(choice.home)
            check = same_text if other.reserialises else same_bytes
            ready = partial(start.answers, port, other.ready, headers)
        subject = stack.enter_context(
            start.started(command, port, {on.subject}, ready=ready, log=work / "subject.log")
        )
        yield Stage(port, engine_port, headers, check, subject, words)
