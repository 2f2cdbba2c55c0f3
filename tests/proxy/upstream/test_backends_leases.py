"""Leases and what is seen of engines: what each one tells, forgets and gives back, and what is chosen then."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.watchdog import stray_places
from proxy.upstream.abilities import Abilities
from proxy.upstream.backends import GONE_LOOKS, SILENT_LOOKS, Backend, Backends, Lease
from proxy.upstream.breaker import Breaker, BreakerRules, State
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.http.dial import ConnectionRefused
from proxy.upstream.http.pool import Pool
from proxy.upstream.routing import LeastOutstanding, key_of
from proxy.wire.openai import ApiRequest, decode
from tests.kit.clock import virtual

RULES = BreakerRules(failures=2, span=4.0, rate=0.0)
ASK = decode("chat", b'{"model": "x", "messages": []}')
LISTED = (200, b'{"data": [{"id": "x"}]}')
REFUSED = ConnectionRefused(Code.UPSTREAM_UNREACHABLE, "refused")


class Engine:
    """A pool that answers looks as told: a status of /health, or what is raised; None: never."""

    def __init__(self) -> None:
        self.health: int | Exception | None = 200
        self.models = LISTED
        self.asked: list[tuple[str, bool]] = []
        self.calls: list[str] = []

    async def get(self, path: str, *, fresh: bool = False) -> tuple[int, bytes]:
        self.asked.append((path, fresh))
        if path == "/v1/models":
            return self.models
        if self.health is None:
            await asyncio.Event().wait()
        if isinstance(self.health, Exception):
            raise self.health
        assert self.health is not None
        return self.health, b""

    def drop_idle(self) -> None:
        self.calls.append("drop_idle")

    def close(self) -> None:
        self.calls.append("close")


class House:
    """Engines of one name each, a clock that the test sets, and all that is told of them, in order."""

    def __init__(
        self,
        names: str = "ab",
        room: int = 3,
        models: Iterable[str] = ("x",),
        *,
        timeout: float = 5.0,
        **more: Any,
    ) -> None:
        self.now = 0.0
        self.engines = [
            Backend(
                name, cast(Pool, Engine()), room, up=True, breaker=Breaker(RULES, lambda: 0.0),
                models=[{"id": model} for model in models],
            )
            for name in names
        ]  # fmt: skip
        self.told: list[str] = []
        self.backends = Backends(
            self.engines,
            clock=lambda: self.now,
            on_breaker=lambda b, why: self.told.append(f"breaker {b.name}: {why or 'closed'}"),
            on_change=lambda b: self.told.append(f"change {b.name}"),
            on_suspect=lambda b: self.told.append(f"suspect {b.name}"),
            on_left=lambda b: self.told.append(f"left {b.name}"),
            **more,
        )
        self.health_checks = HealthChecks(self.backends, clock=lambda: self.now, timeout=timeout)
        self.backends.subscribe(
            capacity_changed=lambda: self.told.append("release"),
            gone=lambda b: self.told.append(f"gone {b.name}"),
            silent=lambda b: self.told.append(f"silent {b.name}"),
        )

    def heard(self) -> list[str]:
        """What was told since the last time."""
        told = self.told[:]
        self.told.clear()
        return told

    def lease(self, engine: Backend | None = None) -> Lease:
        if engine is not None:
            return Lease(engine, self.backends)
        lease = self.backends.acquire("x")
        assert lease is not None
        return lease

    def fail(self, engine: Backend, *whose: str | None) -> None:
        for who in whose:
            lease = self.lease(engine)
            self.backends.record_failure(lease, "it broke", who)
            lease.release()
        self.heard()


def pool(engine: Backend) -> Engine:
    return cast(Engine, engine.pool)


# -- leases -------------------------------------------------------------------------------------------


def test_a_lease_holds_one_place_and_the_last_place_is_noted() -> None:
    house = House("a", room=2)
    (engine,) = house.engines
    assert engine.seed == key_of(b"a")
    first = house.lease()
    assert (first.held, engine.inflight, engine.reached) == (True, 1, False)
    second = house.lease()
    assert (engine.inflight, engine.reached) == (2, True)
    for _ in range(2):
        first.release()
        assert (first.held, second.held, engine.inflight, house.told) == (False, True, 1, ["release"])


def test_a_probe_s_lease_says_once_that_it_ended() -> None:
    house = House("a")
    (engine,) = house.engines
    house.fail(engine, None, None)
    for outcome in ("left", "good", "bad", "left"):
        house.now = engine.breaker.until
        probe = house.lease()
        assert (probe.probe, house.backends.acquire("x")) == (True, None)
        if outcome == "good":
            house.backends.record_success(probe)
        elif outcome == "bad":
            house.backends.record_failure(probe, "again")
        probe.release()
        house.backends.record_success(probe)  # too late to say anything
        if outcome == "left":
            assert engine.breaker.state is State.HALF_OPEN
            again = house.lease()
            assert (again.probe, house.backends.acquire("x")) == (True, None), "one probe at a time"
            again.release()
        elif outcome == "good":
            house.fail(engine, None, None)
    assert engine.inflight == 0


# -- who is chosen ------------------------------------------------------------------------------------


def test_what_waits_for_a_model_has_its_name_only_where_an_engine_claims_it() -> None:
    house = House("ab")
    for _ in range(2):
        assert [house.backends.pool_of(model) for model in ("x", "made up", None)] == ["x", None, None]
        house.lease()


def test_a_model_s_requests_wait_for_its_own_engines() -> None:
    house = House("ab", room=1)
    house.engines[1].list_models([{"id": "y"}])
    assert house.lease().backend is house.engines[0]
    assert house.backends.acquire("x") is None


def test_another_engine_is_one_that_was_not_tried_and_none_where_all_were() -> None:
    house = House("ab")
    one, other = house.engines
    lease = house.backends.acquire_untried("x", frozenset({one}))
    assert lease is not None
    assert lease.backend is other
    assert house.backends.acquire_untried("x", frozenset({one, other})) is None


def test_an_engine_merges_where_one_of_its_models_is_vllm_s() -> None:
    house = House("a")
    (engine,) = house.engines
    merges = [engine.merges]
    engine.list_models([{"id": "a", "owned_by": "someone"}, {"id": "b", "owned_by": "vllm"}])
    merges.append(engine.merges)
    lease = house.lease(engine)
    for told in (house.backends.record_too_few_choices, house.backends.clear_too_few_choices):
        told(lease)
        merges.append(engine.merges)
    assert merges == [False, True, False, True]


class Folding:
    def __init__(self, folds: bool) -> None:
        self._folds = folds

    def folds(self, api_request: ApiRequest) -> bool:
        return self._folds and api_request is ASK


@pytest.mark.parametrize(
    ("a", "b", "name", "folds"),
    [
        (True, True, None, True),
        (True, False, None, False),
        (False, False, None, False),
        (True, False, "a", True),
        (True, False, "b", False),
        (True, True, "nobody", False),
    ],
)
def test_a_stream_folds_for_sure_where_it_does_at_every_engine_it_may_go_to(
    a: bool, b: bool, name: str | None, folds: bool
) -> None:
    house = House("abc")
    for engine, does in zip(house.engines, (a, b, True), strict=True):
        engine.abilities = cast(Abilities, Folding(does))
    house.engines[2].list_models([{"id": "other"}])
    for _ in range(2):
        assert house.backends.folds(ASK, name) is folds
        house.lease().release()  # now it is known who may answer
    assert not Backends([]).folds(ASK, None)


# -- breakers and engines that are away ---------------------------------------------------------------


def test_while_one_is_probed_and_the_others_are_open_it_is_worth_a_wait() -> None:
    house = House("ab")
    one, other = house.engines
    house.fail(one, None, None)
    house.now = 1.0
    house.fail(other, None, None)
    house.now = 4.0
    assert house.lease().backend is one
    assert house.backends.acquire("x") is None
    house.now = 4.5
    with pytest.raises(GatewayError) as caught:
        house.backends.acquire("x", exclude=frozenset({one}))
    assert caught.value.retry_after == 1


def refuses(house: House, engine: Backend) -> None:
    engine.missed = 1
    house.backends.record_unreachable(engine, "refused")


@pytest.mark.parametrize(
    ("change", "tried"),
    [
        ({}, True),
        ({"missed": 0}, False),  # it was only seen down: it may be silent
        ({"up": None}, False),
        ({"inflight": 1}, False),  # somebody tries it
        ({"models": [{"id": "y"}]}, False),  # it has another model
    ],
)
def test_where_no_other_takes_a_request_one_that_is_down_may_just_have_come_back(
    change: dict[str, Any], tried: bool
) -> None:
    house = House("ab")
    down, tripped = house.engines
    refuses(house, down)
    for name, value in change.items():
        if name == "models":
            down.list_models(value)
        else:
            setattr(down, name, value)
    house.fail(tripped, None, None)
    if not tried:
        with pytest.raises(GatewayError):
            house.backends.acquire("x")
        return
    assert house.lease().backend is down
    with pytest.raises(GatewayError):
        house.backends.acquire("x")  # one tries, no more


def test_one_that_is_down_is_not_tried_again_by_who_has_tried_it_or_while_its_breaker_is_open() -> None:
    house = House("ab")
    down, tripped = house.engines
    refuses(house, down)
    house.fail(tripped, None, None)
    with pytest.raises(GatewayError):
        house.backends.acquire("x", exclude=frozenset({down}))
    house.fail(down, None, None)
    with pytest.raises(GatewayError):
        house.backends.acquire("x")


def test_any_engine_that_is_down_may_be_tried_for_a_model_that_nobody_claims() -> None:
    house = House("abc")
    down, *tripped = house.engines
    refuses(house, down)
    for engine in tripped:
        house.fail(engine, None, None)
    for model in ("made up", None):
        lease = house.backends.acquire(model)
        assert lease is not None
        assert lease.backend is down
        lease.release()


def test_only_one_caller_s_failures_make_it_suspect_and_that_is_told() -> None:
    house = House("a")
    lease = house.lease()
    house.backends.record_failure(lease, "it broke", "who")
    assert house.heard() == []
    house.backends.record_failure(lease, "it broke", "who")
    assert house.heard() == ["suspect a"]
    house.backends.record_failure(lease, "it broke", "another")
    assert house.heard() == ["breaker a: it broke"]


@pytest.mark.parametrize(
    ("state", "good", "told"),
    [
        (State.CLOSED, True, ["release"]),
        (State.CLOSED, None, ["release"]),
        (State.CLOSED, False, ["breaker a: opened by a check of our own: why", "release"]),
        (State.HALF_OPEN, True, ["breaker a: closed", "release"]),
        (State.HALF_OPEN, None, ["release"]),
        (State.HALF_OPEN, False, ["breaker a: opened by a check of our own: why", "release"]),
    ],
)
def test_what_a_check_decides_is_told_and_who_waits_is_looked_at_once(
    state: State, good: bool | None, told: list[str]
) -> None:
    for leaving in (False, True):
        house = House("a")
        (engine,) = house.engines
        if state is State.HALF_OPEN:
            house.fail(engine, None, None)
            house.now = 4.0
            house.backends.record_failure(house.lease(), "it broke", "who")
        else:
            house.fail(engine, "who", "who")
        assert (engine.breaker.suspect, engine.breaker.state) == (True, state)
        house.heard()
        engine.leaving = leaving
        house.backends.checked(engine, good, "why")
        assert house.heard() == ([] if leaving else told)
        if not leaving:
            assert (engine in house.backends._tripped) is (engine.breaker.state is not State.CLOSED)


def test_nothing_is_told_of_an_engine_that_is_leaving() -> None:
    house = House("ab")
    engine = house.engines[0]
    lease = house.lease(engine)
    house.backends.change([], [engine])
    for who in ("a", "a", "a", "b"):
        house.backends.record_failure(lease, "it broke", who)
    assert engine.breaker.state is State.OPEN
    assert (house.heard(), house.backends._tripped) == ([], set())
    lease.release()
    assert (house.heard(), pool(engine).calls) == (["left a", "release"], ["close"])


def test_places_that_nobody_holds_are_taken_back_and_an_engine_that_leaves_may_go_then() -> None:
    house = House("ab")
    engine, other = house.engines
    held = house.lease(engine)
    engine.inflight += 2
    other.inflight = 1
    stray, another = stray_places(house.backends, [held, house.lease(other), *_released(house, engine)])
    assert [stray[:2], another[:2]] == [("place", "a"), ("place", "b")]
    house.heard()
    stray.heal()
    assert (engine.inflight, house.heard()) == (1, ["release"])
    assert [found.what for found in stray_places(house.backends, [held])] == ["b"]
    house.backends.change([], [engine])
    house.backends.reclaim(engine, 5)
    assert (engine.inflight, house.heard()) == (0, ["left a", "release"])


def _released(house: House, engine: Backend) -> list[Lease]:
    lease = house.lease(engine)
    lease.release()
    return [lease]


# -- looks --------------------------------------------------------------------------------------------


@virtual
async def test_an_engine_that_comes_back_may_be_another_one_and_who_waits_is_looked_at() -> None:
    house = House("a")
    (engine,) = house.engines
    await house.health_checks.check()
    assert (house.heard(), engine.abilities.epoch) == ([], 0)
    house.backends.record_unreachable(engine, "gone")
    assert house.heard() == ["change a"]
    await house.health_checks.check()
    assert (house.heard(), engine.abilities.epoch) == (["change a", "release"], 1)
    engine.up = None
    await house.health_checks.check()
    assert (house.heard(), engine.abilities.epoch) == (["change a"], 1)
    assert pool(engine).asked == [("/health", True), ("/v1/models", False)] * 3


@virtual
async def test_looks_without_a_listener_are_counted_in_succession_and_old_connections_closed() -> None:
    house = House("a")
    (engine,) = house.engines
    pool(engine).health = REFUSED
    for looks in range(1, GONE_LOOKS + 2):
        await house.health_checks.check()
        assert engine.missed == looks
        assert ("gone a" in house.heard()) is (looks >= GONE_LOOKS)
    assert pool(engine).calls == ["drop_idle"] * 2
    pool(engine).health = None
    await house.health_checks.check()
    assert (engine.missed, house.heard()) == (0, [])
    pool(engine).health = REFUSED
    house.backends.change([], [engine])
    await house.health_checks.check([engine])
    assert engine.missed == 0


@virtual
async def test_looks_without_an_answer_are_counted_in_succession() -> None:
    house = House("a", timeout=2.0)
    (engine,) = house.engines
    for looks in range(1, SILENT_LOOKS + 2):
        pool(engine).health = None
        await house.health_checks.check()
        assert (engine.silent, engine.detail) == (looks, "no answer to /health in 2 s")
        assert ("silent a" in house.heard()) is (looks >= SILENT_LOOKS)
    pool(engine).health = 200
    await house.health_checks.check()
    assert engine.silent == 0
    assert "silent a" not in house.heard()


class Broken(Engine):
    """What no look expects."""

    async def get(self, path: str, *, fresh: bool = False) -> tuple[int, bytes]:
        await super().get(path, fresh=fresh)
        raise ZeroDivisionError


@virtual
async def test_a_look_that_fails_in_itself_is_told_and_is_not_the_last_one() -> None:
    house = House("a")
    (engine,) = house.engines
    engine.pool = cast(Pool, Broken())
    engine.up = False
    loop = asyncio.get_running_loop()
    faults: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    task = asyncio.ensure_future(house.health_checks.run(30.0))
    await asyncio.sleep(6.5)  # a second before each look, and one more after a fault
    assert len(pool(engine).asked) == len(faults) == 3
    assert faults[0]["message"] == "a health check"
    assert isinstance(faults[0]["exception"], ZeroDivisionError)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "the watch waits for its tasks' end"


# -- what holds where nothing else is said ------------------------------------------------------------


def test_a_new_engine_is_not_known_to_be_anything() -> None:
    made = Backend("a", cast(Pool, Engine()), 1)
    assert (made.up, made.few, made.leaving, made.reached, made.report) == (None, False, False, False, None)
    assert (made.inflight, made.missed, made.silent, made.checked_at) == (0, 0, 0, -math.inf)


@virtual
async def test_a_look_has_five_seconds() -> None:
    house = House("a")
    (engine,) = house.engines
    pool(engine).health = None
    await house.health_checks.check()
    assert (engine.detail, asyncio.get_running_loop().time()) == ("no answer to /health in 5 s", 5.0)


def test_what_belongs_to_nothing_has_the_key_0() -> None:
    asked: list[int] = []

    class Noting(LeastOutstanding):
        def choose(self, targets: Any, key: int) -> Any:
            asked.append(key)
            return super().choose(targets, key)

    house = House("abc", router=Noting())
    house.backends.acquire("x")
    house.backends.acquire_untried("x", frozenset())
    house.fail(house.engines[0], None, None)
    lease = house.backends.acquire("x")
    assert lease is not None
    assert (asked, lease.probe) == ([0, 0, 0], False)


def test_checks_of_an_engine_that_could_not_say_are_not_silent() -> None:
    house = House("a")
    (engine,) = house.engines
    for _ in range(3):
        house.fail(engine, "who", "who")
        house.backends.checked(engine, None, "busy")
    states = [engine.breaker.state]
    for _ in range(2):
        house.fail(engine, "who", "who")
        house.backends.checked(engine, None, "silent", silent=True)
    assert [*states, engine.breaker.state] == [State.CLOSED, State.OPEN]
