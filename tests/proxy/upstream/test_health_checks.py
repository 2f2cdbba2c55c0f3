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
from proxy.upstream.health_checks import EVERY, Checkup
from proxy.upstream.http.pool import Pool
from proxy.upstream.pulse import Pulse
from tests.kit.clock import virtual

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
        self.backend.list_models([{"id": "m1"}] if models is None else models)
        self.told: list[str] = []
        self.backends = Backends(
            [self.backend],
            clock=loop.time,
            on_suspect=lambda backend: self.checkup.begin(backend),
            on_breaker=lambda backend, why: self.told.append(why),
        )
        self.checkup = Checkup(self.backends, Pulse(loop), clock=loop.time)

    def fail(self, who: str = "a", times: int = 2) -> None:
        for _ in range(times):
            lease = Lease(self.backend, self.backends)
            self.backends.record_failure(lease, "it broke", who)
            lease.release()

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.pool.asked]


REFUSED = GatewayError(Code.UPSTREAM_UNREACHABLE, "refused")
SHORT = GatewayError(Code.LOCAL_RESOURCES, "no descriptors")
BUG = GatewayError(Code.INTERNAL, "a bug")


@pytest.mark.parametrize(
    ("answers", "state", "why"),
    [
        ({"health": 200, "completions": 200}, State.CLOSED, ""),
        ({"health": 200, "completions": ABORTED}, State.OPEN, "/v1/completions: an incomplete answer"),
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
        ({"health": BUG}, State.CLOSED, ""),
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
        ward.backends.record_success(lease)
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


@pytest.mark.parametrize(
    ("answers", "good", "why", "silent"),
    [
        ({"health": 200, "completions": 200}, True, "/v1/completions: 200", False),
        ({"health": 499, "completions": 200}, True, "/v1/completions: 200", False),
        ({"health": 500}, False, "/health: 500", False),
        ({"health": 200, "completions": 502}, False, "/v1/completions: 502", False),
        ({"health": 200, "completions": 503}, False, "/v1/completions: 503", False),
        ({"health": 200, "completions": 504}, False, "/v1/completions: 504", False),
        ({"health": 200, "completions": 505}, True, "/v1/completions: 505", False),
        ({"health": None}, None, "no answer to /health in 2 s", True),
        ({"health": 200, "completions": None}, None, "no token in 5 s", False),
        ({"health": SHORT}, None, "no descriptors", False),
        ({"health": BUG}, None, "a bug", False),
        ({"health": REFUSED}, False, "refused", False),
        ({"health": ValueError("odd")}, None, "ValueError('odd')", False),
    ],
)
def test_what_a_check_tells(answers: dict[str, Any], good: bool | None, why: str, silent: bool) -> None:
    @virtual
    async def run() -> None:
        ward = Ward(**answers)
        told: list[Any] = []
        record = ward.backends.checked

        def checked(backend: Backend, good: bool | None, why: str, *, silent: bool = False) -> None:
            told.append((good, why, silent))
            record(backend, good, why, silent=silent)

        ward.backends.checked = checked  # type: ignore[method-assign]
        ward.checkup.begin(ward.backend)
        ward.checkup.begin(ward.backend)
        await asyncio.sleep(20.0)
        assert told == [(good, why, silent)]
        assert ward.backend.checked_at == (2.0 if silent else 5.0 if why.startswith("no token") else 0.0)
        assert repr(ward.checkup) == "<Checkup of nothing>"

    run()


@pytest.mark.parametrize(("ago", "waited"), [(0.25, 0.75), (1.0, 0.0), (5.0, 0.0)])
@virtual
async def test_a_check_waits_until_the_last_one_is_a_second_ago(ago: float, waited: float) -> None:
    ward = Ward(health=200, completions=200)
    await asyncio.sleep(10.0)
    ward.backend.checked_at = 10.0 - ago
    ward.checkup.begin(ward.backend)
    await asyncio.sleep(5.0)
    assert [at for at, _, _ in ward.pool.asked] == [10.0 + waited] * 2


@virtual
async def test_of_several_engines_each_has_its_check_and_all_end_with_it() -> None:
    ward, other = Ward(health=None), Ward(health=None)
    ward.checkup.begin(ward.backend)
    ward.checkup.begin(other.backend)
    assert repr(ward.checkup) == "<Checkup of a a>"
    await asyncio.sleep(0)
    await ward.checkup.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
