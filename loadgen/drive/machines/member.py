"""A machine other than 0: greets machine 0, answers for its clock, carries out its share, hands it over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from loadgen.drive.machines.messages import LINE_LIMIT, Hello, Link, Message, digest_of
from loadgen.drive.machines.share import Part, carry_out, planned
from loadgen.drive.processes.job import Job
from loadgen.drive.processes.signals import stop_on_signals
from loadgen.drive.session import Session
from loadgen.errors import UsageError
from loadgen.snapshot import View

RETRY: Final = 0.5  # seconds


async def join_run(
    job: Job,
    machine: int,
    machines: int,
    address: tuple[str, int],
    wait_s: float,
    folder: Path,
    hide: Callable[[str], str],
    view: View,
) -> tuple[Part, str]:
    """This machine's part, and why machine 0 did not get it; empty if it did.

    Raises UsageError if machine 0 is not found, or refuses this one.
    """
    link = await _connect(address, wait_s)
    watching: asyncio.Task[Message] | None = None
    try:
        link.send(Message(hello=Hello(machine=machine, host=socket.gethostname(), digest=digest_of(job))))
        plan = (await _answering(link)).plan
        if plan is None:
            raise UsageError("machine 0 gave no plan")

        async def start(session: Session) -> int:
            nonlocal watching
            link.send(Message(ready=True))
            at = (await link.receive()).start
            if at is None:
                raise UsageError("machine 0 gave no start")
            stop_on_signals(session.stop, view.note)
            watching = asyncio.create_task(_watch(link, session))
            return at

        part = await carry_out(planned(job, machine, machines, plan), folder, hide, view, start)
        assert watching is not None
        return part, await _hand_over(link, watching, part)
    finally:
        if watching is not None:
            watching.cancel()
        link.close()


async def _hand_over(link: Link, watching: asyncio.Task[Message], part: Part) -> str:
    try:
        link.send(Message(outcome=part.outcome))
        await _after(link, watching)
        await link.send_records(part.records)
    except (UsageError, OSError) as error:
        return str(error)
    with contextlib.suppress(UsageError):
        await link.receive()  # machine 0 closes when it has them
    return ""


async def _watch(link: Link, session: Session) -> Message:
    """The first message that is no stop. A lost machine 0 ends the run: it would be nobody's."""
    while True:
        try:
            message = await link.receive()
        except UsageError:
            session.stop()
            raise
        if not message.stop:
            return message
        session.stop()


async def _after(link: Link, watching: asyncio.Task[Message]) -> None:
    """The second comparison of clocks, until machine 0 asks for the records."""
    message = await watching
    while not message.ready:
        if message.ping:
            link.send(Message(pong=time.monotonic_ns()))
        message = await link.receive()


async def _answering(link: Link) -> Message:
    """Answer for the clock until there is something else. Raises UsageError for a refusal."""
    while True:
        message = await link.receive()
        if message.refused is not None:
            raise UsageError(f"machine 0 refuses this one: {message.refused}")
        if not message.ping:
            return message
        link.send(Message(pong=time.monotonic_ns()))


async def _connect(address: tuple[str, int], wait_s: float) -> Link:
    host, port = address
    until = time.monotonic() + wait_s
    while True:
        try:
            async with asyncio.timeout(10.0):
                return Link(*await asyncio.open_connection(host, port, limit=LINE_LIMIT))
        except (OSError, TimeoutError) as error:
            if time.monotonic() >= until:
                raise UsageError(
                    f"no machine 0 at {host}:{port} within {wait_s:g} s: {str(error) or 'no answer'}"
                ) from None
        await asyncio.sleep(RETRY)
