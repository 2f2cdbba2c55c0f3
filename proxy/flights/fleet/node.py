"""One gateway process among those that share flights: what it leads, follows and publishes.

It decides with `Following` and `Publication`, and does the I/O: scripts over one connection, an inbox over
another, one timer. The protocol: README.md beside this module."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from msgspec import structs

from proxy.errors import Code, GatewayError
from proxy.flights.exchange import ExchangeContext
from proxy.flights.fleet.following import INTEREST, KEPT, SILENCE, Following
from proxy.flights.fleet.messages import Message, State, StreamHead, leader_of, read_head, read_message
from proxy.flights.fleet.metrics import FleetMetrics
from proxy.flights.fleet.publication import MOST_LOG, MOST_LOGS, Publication
from proxy.flights.flight import Flight
from proxy.flights.group import FlightGroup
from proxy.flights.ingest import Callbacks, Ingest, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import Mode
from proxy.redis import (
    APPEND,
    DROP,
    EXTEND,
    FETCH,
    FLIGHT_SCRIPTS,
    LEAVE,
    LOOK,
    QUIT,
    RELEASE,
    Availability,
    Cache,
    Claim,
    Deployment,
    FlightScript,
    Lost,
    NodeAway,
    OnChange,
    ReplyError,
    WireError,
    Word,
    of_one_key,
)
from proxy.telemetry import Fault
from proxy.wire import DONE, unchunks

TICK: Final = 0.25  # seconds between two looks at what this node follows and publishes
BEAT: Final = 1.0  # seconds between two heartbeats, and two checks of the leaders'
LIFE: Final = 3.0  # seconds until a heartbeat that is not renewed lapses: the node counts as dead
SECONDS: Final = 1.0  # timeout of one script, at least; no client waits for it
UNBOUNDED: Final = 3600.0  # seconds that a claim lasts where an answer may take any time
MARGIN: Final = 60.0  # seconds that a claim lasts beyond the longest wait and the longest answer
MOST_OWED: Final = 4096  # claims that are released later; others expire
SLICE: Final = 4096  # frames of a stream that one turn of the loop writes: 12 ms
TRIES: Final = 3  # leaders that a flight follows in succession; then it is generated here, without a claim
_GONE: Final = "The stream is no longer kept, and its gateway was lost. Send the request again."
_AWAY: Final = "Redis, which keeps the stream, does not answer: try again."
_LOST: Final = "The gateway that generated this answer was lost before the answer was complete."
_ENDPOINTS: Final = ("chat", "completions")
_STREAM: Final = Mode.STREAM
_WHOLE: Final = Mode.WHOLE


class Host(Protocol):
    """What feeds flights otherwise: the scheduler."""

    def look_again(self, flight: Flight) -> None:
        """It is no longer followed, and nothing has come: look it up again."""

    def go_alone(self, flight: Flight) -> None:
        """It is not followed, and nothing has come: an engine is to answer it."""

    def followed(self, flight: Flight, error: GatewayError | None) -> None:
        """It is no longer followed. None: it has landed; else it has not, and must be ended or continued."""


class _Follower:
    """A flight here that another node feeds."""

    __slots__ = ("feeding", "flight", "following", "frames", "ingest", "named", "state")

    def __init__(self, flight: Flight, following: Following, *, named: bool = False) -> None:
        """`named`: a client asked for this very stream, so another generation cannot replace it."""
        self.flight, self.following, self.named = flight, following, named
        self.ingest: Ingest | None = None  # once the stream has begun
        self.frames: list[bytes] = []  # taken, and not written into the flight yet
        self.feeding = False  # a turn of the loop will write some of them
        self.state: State = "open"  # of the stream, once all of it is taken

    def begin(self, ingest: Ingest) -> Ingest:
        self.ingest = ingest
        return ingest


class Node:
    """This process in the fleet. `live`: claims are made with look-ups; else each flight is generated here."""

    def __init__(
        self,
        host: Host,
        *,
        cache: Cache,
        deployment: Deployment,
        group: FlightGroup,
        exchange_context: ExchangeContext,
        loop: asyncio.AbstractEventLoop,
        fault: Fault,
        timeout: float,
        longest_wait: float,
        folds: Callable[[Flight], bool] = lambda flight: True,
        on_change: OnChange = lambda trouble: None,
        on_foreign: Callable[[WireError], None] = lambda error: None,
        on_lost: Callable[[Flight, str], None] = lambda flight, leader: None,
        on_drop: Callable[[bytes], None] = lambda name: None,
        name: bytes = b"",
    ) -> None:
        """`timeout`: seconds for connecting, and for one script where they are more than SECONDS; `longest_wait`:
        seconds in the queue, inf for no limit; `folds`: as of the group; `on_foreign` is called for each key of
        the fleet that another program wrote, `on_lost` for each stream that is lost with its leader, `on_drop`
        with the hashed name of a stream to which its client will not come back. `name`: of this node."""
        self.name = name or os.urandom(8).hex().encode()
        self.live = False
        self.led = 0  # flights claimed, in all
        self._own = self.name + b"."
        self._count = 0
        self._host = host
        self._cache = cache
        self._keys = cache.flight_keys
        self._group = group
        self._context = exchange_context
        self._backends = exchange_context.backends
        self._loop = loop
        self._fault = fault
        self._folds = folds
        self._on_change = on_change
        self._on_foreign = on_foreign
        self._on_lost = on_lost
        self._on_drop = on_drop
        self.metrics = FleetMetrics(exchange_context.metrics.registry)
        self._seconds = max(SECONDS, timeout)
        self._link = deployment.client(connect_timeout=timeout)
        self._subscriber = deployment.subscriber(self._pushed, connect_timeout=timeout)
        self.availability = Availability(self._probe, self._changed)
        longest = exchange_context.timeouts.limits.total or math.inf
        claim = longest + longest_wait + MARGIN
        self._longest = claim if claim < math.inf else UNBOUNDED  # seconds that a claim lasts
        cache.claim_as(self.name, INTEREST, self._longest, self._failed)
        limits = exchange_context.timeouts.limits
        self._first_token = limits.first_token or math.inf
        # A leader continues a stream whose engine is silent, which takes longer than the limit between tokens. So
        # that limit does not apply to followers: they look whether the leader lives.
        of_leaders = structs.replace(limits, first_token=0, token=0)
        self._timeouts = Timeouts(of_leaders, loop, fault, exchange_context.timeouts.lost)
        self._inbox = self._keys.inbox + self.name
        self._beat_key = self._keys.node + self.name
        self._leads: dict[Flight, bytes] = {}  # its fence, from the claim to the end
        self._led: dict[bytes, Flight] = {}  # the same by fence
        self._asked: set[bytes] = set()  # fences of the look-up under way
        self._early: dict[bytes, Message] = {}  # followers that joined before its reply was here, by fence
        self._published: dict[bytes, Publication] = {}  # by fence
        self._followers: dict[Flight, _Follower] = {}
        self._by_fence: dict[bytes, list[_Follower]] = {}
        self._owed: dict[bytes, bytes] = {}  # claims to be released once Redis serves again, by fence
        self._unstored: set[bytes] = set()  # published, and their answers are not stored
        self._instead: dict[Flight, tuple[bytes, int]] = {}  # the last leader of a flight that is looked up again
        self._alive: dict[bytes, float] = {}  # leaders, and when each was last known to live
        self._dead: set[bytes] = set()  # leaders without a heartbeat
        self._timer: asyncio.TimerHandle | None = None
        self._beat_at = -math.inf
        self._stopped = False
        self._drained: asyncio.Future[None] | None = None  # while it stops: no ended flight is published any more

    def __repr__(self) -> str:
        state = "live" if self.live else "alone"
        return f"<Node {self.name.decode()} {state} leads={len(self._leads)} follows={len(self._followers)}>"

    def __contains__(self, flight: Flight) -> bool:
        """Whether another node feeds it."""
        return flight in self._followers

    @property
    def following(self) -> int:
        return len(self._followers)

    @property
    def publishing(self) -> int:
        return len(self._published)

    @property
    def _unpublished(self) -> bool:
        """Whether the last part of a flight is not in Redis yet."""
        return any(publication.flight.finished for publication in self._published.values())

    # -- start and end ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the fleet; where Redis does not serve, it is tried again in the background."""
        try:
            await self._probe()
        except WireError as e:
            # One master of a Cluster that is away opens no breaker, but only an open one is probed.
            self.availability.failed(Lost(str(e)) if isinstance(e, NodeAway) else e)
        self.availability.start()
        self._timer = self._loop.call_later(TICK, self._tick)

    async def stop(self) -> None:
        """Leave the fleet. Its flights have ended before, and what they had last goes to Redis within SECONDS."""
        self.live, self._stopped = False, True
        if self._timer is not None:
            self._timer.cancel()
        self._timeouts.close()
        for publication in list(self._published.values()):
            publication.look()
        if self._unpublished:
            self._drained = self._loop.create_future()
            await asyncio.wait((self._drained,), timeout=SECONDS)
        await self.availability.stop()
        try:
            # Behind the releases of the flights, which have been carried out with it.
            await self._link.call(b"DEL", self._beat_key, timeout=SECONDS)
        except WireError:
            pass  # claims expire
        await self._link.close()
        await self._subscriber.close()

    async def _probe(self) -> None:
        """Do what flights ask: the scripts, a claim and its release, the inbox, a heartbeat."""
        for script in FLIGHT_SCRIPTS:
            await self._link.call(b"SCRIPT", b"LOAD", script.text, timeout=self._seconds)
        claim = self._keys.claim(b"probe:" + self.name)
        interest, facts = self._keys.interest(claim), self._keys.facts(claim, b"0")
        words = (0, self.name, 1000, 1000, self._keys.inbox, 0, 0, 1, self._own + b"0", b"")
        try:
            held = await self._link.call(b"EVALSHA", LOOK.sha, 2, claim, interest, *words, timeout=self._seconds)
            if held != [self._own + b"0"]:
                raise Lost("it does not accept claims")
            release = (self._own + b"0", self._keys.inbox, b"")
            await self._link.call(
                b"EVALSHA", RELEASE.sha, 3, claim, interest, facts, *release, timeout=self._seconds
            )
        except NodeAway:
            pass  # the other masters of a Cluster accept claims
        await self._subscriber.call(b"SUBSCRIBE", self._inbox, timeout=self._seconds)
        self._beat()
        self.live = not self._stopped

    def _changed(self, trouble: WireError | None) -> None:
        self._on_change(trouble)

    def _failed(self, error: WireError) -> None:
        """Redis does not serve the fleet: until a probe succeeds each flight is generated here."""
        self.availability.failed(error)
        if self.availability.open:
            self.live = False

    # -- with look-ups ------------------------------------------------------------------------------

    def claims(self, batch: Sequence[Flight]) -> list[Claim | None]:
        """For each flight of a look-up what to claim; None: it is not shared between nodes."""
        claims: list[Claim | None] = []
        asked = self._asked = set()  # the look-up before has been answered: there is one at a time
        self._early.clear()
        for flight in batch:
            spec = flight.spec
            if spec.key is None or spec.api_request is None or spec.api_request.endpoint not in _ENDPOINTS:
                claims.append(None)
            elif spec.mode is _STREAM:
                self._count += 1
                fence = b"%b%d" % (self._own, self._count)
                asked.add(fence)
                instead = self._instead[flight][0] if flight in self._instead else b""
                claims.append((spec.key, 1 if flight.storable else 0, False, fence, instead))
            else:
                claims.append((spec.key, 0, True, b"", b"") if spec.fold else None)
        return claims

    def takes(self, flight: Flight, fence: bytes) -> bool:
        """A look-up found no answer, and this fence holds the claim. True: the flight follows its leader. False:
        an engine is to answer it; this node leads it where the fence is its own."""
        if fence.startswith(self._own):
            self.led += 1
            self._leads[flight] = fence
            self._led[fence] = flight
            self._asked.discard(fence)
            if fence in self._early:
                self._joined(self._early.pop(fence))
            return False
        return self._follow(flight, fence)

    def unwanted(self, flight: Flight, fence: bytes) -> None:
        """A look-up has claimed or joined for a flight that does not need it."""
        if fence.startswith(self._own):
            self._asked.discard(fence)
            self._release(self._claim_of(flight), fence)
        elif leader_of(fence) is not None:
            self._leave(self._claim_of(flight), fence)

    def landed(self, flight: Flight) -> bytes:
        """Its answer is complete. The fence of its claim, which the store of the answer or `release` ends; empty:
        this node does not lead it."""
        if self._instead:
            self._instead.pop(flight, None)
        fence = self._leads.pop(flight, b"")
        if fence:
            del self._led[fence]
        return fence

    def release(self, flight: Flight, fence: bytes) -> None:
        """The answer of a flight that has landed is not stored."""
        if fence in self._published:
            self._unstored.add(fence)  # its end is published first
        else:
            self._release(self._claim_of(flight), fence)

    def ended(self, flight: Flight) -> None:
        """It has failed, or its last reader has left: end its claim, or leave its leader."""
        self._instead.pop(flight, None)
        fence = self._leads.pop(flight, None)
        if fence is not None:
            self._led.pop(fence, None)
            if fence not in self._published:  # else its end is published first
                self._release(self._claim_of(flight), fence)
        follower = self._followers.get(flight)
        if follower is not None:
            self._close(follower)

    # -- leading ------------------------------------------------------------------------------------

    def _joined(self, message: Message) -> None:
        """Another node follows a flight of this one: publish it."""
        fence = message.fence
        if fence in self._published:
            return
        if fence in self._asked:
            self._early[fence] = message  # it has overtaken the reply to the claim
            return
        flight = self._led.get(fence)
        key = flight.spec.key if flight is not None else None
        if flight is None or key is None or self._group.find(key, stream=True) is not flight:
            self._release(message.claim, fence)  # it has ended, or can be joined no more
            return
        if self._full(flight):
            alone = b"alone %b %b" % (message.claim, fence)
            self._run(RELEASE, self._ending(message.claim, fence), (fence, self._keys.inbox, alone))
            return
        self._publish(flight, message.claim, fence, self._build, KEPT, named=False)

    def _full(self, flight: Flight) -> bool:
        """Whether Redis has no room for one more log."""
        return flight.size > MOST_LOG or sum(each.tail.size for each in self._published.values()) > MOST_LOGS

    def _publish(
        self,
        flight: Flight,
        claim: bytes,
        fence: bytes,
        build: Callable[[Flight], bytes | None],
        kept: float,
        *,
        named: bool,
    ) -> None:
        publication = Publication(
            flight,
            claim,
            fence,
            group=self._group,
            build=build,
            append=self._append,
            on_end=self._publication_ended,
            later=self._loop.call_soon,
            kept=kept,
            named=named,
        )
        self._published[fence] = publication
        self.metrics.count("published")
        publication.begin()

    def _build(self, flight: Flight) -> bytes | None:
        return self._backends.build_of(flight.backend, flight.spec.model, flight.times.dispatched)

    def _append(
        self, publication: Publication, words: tuple[bytes | int, ...], done: Callable[[Any], None]
    ) -> None:
        claim, fence = publication.claim, publication.fence
        keys = (self._keys.interest(claim), self._keys.log(claim, fence), self._keys.facts(claim, fence))
        self._run(APPEND, keys, (*words, MOST_LOG, _ms(publication.kept), self._keys.inbox), done)

    def _publication_ended(self, publication: Publication, complete: bool) -> None:
        fence, flight = publication.fence, publication.flight
        self._published.pop(fence, None)
        if self._drained is not None and not self._unpublished and not self._drained.done():
            self._drained.set_result(None)
        unled = not complete or flight.phase is not Phase.LANDED
        if unled and self._led.pop(fence, None) is not None:
            self._leads.pop(flight, None)
        if not complete or flight.error is not None or fence in self._unstored:
            self._unstored.discard(fence)
            self._release(publication.claim, fence)

    def _ask_to_quit(self, publication: Publication) -> None:
        """No client reads the flight here: cancel it, unless another node is interested."""

        def decided(reply: Any) -> None:
            if not isinstance(reply, WireError):
                publication.sure()
            elif publication.unsure(self._loop.time()) < SILENCE:
                return  # the next look asks again: other nodes may follow it
            if reply != 0 and publication.unread_here:
                publication.end(complete=True)

        self._run(
            QUIT, self._ending(publication.claim, publication.fence), (publication.fence, _ms(INTEREST)), decided
        )

    def _ending(self, claim: bytes, fence: bytes) -> tuple[bytes, ...]:
        """The keys of a script that ends a claim."""
        return claim, self._keys.interest(claim), self._keys.facts(claim, fence)

    def _release(self, claim: bytes, fence: bytes) -> None:
        """End a claim and tell its followers; again later where Redis does not do it now."""

        def done(reply: Any) -> None:
            if isinstance(reply, WireError) and not of_one_key(reply) and len(self._owed) < MOST_OWED:
                self._owed[fence] = claim

        words = (fence, self._keys.inbox, b"gone %b %b" % (claim, fence))
        self._run(RELEASE, self._ending(claim, fence), words, done)

    # -- following ----------------------------------------------------------------------------------

    def _follow(self, flight: Flight, fence: bytes) -> bool:
        leader = leader_of(fence)
        _, tries = self._instead.get(flight, (b"", 0))
        if leader is None:
            return False
        claim = self._claim_of(flight)
        api_request = flight.spec.api_request
        if tries >= TRIES or (
            flight.spec.mode is _WHOLE and (api_request is None or not self._backends.folds(api_request, None))
        ):
            self._instead.pop(flight, None)
            self._leave(claim, fence)
            return False
        self._instead[flight] = fence, tries + 1
        following = Following(claim, fence, leader, self._loop.time(), self._first_token)
        self._begin(_Follower(flight, following))
        return True

    def _begin(self, follower: _Follower) -> None:
        following = follower.following
        self._followers[follower.flight] = follower
        self._by_fence.setdefault(following.fence, []).append(follower)
        self.metrics.count("followed")
        self._fetch(follower)
        if self._loop.time() - self._alive.get(following.leader, -math.inf) > BEAT:
            self._check((following.leader,))

    def _fetch(self, follower: _Follower) -> None:
        """Ask Redis for what is missing, which renews the interest too."""
        following = follower.following
        if not following.asks(self._loop.time()):
            return
        claim, fence = following.claim, following.fence
        keys = (claim, self._keys.interest(claim), self._keys.log(claim, fence), self._keys.facts(claim, fence))
        join = b"join %b %b %b" % (claim, fence, self.name)
        words = (fence, self.name, following.tail.size, _ms(INTEREST), _ms(following.kept))
        inbox = self._keys.inbox + following.leader
        self._run(FETCH, keys, (*words, inbox, join), partial(self._fetched, follower))

    def _fetched(self, follower: _Follower, reply: Any) -> None:
        flight, following = follower.flight, follower.following
        if self._followers.get(flight) is not follower:
            return
        now = self._loop.time()
        dead = following.leader in self._dead
        if isinstance(reply, WireError) and of_one_key(reply):
            reply = []
        step = following.answered(reply, now, dead=dead)
        if step is not None:
            self._do(follower, step)
            return
        match reply:
            case [bytes(state), bytes(size), bytes(digest), head, bytes(data)] if size.isdigit():
                facts = (state, size, digest, head if isinstance(head, bytes) else b"")
            case _:
                self._do(follower, following.unreadable())
                return
        if int(size) < following.tail.size:
            return  # Redis has lost a part of it, or messages were faster
        line = b"more %b %b %d %b %b %b" % (
            following.claim, following.fence, int(size) - len(data), facts[2], facts[0], facts[3],
        )  # fmt: skip
        message = read_message(line + b"\n" + data)
        if message is None or not self._takes(follower, message):
            step = following.unreadable()
        else:
            step = following.read(message.state, now, dead=dead)
        if self._followers.get(flight) is follower:
            self._do(follower, step)

    def _takes(self, follower: _Follower, message: Message) -> bool:
        """Take a part of the stream, in a message or from the log. False: it does not continue what is here."""
        following = follower.following
        new = following.takes(message, self._loop.time())
        if new is None:
            return False
        if new and not self._begins(follower, message, new):
            return True
        if following.tail.size == message.offset + len(message.data):
            follower.state = message.state
        if not follower.feeding:
            self._feed(follower)
        return True

    def _feed(self, follower: _Follower) -> None:
        """Write what was taken into the flight, as an engine's answer: so many frames in one turn of the loop."""
        ingest, frames = follower.ingest, follower.frames
        follower.feeding = False
        if self._followers.get(follower.flight) is not follower:
            return
        if frames and ingest is not None:
            follower.following.feeds()
            follower.frames = frames[SLICE:]
            ingest.body(b"".join(frames[:SLICE]))
        if self._followers.get(follower.flight) is not follower:
            return
        if follower.frames:
            follower.feeding = True
            self._loop.call_soon(self._feed_on, follower)
        elif follower.state == "failed":
            self._do(follower, follower.following.fails())
        elif follower.state == "landed" and ingest is not None and not ingest.done:
            if ingest.error_frame:
                ingest.body(DONE)  # which the leader left out behind the error
            else:
                self._do(follower, "lost")

    def _feed_on(self, follower: _Follower) -> None:
        try:
            self._feed(follower)
        except Exception as e:  # noqa: BLE001 - the border of a callback, as of the inbox
            self._fault("a stream of the fleet", e)

    def _begins(self, follower: _Follower, message: Message, new: bytes) -> bool:
        """Take a part of the stream; the first one begins the answer. False: it is not followed now."""
        flight, ingest = follower.flight, follower.ingest
        try:
            frames = unchunks(new)
        except ValueError:
            self._do(follower, "lost" if follower.following.fed else "alone")
            return False
        if ingest is None:
            head = read_head(message.head)
            if head is None or not (follower.named or self._serves(flight, head)):
                self._do(follower, "alone")
                return False
            flight.follows_node(follower.following.leader.decode(), head.shape)
            callbacks = Callbacks(partial(self._ingested, follower))
            ingest = follower.begin(self._context.ingest(flight, self._timeouts, callbacks))
            ingest.head(200, head.headers)
            if flight.spec.mode is _WHOLE and not self._folds(flight):
                flight.unfold()
        follower.frames += frames
        return self._followers.get(flight) is follower

    def _serves(self, flight: Flight, head: StreamHead) -> bool:
        """Whether an engine of this node would answer the same."""
        try:
            build = bytes.fromhex(head.build)
        except ValueError:
            return False
        return self._backends.makes(flight.spec.model, build)

    def _ingested(self, follower: _Follower, error: GatewayError | None) -> None:
        """The stream has ended, or a limit has ended it."""
        if self._followers.get(follower.flight) is follower:
            self._instead.pop(follower.flight, None)
            self._close(follower)
            self._host.followed(follower.flight, error)

    def _do(self, follower: _Follower, step: str) -> None:
        flight, following = follower.flight, follower.following
        if step == "fetch":
            self._fetch(follower)
        if step in ("wait", "fetch"):
            return
        if step == "lost" and follower.frames and follower.ingest is not None:
            follower.state = "failed"  # readers get what was taken first
            if not follower.feeding:
                self._feed(follower)
            return
        if step == "lost" and flight.spec.mode is _WHOLE:
            flight.unfold()  # nothing has gone to its readers: they have an engine asked
            self.ended(flight)
            self.metrics.count("lost")
            self._host.followed(flight, GatewayError(Code.UPSTREAM_TRUNCATED, _LOST))
            return
        self._close(follower)
        if follower.named and step != "lost":
            self.metrics.count("lost")
            error = GatewayError(Code.STREAM_GONE, _GONE)
            if not self.live:
                error = GatewayError(Code.CACHE_UNAVAILABLE, _AWAY, retry_after=1)
            self._host.followed(flight, error)
        elif step == "look":
            self.metrics.count("taken_over" if following.leader in self._dead else "alone")
            self._host.look_again(flight)
        elif step == "alone":
            self._instead.pop(flight, None)
            self.metrics.count("alone")
            self._host.go_alone(flight)
        else:
            self._instead.pop(flight, None)
            self.metrics.count("lost")
            self._on_lost(flight, following.leader.decode())
            self._host.followed(flight, GatewayError(Code.UPSTREAM_TRUNCATED, _LOST))

    def _close(self, follower: _Follower) -> None:
        """Take nothing more, and tell the leader where no other flight here follows it."""
        following = follower.following
        del self._followers[follower.flight]
        others = self._by_fence[following.fence]
        others.remove(follower)
        if follower.ingest is not None and not follower.ingest.done:
            follower.ingest.close()
        if not others:
            del self._by_fence[following.fence]
            self._leave(following.claim, following.fence)

    def _leave(self, claim: bytes, fence: bytes) -> None:
        leader = leader_of(fence) or b""
        left = b"left %b %b %b" % (claim, fence, self.name)
        self._run(LEAVE, (self._keys.interest(claim),), (self.name, self._keys.inbox + leader, left))

    # -- streams that clients may come back to ------------------------------------------------------

    def publish(self, flight: Flight, seconds: float) -> tuple[bytes, bytes] | None:
        """Publish a flight from its start, under a claim of its own that no look-up finds, for so long from each
        append on. Returns claim and fence; None: it is not published."""
        if not self.live or self._full(flight):
            return None
        self._count += 1
        claim, fence = self._keys.claim(os.urandom(16)), b"%b%d" % (self._own, self._count)
        self._send((b"SET", claim, fence, b"PX", _ms(seconds)))
        self._publish(flight, claim, fence, lambda flight: b"", seconds, named=True)
        return claim, fence

    def publishes(self, fence: bytes) -> bool:
        """Whether appends go on under it."""
        return fence in self._published

    def follow(self, flight: Flight, claim: bytes, fence: bytes, seconds: float) -> bool:
        """Feed a new flight with a stream that `publish` published, here or elsewhere, and that lasts for so long
        from now on. False: it is no fence."""
        leader = leader_of(fence)
        if leader is None:
            return False
        now = self._loop.time()
        following = Following(claim, fence, leader, now, self._first_token, seconds)
        self._begin(_Follower(flight, following, named=True))
        return True

    def put(self, name: bytes, value: bytes, seconds: float) -> None:
        """Write where a stream is published, by its hashed name, for so long."""
        self._send((b"SET", self._keys.stream + name, value, b"PX", _ms(seconds)))

    async def get(self, name: bytes) -> bytes | None:
        """What `put` wrote. Raises GatewayError 503 where Redis does not say."""
        reply = await self._call((b"MGET", self._keys.stream + name))
        return reply[0] if isinstance(reply, list) and reply and isinstance(reply[0], bytes) else None

    def extend(self, name: bytes, claim: bytes, fence: bytes, seconds: float) -> None:
        """Redis keeps what `put` wrote, and the published stream, for so long from now on or longer."""
        publication = self._published.get(fence)
        if publication is not None:
            publication.keep(max(publication.kept, seconds))
        self._run(EXTEND, (self._keys.stream + name,), (_ms(seconds),))
        published = (claim, self._keys.log(claim, fence), self._keys.facts(claim, fence))
        self._run(EXTEND, published, (_ms(seconds),))

    def forget(self, name: bytes) -> None:
        """Delete what `put` wrote."""
        self._send((b"DEL", self._keys.stream + name))

    async def drop(self, claim: bytes, fence: bytes, name: bytes) -> None:
        """Delete what `put` wrote, and tell the leader and all that follow it that no client comes back. Raises
        GatewayError 503 where Redis does not do it."""
        words = (self._keys.inbox, leader_of(fence) or b"", b"drop %b %b %b" % (claim, fence, name))
        await self._call((b"DEL", self._keys.stream + name))
        await self._call((b"EVAL", DROP.text, 1, self._keys.interest(claim), *words))

    def owns(self, fence: bytes) -> bool:
        """Whether this node publishes under it."""
        return fence.startswith(self._own)

    def lapses(self, claim: bytes, fence: bytes, name: bytes, *, delete: bool) -> None:
        """No client here comes back to a stream that this node published: it is cancelled where no other node
        follows it. `delete`: its log goes too; else it lasts for its time, as clients elsewhere may come back."""

        def decided(reply: Any) -> None:
            publication = self._published.get(fence)
            if reply == 1 and publication is not None:
                publication.end(complete=False)
                self.forget(name)

        log = (self._keys.log(claim, fence),) if delete else ()
        self._run(QUIT, (*self._ending(claim, fence), *log), (fence, _ms(INTEREST)), decided)

    async def _call(self, command: tuple[Word, ...]) -> Any:
        """The reply to a command that a client waits for. Raises GatewayError 503."""
        if not self.live:
            raise GatewayError(Code.CACHE_UNAVAILABLE, _AWAY, retry_after=1)
        try:
            return await self._link.call(*command, timeout=self._seconds)
        except WireError as e:
            raise GatewayError(Code.CACHE_UNAVAILABLE, _AWAY, retry_after=1) from e

    # -- the inbox ----------------------------------------------------------------------------------

    def _pushed(self, push: list[Any]) -> None:
        """A push message of the subscription. What is no message of the fleet is dropped."""
        if len(push) != 3 or push[0] != b"message" or push[1] != self._inbox or self._stopped:
            return
        message = read_message(push[2])
        if message is None:
            return
        try:
            self._hears(message)
        except Exception as e:  # noqa: BLE001 - the border of the inbox: other flights' messages follow
            self._fault("a message of the fleet", e)

    def _hears(self, message: Message) -> None:
        if message.kind in ("join", "left"):
            if leader_of(message.fence) != self.name:
                return
            if message.kind == "join":
                self._joined(message)
            else:
                publication = self._published.get(message.fence)
                if publication is not None and publication.unread_here:
                    self._ask_to_quit(publication)
            return
        if message.kind == "drop":
            self._on_drop(message.name)
            return
        for follower in tuple(self._by_fence.get(message.fence, ())):
            following = follower.following
            if following.claim != message.claim:
                continue
            self._lives(following.leader)
            if message.kind == "more":
                if not self._takes(follower, message):
                    self._fetch(follower)
            elif message.kind == "gone":
                self._do(follower, following.ends(self._loop.time()))
            else:
                self._do(follower, "lost" if following.fed else "alone")

    # -- time ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        try:
            self.look(self._loop.time())
        except Exception as e:  # noqa: BLE001 - the timer's border: the next look may succeed
            self._fault("the fleet's timer", e)

    def look(self, now: float) -> None:
        """Look at everything that time decides."""
        away = not self.live or not self._cache.available
        if now - self._beat_at >= BEAT and not self.availability.open:
            self._beat_at = now
            self._beat()
            self._subscribe()
            leaders = {follower.following.leader for follower in self._followers.values()}
            self._alive = {leader: at for leader, at in self._alive.items() if leader in leaders}
            self._dead &= leaders
            if leaders:
                self._check(tuple(leaders))
        for follower in list(self._followers.values()):
            if follower.flight in self._followers:
                dead = follower.following.leader in self._dead
                self._do(follower, follower.following.tick(now, dead=dead, away=away))
        if self._owed and self.live:
            owed, self._owed = self._owed, {}
            for fence, claim in owed.items():
                self._release(claim, fence)
        for publication in list(self._published.values()):
            publication.look()
            if publication.unread_here and not publication.flight.ended:
                self._ask_to_quit(publication)

    def _beat(self) -> None:
        self._send((b"SET", self._beat_key, b"1", b"PX", _ms(LIFE)))

    def _subscribe(self) -> None:
        """Again each second: a connection that was lost is noticed and subscribed anew."""

        def done(reply: Any) -> None:
            if isinstance(reply, WireError) and not self._stopped:
                self._failed(reply)

        self._subscriber.send((b"SUBSCRIBE", self._inbox), self._seconds, done)

    def _check(self, leaders: tuple[bytes, ...]) -> None:
        """Ask Redis for the heartbeats of leaders."""

        def done(reply: Any) -> None:
            if type(reply) is not list or len(reply) != len(leaders):
                return
            for leader, beat in zip(leaders, reply, strict=True):
                if beat is None:
                    self._dead.add(leader)
                else:
                    self._lives(leader)

        self._send((b"MGET", *(self._keys.node + leader for leader in leaders)), done)

    def _lives(self, leader: bytes) -> None:
        self._alive[leader] = self._loop.time()
        self._dead.discard(leader)

    # -- Redis --------------------------------------------------------------------------------------

    def _claim_of(self, flight: Flight) -> bytes:
        return self._keys.claim(flight.spec.key or b"")

    def _run(
        self,
        script: FlightScript,
        keys: tuple[bytes, ...],
        words: tuple[Word, ...],
        done: Callable[[Any], None] = lambda reply: None,
    ) -> None:
        def answered(reply: Any) -> None:
            if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":  # a master that was a replica before
                self._send((b"EVAL", script.text, len(keys), *keys, *words), done)
            else:
                done(reply)

        self._send((b"EVALSHA", script.sha, len(keys), *keys, *words), answered)

    def _send(self, command: tuple[Word, ...], done: Callable[[Any], None] = lambda reply: None) -> None:
        """Send a command. A failure ends the use of Redis until a probe succeeds, unless it is of one key alone;
        `done` gets it too."""

        def answered(reply: Any) -> None:
            missing = isinstance(reply, ReplyError) and reply.code == "NOSCRIPT"
            if isinstance(reply, WireError) and of_one_key(reply):
                self._on_foreign(reply)
            elif isinstance(reply, WireError) and not (missing or isinstance(reply, NodeAway) or self._stopped):
                self._failed(reply)
            done(reply)

        if self.availability.open:
            done(self.availability.trouble or Lost("Redis is not used at present"))
        else:
            self._link.send(command, self._seconds, answered)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
