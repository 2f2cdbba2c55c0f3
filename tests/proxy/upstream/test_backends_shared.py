"""What processes tell each other of their engines: all follow the one that found it out, and one probes."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import GatewayError
from proxy.upstream.backends import Backend, Backends, News
from proxy.upstream.breaker import Breaker, BreakerRules, State

RULES = BreakerRules(failures=2, rate=0, span=1.0, longest=8.0)


class Process:
    """One process' engine, at a clock of all; it tells the others at once."""

    def __init__(self, all_: list[Process], clock: list[float], step: float) -> None:
        self.engine = Backend("http://e", Pool(), 4, breaker=Breaker(RULES, lambda: 0.0))  # type: ignore[arg-type]
        self.breakers: list[str] = []
        self.backends = Backends(
            [self.engine], clock=lambda: clock[0], on_breaker=lambda backend, why: self.breakers.append(why)
        )
        self.backends.record_health(self.engine, down="")
        self.turns = 0
        self.told: list[tuple[str, News, float, str]] = []
        self.backends.subscribe(capacity_changed=self.turn)
        self.backends.share(given_back=lambda: None, wanted=lambda: None, tell=self.tell, step=step)
        self.all = all_
        all_.append(self)

    def turn(self) -> None:
        self.turns += 1

    def tell(self, name: str, news: News, seconds: float, detail: str) -> None:
        self.told.append((name, news, seconds, detail))
        for other in self.all:
            if other is not self:
                other.backends.hear(name, news, seconds, detail)

    def fails(self) -> None:
        lease = self.backends.acquire(None)
        assert lease is not None
        self.backends.record_failure(lease, "broken")
        lease.release()


class Pool:
    def drop_idle(self) -> None:
        pass

    def close(self) -> None:
        pass


class World:
    def __init__(self) -> None:
        self.clock = [100.0]
        self.all: list[Process] = []
        self.a, self.b, self.c = (Process(self.all, self.clock, 0.25 * (1 + n)) for n in range(3))

    def opened(self) -> World:
        for _ in range(2):
            self.a.fails()
        return self


def test_an_engine_found_down_by_one_is_down_for_all_until_each_sees_it() -> None:
    world = World()
    world.a.backends.record_unreachable(world.a.engine, "refused")
    assert [process.engine.up for process in world.all] == [False] * 3
    assert world.b.engine.detail == "found by another worker: refused"
    assert world.b.engine.check_soon.is_set(), "its own check follows soon"
    assert (world.b.told, world.c.told) == ([], []), "what is heard is not told again"
    world.b.backends.record_health(world.b.engine, down="")
    world.a.backends.record_health(world.a.engine, down="still")
    assert [process.engine.up for process in world.all] == [False, True, False]


def test_a_breaker_opened_by_one_is_open_for_all_and_each_has_its_turn_to_probe() -> None:
    world = World().opened()
    assert [process.engine.breaker.state for process in world.all] == [State.OPEN] * 3
    assert [process.engine.breaker.until for process in world.all] == [101.0, 101.5, 101.75]
    assert [process.breakers for process in world.all] == [["broken"], [], []], "it is counted and logged once"
    for process in world.all:
        with pytest.raises(GatewayError):
            process.backends.acquire(None)


@pytest.mark.parametrize("good", [True, False])
def test_a_probe_is_one_s_and_its_outcome_is_all_s(good: bool) -> None:
    world = World().opened()
    world.clock[0] = 101.0
    probe = world.a.backends.acquire(None)
    assert probe is not None
    world.clock[0] = 102.0
    assert world.b.backends.acquire(None) is None, "it waits for the outcome"
    turns = world.b.turns
    if good:
        world.a.backends.record_success(probe)
        assert [process.engine.breaker.state for process in world.all] == [State.CLOSED] * 3
        assert world.c.backends.acquire(None) is not None
    else:
        world.a.backends.record_failure(probe, "still broken")
        assert [process.engine.breaker.until for process in world.all] == [104.0, 104.5, 104.75]
        with pytest.raises(GatewayError):
            world.c.backends.acquire(None)
    assert world.b.turns > turns, "what waited has a turn"


def test_one_without_requests_leaves_the_probe_to_the_next() -> None:
    world = World().opened()
    world.clock[0] = 101.5
    assert world.b.backends.acquire(None) is not None
    assert world.a.backends.acquire(None) is None
    assert world.c.backends.acquire(None) is None


def test_a_probe_without_an_outcome_is_another_s_next() -> None:
    world = World().opened()
    world.clock[0] = 102.0
    probe = world.b.backends.acquire(None)
    assert probe is not None
    probe.release()
    assert world.c.backends.acquire(None) is not None


def test_an_undecided_check_of_the_engine_leaves_the_probe_to_any() -> None:
    world = World().opened()
    world.clock[0] = 102.0
    probe = world.a.backends.acquire(None)
    assert probe is not None
    world.a.backends.record_failure(probe, "its prompt?", who="caller")
    assert world.c.backends.acquire(None) is None
    world.a.backends.checked(world.a.engine, None, "busy")
    assert world.c.backends.acquire(None) is not None


def test_where_nothing_is_told_any_more_each_goes_on_alone() -> None:
    world = World().opened()
    world.clock[0] = 101.0
    assert world.a.backends.acquire(None) is not None
    world.a.all = []
    world.clock[0] = 108.9
    assert world.b.backends.acquire(None) is None
    world.clock[0] = 109.0
    assert world.b.backends.acquire(None) is not None, "after the longest span"
    world.c.backends.hear("http://e", "open", 1e9, "")
    assert world.c.engine.breaker.until <= 109.0 + 16.0


def test_what_is_told_of_an_unknown_or_leaving_engine_is_nothing() -> None:
    world = World()
    world.b.backends.hear("http://other", "open", 1.0, "")
    world.b.backends.change([], [world.b.engine])
    world.b.backends.hear("http://e", "open", 1.0, "")
    assert world.b.engine.breaker.state is State.CLOSED
    kinds: list[Any] = ["probe", "idle", "closed"]
    for news in kinds:  # of a breaker that is closed here
        world.c.backends.hear("http://e", news, 0.0, "")
    assert world.c.backends.acquire(None) is not None
