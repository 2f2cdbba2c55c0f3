"""The check of an engine by requests of our own: what it asks, what it concludes, how often it goes."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.upstream.backends import Backend, Backends, Lease
from proxy.upstream.breaker import Breaker, BreakerRules, State
from proxy.upstream.checkup import EVERY, Checkup
from proxy.upstream.http.pool import Pool
from proxy.upstream.pulse import Pulse
from tests.clock import virtual

Answer = int | bytes | Exception | None  # None: never
WHOLE = b'{"choices":[{"index":0,"text":"b","finish_reason":"length"}]}'
ABORTED = b'{"choices":[{"index":0,"text":"","finish_reason":"abort"}]}'


class Asked:
    """A pool that answers by path."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.asked: list[tuple[float, str, bytes]] = []

    async def ask(self, method: str, path: str, body: bytes = b"", *, fresh: bool = False) -> tuple[int, bytes]:
        assert fresh
        self.asked.append((asyncio.get_running_loop().time(), path, body))
        answer = self.answers[path.rpartition("/")[2]]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, bytes):
            return 200, answer
        assert isinstance(answer, int)
        return answer, WHOLE if answer == 200 else b""


class Ward:
    """One engine, and what is told of it."""

    def __init__(self, models: list[dict[str, Any]] | None = None, **answers: Answer) -> None:
        loop = asyncio.get_running_loop()
        self.pool = Asked(**answers)
        breaker = Breaker(BreakerRules(failures=2, span=1.0), lambda: 0.0)
        self.backend = Backend("a", cast(Pool, self.pool), 9, up=True, breaker=breaker)
        self.backend.models = [{"id": "m1"}] if models is None else models
        self.backends = Backends([self.backend], clock=loop.time)
        self.checkup = Checkup(self.backends, Pulse(loop), clock=loop.time)
        self.backends.on_suspect = self.checkup.begin
        self.told: list[str] = []
        self.backends.on_breaker = lambda backend, why: self.told.append(why)

    def fail(self, who: str = "a", times: int = 2) -> None:
        for _ in range(times):
            lease = Lease(self.backend, self.backends)
            self.backends.seen_bad(lease, "it broke", who)
            lease.release()

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.pool.asked]


REFUSED = GatewayError(Code.UPSTREAM_UNREACHABLE, "refused")
SHORT = GatewayError(Code.LOCAL_RESOURCES, "no descriptors")


@pytest.mark.parametrize(
    ("answers", "state", "why"),
    [
        ({"health": 200, "completions": 200}, State.CLOSED, ""),
        ({"health": 200, "completions": ABORTED}, State.OPEN, "/v1/completions: an answer that is not whole"),
        ({"health": 404, "completions": 404}, State.CLOSED, ""),
        ({"health": 200, "completions": 400}, State.CLOSED, ""),
        ({"health": 200, "completions": 429}, State.CLOSED, ""),
        ({"health": 200, "completions": 501}, State.CLOSED, ""),
        ({"health": 503}, State.OPEN, "/health: 503"),
        ({"health": 200, "completions": 500}, State.OPEN, "/v1/completions: 500"),
        ({"health": REFUSED}, State.OPEN, "refused"),
        ({"health": 200, "completions": REFUSED}, State.OPEN, "refused"),
        ({"health": None}, State.CLOSED, ""),
        ({"health": 200, "completions": None}, State.CLOSED, ""),
        ({"health": SHORT}, State.CLOSED, ""),
        ({"health": ValueError("ours")}, State.CLOSED, ""),
    ],
)
def test_what_a_check_concludes(answers: dict[str, Any], state: State, why: str) -> None:
    @virtual
    async def run() -> None:
        ward = Ward(**answers)
        ward.fail()
        await asyncio.sleep(10.0)
        breaker = ward.backend.breaker
        assert (breaker.state, breaker.suspect) == (state, False)
        assert ward.told == ([f"opened by a check of our own: {why}"] if why else [])
        await ward.checkup.close()

    run()


@pytest.mark.parametrize("served", [False, True])
@virtual
async def test_an_engine_that_says_nothing_twice_and_serves_nobody_meanwhile_is_broken(served: bool) -> None:
    ward = Ward(health=None)
    ward.fail()
    await asyncio.sleep(5.0)
    if served:  # it is only busy
        lease = Lease(ward.backend, ward.backends)
        ward.backends.seen_good(lease)
        lease.release()
    ward.fail()
    await asyncio.sleep(5.0)
    assert ward.told == ([] if served else ["opened by a check of our own: no answer to /health in 2 s"])
    await ward.checkup.close()


@virtual
async def test_it_asks_for_one_token_of_a_model_that_the_engine_lists() -> None:
    ward = Ward(health=200, completions=200)
    ward.fail()
    await asyncio.sleep(1.0)
    assert ward.paths == ["/health", "/v1/completions"]
    assert json.loads(ward.pool.asked[1][2]) == {"model": "m1", "prompt": "a", "max_tokens": 1, "temperature": 0}
    ward = Ward([], health=200)
    ward.fail()
    await asyncio.sleep(1.0)
    assert ward.paths == ["/health"]


@virtual
async def test_a_flood_of_failures_is_one_check_a_second_and_none_is_forgotten() -> None:
    ward = Ward(health=200, completions=200)
    for _ in range(100):
        ward.fail(times=5)
        await asyncio.sleep(0.1)
    times = [at for at, path, _ in ward.pool.asked if path == "/health"]
    assert all(later - at > EVERY - 1e-6 for at, later in pairwise(times))
    assert 9 <= len(times) <= 11
    ward.pool.answers["completions"] = 500
    ward.fail()
    await asyncio.sleep(EVERY + 0.1)
    assert ward.backend.breaker.state is State.OPEN, "within a second, though the last check was just now"
    await ward.checkup.close()


@virtual
async def test_an_engine_that_was_removed_is_told_of_no_more_and_closing_ends_a_check() -> None:
    ward = Ward(health=None)
    ward.fail()
    await asyncio.sleep(0.1)
    cast(Any, ward.pool).close = lambda: None
    ward.backends.change([], [ward.backend])
    await asyncio.sleep(5.0)
    assert ward.told == []
    other = Ward(health=None)
    other.fail()
    await asyncio.sleep(0.1)
    assert repr(other.checkup) == "<Checkup of a>"
    await other.checkup.close()
    await asyncio.sleep(0.0)
    assert repr(other.checkup) == "<Checkup of nothing>"


@virtual
async def test_closing_ends_a_check_that_gets_no_answer() -> None:
    ward = Ward(health=None)
    ward.checkup.begin(ward.backend)
    await asyncio.sleep(0)
    before = asyncio.get_running_loop().time()
    await ward.checkup.close()
    assert asyncio.get_running_loop().time() == before
    assert repr(ward.checkup) == "<Checkup of nothing>"
    assert ward.told == []
