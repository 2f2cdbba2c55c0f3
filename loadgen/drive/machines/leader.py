"""Machine 0: waits for the others, compares clocks with each, starts all at one time, gathers their records."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from loadgen.drive.machines.messages import (
    HELLO_LIMIT,
    LINE_LIMIT,
    PINGS,
    Hello,
    Link,
    Message,
    Offset,
    Plan,
    digest_of,
    offset_of,
)
from loadgen.drive.machines.share import Part, carry_out, planned
from loadgen.drive.processes.job import Job
from loadgen.drive.processes.signals import stop_on_signals
from loadgen.drive.session import Outcome, Session
from loadgen.errors import UsageError
from loadgen.record import Machine
from loadgen.snapshot import View

T = TypeVar("T")
START_IN_NS: Final = 500_000_000  # from when the last machine is ready
HELLO_SECONDS: Final = 10.0
MOST_RECORDS: Final = 10_000_000
"""Of one machine; more would not fit into memory anyway."""


class Member:
    """One of the other machines, seen from machine 0."""

    def __init__(self, hello: Hello, link: Link) -> None:
        self.number = hello.machine
        self.host = hello.host
        self.link = link
        self.before = Offset(0, 0)
        self.after = Offset(0, 0)
        self.part: Part | None = None
        self._outcome: asyncio.Task[Outcome] | None = None

    async def compare_clocks(self) -> Offset:
        """Raises UsageError."""
        exchanges = []
        for _ in range(PINGS):
            sent = time.monotonic_ns()
            self.link.send(Message(ping=True))
            pong = (await self.link.receive()).pong
            if pong is None:
                raise UsageError(f"machine {self.number} did not answer a comparison of clocks")
            exchanges.append((sent, pong, time.monotonic_ns()))
        return offset_of(exchanges)

    def watch(self, stop: Callable[[], None]) -> None:
        """Wait for its outcome from the start on. `stop` ends the run if it is lost, or has ended early."""
        self._outcome = asyncio.create_task(self._receive_outcome(stop))

    async def _receive_outcome(self, stop: Callable[[], None]) -> Outcome:
        try:
            outcome = (await self.link.receive()).outcome
            if outcome is None:
                raise UsageError(f"machine {self.number} sent no outcome")
        except UsageError:
            stop()
            raise
        if outcome.stopped or outcome.interrupted:
            stop()
        return outcome

    async def close(self) -> None:
        self.link.close()
        if self._outcome is not None:
            self._outcome.cancel()
            await asyncio.gather(self._outcome, return_exceptions=True)

    async def gather(self) -> None:
        """Wait for its outcome and its records, and compare clocks once more. Raises UsageError."""
        assert self._outcome is not None
        outcome = await self._outcome
        self.after = await self.compare_clocks()
        self.link.send(Message(ready=True))
        count = (await self.link.receive()).records
        if count is None or not 0 <= count <= MOST_RECORDS:
            raise UsageError(f"machine {self.number} sent no records")
        records = [await self.link.receive_record() for _ in range(count)]
        self.part = Part("", records, outcome)

    @property
    def facts(self) -> Machine:
        drift = abs(self.after.ns - self.before.ns)
        return Machine(
            number=self.number,
            host=self.host,
            clock_error_ms=max(self.before.error_ns, drift + self.after.error_ns) / 1e6,
            clock_drift_ms=(self.after.ns - self.before.ns) / 1e6,
        )


def _interface(host: str) -> str | None:
    """Where to listen: at an address; for a name, which its own machine may not resolve yet, on all interfaces."""
    if host == "localhost":
        return host
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return host


async def _within(seconds: float, member: Member, answer: Awaitable[T]) -> T:
    """Raises UsageError if the machine does not answer in time."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise UsageError(f"machine {member.number} ({member.host}) did not answer within {seconds:g} s") from None


class Gathered(NamedTuple):
    """Every machine's part in the order of their numbers; those that were `lost` are missing."""

    parts: list[Part]
    machines: list[Machine]
    lost: str


