"""The streams that clients may come back to: held by a reader that reads nothing, until their grace has passed."""

from __future__ import annotations

import asyncio
import math
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, Protocol

import msgspec

from proxy.errors import Code, GatewayError
from proxy.flights.fleet import MOST_LOGS, Node
from proxy.flights.flight import FREE, Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.resuming.ledger import MOST_READERS, Entry, Ledger
from proxy.flights.resuming.metrics import ResumingMetrics
from proxy.flights.resuming.position import Position, Seam, mark_of, walk
from proxy.flights.resuming.record import MOST_REQUEST, Record, Request, hashed, read_record
from proxy.flights.spec import FlightSpec, Mode, QueueState
from proxy.telemetry import contained, raised


class Feeds(Protocol):
    """What serves flights: the scheduler."""

    @property
    def fleet(self) -> Node | None: ...

    def follow(self, flight: Flight, claim: bytes, fence: bytes, seconds: float) -> bool:
        """Feed a new flight with a stream that a gateway of the fleet publishes, and that lasts for so long."""


ON_ITS_WAY: Final = 0.1
"""Seconds that the record of a stream may take to Redis: a client may come back faster than that."""

LOOK: Final = 1.0  # seconds between two looks at which streams to renew
RENEWED: Final = 5.0
"""Seconds between two renewals of a stream in Redis, while a client reads it or it is generated. No gateway
shortens its time, since clients of others may read it."""
SLACK: Final = 15.0
"""Seconds that Redis keeps a stream beyond its grace, so that it outlasts some renewals."""

Slot = Callable[[], None]
"""A permit of the rate limits for one request under way; the call returns it."""


class Stream(msgspec.Struct, eq=False):
    """A stream that is held."""

    entry: Entry
    flight: Flight
    holder: Subscriber  # keeps the flight and its log
    request: Request
    usage: bool
    numbered: bool
    follows: bool = False  # another gateway made its first frames
    seams: list[Seam] = msgspec.field(default_factory=list)
    place: tuple[bytes, bytes] | None = None  # claim and fence under which it is published
    recorded: int = 0  # bytes of its record in Redis, which this gateway wrote
    renewed: float = -math.inf  # when Redis was last told how long to keep it
    clients: set[Subscriber] = msgspec.field(default_factory=set)  # that read it now
    slot: Slot | None = None  # while its generation runs and nobody reads it

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def frames(self) -> list[bytes]:
        return self.flight.view(usage=self.usage)

    @property
    def abandoned(self) -> bool:
        """Its generation runs here, and nobody reads it."""
        return not (self.entry.readers or self.flight.ended or self.follows)

    def mark(self, frames: int) -> str:
        return mark_of(self.seams, frames)


