"""The same faults for our upstream and for aiohttp's client, over real sockets; the table has the differences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.kit.engine_turn import PATIENCE
from tests.kit.fault_cases import OK, Case, Outcome, Whole, broken_cases, surplus_cases, whole_cases
from tests.kit.patience import patience
from tests.kit.raw_server import Peer, RawServer
from tests.kit.reference import Ours, Reference, Upstream
from tests.kit.taker import Taker

CASES = [*whole_cases(), *surplus_cases(), *broken_cases()]
NEXT = OK + b"Content-Length: 4\r\n\r\nnext"


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer() as server:
        yield server


@pytest.fixture(params=[Ours, Reference])
async def upstream(request: pytest.FixtureRequest, server: RawServer) -> AsyncIterator[Upstream]:
    upstream: Upstream = request.param(server.url)
    yield upstream
    await upstream.close()


async def play(server: RawServer, upstream: Upstream, case: Case, step: int) -> Outcome:
    """Send the case's answer, then ask again: what came of the first, and whether its connection served again."""
    taker = Taker()
    task = asyncio.create_task(upstream.exchange(case.method, "/x", b"", taker))
    peer = await server.peer()
    await peer.request()
    await peer.send(case.answer, step)
    if case.end == "fin":
        peer.close()
    elif case.end == "reset":
        if case.seen:  # what was sent before a reset may be lost with it
            await taker.until(case.seen)
        peer.reset()
    async with patience(PATIENCE):
        await task
    error = await taker.ended()
    kept = await _asked_again(server, upstream, peer)
    return Whole(taker.data, taker.status, kept) if error is None else error.code


async def _asked_again(server: RawServer, upstream: Upstream, first: Peer) -> bool:
    """Whether the next exchange came on the same connection; wherever it came, its answer is its own."""
    again = Taker()
    asking = asyncio.create_task(upstream.exchange("GET", "/again", b"", again))
    old, new = asyncio.create_task(first.request()), asyncio.create_task(server.peer())
    await asyncio.wait({old, new}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    kept = old.done() and old.exception() is None and not new.done()
    if kept:
        await first.send(NEXT)
    else:
        peer = await new
        await peer.request()
        await peer.send(NEXT)
    async with patience(PATIENCE):
        await asking
    for waiting in (old, new):
        waiting.cancel()
    await asyncio.gather(old, new, return_exceptions=True)
    assert (again.status, again.data, again.endings) == (200, b"next", [None])
    return kept


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_comes_of_an_answer_is_what_the_table_says(
    server: RawServer, upstream: Upstream, case: Case
) -> None:
    theirs = case.theirs if case.theirs is not None else case.ours
    assert await play(server, upstream, case, 0) == (case.ours if isinstance(upstream, Ours) else theirs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_our_outcome_is_the_same_byte_by_byte(server: RawServer, case: Case) -> None:
    """aiohttp's depends on the split: what comes after an answer is an error only in the same read."""
    ours = Ours(server.url)
    assert await play(server, ours, case, 1 if len(case.answer) < 1000 else 1000) == case.ours
    await ours.close()


def test_every_difference_has_its_reason_and_every_case_its_name() -> None:
    assert [case.name for case in CASES if (case.theirs is None) != (not case.why)] == []
    assert len({case.name for case in CASES}) == len(CASES)
