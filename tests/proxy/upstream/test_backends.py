"""The engines: who is chosen, who lives, and that every place is given back once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.upstream.backends import Backend, Backends, Lease
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.http.dial import ConnectionRefused
from proxy.upstream.http.pool import Pool
from tests.kit.clock import virtual
from tests.kit.engine import Engine


class Answers:
    """A pool that answers a poll as told."""

    def __init__(self, answer: tuple[int, bytes] | Exception | None, health: int = 200) -> None:
        self.answer = answer  # None: never
        self.health = health
        self.asked: list[tuple[float, str]] = []

    def drop_idle(self) -> None:
        pass

    async def get(self, path: str, *, fresh: bool = False) -> tuple[int, bytes]:
        self.asked.append((asyncio.get_running_loop().time(), path))
        assert path in ("/health", "/v1/models")
        if path == "/health" and isinstance(self.answer, tuple):
            return self.health, b""
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer


def backend(name: str, *models: str, up: bool | None = True, room: int = 2, answer: Any = None) -> Backend:
    pool = cast(Pool, Answers(answer))
    return Backend(name, pool, room, up=up, models=[{"id": model, "from": name} for model in models])


def names(backends: list[Backend]) -> str:
    return "".join(b.name for b in backends)


@pytest.mark.parametrize(
    ("engines", "model", "candidates"),
    [
        ([("a", "x", True), ("b", "y", True)], "x", "a"),
        ([("a", "x", True), ("b", "x", True)], "x", "ab"),
        ([("a", "x", True), ("b", "y", True)], "unknown", "ab"),
        ([("a", "x", True), ("b", "y", True)], None, "ab"),
        ([("a", "x", True), ("b", "x", False)], "x", "a"),
        ([("a", "x", False), ("b", "y", True)], "x", "a"),  # known, but down: tried all the same
        ([("a", "x", False), ("b", "y", True)], "unknown", "b"),
        ([("a", "x", False), ("b", "y", False)], "x", "a"),
        ([("a", "x", False), ("b", "y", False)], "unknown", "ab"),
        ([("a", "", None), ("b", "", None)], "x", "ab"),
        ([("a", "", None), ("b", "x", True)], None, "b"),
    ],
)
def test_who_may_answer_for_a_model(
    engines: list[tuple[str, str, bool | None]], model: str | None, candidates: str
) -> None:
    backends = Backends([backend(name, served, up=up) for name, served, up in engines])
    assert names(backends.candidates(model)) == candidates


def test_the_least_busy_is_chosen_and_none_when_all_are_full() -> None:
    one, two = backend("a", "x"), backend("b", "x")
    backends = Backends([one, two])
    leases = [backends.acquire("x") for _ in range(4)]
    assert [lease.backend.name for lease in leases if lease] == ["a", "b", "a", "b"]
    assert backends.acquire("x") is None
    assert leases[1] is not None
    leases[1].release()
    again = backends.acquire("x")
    assert again is not None
    assert again.backend is two


def test_who_is_excluded_is_not_chosen_and_with_none_left_that_is_an_error() -> None:
    one, two = backend("a", "x"), backend("b", "x")
    backends = Backends([one, two])
    lease = backends.acquire("x", exclude=frozenset({one}))
    assert lease is not None
    assert lease.backend is two
    with pytest.raises(GatewayError) as caught:
        backends.acquire("x", exclude=frozenset({one, two}))
    assert (caught.value.code, caught.value.retry_after) == (Code.NO_BACKEND, 1)
    with pytest.raises(GatewayError):
        Backends([]).acquire(None)


@given(ops=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_places_are_counted_right_however_often_they_are_given_back(ops: list[tuple[bool, int]]) -> None:
    engines = [backend("a", room=1), backend("b", room=3)]
    backends = Backends(engines)
    told: list[None] = []
    backends.subscribe(capacity_changed=lambda: told.append(None))
    leases: list[Lease] = []
    held: set[Lease] = set()
    released = 0
    for take, pick in ops:
        if take:
            lease = backends.acquire("any")
            assert (lease is None) == (len(held) == 4)
            if lease is not None:
                leases.append(lease)
                held.add(lease)
        elif leases:
            lease = leases[pick % len(leases)]
            released += lease in held
            held.discard(lease)
            lease.release()
        assert len(told) == released
        for engine in engines:
            assert engine.inflight == sum(lease.backend is engine for lease in held) <= engine.max_inflight


def test_the_models_are_the_union_of_what_the_living_serve() -> None:
    backends = Backends([backend("a", "x", "y"), backend("b", "y", "z"), backend("c", "w", up=False)])
    assert [(m["id"], m["from"]) for m in backends.models()] == [("x", "a"), ("y", "a"), ("z", "b")]


def test_it_is_ready_where_one_engine_lives_and_changes_are_told_once() -> None:
    one, two = backend("a"), backend("b")
    told: list[Backend] = []
    backends = Backends([one, two], on_change=told.append)
    for engine in (one, one, two):
        assert backends.ready
        backends.record_unreachable(engine, "why")
    assert not backends.ready
    assert told == [one, two]
    assert one.detail == "why"
    assert repr(backends) == "<Backends a=0/2! b=0/2!>"


@pytest.mark.parametrize(
    ("answer", "up", "served", "detail"),
    [
        ((200, b'{"data": [{"id": "n"}, {"id": 1}, "x", {}]}'), True, {"n"}, ""),
        ((200, b'{"data": null}'), True, set(), "/v1/models lists no model"),
        ((200, b'{"data": []}'), True, set(), "/v1/models lists no model"),
        ((404, b"no such thing"), True, {"old"}, "/v1/models answered 404: is this vLLM's address?"),
        ((401, b""), True, {"old"}, "/v1/models answered 401: it requires a key (backend_api_key)"),
        ((403, b""), True, {"old"}, "/v1/models answered 403: it requires a key (backend_api_key)"),
        ((503, b""), False, {"old"}, "503"),
        ((200, b"<html>"), False, {"old"}, "JSON is malformed"),
        ((200, b"[]"), False, {"old"}, "Expected `object`"),
        ((200, b'{"data": 1}'), True, set(), "/v1/models lists no model"),
        ((200, b'{"data": {"id": "n"}}'), True, set(), "/v1/models lists no model"),
        ((200, b'{"data": "\xff"}'), False, {"old"}, "Invalid UTF-8"),
        ((200, b'{"data": ' + b"[" * 100_000), False, {"old"}, "recursion"),
        (GatewayError(Code.UPSTREAM_UNREACHABLE, "gone"), False, {"old"}, "gone"),
        (None, False, {"old"}, "no answer to"),
    ],
)
def test_what_a_poll_says_of_an_engine(answer: Any, up: bool, served: set[str], detail: str) -> None:
    @virtual
    async def poll() -> None:
        engine, other = backend("a", "old", up=None, answer=answer), backend("b", answer=(200, b'{"data": []}'))
        await HealthChecks(Backends([engine, other])).check()
        assert (engine.up, engine.served) == (up, served)
        assert detail in engine.detail
        assert bool(detail) is bool(engine.detail)
        assert other.up is True

    poll()


def looks(engine: Backend) -> list[float]:
    """When its health was asked for."""
    return [at for at, path in cast(Answers, engine.pool).asked if path == "/health"]


@contextlib.asynccontextmanager
async def watched(backends: Backends, every: float) -> AsyncIterator[None]:
    task = asyncio.ensure_future(HealthChecks(backends).run(every))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@virtual
async def test_a_down_engine_is_asked_again_each_second_and_a_living_one_at_leisure() -> None:
    engine = backend("a", answer=(503, b""))
    async with watched(Backends([engine]), 30.0):
        await asyncio.sleep(32.5)
        cast(Answers, engine.pool).answer = (200, b"{}")
        await asyncio.sleep(60.0)
    assert looks(engine) == [30.0, 31.0, 32.0, 33.0, 63.0]


@virtual
async def test_an_engine_that_a_request_found_down_is_looked_at_within_a_second() -> None:
    engine = backend("a", answer=(200, b"{}"))
    backends = Backends([engine])
    async with watched(backends, 30.0):
        await asyncio.sleep(5.0)
        backends.record_unreachable(engine, "refused")
        await asyncio.sleep(2.0)
        assert (looks(engine), engine.up) == ([6.0], True)


@virtual
async def test_an_engine_that_is_frozen_delays_no_other_s_look() -> None:
    frozen, other = backend("a", up=False), backend("b", up=False, answer=(503, b""))
    async with watched(Backends([frozen, other]), 30.0):
        await asyncio.sleep(1.5)
        cast(Answers, other.pool).answer = (200, b"{}")
        await asyncio.sleep(0.6)
        assert (other.up, looks(other), looks(frozen)) == (True, [1.0, 2.0], [1.0])


@virtual
async def test_an_engine_that_is_added_is_watched_and_one_that_is_removed_is_not() -> None:
    one, two = backend("a", answer=(200, b"{}")), backend("b", up=False, answer=(200, b"{}"))
    backends = Backends([one])
    async with watched(backends, 3.0):
        await asyncio.sleep(1.0)
        cast(Answers, one.pool).close = lambda: None  # type: ignore[attr-defined]
        backends.change([two], [one])
        await asyncio.sleep(5.0)
        assert (two.up, looks(one), looks(two)) == (True, [], [2.0, 5.0])


REFUSED = ConnectionRefused(Code.UPSTREAM_UNREACHABLE, "refused")
SLOW = GatewayError(Code.UPSTREAM_CONNECT_TIMEOUT, "slow")


@pytest.mark.parametrize(("answer", "gone"), [(REFUSED, True), ((503, b""), False), (SLOW, False), (None, False)])
def test_an_engine_is_gone_only_where_two_looks_found_no_listener(answer: Any, gone: bool) -> None:
    @virtual
    async def run() -> None:
        engine = backend("a", answer=answer)
        backends = Backends([engine])
        told: list[Backend] = []
        backends.subscribe(capacity_changed=lambda: None, gone=told.append)
        await HealthChecks(backends).check()
        assert told == []
        await HealthChecks(backends).check()
        assert bool(told) is gone
        cast(Answers, engine.pool).answer = (200, b"{}")
        await HealthChecks(backends).check()
        assert engine.missed == 0

    run()


@virtual
async def test_a_server_that_says_twice_that_its_engine_is_broken_is_gone() -> None:
    engine = backend("a", answer=(200, b"{}"))
    cast(Answers, engine.pool).health = 503
    backends = Backends([engine])
    told: list[Backend] = []
    backends.subscribe(capacity_changed=lambda: None, gone=told.append)
    await HealthChecks(backends).check()
    await HealthChecks(backends).check()
    assert told == [engine]


@pytest.mark.parametrize(
    ("health", "models", "up"), [(499, 200, True), (500, 200, False), (200, 499, True), (200, 500, False)]
)
@virtual
async def test_an_answer_is_an_engine_s_failure_from_500_on(health: int, models: int, up: bool) -> None:
    engine = backend("a", answer=(models, b"{}"))
    cast(Answers, engine.pool).health = health
    await HealthChecks(Backends([engine])).check()
    assert engine.up is up


@pytest.mark.parametrize("code", [Code.LOCAL_RESOURCES, Code.INTERNAL])
@virtual
async def test_our_own_shortage_or_fault_says_nothing_of_an_engine(code: Code) -> None:
    ours = GatewayError(code, "ours")
    up, down = backend("a", answer=ours), backend("b", up=False, answer=ours)
    await HealthChecks(Backends([up, down])).check()
    assert (up.up, down.up) == (True, False)


@virtual
async def test_an_engine_whose_health_is_an_error_is_down_though_it_lists_models() -> None:
    engine = backend("a", "old", answer=(200, b'{"data": []}'))
    cast(Answers, engine.pool).health = 503
    await HealthChecks(Backends([engine])).check()
    assert (engine.up, engine.detail, engine.served) == (False, "/health: 503", {"old"})
    cast(Answers, engine.pool).health = 404  # it has none
    await HealthChecks(Backends([engine])).check()
    assert engine.up is True


async def test_an_engine_that_stops_and_comes_back_is_seen_to(engine: Engine) -> None:
    pool = Pool(engine.url, connect_timeout=5, loop=asyncio.get_running_loop())
    one = Backend(engine.url, pool, 1)
    backends = Backends([one])
    await HealthChecks(backends).check()
    assert (one.up, one.served) == (True, {"m1"})
    engine.stop_listening()
    await engine.drop_connections(reset=True)
    await HealthChecks(backends).check()
    assert one.up is False
    await engine.listen()
    await HealthChecks(backends).check()
    assert (one.up, one.detail) == (True, "")
    pool.close()


async def test_who_is_a_candidate_is_asked_anew_when_an_engine_changes() -> None:
    one, two = backend("one", "m1", up=True), backend("two", "m1", up=True)
    backends = Backends([one, two])
    first, second = backends.acquire("m1"), backends.acquire("m1")
    assert first is not None
    assert second is not None
    assert {first.backend, second.backend} == {one, two}
    backends.record_unreachable(one, "gone")
    third = backends.acquire("m1")
    assert third is not None
    assert third.backend is two


def test_models_that_clients_make_up_are_not_remembered() -> None:
    backends = Backends([backend("one", "m1", up=True)])
    for n in range(99):
        lease = backends.acquire(f"made-up-{n}")
        assert lease is not None
        lease.release()
    assert backends._chosen.keys() == {None, "m1"}


ENGINES = st.lists(
    st.tuples(st.sampled_from([True, False, None]), st.lists(st.sampled_from("xyz"), max_size=2)), max_size=3
)


@given(engines=ENGINES, downs=st.lists(st.integers(0, 2), max_size=3), excluded=st.sets(st.integers(0, 2)))
def test_what_is_remembered_chooses_as_asking_anew_would(
    engines: list[tuple[bool | None, list[str]]], downs: list[int], excluded: set[int]
) -> None:
    made = [backend(str(n), *models, up=up) for n, (up, models) in enumerate(engines)]
    backends = Backends(made)
    exclude = frozenset(made[n] for n in excluded if n < len(made))
    for down in [None, *downs]:
        if down is not None and down < len(made):
            backends.record_unreachable(made[down], "gone")
        for model in (None, "x", "y", "z", "made up"):
            left = [b for b in backends.candidates(model) if b not in exclude]
            free = [b for b in left if b.inflight < b.max_inflight]
            best = min(free, key=lambda b: b.inflight, default=None)
            try:
                lease = backends.acquire(model, exclude=exclude)
            except GatewayError:
                assert not left
                continue
            assert left
            assert (lease and lease.backend) is best


def test_an_engine_that_answers_too_few_choices_is_sent_none_together_until_it_has_been_away() -> None:
    one = backend("a", "x")
    one.list_models([{"id": "x", "owned_by": "vllm"}])
    engines = Backends([one])
    assert one.merges
    lease = engines.acquire("x")
    assert lease is not None
    engines.record_too_few_choices(lease)
    lease.release()
    engines._set(one, up=True)
    seen = [one.merges]
    engines.record_unreachable(one, "gone")
    engines._set(one, up=True)
    assert [*seen, one.merges] == [False, True]


async def test_an_engine_that_is_added_has_no_place_before_its_first_allotment_where_others_use_it_too() -> None:
    backends = Backends([backend("a", "x")])
    backends.divide()
    late = backend("b", "y")
    backends.change([late], [])
    assert backends.acquire("y") is None
    late.allot(1)
    lease = backends.acquire("y")
    assert lease is not None
    lease.release()


def test_engines_that_list_thousands_of_models_are_chosen_in_one_pass() -> None:
    """The ids are looked at once an engine, not once for each model of each other one."""

    class Counted(str):
        looked = 0

        def __hash__(self) -> int:
            Counted.looked += 1
            return super().__hash__()

    names = [Counted(f"m{n}") for n in range(2000)]
    engines = [backend(str(n), *names[n * 100 :]) for n in range(4)]
    engines[3].up = False
    backends = Backends(engines)
    Counted.looked = 0
    assert backends.pool_of("m1999") == "m1999"
    assert Counted.looked < 20 * sum(len(engine.served) for engine in engines)
    for model in ("m0", "m150", "m250", "m1999", "none", None):
        lease = backends.acquire(model)
        assert lease is not None
        assert lease.backend in backends.candidates(model)
        lease.release()


def test_a_check_that_finds_nothing_new_chooses_no_candidates_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend("a", "m")
    backends = Backends([engine])
    assert backends.pool_of("m") == "m"
    chosen = backends._chosen
    backends.record_models(engine, [{"id": "m", "max_model_len": 5}])
    backends.record_health(engine, down="")
    assert backends._chosen is chosen
    backends.record_models(engine, [{"id": "n"}])
    assert (backends.pool_of("m"), backends.pool_of("n")) == (None, "n")
