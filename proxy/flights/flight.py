"""The Flight: one answer's append-only log, its phase, and its readers' cursors. Knows no HTTP, sockets or Redis.

Its facts are set by its own methods, one each; nothing assigns its attributes from outside. A token takes one
call, `append_token`."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Hashable, Iterable
from typing import ClassVar, Final, Literal, Protocol

import msgspec

from proxy.errors import Code, GatewayError
from proxy.flights.memory import Held, Memory, refused
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Items, Mode, QueueState
from proxy.telemetry import FlightTrace, internal, raised
from proxy.wire import LAST_CHUNK, SIZES, Usage, UsageStripper, chunk, encode, settable, unchunks
from proxy.wire.fold import Shape

SLICE: Final = 512
"""Frames in one write at most: what a late joiner of a long log may put into its socket's buffer at once."""
SLICE_BYTES: Final = 64 * 1024
"""Bytes in one write at most: what one reader may hold besides the log, which all readers share."""
FREE: Final = 64 * 1024
"""Bytes of a log that are not charged to the memory budget: nearly every answer is smaller."""
STEP: Final = 256 * 1024
"""Bytes by which the charge of a larger log grows."""

BROKEN: Final = chunk(encode(internal().json())) + LAST_CHUNK
"""The end of a chat's stream whose handling raised."""

Origin = Literal["miss", "hit", "attached", "merged", "bypass"]
"""Where an answer is from: generated and shareable, stored, generated for other requests (vectors, or at another
gateway), generated in one request with others, generated for one client alone."""

_NOTHING_JOINED: Final = (0, 0, False, b"")
_BEFORE: Final = (Phase.CONNECTING, Phase.PREFILL)
# Globals are cheaper to look up than members of a class: 0.3 µs each in Python 3.11.
_QUEUED: Final = Phase.QUEUED
_STREAMING: Final = Phase.STREAMING
_LANDED: Final = Phase.LANDED
_STREAM: Final = Mode.STREAM
_WHOLE: Final = Mode.WHOLE
_RAW: Final = Mode.RAW


@settable
class Times(msgspec.Struct, gc=False):
    """Times of a Flight's events, in seconds by its clock; None for events that have not happened."""

    created: float = 0.0
    dispatched: float | None = None  # left the queue for an engine
    first: float | None = None  # first frame with content (role chunks do not count)
    last: float | None = None
    ended: float | None = None


class Pipe(Protocol):
    """Where a streaming reader's bytes go."""

    def write(self, data: bytes | memoryview) -> bool:
        """Write. False: written, but the reader lags: no more until it has drained (backpressure)."""


