"""A fleet of gateways in virtual time, with a Redis that delays, loses, forgets and dies, and nodes that are
killed and frozen: no reader ever gets a wrong transcript, every stream ends, and no engine works for nobody.

`FLEET_EXAMPLES=2000 python -m pytest tests/proxy/flights/fleet/test_model.py -s` runs more, and shows counts."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from proxy.errors import GatewayError
from proxy.flights.continuing import Continuations
from proxy.flights.exchange import ExchangeContext
from proxy.flights.fleet import Node
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.ingest import Callbacks, Ingest, StreamLimits, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.flights.stored import replay, snapshot
from proxy.redis import Cache, Stored
from proxy.telemetry import Metrics
from proxy.wire import DONE, LAST_CHUNK, ApiRequest, decode, unchunks
from tests.kit.clock import VirtualLoop
from tests.kit.scripted_redis import ScriptedClient, ScriptedRedis

EXAMPLES = int(os.environ.get("FLEET_EXAMPLES", "40"))
TOKENS = 6
KEYS = [b"tag_" + bytes([65 + n]) * 32 for n in range(2)]
SSE = [("content-type", "text/event-stream")]
COUNTS: Counter[str] = Counter()


def api_request() -> ApiRequest:
    return decode("chat", b'{"model":"m1","stream":true,"messages":[{"role":"user","content":"x"}]}')


class Work:
    """One generation at an engine, whose frames name it."""

    def __init__(self, number: int, flight: Flight, ingest: Ingest) -> None:
        self.number, self.flight, self.ingest = number, flight, ingest
        self.sent = 0
        self.over = False

    def step(self) -> None:
        if self.sent == 0:
            self.ingest.head(200, SSE)
        finish = '"stop"' if self.sent == TOKENS - 1 else "null"
        choice = f'{{"index":0,"delta":{{"content":"{self.number}.{self.sent}"}},"finish_reason":{finish}}}'
        self.sent += 1
        self.ingest.body(b'data: {"choices":[%b]}\n\n' % choice.encode())
        if self.sent == TOKENS:
            self.ingest.body(DONE)


class Reader:
    """A client, as a pipe that takes everything."""

    def __init__(self) -> None:
        self.data = b""
        self.of: Subscriber | None = None

    def write(self, data: bytes | memoryview) -> bool:
        self.data += bytes(data)
        return True

    def judge(self) -> str:
        """`exact`, `error` or `open`; raises AssertionError for a transcript of no generation."""
        ended = self.data.endswith(LAST_CHUNK)
        frames = unchunks(self.data.removesuffix(LAST_CHUNK))
        if ended and frames and b'"error"' in frames[-1]:
            kind = "error"
            frames.pop()
        else:
            kind = "exact" if ended else "open"
        if kind == "exact" or (frames and frames[-1] == DONE):
            assert frames[-1] == DONE, self.data
            frames.pop()
            assert len(frames) == TOKENS, self.data
        told = [json.loads(frame[5:])["choices"][0]["delta"]["content"] for frame in frames]
        assert len({text.split(".")[0] for text in told}) < 2, self.data
        assert [int(text.split(".")[1]) for text in told] == list(range(len(told))), self.data
        return kind


class FrozenLoop:
    """A loop whose callbacks wait while its process is frozen, and end with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.frozen = self.dead = False
        self._held: list[Callable[[], None]] = []
        self.time = loop.time
        self.create_future = loop.create_future

    def _go(self, step: Callable[[], None]) -> None:
        if self.frozen:
            self._held.append(step)
        elif not self.dead:
            step()

    def call_later(self, seconds: float, step: Callable[[], None]) -> Any:
        return self._loop.call_later(seconds, self._go, step)

    def call_soon(self, step: Callable[[], None]) -> Any:
        return self._loop.call_soon(self._go, step)

    def thaw(self) -> None:
        self.frozen = False
        held, self._held = self._held, []
        for step in held:
            self._go(step)


