"""Limits that all processes share in Redis: one atomic script a request (in a Cluster two, where a caller and all
callers have limits), permits with deadlines, a circuit breaker. Takes Claims and calls back with Decisions; it
raises nothing."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from proxy.access.ratelimit.buckets import UNBOUNDED, Claim, Decision, Kind, Levels, Limits, Whose
from proxy.redis import (
    Availability,
    Deployment,
    Lost,
    NodeAway,
    OnChange,
    ReplyError,
    SingleServer,
    WireError,
    Word,
    address,
)

LEASE: Final = 30.0
"""Seconds until a permit in Redis expires; it is renewed three times in them. The streams of a crashed process
count for so long."""
_MANY: Final = 1e6  # each bound of a probe
BATCH: Final = 256  # permits renewed by one script: others wait while it runs
_WHERE: Final[tuple[tuple[Whose, Kind], ...]] = (
    ("caller", "requests"), ("caller", "tokens"), ("caller", "streams"),
    ("global", "requests"), ("global", "tokens"), ("global", "streams"),
)  # fmt: skip

# The clock is Redis' own: gateways whose clocks differ would decide by the difference. Since Redis 5 a script's
# effects are replicated, so it may call TIME before it writes. Levels are units, not times, so a double holds them
# exactly; they are returned as text, as an integer reply would cut them. A level that no gateway can have written
# (no number, infinite) is 0: it would never leak.
_LEAK: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function number(text, otherwise)
  local n = tonumber(text)
  return n and n >= 0 and n <= 1e16 and n or otherwise
end
local function leaked(meter, rps, tps)
  local v = redis.call('HMGET', meter, 'r', 't', 'at')
  local past = math.max(0, now - number(v[3], now)) / 1000000
  return rps and math.max(0, number(v[1], 0) - rps * past) or 0,
         tps and math.max(0, number(v[2], 0) - tps * past) or 0
end
local function keep(meter, rps, tps, r, k)
  local ms = math.ceil(math.max(rps and r / rps or 0, tps and k / tps or 0) * 1000) + 1000
  redis.call('HSET', meter, 'r', string.format('%.6f', r), 't', string.format('%.6f', k),
             'at', string.format('%.0f', now))
  redis.call('PEXPIRE', meter, string.format('%.0f', math.min(ms, 1e12)))
end
"""


@dataclass(frozen=True, slots=True)
class Script:
    text: str = field(repr=False)

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


TAKE: Final = Script(
    _LEAK
    + """
local id, lease, tokens, requests = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[14])
local by, r, k, n, b = 0, {}, {}, {}, {}
for s = 1, 2 do
  local a = 5 * s - 2
  b[s] = {tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4]),
          tonumber(ARGV[a + 5])}
  local rps, burst, tps, size, most = b[s][1], b[s][2], b[s][3], b[s][4], b[s][5]
  r[s], k[s], n[s] = 0, 0, 0
  if rps or tps then r[s], k[s] = leaked(KEYS[2 * s - 1], rps, tps) end
  if most then
    redis.call('ZREMRANGEBYSCORE', KEYS[2 * s], '-inf', string.format('%.0f', now))
    n[s] = redis.call('ZCARD', KEYS[2 * s])
  end
  if by == 0 then
    if requests > 0 and rps and r[s] + 1 > burst + 0.000001 then by = 3 * s - 2
    elseif tps and tokens > 0 and k[s] + tokens > size + 0.000001 then by = 3 * s - 1
    elseif requests > 0 and most and n[s] >= most then by = 3 * s end
  end
end
if by == 0 then
  for s = 1, 2 do
    local rps, tps = b[s][1], b[s][3]
    if rps or tps then
      r[s], k[s] = rps and r[s] + requests or 0, tps and k[s] + tokens or 0
      keep(KEYS[2 * s - 1], rps, tps, r[s], k[s])
    end
    if requests > 0 and b[s][5] then
      redis.call('ZADD', KEYS[2 * s], string.format('%.0f', now + lease * 1000), id)
      redis.call('PEXPIRE', KEYS[2 * s], string.format('%.0f', lease))
      n[s] = n[s] + 1
    end
  end
end
return {by, string.format('%.6f', r[1]), string.format('%.6f', k[1]), n[1],
        string.format('%.6f', r[2]), string.format('%.6f', k[2]), n[2]}
"""
)

