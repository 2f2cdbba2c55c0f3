"""The limiter, which decides here or in Redis, and the `Reservation`: what one request has been charged, until
it is settled."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Literal

from proxy.access.caller import Caller, Rates
from proxy.access.ratelimit.buckets import NO_RATES, UNBOUNDED, Claim, Decision, Limits, LocalLimits, limits_of
from proxy.access.ratelimit.headers import headers, rate_limit_error
from proxy.access.ratelimit.redis import RedisLimits
from proxy.flights import NO_COST, Cost, Flight, Subscriber, actual_cost, was_dispatched
from proxy.telemetry import internal

Followers = Literal["generation", "reader"]
"""Who pays for tokens: the request that started the generation, or every reader of it, cache hits too."""


class Limiter:
    """Decides here or in Redis. What Redis admits is charged here too, so that each process continues from its own
    charges where Redis fails."""

    def __init__(
        self,
        local: LocalLimits,
        shared: RedisLimits | None = None,
        *,
        default: Rates = NO_RATES,
        everyone: Limits = UNBOUNDED,
        followers: Followers = "generation",
        on_refused: Callable[[str], None] = lambda limit: None,
        on_fallback: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.local = local
        self.shared = shared
        self.followers = followers
        self.on_refused = on_refused
        self.on_fallback = on_fallback
        self.clock = clock
        self._default = default
        self._everyone = everyone
        self._process = os.urandom(6).hex()
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"<Limiter {self.local!r} {self.shared!r}>"

    def ask(self, caller: Caller, estimate: Callable[[], Cost], *, slots: int = 1) -> Reservation | None:
        """Reserve for one request; None where no limit applies to this caller. Close the Reservation in a
        `finally` that covers the waiting for its decision. `slots`: 0 where a lent permit is for it."""
        own, everyone = limits_of(caller.rates, self._default), self._everyone
        if not slots:
            own, everyone = own._replace(streams=None), everyone._replace(streams=None)
        if not own.any and not everyone.any:
            return None
        cost, tokens = _priced(own, everyone, estimate)
        claim = Claim(f"{self._process}:{next(self._numbers)}", caller.id, own, everyone, tokens, slots=slots)
        hold = Reservation(self, claim, cost)
        shared = self.shared
        try:
            if shared is None:
                hold.decided(self.local.acquire(claim, self.clock()))
            else:
                shared.acquire(claim, hold.answered)
        except Exception:
            hold.close()
            raise
        return hold


def _priced(own: Limits, everyone: Limits, estimate: Callable[[], Cost]) -> tuple[Cost, int]:
    """A request's estimated cost, and the tokens to charge; 0 where there is no limit of tokens."""
    sizes = [bounds.tokens.size for bounds in (own, everyone) if bounds.tokens is not None]
    if not sizes:
        return NO_COST, 0
    cost = estimate()
    # The estimated length of an answer must not make a request unservable.
    return cost, cost.prompt + min(cost.completion, max(0, int(min(sizes)) - cost.prompt))