class Place:
    """One gateway: a node, its flights, and an engine."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.loop = FrozenLoop(world.loop)
        self.group = FlightGroup()
        self.works: list[Work] = []
        self.cache = Cache(world.redis, timeout=1.0, ttl=600, max_entry=1 << 20, max_pending=1 << 20)
        self.timeouts = Timeouts(StreamLimits(total=120.0), world.loop)
        backends = SimpleNamespace(
            build_of=lambda *of: b"build", makes=lambda *of: True, folds=lambda *of: True, all=[]
        )
        context = ExchangeContext(
            backends=cast(Any, backends),
            timeouts=self.timeouts,
            metrics=Metrics(),
            later=world.loop.call_later,
            fault=world.fault,
            continuations=Continuations(world.loop.call_later, world.loop.time, keep_alive=0.0),
        )
        self.node = Node(
            self,
            cache=self.cache,
            deployment=world.redis,
            group=self.group,
            exchange_context=context,
            loop=cast(asyncio.AbstractEventLoop, self.loop),
            fault=world.fault,
            timeout=1.0,
            longest_wait=10.0,
            name=b"%016x" % number,
        )
        self._waiting: list[Flight] = []
        self._looking: list[Flight] = []
        for client in self.clients:
            client.gate = lambda: self.loop.frozen

    @property
    def clients(self) -> list[ScriptedClient]:
        of = (self.cache._lookups, self.cache._stores, self.node._link, self.node._subscriber)
        return cast(list[ScriptedClient], list(of))

    @property
    def up(self) -> bool:
        return not (self.loop.frozen or self.loop.dead)

    # -- a request, as the scheduler serves it ------------------------------------------------------

    def request(self, key: bytes) -> Reader:
        reader = Reader()
        flight = self.group.find(key, stream=True)
        if flight is None:
            spec = FlightSpec("POST", "/", b"", Mode.STREAM, "r", api_request=api_request(), model="m1", key=key)
            flight = self.group.launch(spec)
            flight.when_abandoned(self.cancel)
            reader.of = self.group.attach(flight, usage=True, whole=False)
            self.look_again(flight)
        else:
            reader.of = self.group.attach(flight, usage=True, whole=False, attached=True)
        reader.of.write_to(reader)
        return reader

    def look_again(self, flight: Flight) -> None:
        self._waiting.append(flight)
        self._look()

    def _look(self) -> None:
        if self._looking or not self._waiting:
            return
        if not self.node.live:
            waiting, self._waiting = self._waiting, []
            for flight in waiting:
                self.go_alone(flight)
            return
        batch = self._looking = self._waiting
        self._waiting = []
        keys = [flight.spec.key or b"" for flight in batch]
        self.cache.look(keys, partial(self._looked, batch), [b""] * len(batch), self.node.claims(batch))

    def _looked(self, batch: list[Flight], found: list[Stored | None], held: list[bytes] | None) -> None:
        self._looking = []
        for flight, stored, fence in zip(batch, found, held or [b""] * len(batch), strict=True):
            if flight.ended:
                if fence:
                    self.node.unwanted(flight, fence)
            elif stored is not None and replay(flight, stored):
                self.group.remove(flight)
            elif not (fence and self.node.takes(flight, fence)):
                self.go_alone(flight)
        self._look()

    def go_alone(self, flight: Flight) -> None:
        if flight.ended:
            return
        flight.enter(Phase.CONNECTING)
        flight.enter(Phase.PREFILL)
        ingest = Ingest(flight, self.timeouts, Callbacks(partial(self._generated, flight)))
        self.works.append(Work(self.world.next(), flight, ingest))

    def _generated(self, flight: Flight, error: GatewayError | None) -> None:
        self._end_work(flight)
        if error is not None:
            self.followed(flight, error)
            return
        fence = self.node.landed(flight)
        settled = partial(self.group.remove, flight)
        if not self.world.stores or not self.cache.store(
            flight.spec.key or b"", snapshot(flight, b"build"), settled, fence=fence
        ):
            self.group.remove(flight)
            if fence:
                self.node.release(flight, fence)

    def followed(self, flight: Flight, error: GatewayError | None) -> None:
        self.group.remove(flight)
        self.node.ended(flight)
        if error is not None and not flight.ended:
            flight.fail(error)

    def cancel(self, flight: Flight) -> None:
        self.group.remove(flight)
        flight.cancel()
        self.node.ended(flight)
        for work in self.works:
            if work.flight is flight and not work.over:
                work.ingest.close()
        self._end_work(flight)

    def _end_work(self, flight: Flight) -> None:
        for work in self.works:
            if work.flight is flight:
                work.over = True
        self.works = [work for work in self.works if not work.over]

    # -- faults -------------------------------------------------------------------------------------

    def kill(self) -> None:
        self.loop.dead = True
        for client in self.clients:
            client.dead = True

    def thaw(self) -> None:
        self.loop.thaw()
        for client in self.clients:
            client.drain_all()


class World(RuleBasedStateMachine):
    """The fleet. Rules act, and time passes between them."""

    @initialize(seed=st.integers(0, 2**32), nodes=st.integers(2, 4), stores=st.booleans())
    def begin(self, seed: int, nodes: int, stores: bool) -> None:
        self.loop = VirtualLoop()
        self.random = random.Random(seed)
        self.stores = stores
        self.slow = 0.01
        self._number = 0
        self.redis = ScriptedRedis(
            self.loop.time, lambda: self.random.uniform(0.0001, self.slow), self.loop.call_later
        )
        self.faults: list[BaseException] = []
        self.readers: list[tuple[Place, Reader]] = []
        self.places = [Place(self, n + 1) for n in range(nodes)]
        for place in self.places:
            self.loop.run_until_complete(place.node.start())

    def next(self) -> int:
        self._number += 1
        return self._number

    def fault(self, where: str, error: BaseException) -> None:
        self.faults.append(error)

    def passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        assert self.faults == []
        for place, reader in self.readers:
            if not place.loop.dead:
                reader.judge()

    @rule(at=st.integers(0, 3), key=st.sampled_from(KEYS), wait=st.sampled_from([0.0, 0.002, 0.05]))
    def asks(self, at: int, key: bytes, wait: float) -> None:
        place = self.places[at % len(self.places)]
        if place.up:
            self.readers.append((place, place.request(key)))
            COUNTS["requests"] += 1
        self.passes(wait)

    @rule(at=st.integers(0, 30), wait=st.sampled_from([0.0, 0.002, 0.05]))
    def leaves(self, at: int, wait: float) -> None:
        up = [
            reader for place, reader in self.readers if place.up and reader.of is not None and not reader.of.done
        ]
        if up:
            reader = up[at % len(up)]
            assert reader.of is not None
            reader.of.leave()
            COUNTS["left"] += 1
            self.readers = [(place, other) for place, other in self.readers if other is not reader]
        self.passes(wait)

    @rule(at=st.integers(0, 3), key=st.sampled_from(KEYS))
    def asks_twice(self, at: int, key: bytes) -> None:
        self.asks(at, key, 0.05)
        self.asks(at + 1, key, 0.05)

    @rule(at=st.integers(0, 30), steps=st.integers(1, 2))
    def generates_a_little(self, at: int, steps: int) -> None:
        self.generates(at, steps, 0.05)

    @rule(at=st.integers(0, 30), steps=st.integers(1, TOKENS), wait=st.sampled_from([0.0, 0.002, 0.05]))
    def generates(self, at: int, steps: int, wait: float) -> None:
        works = [work for place in self.places if place.up for work in place.works]
        if works:
            work = works[at % len(works)]
            for _ in range(steps):
                if not work.over:
                    work.step()
        self.passes(wait)

    @rule(
        what=st.sampled_from(["break", "freeze", "thaw", "thaw", "kill", "lose", "forget", "flush", "scripts",
                              "down", "up", "up", "slow", "fast"]),
        at=st.integers(0, 100),
    )  # fmt: skip
    def goes_wrong(self, what: str, at: int) -> None:
        place = self.places[at % len(self.places)]
        works = [work for place in self.places if place.up for work in place.works]
        keys = sorted(self.redis.keys)
        COUNTS[what] += 1
        if what == "break" and works:
            works[at % len(works)].ingest.end()
        elif what == "freeze" and place.up:
            place.loop.frozen = True
        elif what == "thaw" and place.loop.frozen:
            place.thaw()
        elif what == "kill" and place.up and sum(each.up for each in self.places) > 1:
            place.kill()
        elif what == "lose":
            self.redis.lossy = at % 5
        elif what == "forget" and keys:
            del self.redis.keys[keys[at % len(keys)]]
        elif what == "flush":
            self.redis.keys.clear()
        elif what == "scripts":
            self.redis.scripts.clear()
        elif what in ("down", "up"):
            self.redis.down = what == "down"
        elif what in ("slow", "fast"):
            self.slow = 0.3 if what == "slow" else 0.002
        self.passes(0.01)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.5, 4.0, 8.0]))
    def waits(self, seconds: float) -> None:
        self.passes(seconds)

    def teardown(self) -> None:
        if not hasattr(self, "places"):
            return
        try:
            self.redis.down, self.redis.lossy, self.slow = False, 0, 0.01
            for place in self.places:
                if place.loop.frozen:
                    place.thaw()
            for _ in range(12):  # engines go on, and what is lost is noticed
                self.passes(2.0)
                for place in self.places:
                    for work in list(place.works) if place.up else ():
                        while not work.over:
                            work.step()
            for place, reader in self.readers:
                if place.up:
                    kind = reader.judge()
                    COUNTS[kind] += 1
                    COUNTS["attached"] += reader.of is not None and bool(reader.of.flight.leader)
                    assert kind != "open", (reader.data, reader.of and reader.of.flight)
            live = [place for place in self.places if place.up]
            assert all(len(place.group) == 0 for place in live), [place.group.live for place in live]
            assert all(place.node.following == place.node.publishing == 0 for place in live)
            # With no reader anywhere no engine works.
            begun = [(place, place.request(KEYS[0])) for place in live for _ in range(2)]
            self.passes(2.0)
            for place in live:
                for work in place.works:
                    work.step()
            self.passes(2.0)
            for _, reader in begun:
                assert reader.of is not None
                if not reader.of.done:
                    reader.of.leave()
            self.passes(8.0)
            assert [work for place in live for work in place.works] == []
            COUNTS["examples"] += 1
        finally:
            for place in self.places:
                for client in place.clients:
                    client.dead = False
                place.loop.frozen = False
                for flight in tuple(place.group.live):  # of a node that was killed
                    place.group.remove(flight)
                self.loop.run_until_complete(place.node.stop())
                place.timeouts.close()
            self.loop.close()


TestFleet = World.TestCase
TestFleet.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    phases=[Stage.generate],
    suppress_health_check=list(HealthCheck),
)


def test_counts() -> None:
    """After the machine: what it has seen. Wrong transcripts end it."""
    print(dict(COUNTS))
