"""The limits of engines that several gateways share through Redis: a timer renews this gateway's leases
(`leases.py`). No request waits for Redis."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from proxy.flights.queue import PoolQueue
from proxy.redis import Client, Deployment, Lost, ReplyError, WireError
from proxy.telemetry import PREFIX, Family, Log, raised
from proxy.workers.leases import LEASE, Call, Demand, EngineLease, Record, Reply

TICK: Final = 0.05
"""Seconds between two looks at what the requests want."""
_NUMBERS: Final = r"(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)"

# KEYS: the gateways at one engine. ARGV: this gateway, number of the call, places held, asked for, limit,
# requests in flight, wanted, lease in ms. The value of a gateway: end of its lease, number, places, limit, in
# flight, wanted, turn. The clock is Redis' own. Returns the places, the least limit, whether the gateway was
# known, its turn, and the others' records; -1 for a call that is older than the last one.
RENEW: Final = f"""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local number, held, asked, least = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local all, known, had, turn, taken, others = redis.call('HGETALL', KEYS[1]), 0, 0, 0, 0, {{}}
for i = 1, #all, 2 do
  local ends, n, places, limit, inflight, wanted, at = string.match(all[i + 1], '^{_NUMBERS}$')
  if not ends or tonumber(ends) <= now then redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] == ARGV[1] then
    if tonumber(n) >= number then return -1 end
    known, had, turn = 1, tonumber(places), tonumber(at)
  else
    taken, least = taken + tonumber(places), math.min(least, tonumber(limit))
    others[#others + 1] = {{all[i], tonumber(places), tonumber(inflight), tonumber(wanted), tonumber(at)}}
  end
end
local places = math.max(held, math.min(asked, least - taken))
if places > had then turn = now end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %.0f %.0f %s %s %s %.0f', now + tonumber(ARGV[8]), number,
           places, ARGV[5], ARGV[6], ARGV[7], turn))
redis.call('PEXPIRE', KEYS[1], ARGV[8])
return {{places, least, known, turn, others}}
"""
_SHA: Final = hashlib.sha1(RENEW.encode(), usedforsecurity=False).hexdigest()


class Engines(Protocol):
    """The engines as one gateway uses them: in this process, or in its workers."""

    def demands(self) -> Mapping[str, Demand]:
        """By the engine's name."""

    def bound(self, engine: str, ceiling: int) -> None:
        """This gateway may have so many requests there from now on."""

    def reached(self, engine: str) -> None:
        """The limit of all gateways is reached there."""


class Engine(Protocol):
    """An engine as this process uses it (`upstream.Backend`)."""

    @property
    def name(self) -> str: ...
    @property
    def inflight(self) -> int: ...
    @property
    def most(self) -> int: ...
    @property
    def leaving(self) -> bool: ...
    def allot(self, places: int) -> None: ...
    def mark_reached(self) -> None: ...


class OwnEngines:
    """The engines of a gateway that is one process."""

    def __init__(
        self,
        engines: Callable[[], Iterable[Engine]],
        *,
        queues: Callable[[], Sequence[PoolQueue]] = tuple,
        serving: Callable[[str | None], list[str]] = lambda pool: [],
        room: Callable[[], None] = lambda: None,
        fixed: bool = True,
    ) -> None:
        """`engines`: with those that are leaving; `queues`: the requests queued for an engine; `serving`: the
        engines of a pool; `room` is called when there may be an engine; `fixed`: the limits are not adapted."""
        self._engines = engines
        self._queues = queues
        self._serving = serving
        self._room = room
        self._fixed = fixed
        for engine in engines():
            engine.allot(0)

    def demands(self) -> dict[str, Demand]:
        queues = [(self._serving(queue.pool), queue.queued) for queue in self._queues()]
        return {
            engine.name: Demand.to_end(engine.inflight)
            if engine.leaving
            else Demand(
                engine.most,
                engine.inflight,
                sum(queued for names, queued in queues if engine.name in names),
                engine.inflight,
                self._fixed,
            )
            for engine in self._engines()
        }

    def bound(self, engine: str, ceiling: int) -> None:
        for each in self._engines():
            if each.name == engine:
                each.allot(ceiling)
        self._room()

    def reached(self, engine: str) -> None:
        for each in self._engines():
            if each.name == engine:
                each.mark_reached()


