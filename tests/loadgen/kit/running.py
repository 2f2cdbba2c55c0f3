"""Sends requests in a test: on the load generator's own loop, with its own client, to a server of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from loadgen.drive.capture.client import Client
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.decode import decode_exchange
from loadgen.drive.capture.loop import new_loop
from loadgen.drive.requests import ScheduledRequest
from loadgen.record import Record
from loadgen.spec import Http
from loadgen.workload.model import Prompt
from tests.loadgen.kit.servers import QUICK, answering, builder_for, serving

PROMPT = Prompt("p", "chat", {"messages": [{"role": "user", "content": "hi"}]})


def on_our_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Runs the test on the loop that the load generator runs on."""

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def sent(url: str, http: Http = QUICK, *, stream: bool = True, times: int = 1) -> list[Record]:
    """The records of as many requests, one after the other over one client."""
    records: list[Record] = []
    clock = Clock()
    client = Client(http, kernel=True)
    try:
        for number in range(times):
            request = builder_for(url, stream=stream).build(ScheduledRequest(number, PROMPT))
            records.append(decode_exchange(await client.send(request), clock))
    finally:
        await client.close()
    return records


async def answered(answer: bytes, http: Http = QUICK, *, stream: bool = True, close: bool = False) -> Record:
    async with serving(answering(answer, close=close)) as url:
        return (await sent(url, http, stream=stream))[0]