class Reservation:
    """The charges of one request. The permit is returned when the request ends, unused tokens when the generation
    ends that it pays for, and everything where it got no answer and was sent to no engine."""

    __slots__ = (
        "_broken", "_charged", "_closed", "_cost", "_ended", "_in_redis", "_lent", "_limiter", "_paying",
        "_reached", "_reader", "_spent", "_waiter", "claim", "decision",
    )  # fmt: skip

    def __init__(self, limiter: Limiter, claim: Claim, cost: Cost) -> None:
        self.claim = claim
        self.decision: Decision | None = None
        self._limiter = limiter
        self._cost = cost
        self._charged = claim.tokens  # tokens
        self._spent = 0  # tokens known to be used
        self._paying: Flight | None = None  # the running Flight that it pays for
        self._reader: Subscriber | None = None  # its reader of a Flight that another request pays for
        self._reached = False  # it was answered, or sent to an engine
        self._in_redis = False  # the meters there are charged
        self._closed = False
        self._broken = False  # its decision raised
        self._lent = False  # its permit outlasts the request
        self._ended = False  # so does only that
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Reservation {self.claim.caller} {self.decision} closed={self._closed}>"

    # -- asking -------------------------------------------------------------------------------------

    async def allowed(self) -> None:
        """Wait for the decision. Raises GatewayError 429 or 503."""
        if self._broken:
            raise internal()
        if self.decision is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        assert self.decision is not None
        if self.decision.over is not None:
            whose, kind = self.decision.over
            self._limiter.on_refused(kind if whose == "caller" else "global")
            raise rate_limit_error(self.claim, self.decision)

    async def spends(self, estimate: Callable[[], Cost]) -> None:
        """Claim the tokens of a request that was admitted before they were known. Raises GatewayError 429 or 503;
        `close` returns its other charges."""
        limiter, claim = self._limiter, self.claim
        self._cost, tokens = _priced(claim.own, claim.everyone, estimate)
        if not tokens:
            return
        self.claim = claim = replace(claim, tokens=tokens, requests=0)
        self.decision = None
        if limiter.shared is None or not self._in_redis:
            self._spent_on(limiter.local.acquire(claim, limiter.clock()))
        else:
            limiter.shared.acquire(claim, self._spending)
        await self.allowed()

    def _spending(self, decision: Decision | None) -> None:
        """Redis' decision on the tokens; None: it did not decide."""
        limiter, claim = self._limiter, self.claim
        if decision is None:
            limiter.on_fallback()
            decision = limiter.local.acquire(claim, limiter.clock())
            self._in_redis = False  # these tokens are not refunded there
        elif decision.over is None:
            limiter.local.acquire(claim, limiter.clock(), force=True)
        self._spent_on(decision)

    def _spent_on(self, decision: Decision) -> None:
        self.decision = decision
        if decision.over is None:
            self._charged = self.claim.tokens
            if self._closed:  # the request has ended meanwhile: the rest was refunded then
                self._give(tokens=-self._charged)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def answered(self, decision: Decision | None) -> None:
        """Redis' decision; None: it did not decide. Where the request has ended meanwhile, it is refunded."""
        if self._broken:
            return
        try:
            self._settle(decision)
        except Exception:
            self._broken = True  # it may be charged: it is not charged again
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(internal())
            if self._closed:
                self._end()
            raise

    def _settle(self, decision: Decision | None) -> None:
        limiter, claim = self._limiter, self.claim
        if decision is None:
            limiter.on_fallback()
            decision = limiter.local.acquire(claim, limiter.clock())
        elif decision.over is None:
            self._in_redis = True
            limiter.local.acquire(claim, limiter.clock(), force=True)
        if decision.over is None and limiter.shared is not None:
            limiter.shared.hold(claim)
        self.decided(decision)

    def decided(self, decision: Decision) -> None:
        self.decision = decision
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._closed:
            self._end()

    def headers(self) -> list[tuple[str, str]]:
        """The rate-limit headers."""
        return headers(self.claim, self.decision) if self.decision is not None else []

    @property
    def limit(self) -> str | None:
        """The name of the limit that refused it, for the log."""
        if self.decision is None or self.decision.over is None:
            return None
        whose, kind = self.decision.over
        return kind if whose == "caller" else f"global.{kind}"

    # -- using --------------------------------------------------------------------------------------

    def joins(self, reader: Subscriber) -> None:
        """The request reads a Flight: its own, for which it pays even if it leaves, or one that another request
        pays for."""
        flight = reader.flight
        if not reader.attached:
            self._paying = flight
            flight.when_ended(self._flight_ended)
            return
        self._reader = reader
        if self._limiter.followers == "generation" and self._charged:
            charged, self._charged = self._charged, 0
            self._give(tokens=-charged)

    def _flight_ended(self, flight: Flight) -> None:
        self._paying = None
        flight.when_ended(None)
        hit = flight.stored_at is not None or bool(flight.leader)  # stored, or paid for at another gateway
        if not hit or self._limiter.followers == "reader":
            self._spent += actual_cost(flight, self._cost)
            if flight.items is not None and self._limiter.followers == "generation":
                self._spent -= flight.items.unpaid
        self._reached = self._reached or hit or was_dispatched(flight)
        if self._closed:
            self._give(tokens=self._spent - self._charged)

    # -- ending -------------------------------------------------------------------------------------

    def lend(self) -> Callable[[], None] | None:
        """Keep the permit beyond the request, until the result is called. None: it has none to lend."""
        if not self.claim.permitted or not self.claim.slots or self._lent:
            return None
        self._lent = True
        return self._returned

    def _returned(self) -> None:
        """The lent permit is needed no longer. Safe to call again."""
        if self._lent:
            self._lent = False
            if self._ended:
                self._give(stream=True)

    def close(self, *, answered: bool = False) -> None:
        """The request has ended. `answered`: successfully. May be called again."""
        self._closed = True
        self._reached = self._reached or answered
        if self.claim.permitted:
            self._end()

    def _end(self) -> None:
        if not self.claim.permitted or self._ended:
            return  # refused: nothing is charged
        self._ended = self._lent
        reader, used = self._reader, self._spent
        if reader is not None:
            self._reached = self._reached or was_dispatched(reader.flight) or reader.flight.stored_at is not None
            if self._limiter.followers == "reader":
                used += actual_cost(reader.flight, self._cost)
        own = self._paying
        if own is not None and not own.subscribers:  # never begun: a running one has a reader
            self._paying = None
            own.when_ended(None)
        paid = self._paying is None
        self._give(
            requests=0 if self._reached or not paid else -1,
            tokens=used - self._charged if paid else 0,
            stream=not self._lent,
        )

    def _give(self, *, requests: int = 0, tokens: int = 0, stream: bool = False) -> None:
        limiter, claim = self._limiter, self.claim
        if limiter.shared is not None:  # first: where this raises, a second call still finds the local permit
            if self._in_redis:
                limiter.shared.refund(claim, requests=requests, tokens=tokens, stream=stream)
            else:
                limiter.shared.refund(claim, stream=stream)
        limiter.local.refund(claim, limiter.clock(), requests=requests, tokens=tokens, stream=stream)