class Flight:
    """One answer, written by one `Ingest`, read by any number of `Subscriber`s, owned by none of them."""

    divides: ClassVar[bool] = False  # missing choices are requested again one by one, not all

    __slots__ = (
        "_joined",
        "_view",
        "attempts",
        "backend",
        "before",
        "carried_as",
        "clock",
        "content_events",
        "continued",
        "ended",
        "error",
        "estimated",
        "events",
        "finished",
        "folded",
        "folds",
        "head",
        "held",
        "items",
        "leader",
        "log",
        "log_without_usage",
        "look",
        "memory",
        "mode",
        "number",
        "on_abandoned",
        "on_end",
        "on_named",
        "on_spoiled",
        "origin",
        "phase",
        "private",
        "queue_state",
        "refused_by",
        "replace",
        "shape",
        "size",
        "spec",
        "storable",
        "stored_at",
        "subscribers",
        "tail",
        "throttle",
        "times",
        "told_error",
        "trace",
        "usage",
    )  # fmt: skip

    def __init__(
        self,
        spec: FlightSpec,
        clock: Callable[[], float] = time.monotonic,
        memory: Memory | None = None,
        queue_state: QueueState | None = None,
        on_spoiled: Callable[[Flight], None] | None = None,
    ) -> None:
        """`on_spoiled` is called once it is known that the answer cannot become complete."""
        self.spec = spec
        self.queue_state = queue_state or QueueState()
        self.memory = memory
        self.private = spec.key is None
        self.clock = clock  # not the loop's: uvloop's time() has a resolution of 1 ms
        self.phase = self.before = _QUEUED  # `before`: the phase that led to it
        self.ended = False
        self.finished = False  # ended, and its readers have been woken
        self.mode = spec.mode
        self.origin: Origin = "bypass" if spec.key is None else "miss"
        self.times = Times(created=clock())
        self.head: Head | None = None
        self.error: GatewayError | None = None
        self.told_error: str | None = None  # the code of an error that the engine told in its stream
        # STREAM: frames in their HTTP chunks, one or more an entry; WHOLE: the body's pieces; RAW: pieces as sent
        self.log: list[bytes] = []
        self.size = 0  # bytes that the log holds now
        self.tail = b""  # the last bytes of the body, known once the flight has ended
        self.usage: Usage | None = None
        self.estimated = False  # `usage` is a share of the usage of several requests
        self.content_events = 0
        self.events = 0  # that may be tokens, though no text was seen in them
        self.backend: str | None = None
        self.attempts = 1
        self.continued: str | None = None  # how its stream was continued after it broke
        self.stored_at: float | None = None  # wall-clock time when a hit was stored
        self.items: Items | None = None  # of embeddings: sources of its vectors
        self.held: Held | None = None  # its charge to the memory budget, until its last reader has left
        self.storable = spec.storable  # whether a reader allows its answer to be stored
        self.carried_as = ""  # the id of the request that went to an engine for it and for others
        self.leader = ""  # the gateway that feeds it, where another does
        self.refused_by = ""  # the engine that refused it together with others
        self.replace = False  # overwrite the store's entry of this key
        self.folded: bytes | None = None
        self.folds = True  # False: the stream cannot answer a client that wants one body
        self.look: Callable[[bytes], None] | None = None  # sees new frames while a reader waits for the fold
        self.shape: Shape | None = None  # of its engine's streams, where it is known
        self.subscribers: set[Subscriber] = set()
        self.on_abandoned: Callable[[Flight], None] | None = None
        self.on_end: Callable[[Flight], None] | None = None
        self.on_named: Callable[[Flight, str], None] | None = None
        self.number = 0  # events that have come, of an API that numbers them
        self.on_spoiled = on_spoiled
        self.trace: FlightTrace | None = None
        self.throttle: Callable[[bool], None] | None = None
        # The log without the usage chunk; the log itself where all readers see the same.
        self.log_without_usage: list[bytes] = [] if spec.usage_added else self.log
        self._view = UsageStripper() if spec.usage_added else None
        self._joined = _NOTHING_JOINED

    def __repr__(self) -> str:
        return f"<Flight {self.phase.value} {self.mode.value} log={len(self.log)} readers={len(self.subscribers)}>"

    @property
    def started(self) -> bool:
        """There is something to answer with: bytes, a head, or an error."""
        return self.ended or bool(self.log) or self.head is not None

    def enter(self, phase: Phase) -> None:
        """The only place where the phase changes. Raises AssertionError for a transition that does not exist."""
        if phase not in self.phase.leads_to:
            raise AssertionError(f"no way from {self.phase} to {phase}")
        self.before, self.phase = self.phase, phase
        self.ended = not phase.leads_to

    @property
    def untouched(self) -> bool:
        """No byte has reached a reader (a whole body does at its end): it may be retried."""
        return self.phase in _BEFORE and self.mode is self.spec.mode

    # -- facts: one writer each ----------------------------------------------------------------------

    def tells_error(self) -> None:
        """The engine told an error in its stream, which readers get as it is."""
        self.told_error = Code.UPSTREAM_ERROR_FRAME.code

    def when_abandoned(self, then: Callable[[Flight], None] | None) -> None:
        """Call `then` when the last reader leaves before the end."""
        self.on_abandoned = then

    def when_ended(self, then: Callable[[Flight], None] | None) -> None:
        """Call `then` at the end, whatever the outcome. For the one that pays for the answer."""
        self.on_end = then

    def when_named(self, then: Callable[[Flight, str], None]) -> None:
        """Call `then` with the id under which the engine keeps the answer, once it is known."""
        self.on_named = then

    def names(self, id: str) -> None:
        """The engine keeps the answer under this id. Only its first one counts."""
        then, self.on_named = self.on_named, None
        if then is not None:
            then(self, id)

    def numbers(self, count: int) -> None:
        """So many events have come."""
        self.number = count

    def allow_storing(self) -> None:
        """A reader allows the answer to be stored."""
        self.storable = True

    def keep_log(self) -> None:
        """A client may come back and read it again: its log is kept. Before anything is written to a reader."""
        self.private = False

    def replace_stored(self) -> None:
        """The store's entry of this key does not serve: overwrite it with this answer."""
        self.replace = True

    def traced_by(self, trace: FlightTrace) -> None:
        self.trace = trace

    def dispatched(self, backend: str, throttle: Callable[[bool], None]) -> None:
        """An attempt at this engine begins. `throttle(True)` pauses reading from it, `throttle(False)`
        resumes."""
        self.backend, self.throttle = backend, throttle
        if self.attempts == 1:
            self.times.dispatched = self.clock()

    def joins(self, request_id: str, backend: str, now: float) -> None:
        """It is dispatched together with others, in one request of that id."""
        self.carried_as, self.backend, self.times.dispatched = request_id, backend, now
        self.origin = "merged"

    def follows(self, call: Flight) -> None:
        """This Flight asks an engine for some of it: its backend and dispatch time apply."""
        self.backend, self.attempts = call.backend, max(self.attempts, call.attempts)
        self.carried_as = call.spec.request_id
        if self.times.dispatched is None:
            self.times.dispatched = call.times.dispatched

    def moves_to(self, backend: str | None) -> None:
        """The merged request that it is part of is at this engine."""
        self.backend = backend

    def follows_node(self, leader: str, shape: Shape | None) -> None:
        """Another gateway feeds it with a stream of this shape, whatever its readers asked for."""
        self.leader, self.shape, self.origin, self.mode = leader, shape, "attached", _STREAM

    def expects(self, shape: Shape | None) -> None:
        """Its stream will have this shape; None: not known."""
        self.shape = shape

    def watch_frames(self, look: Callable[[bytes], None]) -> None:
        """Call `look` with each frame that differs from the one before, while a reader waits for the fold."""
        self.look = look

    def begins(self, head: Head) -> None:
        """The head of its stream has come; it goes out with the first frame."""
        self.head = head

    def is_whole(self) -> None:
        """The answer is one body, though a stream was requested."""
        self.mode = _WHOLE

    def token(self, now: float) -> bool:
        """Count content that `append_token` does not count. True: it was the first."""
        self.content_events += 1
        if self.times.first is not None:
            return False
        self.times.first = now
        return True

    def reports(self, usage: Usage | None, *, estimated: bool = False) -> None:
        """Set its usage. `estimated`: its share of the usage of several requests."""
        self.usage, self.estimated = usage, estimated

    def counts_events(self, count: int) -> None:
        """So many events have come that may be tokens, though no text was seen in them."""
        self.events = count

    def keep_fold(self, body: bytes) -> None:
        """Keep the stream's fold, for every reader that wants one body."""
        self.folded = body

    def goes_alone(self, refused_by: str = "") -> None:
        """The merged request did not answer it: it is sent by itself. `refused_by`: the engine that refused."""
        self.carried_as, self.refused_by, self.origin = "", refused_by, "bypass"
        self.queue_state.stay_alone()

    def unfold(self) -> None:
        """It does not fold: no client that wants one body joins it, and those that wait are woken."""
        self.folds, self.look = False, None
        for reader in self.subscribers:
            if reader.whole:
                reader.wake()

    def rewind(self) -> None:
        """Before a retry: forget what has come, and count the attempt."""
        self.enter(Phase.CONNECTING)
        self.head = self.usage = self.times.first = None
        self.mode = self.spec.mode
        self.log.clear()
        self.size = self.content_events = self.events = 0
        self.attempts += 1

    def counts_attempt(self) -> None:
        """Another attempt continues it; what its readers have stays."""
        self.attempts += 1

    def handed_over(self, how: str) -> None:
        """Another engine goes on with its stream, in this way."""
        self.continued = how

    def continues(self, how: str) -> None:
        """Its stream broke, and another attempt continues it in this way."""
        self.continued = how
        if self.times.dispatched is None:  # another gateway fed it until now
            self.times.dispatched = self.clock()
        self.attempts += 1

    # -- feeding ------------------------------------------------------------------------------------

    def add(self, frame: bytes, *, same: bool = False) -> None:
        """Append one SSE frame (raw bytes), put into its HTTP chunk once for all readers; `flush` serves them.
        `same`: a token like the one before, which looks the same with usage and without."""
        if self.phase is not _STREAMING:
            self.enter(_STREAMING)
        if same:
            self.content_events += 1
        size = len(frame)
        wired = SIZES[size] + frame + b"\r\n" if 0 < size < len(SIZES) else chunk(frame)  # a call less
        self.log.append(wired)
        self.size += len(wired)
        view = self._view
        if view is not None:
            if same and not view.held:
                self.log_without_usage.append(wired)
            else:
                plain = self.log_without_usage
                for seen in view.feed(frame):  # a generator would be a call more for each
                    plain.append(wired if seen is frame else chunk(seen))

    def append_token(self, frame: bytes, wired: bytes = b"") -> None:
        """`add(frame, same=True)` and `flush` in one, for a read of one frame that is like the one before: nearly
        every token. For a reader that is up to date the write is the only call: 5 calls in place of 14. `wired`:
        its chunk as `chunk` writes it, where the engine has sent it so."""
        if not wired:
            size = len(frame)
            if size >= len(SIZES):  # no token: it may have to be written in slices
                self.add(frame, same=True)
                self.flush()
                return
            wired = SIZES[size] + frame + b"\r\n"
        self.content_events += 1
        log, plain, view = self.log, self.log_without_usage, self._view
        if self.private and not log:
            for reader in self.subscribers:  # its only one: nothing need be kept
                if reader.pipe is not None and not reader.lagging:
                    reader.sent += len(wired)
                    if not reader.pipe.write(wired):
                        reader.lagging = True
                        reader.wake()
                    return
        log.append(wired)
        self.size += len(wired)
        if view is not None:
            if view.held:
                plain.extend(wired if seen is frame else chunk(seen) for seen in view.feed(frame))
            else:
                plain.append(wired)
        end, end_plain = len(log), len(plain)
        for reader in tuple(self.subscribers):
            at = end if reader.usage else end_plain
            pipe = reader.pipe
            try:
                if pipe is not None and reader.cursor == at - 1 and not reader.lagging:
                    reader.cursor = at
                    reader.sent += len(wired)
                    if not pipe.write(wired):
                        reader.lagging = True
                        reader.wake()
                else:
                    reader.pump()
            except Exception as e:  # noqa: BLE001 - one reader's connection must not end the others' answer
                reader.broke(e)
        if self.private:
            self.trim()
        else:
            self._joined = _NOTHING_JOINED

    def frames(self, frames: Iterable[bytes]) -> None:
        """Append frames and serve every reader."""
        for frame in frames:
            self.add(frame)
        self.flush()

    def remark(self, frames: bytes) -> None:
        """Write comments to readers that are up to date; they are not part of the log."""
        wired = chunk(frames)
        for reader in tuple(self.subscribers):
            at = len(self.log if reader.usage else self.log_without_usage)
            if reader.pipe is not None and reader.sent and reader.cursor == at and not reader.lagging:
                try:
                    reader.lagging = not reader.pipe.write(wired)
                    reader.sent += len(wired)
                    if reader.lagging:
                        reader.wake()
                except Exception as e:  # noqa: BLE001 - one reader's connection must not end the others' answer
                    reader.broke(e)

    def replay_stored(self, head: Head, body: bytes, plain: bytes, shape: Shape | None) -> None:
        """Append a stored stream in its chunks, with usage (`body`) and without (`plain`)."""
        self.mode, self.head, self.shape = _STREAM, head, shape
        self.enter(_STREAMING)
        self.log.append(body)
        self.size += len(body)
        if self._view is not None:
            self.log_without_usage.append(plain)
            self._view = None  # nothing is held back from now on

    def start(self, head: Head) -> None:
        """RAW: status and headers are known; pieces follow."""
        self.enter(_STREAMING)
        self.head = head
        self.flush()

    def append_body(self, data: bytes, now: float | None = None) -> None:
        """RAW and WHOLE: append a piece of the body. `now`: when it came; None for a piece that is no content."""
        if self.times.first is None:
            self.times.first = now
        framed = chunk(data) if self.mode is _RAW and self.head and self.head.length is None else data
        self.log.append(framed)
        self.size += len(framed)
        if self.mode is _RAW:
            self.flush()

    def land_stored(self, head: Head, created: float, usage: Usage | None) -> None:
        """The answer is complete, from the store, where it was put at `created` (wall clock). Its readers count as
        hits: none has attached to a generation."""
        self.origin, self.stored_at = "hit", created
        self.usage = usage or self.usage
        self.times.first = self.clock()
        for reader in self.subscribers:
            reader.attached = False
        self.land(head)

    def land_composed(
        self, head: Head, items: Items, usage: Usage | None, *, origin: Origin, stored_at: float | None = None
    ) -> None:
        """The answer is complete, put together from vectors. `stored_at`: of the oldest, where all are stored."""
        self.items, self.origin = items, origin
        self.usage = usage or self.usage
        self.stored_at = stored_at
        self.times.first = now = self.clock()
        self.land(head, last=now)

    def land(self, head: Head | None = None, *, last: float | None = None, usage: Usage | None = None) -> None:
        """The answer is complete. `last`: when the last of it came."""
        self.enter(_LANDED)
        if last is not None:
            self.times.last = last
        if usage is not None:
            self.usage = usage
        self.head = head or self.head
        self._finish(b"" if self.head is not None and self.head.length is not None else LAST_CHUNK)

    def fail(self, error: GatewayError) -> None:
        """The answer will not be complete. Readers that have had bytes get an error frame, the others a status."""
        self.enter(Phase.FAILED)
        self.error = error
        if self.mode is _WHOLE:
            self.log.clear()  # no reader gets part of a body
        self._finish(chunk(self.error_frame(error)) + LAST_CHUNK if self.mode is _STREAM else b"")

    def error_frame(self, error: GatewayError) -> bytes:
        """The error as the last event of its stream."""
        spec = self.spec
        if spec.event_api is None:
            return encode(error.json())
        return spec.event_api.error_event(error, spec.request_id, self.number)

    def cancel(self) -> None:
        self.enter(Phase.CANCELLED)
        self._finish(b"")

    def grow(self, most: int) -> int | GatewayError:
        """The log has reached its limit: the next limit in bytes, or the error that ends the Flight."""
        if self.size > most:
            return GatewayError(Code.UPSTREAM_TOO_LARGE, f"The answer exceeds {most} bytes (max_flight_bytes).")
        allowed = min(most, self.size + STEP)
        if self.charge(allowed) or (self.private and any(reader.lagging for reader in self.subscribers)):
            return allowed  # backpressure bounds it: no more than one step comes
        return refused()

    def charge(self, size: int) -> bool:
        """Charge `size` bytes in all to the memory budget, until the last reader has left. False: it is
        exhausted."""
        if self.memory is None:
            return True
        if self.held is None:
            self.held = Held(self.memory, self.queue_state.resolve_tenant(), "answers")
        return self.held.resize(max(size, self.held.size))

    def holds(self, held: Held) -> None:
        """Take over a charge to the memory budget, until the last reader has left."""
        self.held = held

    def _finish(self, tail: bytes) -> None:
        self.times.ended = self.clock()
        self.look = self.throttle = None  # no reference cycle is left
        self.log_without_usage.extend(map(chunk, self._view.end() if self._view is not None else ()))
        self.tail = tail
        self.flush()
        self.finished = True
        try:
            if self.trace is not None:
                self.trace.ended(self)
        except Exception as e:  # noqa: BLE001 - a trace is for operators: the flight is still charged
            raised("the trace of a flight", e)
        try:
            if self.on_end is not None:
                self.on_end(self)
        except Exception as e:  # noqa: BLE001 - the answer is whole, whatever its price
            raised("the charge for a flight", e)
        if self.held is not None and not self.subscribers:
            self.held.release()

    def broke(self, error: GatewayError) -> None:
        """The last resort, after ending it raised: it has failed, whatever its phase, and its readers are
        woken."""
        self.phase, self.ended, self.finished = Phase.FAILED, True, True
        self.error = self.error or error
        if self.mode is _STREAM:
            broken = BROKEN if self.spec.event_api is None else chunk(self.error_frame(internal())) + LAST_CHUNK
            self.tail = self.tail or broken
        self.look = self.throttle = None
        if self.times.ended is None:
            self.times.ended = self.clock()
        for reader in tuple(self.subscribers):
            reader.wake()
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            try:
                on_end(self)
            except Exception as e:  # noqa: BLE001 - nothing comes after the last resort
                raised("the charge for a flight", e)

    # -- reading ------------------------------------------------------------------------------------

    def view(self, *, usage: bool) -> list[bytes]:
        """The log as a reader sees it: with the usage chunk, or without."""
        return self.log if usage else self.log_without_usage

    def raw_frames(self) -> list[bytes]:
        """STREAM: the raw frames, without their chunks."""
        return unchunks(b"".join(self.log))

    def joined(self, view: list[bytes], start: int, end: int) -> bytes:
        """The view from `start` to `end`. Readers at the same position share one join."""
        which = view is self.log
        if self._joined[:3] != (start, end, which):
            self._joined = (start, end, which, b"".join(view[start:end]))
        return self._joined[3]

    def flush(self) -> None:
        """Serve every reader now: one read from the engine is handled in one call, so it goes out in one write. A
        later callback would cost each token another event loop iteration (6 µs with uvloop)."""
        for subscriber in tuple(self.subscribers):
            try:
                if self.ended and subscriber.pipe is None:
                    subscriber.wake()  # as `pump` does
                else:
                    subscriber.pump()
            except Exception as e:  # noqa: BLE001 - one reader's connection must not end the others' answer
                subscriber.broke(e)
        if self.private:
            if self.mode is not _WHOLE:
                self.trim()
        elif self._joined is not _NOTHING_JOINED:
            self._joined = _NOTHING_JOINED

    @property
    def clients(self) -> int:
        """Readers that are clients' requests."""
        return sum(reader.client for reader in self.subscribers)

    def trim(self) -> None:
        """Drop a private log once its one reader has it."""
        if not self.private or self.mode is _WHOLE or len(self.subscribers) != 1:
            return
        (reader,) = self.subscribers
        if reader.pipe is not None and reader.cursor == len(self.log):
            self.log.clear()
            self._joined = _NOTHING_JOINED  # positions in the log mean something else from now on
            self.size = 0
            reader.cursor = 0

    def refuse(self, error: GatewayError, which: Callable[[Subscriber], bool]) -> bool:
        """Refuse some of its readers. False: no other would remain, and nothing has been done."""
        refused = [reader for reader in self.subscribers if which(reader)]
        if len(refused) == len(self.subscribers):
            return False
        for reader in refused:
            reader.refuse(error)
        return True

    def leave(self, subscriber: Subscriber) -> None:
        self.subscribers.discard(subscriber)
        if not self.subscribers:
            if self.ended:
                if self.held is not None:
                    self.held.release()
            elif self.on_abandoned is not None:
                self.on_abandoned(self)