class Streams:
    """One for a gateway."""

    def __init__(
        self,
        *,
        most: int,
        longest: float,
        group: FlightGroup,
        feeds: Feeds,
        metrics: ResumingMetrics,
        loop: asyncio.AbstractEventLoop,
        places: Callable[[str | None], int],
    ) -> None:
        """`most`: streams that are held at a time, half of them of one caller; `longest`: seconds of grace;
        `places`: how many requests the engines of a model take at a time."""
        self.longest = longest
        self._ledger = Ledger(most, max(1, most // 2))
        self._group = group
        self._feeds = feeds
        self._metrics = metrics
        self._loop = loop
        self._places = places
        self._streams: dict[Entry, Stream] = {}
        self._by_flight: dict[Flight, list[Stream]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer fires
        self._renewal: asyncio.TimerHandle | None = None  # while streams are held

    def __repr__(self) -> str:
        return f"<Streams {self._ledger!r}>"

    def __len__(self) -> int:
        return len(self._ledger)

    @property
    def size(self) -> int:
        """Bytes of their logs."""
        return sum(flight.size for flight in self._by_flight)

    @property
    def abandoned(self) -> int:
        """Streams that are generated here, and that nobody reads now."""
        return sum(stream.abandoned for stream in self._streams.values())

    @property
    def recorded(self) -> int:
        """Bytes of their records in Redis."""
        return sum(stream.recorded for stream in self._streams.values())

    def cut(self) -> None:
        """This gateway stops. A client whose stream other gateways can give is cut off without an error, which it
        would take for the end, and comes back to one of them."""
        fleet = self._feeds.fleet
        if fleet is None or not fleet.live:
            return
        for stream in self._streams.values():
            if stream.place is not None and not stream.flight.ended:
                for client in tuple(stream.clients):
                    client.cut()

    def close(self) -> None:
        """Drop all of them. Other gateways have what Redis has for the grace."""
        for stream in tuple(self._streams.values()):
            self._extend(stream)
            stream.place = None
            self._drop(stream)
        for timer in (self._timer, self._renewal):
            if timer is not None:
                timer.cancel()

    # -- holding ------------------------------------------------------------------------------------

    def hold(
        self,
        tenant: bytes,
        caller: Hashable,
        reader: Subscriber,
        grace: float,
        request: Request,
        *,
        numbered: bool,
        private: bool,
    ) -> Stream | None:
        """Hold the stream that a client is about to read. `caller`: whom it counts for. `private`: nothing of it
        goes to Redis. None: there are too many, or no memory is left."""
        model = reader.flight.spec.model
        alone = sum(
            stream.abandoned and stream.entry.caller == caller and stream.flight.spec.model == model
            for stream in self._streams.values()
        )
        if alone and alone >= self._places(model) // 2:
            self._metrics.count("refused")
            return None
        name = urlsafe_b64encode(os.urandom(24)).decode()
        stream = self._add(tenant, name, caller, grace, reader.flight, request, reader.usage, numbered)
        if stream is None:
            return None
        stream.holder.waits(reader.since)
        stream.clients.add(reader)
        self._metrics.count("held")
        if not private:
            self._publish(stream)
        return stream

    def leaves(self, stream: Stream, reader: Subscriber | None) -> None:
        """A client reads it no longer. One of which nothing has come is dropped if it has ended."""
        flight = stream.flight
        if reader is not None:
            stream.clients.discard(reader)
        read = reader is not None and reader.done and reader.sent > 0
        self._ledger.leaves(stream.entry, self._loop.time(), read=read)
        if flight.ended and (flight.mode is not Mode.STREAM or not stream.frames):
            self._drop(stream, forget=True)
        elif not stream.entry.readers:
            self._extend(stream)
            if stream.entry.lapses < self._due:
                self._schedule()

    def take_slot(self, tenant: bytes, name: str) -> tuple[int, Slot | None]:
        """For a client that comes back: how many slots of the rate limits it needs, and the one of its stream,
        which it has from now on. It needs none for a stream of another gateway: the slot is there."""
        entry = self._ledger.find(tenant, name)
        stream = None if entry is None else self._streams[entry]
        if stream is None or stream.follows:
            return 0, None
        slot, stream.slot = stream.slot, None
        return int(slot is None), slot

    def give_slot(self, tenant: bytes, name: str, slot: Slot | None) -> None:
        """A client that has left had this slot: its stream keeps it as long as it is generated and nobody reads
        it."""
        if slot is None:
            return
        entry = self._ledger.find(tenant, name)
        stream = None if entry is None else self._streams[entry]
        if stream is None or not stream.abandoned or stream.slot is not None:
            slot()
            return
        stream.slot = slot
        self._watch(stream)

    def _watch(self, stream: Stream) -> None:
        """Return its slot at the end of its generation."""

        def woken(_: object) -> None:
            if stream.slot is not None and not stream.abandoned:
                self._return_slot(stream)
            elif stream.slot is not None:
                self._watch(stream)

        stream.holder.changed().add_done_callback(woken)

    @staticmethod
    def _return_slot(stream: Stream) -> None:
        slot, stream.slot = stream.slot, None
        if slot is not None:
            slot()

    def _add(
        self,
        tenant: bytes,
        name: str,
        caller: Hashable,
        grace: float,
        flight: Flight,
        request: Request,
        usage: bool,
        numbered: bool,
    ) -> Stream | None:
        fits, oldest = self._ledger.room(caller)
        if oldest is not None:
            self._metrics.count("evicted")
            self._drop(self._streams[oldest], forget=True)
        if not fits or not flight.charge(max(flight.size, FREE)):
            self._metrics.count("refused")
            return None
        flight.keep_log()
        holder = self._group.attach(flight, usage=usage, whole=True, attached=True, storable=False, client=False)
        stream = Stream(self._ledger.add(tenant, name, caller, grace), flight, holder, request, usage, numbered)
        self._streams[stream.entry] = stream
        self._by_flight.setdefault(flight, []).append(stream)
        if self._renewal is None and self._feeds.fleet is not None:
            self._renew()
        return stream

    def _drop(self, stream: Stream, *, forget: bool = False) -> None:
        """Hold it no longer: where nobody else reads it, its generation is cancelled. `forget`: no gateway finds
        it any more, though its grace has not passed."""
        self._ledger.remove(stream.entry)
        if self._streams.pop(stream.entry, None) is None:
            return
        others = self._by_flight[stream.flight]
        others.remove(stream)
        if not others:
            del self._by_flight[stream.flight]
        fleet, place = self._feeds.fleet, stream.place
        if fleet is not None and place is not None and fleet.owns(place[1]):
            if forget:
                fleet.forget(hashed(stream.entry.tenant, stream.name))
            if not any(other.place == place for other in others):
                fleet.lapses(*place, hashed(stream.entry.tenant, stream.name), delete=forget)
        stream.holder.leave()
        self._return_slot(stream)

    def _extend(self, stream: Stream) -> None:
        """Redis has a stream for its grace from now on, for clients that come back to another gateway."""
        fleet = self._feeds.fleet
        if stream.place is not None and fleet is not None:
            stream.renewed = self._loop.time()
            name = hashed(stream.entry.tenant, stream.name)
            fleet.extend(name, *stream.place, stream.entry.grace + SLACK)

    def _renew(self) -> None:
        """Extend the streams that clients read here, and those that are generated."""
        self._renewal = self._loop.call_later(LOOK, self._renew) if self._streams else None
        now = self._loop.time()
        for stream in self._streams.values():
            if (stream.entry.readers or not stream.flight.ended) and now - stream.renewed >= RENEWED:
                contained(raised, "the renewal of a stream", partial(self._extend, stream))

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._ledger.next_due()
        self._timer = self._loop.call_at(self._due, self._lapse) if self._due < math.inf else None

    def _lapse(self) -> None:
        try:
            for entry in self._ledger.due(self._loop.time()):
                self._metrics.count("lapsed")
                self._drop(self._streams[entry])
        finally:
            self._schedule()  # the others lapse too where one cannot be dropped

    async def delete(self, tenant: bytes, name: str) -> None:
        """No client comes back to it, at any gateway: its generation is cancelled once no client reads it. Raises
        GatewayError 404, or 503 where another gateway may still give it."""
        fleet, hash = self._feeds.fleet, hashed(tenant, name)
        entry = self._ledger.find(tenant, name)
        if entry is not None:
            place = self._streams[entry].place
            self._drop(self._streams[entry], forget=True)
        else:
            record = None if fleet is None else await _published(fleet, hash)
            if record is None:
                raise self._unknown(name)
            place = record.claim, record.fence
        if fleet is not None and place is not None:
            await fleet.drop(*place, hash)
        self._metrics.count("deleted")

    def dropped(self, hash: bytes) -> None:
        """Another gateway has deleted the stream with this hashed name."""
        for stream in tuple(self._streams.values()):
            if hashed(stream.entry.tenant, stream.name) == hash:
                self._drop(stream, forget=True)

    # -- coming back --------------------------------------------------------------------------------

    async def find(
        self, tenant: bytes, name: str, caller: Hashable, make: Callable[[Record], FlightSpec], state: QueueState
    ) -> Stream:
        """The stream of this name, of which the caller is one more reader until `leaves`. One that another gateway
        holds counts for `caller` here; `make` and `state`: of a flight for it. Raises GatewayError 404, 429 or
        503."""
        entry = self._ledger.find(tenant, name)
        if entry is None:
            fleet = self._feeds.fleet
            record = None if fleet is None else await _published(fleet, hashed(tenant, name))
            entry = self._ledger.find(tenant, name)  # another reader may have fetched it meanwhile
            if entry is None and record is not None:
                return self._fetch(tenant, name, caller, record, make(record), state)
        if entry is None:
            raise self._unknown(name)
        if not self._ledger.joins(entry):
            raise GatewayError(
                Code.RATE_LIMITED,
                f"At most {MOST_READERS} clients read one stream at a time; try again in 1 s.",
                retry_after=1,
            )
        self._metrics.count("resumed")
        stream = self._streams[entry]
        self._extend(stream)
        return stream

    def _unknown(self, name: str) -> GatewayError:
        self._metrics.count("unknown")
        return GatewayError(
            Code.STREAM_NOT_FOUND,
            f"No stream {name[:64]!r} is kept for you: its grace has passed, it was deleted, it had to make room, "
            "it is another key's, or it never was. Send the request again.",
        )

    def _fetch(
        self, tenant: bytes, name: str, caller: Hashable, record: Record, spec: FlightSpec, state: QueueState
    ) -> Stream:
        """Follow a stream that another gateway holds."""
        flight = self._group.launch(spec, state)
        grace = min(record.grace, self.longest)
        stream = self._add(tenant, name, caller, grace, flight, record.request, record.usage, record.numbered)
        if stream is None:
            self._group.remove(flight)
            raise GatewayError(
                Code.MEMORY_FULL, "Too many streams are kept here for you: try again.", retry_after=1
            )
        stream.follows, stream.seams, stream.place = True, list(record.seams), (record.claim, record.fence)
        self._metrics.count("fetched")
        if not self._feeds.follow(flight, record.claim, record.fence, grace + SLACK):
            flight.fail(GatewayError(Code.STREAM_GONE, "The stream is no longer kept. Send the request again."))
            self._group.remove(flight)
        return stream

    async def read_from(self, stream: Stream, position: Position) -> Subscriber:
        """A reader of what a client lacks; waits until what it has is here. Raises GatewayError 410 or 416."""
        flight = stream.flight
        reader = self._group.attach(flight, usage=stream.usage, whole=False, attached=True, storable=False)
        try:
            while len(stream.frames) < position.frames and not flight.ended and stream.follows:
                if stream.mark(position.frames) != position.mark:
                    break
                await reader.changed()
            await self._place(stream, reader, position)
            stream.clients.add(reader)
        except BaseException:
            reader.leave()
            raise
        return reader

    async def _place(self, stream: Stream, reader: Subscriber, position: Position) -> None:
        view, flight = stream.frames, stream.flight
        if flight.error is not None and not view:
            return  # the error is the answer
        if flight.stored_at is None:
            frames = len(view)
            cursor, offset = min(position.frames, frames), 0
        else:
            frames = cursor = offset = 0
            for passed in walk(view[0], position.frames):
                frames, offset = passed
                await asyncio.sleep(0)  # other requests have their turn
            if offset == len(view[0]):
                cursor, offset = 1, 0
        last = frames + (flight.error is not None)  # a client may count the error's event too
        if position.frames > last or stream.mark(position.frames) != position.mark:
            self._metrics.count("position")
            first = stream.seams[0].frames if stream.seams else frames
            raise GatewayError(
                Code.STREAM_POSITION,
                f"This stream has no event {position} that can be continued: continue after event "
                f"{min(first, frames)}, or send the request again.",
            )
        reader.begin_at(cursor, offset)

    # -- the fleet ----------------------------------------------------------------------------------

    def lost(self, flight: Flight) -> None:
        """The gateway that fed a flight is lost: what comes from now on is made anew."""
        for stream in self._by_flight.get(flight, ()):
            if stream.follows:
                stream.seams.append(Seam(len(stream.frames), os.urandom(8).hex()))
        for reader in tuple(flight.subscribers):
            reader.wake()  # one that waits for more frames than came will not get them

    def continued(self, flight: Flight) -> None:
        """A flight whose gateway was lost is continued here: this gateway publishes it from now on."""
        for stream in self._by_flight.get(flight, ()):
            if stream.follows:
                self._publish(stream)

    def _publish(self, stream: Stream) -> None:
        fleet, flight = self._feeds.fleet, stream.flight
        if fleet is None or not fleet.live or self.size + self.recorded > MOST_LOGS:
            return
        lasts = stream.entry.grace + SLACK
        published = None
        for other in self._by_flight[flight]:  # names of one flight share a log that is still written
            if other.place is not None and fleet.publishes(other.place[1]):
                published = other.place
        if stream.follows or published is None:
            published = fleet.publish(flight, lasts)
        if published is None:
            return
        stream.place = published
        request = stream.request
        if len(request.body) > MOST_REQUEST:
            request = msgspec.structs.replace(request, body=b"")
        record = Record(
            *published,
            request,
            usage=stream.usage,
            usage_added=flight.spec.usage_added,
            numbered=stream.numbered,
            grace=stream.entry.grace,
            seams=tuple(stream.seams),
        )
        encoded = record.encoded()
        stream.recorded, stream.renewed = len(encoded), self._loop.time()
        name = hashed(stream.entry.tenant, stream.name)
        fleet.put(name, encoded, lasts)
        fleet.extend(name, *published, lasts)  # a log that another name has too


async def _published(fleet: Node, name: bytes) -> Record | None:
    """Where a gateway publishes the stream with this hashed name; looked up twice. Raises GatewayError 503."""
    record = read_record(await fleet.get(name))
    if record is None:
        await asyncio.sleep(ON_ITS_WAY)
        record = read_record(await fleet.get(name))
    return record