GIVE: Final = Script(
    _LEAK
    + """
local requests, tokens = tonumber(ARGV[2]), tonumber(ARGV[3])
for s = 1, 2 do
  local rps, tps = tonumber(ARGV[2 * s + 2]), tonumber(ARGV[2 * s + 3])
  if (rps and requests ~= 0) or (tps and tokens ~= 0) then
    local r, k = leaked(KEYS[2 * s - 1], rps, tps)
    keep(KEYS[2 * s - 1], rps, tps, rps and math.max(0, r + requests) or 0, tps and math.max(0, k + tokens) or 0)
  end
  if ARGV[1] ~= '' then redis.call('ZREM', KEYS[2 * s], ARGV[1]) end
end
return 1
"""
)

RENEW: Final = Script(
    """
local t = redis.call('TIME')
local until_ = string.format('%.0f', t[1] * 1000000 + t[2] + tonumber(ARGV[1]) * 1000)
for i = 2, #ARGV, 2 do redis.call('ZADD', KEYS[tonumber(ARGV[i])], until_, ARGV[i + 1]) end
for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
return 1
"""
)


class RedisLimits:
    """Decisions of Redis, bounded in time and without a task: the claims of one event-loop iteration go out in one
    write.

    Where Redis is away or refuses, nothing is sent until a probe succeeds. Nothing is sent twice, and a lost
    command may have run: its permit then expires, its charge leaks away.
    """

    def __init__(
        self,
        redis: str | Deployment,
        *,
        timeout: float,
        lease: float = LEASE,
        namespace: str = "gateway",
        on_change: OnChange = lambda trouble: None,
    ) -> None:
        """`redis`: the URL of one server, or a Deployment, which its owner starts."""
        deployment = SingleServer(address(redis)) if isinstance(redis, str) else redis
        self._deployment = deployment
        self._link = deployment.client(connect_timeout=timeout)
        self._sharded = deployment.sharded
        self._timeout = timeout
        self._lease = lease
        self._prefix = f"{namespace}:limit:"  # of every key
        self._on_change = on_change
        self.availability = Availability(self._try, self._changed)
        self._held: dict[str, Claim] = {}  # live permits, to be renewed
        self._renewal: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "open" if self.availability.open else "closed"
        return f"<RedisLimits {state} permits={len(self._held)} {self._link!r}>"

    @property
    def available(self) -> bool:
        return not self.availability.open

    @property
    def local(self) -> bool:
        """Whether some decisions, or all, are each process's own at present."""
        return self.availability.open or bool(self._deployment.troubles)

    async def start(self) -> None:
        """Check whether it answers, and renew permits from now on."""
        try:
            await self._try()
        except WireError as e:
            self.availability.failed(e)
        self.availability.start()
        self._renew_later()

    async def stop(self) -> None:
        await self.availability.stop()
        if self._renewal is not None:
            self._renewal.cancel()
        await self._link.close()

    # -- a request's claims -------------------------------------------------------------------------

    def acquire(self, claim: Claim, done: Callable[[Decision | None], None]) -> None:
        """Call `done` once with the decision, or with None where Redis does not decide; perhaps at once."""
        if self.availability.open:
            done(None)
            return

        if self._sharded and claim.own.any and claim.everyone.any:
            _InTwo(self, claim, done).begin()
        else:
            self.take(claim, done)

    def take(self, claim: Claim, done: Callable[[Decision | None], None]) -> None:
        """Charge a claim by one script."""

        def read(reply: Any) -> None:
            decision = _decision(reply)
            if decision is None:
                self.availability.failed(reply if isinstance(reply, WireError) else _invalid())
            done(decision)

        bounds = [*_numbers(claim.own), *_numbers(claim.everyone)]
        words = (claim.permit, _ms(self._lease), claim.tokens, *bounds, claim.requests)
        self._run(TAKE, self._keys(claim), words, read)

    def hold(self, claim: Claim) -> None:
        """Renew the permit from now on. One granted while Redis was away is reported to Redis."""
        if claim.own.streams is not None or claim.everyone.streams is not None:
            self._held[claim.permit] = claim

    def refund(self, claim: Claim, *, requests: int = 0, tokens: float = 0, stream: bool = False) -> None:
        """Correct a charge, and end the permit where `stream` is set. Returns before Redis answers."""
        permit = claim.permit if stream and self._held.pop(claim.permit, None) is not None else ""
        if self.availability.open or not (requests or tokens or permit):
            return
        for part in self._parts(claim):
            self.give(part, permit, requests, tokens)

    def give(self, claim: Claim, permit: str, requests: int, tokens: float) -> None:
        """Correct the charge of a claim by one script. `permit`: to end, or empty."""
        rates: list[Word] = []
        for bounds in (claim.own, claim.everyone):
            rates += [meter.rate if meter is not None else "" for meter in (bounds.requests, bounds.tokens)]
        self._run(GIVE, self._keys(claim), (permit, requests, tokens, *rates), self._settled)

    def _parts(self, claim: Claim) -> tuple[Claim, ...]:
        """The claim, in two where the keys of its caller and of all callers are at two masters."""
        if not self._sharded or not (claim.own.any and claim.everyone.any):
            return (claim,)
        return replace(claim, everyone=UNBOUNDED), replace(claim, own=UNBOUNDED)

    def _settled(self, reply: Any) -> None:
        if isinstance(reply, WireError):
            self.availability.failed(reply)

    def _run(self, script: Script, keys: list[str], words: tuple[Word, ...], done: Callable[[Any], None]) -> None:
        def answered(reply: Any) -> None:
            if (
                isinstance(reply, ReplyError) and reply.code == "NOSCRIPT"
            ):  # Redis was restarted, or its scripts flushed
                self._link.send(("EVAL", script.text, len(keys), *keys, *words), self._timeout, done)
            else:
                done(reply)

        self._link.send(("EVALSHA", script.sha, len(keys), *keys, *words), self._timeout, answered)

    # -- Redis away, and back -----------------------------------------------------------------------

    def _changed(self, trouble: WireError | None) -> None:
        self._on_change(trouble)
        if trouble is None:
            self._renew()  # it may have been restarted, or the permits may have expired

    def _renew_later(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = asyncio.get_running_loop().call_later(self._lease / 3, self._renew)

    async def _try(self) -> None:
        """Run the commands of requests: load the scripts, then take, renew and give back one permit, under
        separate keys. A script that must first be sent would run after commands that were sent later."""
        for script in (TAKE, GIVE, RENEW):
            await self._link.call(b"SCRIPT", b"LOAD", script.text, timeout=self._timeout)
        prefix = f"{self._prefix}{'{probe}' if self._sharded else 'probe'}:"
        keys = [prefix + name for name in ("m", "s", "all:m", "all:s")]
        permit, lease = os.urandom(6).hex(), _ms(self._lease)
        try:
            if _decision(await self._eval(TAKE, keys, permit, lease, 1, *[_MANY] * 10, 1)) is None:
                raise _invalid()
            await self._eval(RENEW, keys[1::2], lease, 1, permit, 2, permit)
            await self._eval(GIVE, keys, permit, -1, -1, *[_MANY] * 4)
        except NodeAway:
            return  # the other masters of a Cluster decide

    async def _eval(self, script: Script, keys: list[str], *words: Word) -> Any:
        return await self._link.call("EVALSHA", script.sha, len(keys), *keys, *words, timeout=self._timeout)

    def _renew(self) -> None:
        """Renew the live permits, unless Redis is away, and again after a third of the lease."""
        self._renew_later()
        if self.availability.open:
            return
        permits: list[tuple[str, str]] = []
        for claim in self._held.values():
            _, own, _, everyone = self._names(claim)
            permits += [(own, claim.permit)] if claim.own.streams is not None else []
            permits += [(everyone, claim.permit)] if claim.everyone.streams is not None else []
        if not self._sharded:
            self._renew_together(permits)
            return
        slots: dict[str, list[tuple[str, str]]] = {}
        for permit in permits:
            slots.setdefault(permit[0], []).append(permit)
        for together in slots.values():
            self._renew_together(together)

    def _renew_together(self, permits: list[tuple[str, str]]) -> None:
        """Renew permits, each with its key, by scripts of BATCH."""
        for start in range(0, len(permits), BATCH):
            keys: dict[str, int] = {}
            words: list[Word] = [_ms(self._lease)]
            for key, permit in permits[start : start + BATCH]:
                words += [keys.setdefault(key, len(keys) + 1), permit]
            self._run(RENEW, list(keys), tuple(words), self._settled)

    def _keys(self, claim: Claim) -> list[str]:
        """The keys of a script: the meters and the streams of the caller, then those of all callers. In a Cluster
        a script is about one of both, and gets its keys twice: a side without limits touches none."""
        names = self._names(claim)
        if not self._sharded:
            return names
        return (names[:2] if claim.own.any else names[2:]) * 2

    def _names(self, claim: Claim) -> list[str]:
        """In a Cluster the braces keep what belongs together in one slot, and spread callers over the masters."""
        prefix, caller = self._prefix, claim.caller
        if not self._sharded:
            return [f"{prefix}m:{caller}", f"{prefix}s:{caller}", f"{prefix}all:m", f"{prefix}all:s"]
        tag = f"{{{hashlib.blake2b(caller.encode(), digest_size=16).hexdigest()}}}"
        return [f"{prefix}m:{tag}", f"{prefix}s:{tag}", f"{prefix}{{all}}:m", f"{prefix}{{all}}:s"]


class _InTwo:
    """A claim in a Cluster, where the limits of a caller and those of all callers are at two masters: first the
    caller's, then all callers'. Where the second refuses or does not decide, the first is refunded."""

    __slots__ = ("_all", "_claim", "_done", "_limits", "_own", "_own_decision")

    def __init__(self, limits: RedisLimits, claim: Claim, done: Callable[[Decision | None], None]) -> None:
        self._limits = limits
        self._claim = claim
        self._done = done
        self._own = replace(claim, everyone=UNBOUNDED)
        self._all = replace(claim, own=UNBOUNDED)
        self._own_decision: Decision | None = None

    def begin(self) -> None:
        self._limits.take(self._own, self._caller_decided)

    def _caller_decided(self, decision: Decision | None) -> None:
        self._own_decision = decision
        if decision is None or decision.over is not None:
            self._done(decision)
        else:
            self._limits.take(self._all, self._all_decided)

    def _all_decided(self, decision: Decision | None) -> None:
        own, claim = self._own_decision, self._claim
        assert own is not None  # it was granted
        levels = own.own
        if decision is None or decision.over is not None:
            permit = claim.permit if claim.requests and claim.own.streams is not None else ""
            self._limits.give(self._own, permit, -claim.requests, -claim.tokens)
            levels = Levels(
                max(0.0, levels.requests - claim.requests * (claim.own.requests is not None)),
                max(0.0, levels.tokens - claim.tokens * (claim.own.tokens is not None)),
                levels.streams - bool(permit),
            )
        self._done(None if decision is None else Decision(decision.over, levels, decision.everyone))


def _numbers(bounds: Limits) -> tuple[Word, ...]:
    """The arguments of the script; an empty text is no limit."""
    return (
        *(bounds.requests or ("", "")),
        *(bounds.tokens or ("", "")),
        "" if bounds.streams is None else bounds.streams,
    )


def _invalid() -> Lost:
    return Lost("an invalid reply to a limit script")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _decision(reply: Any) -> Decision | None:
    """The decision in a script's reply; None for any other reply."""
    try:
        by, r, k, n, all_r, all_k, all_n = reply
        levels = r, k, all_r, all_k = [float(level) for level in (r, k, all_r, all_k)]
        if not 0 <= by <= len(_WHERE) or not all(map(math.isfinite, levels)):
            return None
        return Decision(_WHERE[by - 1] if by else None, Levels(r, k, int(n)), Levels(all_r, all_k, int(all_n)))
    except (TypeError, ValueError):
        return None