@settable
class Subscriber(msgspec.Struct, eq=False):
    """A reader: a cursor into one Flight's log."""

    flight: Flight
    usage: bool = True  # wants the usage chunk
    whole: bool = False  # wants one body: woken at the end only
    attached: bool = False  # it joined a Flight that was under way
    cursor: int = 0
    offset: int = 0  # bytes of the entry at the cursor that are written already
    most: int = SLICE_BYTES  # bytes in one write; a pipe that needs whole chunks sets no bound
    pipe: Pipe | None = None
    lagging: bool = False
    done: bool = False  # the tail was written too, or nothing more is to be written
    broken: bool = False  # a write failed: its connection ends
    sent: int = 0  # bytes, framing included
    owner: Hashable | Callable[[], Hashable] = None  # the caller; None: not known
    client: bool = True  # False: the gateway itself, which keeps or publishes the stream, reads it
    since: float = -math.inf  # by the loop's clock, when it joined a queued Flight; -inf: at its creation
    _waiter: asyncio.Future[None] | None = None
    _loop: asyncio.AbstractEventLoop | None = None  # to ask for the running one is a system call in Python 3.11

    def pump(self) -> None:
        """Write everything since the cursor in one write; wake the reader's task only when it has to act."""
        flight = self.flight
        if self.done:
            return  # it has the tail
        if self.pipe is None or self.lagging:
            if flight.ended or (flight.started and not self.whole):
                self.wake()
            return
        view = flight.log if self.usage else flight.log_without_usage
        start = self.cursor
        end = len(view)
        if end - start > SLICE:
            end = start + SLICE
        data: bytes | memoryview
        if start < end and (flight.size > self.most or self.offset):
            data, end = self._slice(view, start, end)
        else:
            data = view[start] if end - start == 1 else flight.joined(view, start, end) if start < end else b""
        if flight.ended and end == len(view):
            data = bytes(data) + flight.tail
            self.done = True
        if data:
            self.cursor = end
            self.sent += len(data)
            fits = self.pipe.write(data)
            self.lagging = not self.done and (not fits or end < len(view))
        if self.done or self.lagging:
            self.wake()

    def _slice(self, view: list[bytes], start: int, end: int) -> tuple[bytes | memoryview, int]:
        """At most `most` bytes from the cursor, and the cursor after them: complete entries if several fit, else a
        part of one, without a copy."""
        first, offset, most = view[start], self.offset, self.most
        if len(first) - offset > most:
            self.offset = offset + most
            return memoryview(first)[offset : offset + most], start
        self.offset = 0
        if offset:
            return memoryview(first)[offset:], start + 1
        size = 0
        for at in range(start, end):
            size += len(view[at])
            if size > most:
                end = at
                break
        return (first if end - start == 1 else self.flight.joined(view, start, end)), end

    def broke(self, error: Exception) -> None:
        """A write raised: this reader's connection ends; other readers go on."""
        raised("a reader of an answer", error)
        self.broken = True
        self.wake()

    def cut(self) -> None:
        """Its client gets nothing more: its connection ends in the middle of the answer."""
        self.pipe, self.broken = None, True
        self.wake()

    def changed(self) -> asyncio.Future[None]:
        """A future that resolves when this reader's task has something to do."""
        loop = self._loop or asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        return waiter

    async def ready(self) -> bool:
        """Wait until there is something to answer with. Returns True."""
        while not self.visible:
            await self.changed()
        return True

    async def ready_within(self, seconds: float) -> bool:
        """Wait at most so many seconds until there is something to answer with. False: there is nothing yet."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        timer = loop.call_at(until, self.wake)
        try:
            while not self.visible:
                if loop.time() >= until - 0.001:  # uvloop's timers have whole milliseconds
                    return False
                await self.changed()
            return True
        finally:
            timer.cancel()

    async def changed_within(self, seconds: float) -> bool:
        """Wait at most so many seconds until this reader's task has something to do. False: it has not."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        timer = loop.call_at(until, self.wake)
        try:
            await self.changed()
        finally:
            timer.cancel()
        return loop.time() < until - 0.001  # uvloop's timers have whole milliseconds

    def hold(self, pipe: Pipe) -> None:
        """Its client waits at this pipe: nothing is written before `resume`."""
        self.pipe, self.lagging = pipe, True

    async def complete(self) -> None:
        """Wait until the answer has ended; nothing that comes before wakes the reader's task."""
        self.whole = True
        while not self.flight.ended:
            await self.changed()

    def write_to(self, pipe: Pipe, *, whole_chunks: bool = False) -> None:
        """Write what there is to this pipe, and from now on what comes. `whole_chunks`: it takes no part of
        an HTTP chunk, so that a write has no bound."""
        self.pipe = pipe
        if whole_chunks:
            self.most = sys.maxsize
        self.pump()

    def begin_at(self, cursor: int, offset: int) -> None:
        """Its client has the log up to this entry, and of that so many bytes."""
        self.cursor, self.offset = cursor, offset

    def resume(self) -> bool:
        """The client has taken what was written: write what it lacks. False: it lags again."""
        self.lagging = False
        self.pump()
        return not self.lagging

    def end_writing(self) -> Pipe | None:
        """Write nothing more. Returns the pipe, to which the caller may write the end."""
        self.done = True
        pipe, self.pipe = self.pipe, None
        return pipe

    def leave(self) -> None:
        self.pipe = None
        self.flight.leave(self)

    @property
    def verdict(self) -> str:
        """How its answer came about, for its client, the log and the metrics."""
        return "attached" if self.attached else self.flight.origin

    @property
    def caller(self) -> Hashable:
        """Its owner, computed on first use."""
        if callable(self.owner):
            self.owner = self.owner()
        return self.owner

    def waits(self, since: float) -> None:
        """It has joined a queued Flight."""
        self.since = since

    def refuse(self, error: GatewayError) -> None:
        """End this reader alone, by giving it a failed Flight; its former Flight goes on for the others."""
        failed = Flight(self.flight.spec, self.flight.clock)
        self.flight.subscribers.discard(self)
        self.flight, self.cursor = failed, 0
        failed.subscribers.add(self)
        failed.fail(error)

    @property
    def visible(self) -> bool:
        """Whether there is something to answer this reader with."""
        flight = self.flight
        if flight.ended or flight.mode is not _STREAM:
            return flight.started
        return bool(flight.log if self.usage else flight.log_without_usage)

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