class SharedAdmission:
    """This gateway's leases at all engines, and the task that renews them."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        timeout: float,
        namespace: str,
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        """`timeout`: seconds for a reply of Redis; `namespace`: the prefix of keys."""
        self._engines: Engines = OwnEngines(tuple)
        self._client: Client = deployment.client(connect_timeout=timeout)
        self._timeout = timeout
        self._prefix = f"{namespace}:admission:"
        self._log = log
        self._clock = clock
        self._gateway = os.urandom(8).hex()
        self._leases: dict[str, EngineLease] = {}
        self._number = 0  # the highest of a call for an engine that was removed
        self._bound: dict[str, int] = {}
        self._differs: dict[str, int] = {}  # limits of other gateways that the log has
        self._away = False
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<SharedAdmission {self._gateway} {self._leases!r}>"

    @property
    def live(self) -> bool:
        """Whether Redis divides the limits: else each gateway has its share, or waits for the first answer."""
        return not self._away and all(lease.answered for lease in self._leases.values())

    @property
    def gateways(self) -> int:
        """Gateways that are known, this one included."""
        return max((lease.gateways for lease in self._leases.values()), default=1)

    def gauges(self) -> list[tuple[str, str, Callable[[], float]]]:
        """Name, description and value of its metrics."""
        return [
            ("admission_live", "1 while Redis divides the limits of engines among gateways.", lambda: self.live),
            ("admission_gateways", "Gateways known to share the engines.", lambda: self.gateways),
        ]

    def families(self) -> list[Family]:
        """The same, as a supervisor adds them to the metrics of its workers."""
        return [Family(PREFIX + name, doc, "gauge", [({}, float(value()))]) for name, doc, value in self.gauges()]

    async def start(self, engines: Engines) -> None:
        """Ask Redis for places at each engine, within its timeout, and from now on by a task."""
        self._engines = engines
        self._log.event("info", "admission shared", gateway=self._gateway)
        try:
            async with asyncio.timeout(2 * self._timeout):
                for _ in range(2):  # who else is there, and its own part
                    self.tick()
                    while any(lease.calling for lease in self._leases.values()):
                        self._changed.clear()
                        await self._changed.wait()
        except TimeoutError:
            pass  # the task goes on
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Give all places back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        keys = [self._key(name) for name in self._leases]
        calls = [self._client.call(b"HDEL", key, self._gateway, timeout=self._timeout) for key in keys]
        await asyncio.gather(*calls, return_exceptions=True)  # without Redis the leases end by themselves
        await self._client.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                self.tick()
            except Exception as e:  # noqa: BLE001 - else nothing would be renewed any more
                raised("the admission of all gateways", e)

    def tick(self) -> None:
        """Renew what is due."""
        now, demands = self._clock(), self._engines.demands()
        for name in self._leases.keys() - demands.keys():
            removed = self._leases.pop(name)  # its record in Redis ends by itself
            self._number = max(self._number, removed.number)  # until then Redis refuses lower numbers
            self._bound.pop(name, None)
            self._differs.pop(name, None)
        asked: dict[str, int] = {}
        bound = dict(self._bound)
        for name, demand in demands.items():
            lease = self._leases.get(name)
            if lease is None:
                lease = self._leases[name] = EngineLease(self._gateway, demand.limit, self._number)
            lease.look(now, demand)
            if lease.due(now, demand):
                asked[name] = lease.plan(now, demand)
            self._apply(name, lease)
        if self._bound != bound:
            demands = {**demands, **self._engines.demands()}  # what may be in use has changed
        for name, places in asked.items():
            lease = self._leases[name]
            self._send(name, lease, lease.call(now, places, demands[name]))
        self._tell(now)

    def _apply(self, name: str, lease: EngineLease) -> None:
        if self._bound.get(name) != lease.ceiling:
            self._bound[name] = lease.ceiling
            self._engines.bound(name, lease.ceiling)

    def _send(self, name: str, lease: EngineLease, call: Call) -> None:
        ms = int(LEASE * 1000)
        words = (self._key(name), self._gateway, call.number, call.held, call.asked)
        rest = (call.limit, call.inflight, call.wanted, ms)

        def answered(reply: Any) -> None:
            if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
                self._client.send((b"EVAL", RENEW, 1, *words, *rest), self._timeout, done)
            else:
                done(reply)

        done = partial(self._replied, name, lease, call)
        self._client.send((b"EVALSHA", _SHA, 1, *words, *rest), self._timeout, answered)

    def _replied(self, name: str, lease: EngineLease, call: Call, raw: Any) -> None:
        reply = read(raw)
        self._changed.set()
        if reply is None:
            self._trouble = str(raw if isinstance(raw, WireError) else Lost("its reply is not understood"))
            lease.failed()
            return
        now = self._clock()
        lease.replied(now, call, reply)
        if self._leases.get(name) is not lease:
            return  # the engine is gone
        self._apply(name, lease)
        if lease.full():
            self._engines.reached(name)
        if call.fixed and reply.limit < call.limit and self._differs.get(name) != reply.limit:
            self._differs[name] = reply.limit
            self._log.event(
                "warning", "engine limits differ", backend=name, max_inflight=call.limit, least=reply.limit
            )

    def _tell(self, now: float) -> None:
        """Say once that Redis is away, and once that it is back."""
        away = any(lease.away(now) for lease in self._leases.values())
        if away is not self._away:
            self._away = away
            if away:
                self._log.event("warning", "admission away", gateways=self.gateways, detail=self._trouble)
            else:
                self._log.event("info", "admission back", gateways=self.gateways)

    def _key(self, engine: str) -> str:
        return self._prefix + hashlib.blake2b(engine.encode(), digest_size=16).hexdigest()


def read(raw: Any) -> Reply | None:
    """The reply of the script; None: it is none."""
    try:
        places, limit, known, turn, rows = raw
        others = {name.decode(): Record(*numbers) for name, *numbers in rows}
        numbers = (places, limit, known, turn, *(number for row in rows for number in row[1:]))
    except (TypeError, ValueError, AttributeError):
        return None
    if not all(isinstance(number, int) for number in numbers):
        return None
    return Reply(places, limit, bool(known), turn, others)