class Leader:
    """Listens for the other machines. Use as `async with`."""

    def __init__(self, job: Job, machines: int, address: tuple[str, int], wait_s: float) -> None:
        self._job = job
        self._machines = machines
        self._address = address
        self._wait_s = wait_s
        self._digest = digest_of(job)
        self._members: dict[int, Member] = {}
        self._links: set[Link] = set()
        self._all_here = asyncio.Event()

    async def __aenter__(self) -> Leader:
        try:
            host, port = self._address
            self._server = await asyncio.start_server(self._connected, _interface(host), port, limit=LINE_LIMIT)
        except OSError as error:
            raise UsageError(f"cannot listen for other machines at {host}:{port}: {error.strerror}") from None
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for member in self._members.values():
            await member.close()
        for link in self._links:
            link.close()

    @property
    def _patience(self) -> float:
        """Seconds that a machine may be later than this one: with its warm-up, or with its last response."""
        return (self._job.http.request_timeout or 600.0) + 60.0

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        if len(self._links) >= 2 * self._machines:
            link.close()
            return
        self._links.add(link)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = (await link.receive(limit=HELLO_LIMIT)).hello
        except (TimeoutError, UsageError):
            hello = None
        refused = "this is machine 0 of a load test" if hello is None else self._refusal(hello)
        if refused or hello is None:
            with contextlib.suppress(OSError):
                link.send(Message(refused=refused))
            link.close()
            self._links.discard(link)
            return
        self._members[hello.machine] = Member(hello, link)
        if len(self._members) == self._machines - 1:
            self._all_here.set()

    def _refusal(self, hello: Hello) -> str:
        if not 1 <= hello.machine < self._machines:
            return f"--machine must be 1 to {self._machines - 1} here; got {hello.machine}"
        if hello.machine in self._members:
            return f"machine {hello.machine} is here already, from {self._members[hello.machine].host}"
        if hello.digest != self._digest:
            return "its flags, model or files differ from those of machine 0; give every machine the same"
        return ""

    async def _gathered(self) -> list[Member]:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._all_here.wait()
        except TimeoutError:
            missing = [number for number in range(1, self._machines) if number not in self._members]
            raise UsageError(
                f"waited {self._wait_s:g} s for {self._machines - 1} other machines; missing: "
                f"{', '.join(map(str, missing))}"
            ) from None
        return [self._members[number] for number in sorted(self._members)]

    async def run(self, folder: Path, hide: Callable[[str], str], view: View) -> Gathered:
        """What all machines measured. Raises UsageError if one is missing before the start."""
        members = await self._gathered()
        plan = Plan(run=self._job.run, salt=self._job.workload.salt)
        for member in members:
            member.before = await _within(HELLO_SECONDS, member, member.compare_clocks())
            member.link.send(Message(plan=plan))

        async def start(session: Session) -> int:
            for member in members:
                if not (await _within(self._patience, member, member.link.receive())).ready:
                    raise UsageError(f"machine {member.number} is not ready")
            at = time.monotonic_ns() + START_IN_NS
            for member in members:
                member.link.send(Message(start=at + member.before.ns))
            for member in members:
                member.watch(lambda: self._stop(session))
            stop_on_signals(lambda: self._stop(session), view.note)
            return at

        part = await carry_out(planned(self._job, 0, self._machines, plan), folder, hide, view, start)
        if part.outcome.interrupted or part.outcome.stopped:
            self._stop(None)
        lost = [text for member in members if (text := await self._gather(member))]
        parts = [member.part for member in members if member.part is not None]
        facts = [Machine(number=0, host=socket.gethostname()), *(member.facts for member in members)]
        return Gathered([part, *parts], facts, "; ".join(lost))

    async def _gather(self, member: Member) -> str:
        """Why a machine's part is missing; empty if it is not."""
        try:
            await _within(self._patience, member, member.gather())
        except UsageError as error:
            return f"machine {member.number} ({member.host}) was lost: {error}"
        return ""

    def _stop(self, session: Session | None) -> None:
        if session is not None:
            session.stop()
        for member in self._members.values():
            member.link.send(Message(stop=True))
