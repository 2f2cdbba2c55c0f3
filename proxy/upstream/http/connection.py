"""One connection to an engine: an `asyncio.Protocol` that speaks HTTP/1.1 as a client. Bytes go to a Receiver
as they arrive; no task wakes for them."""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol

from proxy.errors import Code, GatewayError
from proxy.telemetry import internal, raised
from proxy.upstream.http.dial import OURS, short_of, unreachable
from proxy.upstream.http.framing import InvalidResponse
from proxy.upstream.http.read_budget import SMALL, ReadBudget, admit
from proxy.upstream.http.response import KnownHead, ResponseParser
from proxy.wire import SIZE_LINES

CLOSED: Final = "it closed the connection before it answered"
DRAIN_SECONDS: Final = 1.0  # for the end of a response whose receiver has all it needs


class Receiver(Protocol):
    """Receives one response. Exactly one of `end` and `lost` is called, last, unless the receiver was released
    before. None of these methods may raise.

    `body` is called once for each read with body bytes, whatever the number of chunks: chunk boundaries carry no
    meaning. `wired`: its one HTTP chunk, where the read is one in the form of `proxy.wire.chunk`. `known`: the
    head but for its Content-Length, where it has come before.
    """

    def head(self, status: int, headers: list[tuple[str, str]], known: KnownHead | None = None) -> None: ...
    def body(self, data: bytes, wired: bytes = b"") -> None: ...
    def end(self) -> None: ...
    def lost(self, error: GatewayError) -> None: ...


class ConnectionPool(Protocol):
    """Keeps connections between exchanges."""

    loop: asyncio.AbstractEventLoop
    reading: ReadBudget

    def release(self, connection: Connection) -> None: ...
    def discard(self, connection: Connection) -> None: ...


class _Nobody:
    """Receives the rest of a response whose receiver has released it."""

    def head(self, status: int, headers: list[tuple[str, str]], known: KnownHead | None = None) -> None:
        pass

    def body(self, data: bytes, wired: bytes = b"") -> None:
        pass

    def end(self) -> None:
        pass

    def lost(self, error: GatewayError) -> None:
        pass


_NOBODY: Final = _Nobody()


class Connection(asyncio.Protocol):
    """One connection to an engine, one exchange at a time.

    It is reused only if the response ended where its framing said, no byte came after it, the request was sent
    completely, and neither side said `close`. In doubt it is closed: the next exchange may be another client's.
    """

    __slots__ = (
        "_answer", "_drain", "_drains", "_feeding", "_held", "_late", "_poll", "_pool", "_receiver", "_transport",
        "idle_since", "received",
    )  # fmt: skip

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._answer: ResponseParser | None = None  # None between exchanges
        self._receiver: Receiver = _NOBODY
        self._drain: asyncio.TimerHandle | None = None
        self._feeding = False  # input is being handled
        self._drains = False  # the receiver released it meanwhile: a timer is set unless the response ends with it
        self._held = False  # its only reader lags: reading is paused
        self._late = b""  # read, but over the read budget: reading is paused until it is handled
        self.idle_since = 0.0
        self.received = False  # any byte of the current response

    def __repr__(self) -> str:
        answer = self._answer
        if not self.usable:
            state = "closed"
        elif answer is None:
            state = "idle"
        elif answer.framing is None:
            state = "head" if self.received else "waiting"
        else:
            state = answer.framing.kind.value
        return f"<Connection {state}{' draining' if self._drain is not None else ''}>"

    # -- for the exchange -------------------------------------------------------------------------

    def send(self, request: bytes, receiver: Receiver) -> None:
        """Start an exchange; none may be in progress."""
        transport = self._transport
        answer = self._answer = ResponseParser(receiver, request.startswith(b"HEAD "))
        self._receiver = receiver
        self.received = False
        if transport is None or transport.is_closing():
            self._pool.loop.call_soon(self._lose, answer)
        else:
            transport.write(request)

    def release(self, receiver: Receiver, *, content: bool) -> None:
        """The receiver is done. With `content` it has all it needs: the connection is kept if the response ends
        within DRAIN_SECONDS. Else it is closed, and also where a successful response goes on: the receiver had
        the end of it. No effect where the connection already serves the next exchange."""
        answer = self._answer
        if answer is None or self._receiver is not receiver:
            return
        if not content or answer.until_close or not self.usable:
            self.abort()
            return
        self._receiver = _NOBODY
        # An error may be released before its body has come.
        answer.hand_to(self if answer.status < 400 else _NOBODY)
        if self._feeding:
            self._drains = True
        else:
            self._drain_rest(answer)

    def _drain_rest(self, answer: ResponseParser) -> None:
        self._drains = False
        self._drain = self._pool.loop.call_later(DRAIN_SECONDS, self._abort_if, answer)
        self.resume()

    def abort(self) -> None:
        """Close at once: the engine notices and stops generating."""
        self._part()
        if self._late:
            self._late = b""
            self._pool.reading.drop(self)
        if self._transport is not None:
            self._transport.abort()

    def throttle(self, receiver: Receiver, hold: bool) -> None:
        """Backpressure: pause reading while the only reader lags, or resume it."""
        if self._receiver is receiver:
            self._held = hold
            self._steer()

    def head(self, status: int, headers: list[tuple[str, str]], known: KnownHead | None = None) -> None:
        """See `body`."""

    def body(self, data: bytes, wired: bytes = b"") -> None:
        """Bytes after the end of a response: their meaning is unknown."""
        self.abort()

    # -- for the pool -----------------------------------------------------------------------------

    def resume(self) -> None:
        self._held = False
        self._steer()

    def rest(self, now: float) -> None:
        """It is idle from now on."""
        self.idle_since = now
        if self._held:
            self.resume()

    def _steer(self) -> None:
        """The only place where reading is paused and resumed. Both are idempotent."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._held or self._late:
            transport.pause_reading()
        else:
            transport.resume_reading()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def fresh(self, since: float) -> bool:
        """Whether it is open, has been idle only since a later time than `since`, and has no unread input: that
        would be its end, or unexpected bytes. Costs a system call."""
        transport, poll = self._transport, self._poll
        if transport is None or self.idle_since <= since or transport.is_closing():
            return False
        return poll is None or not poll.poll(0)

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self._drop()  # unexpected bytes: they must not be taken for the next response
            return
        size = len(data)
        if answer.between and size < SMALL and not self._late:
            line = SIZE_LINES[size]
            if data.startswith(line) and data.endswith(b"\r\n"):  # one whole chunk: nearly every token
                try:
                    answer.to.body(data[len(line) : -2], data)
                except Exception as e:  # noqa: BLE001 - the receiver's fault: its exchange ends, the loop goes on
                    self._fault(answer, e)
                return
        self.received = True
        if data[SMALL : SMALL + 1] or self._late:
            data = self._admit(data)
            if not data:
                return
        try:
            self._feed(answer, data)
        except Exception as e:  # noqa: BLE001 - the receiver's fault: its exchange ends, the loop goes on
            self._fault(answer, e)

    def _fault(self, answer: ResponseParser, error: Exception) -> None:
        """Handling input raised, at an unknown position of the response: end the exchange."""
        raised("an engine's answer", error)
        if self._answer is answer:
            receiver = self._part()
            self.abort()
            self._lost(receiver, internal())

    def _lost(self, receiver: Receiver, error: GatewayError) -> None:
        try:
            receiver.lost(error)
        except Exception as e:  # noqa: BLE001 - the connection has ended: there is nobody else to tell
            raised("an engine's answer that was lost", e)

    def _feed(self, answer: ResponseParser, data: bytes) -> None:
        """Give input to the parser. Raises what its receiver raises; the callers contain that."""
        self._feeding = True
        try:
            ended = answer.feed(data)
        except InvalidResponse as e:
            if self._answer is answer:
                self._refuse(str(e))
            return
        finally:
            self._feeding = False
        if self._answer is answer:
            if ended:
                self._finish(answer)
            elif self._drains:
                self._drain_rest(answer)

    def _admit(self, data: bytes) -> bytes:
        """The part of a read that is handled now. The rest is handled in a later event loop iteration, as the read
        budget is used up."""
        reading = self._pool.reading
        piece = b""
        if not self._late:
            piece, charge = admit(data)
            if not reading.take(charge):
                piece = b""
        if len(piece) < len(data):
            self._late += data[len(piece) :]
            reading.wait(self)
            self._steer()
        return piece

    def deliver(self) -> int:
        """Handle the deferred input, or a piece of it, and resume reading once nothing is left, unless the reader
        lags. Returns what it is charged, in bytes."""
        piece, charge = admit(self._late)
        self._late = self._late[len(piece) :]
        answer = self._answer
        if answer is not None and piece:
            try:
                self._feed(answer, piece)
            except Exception as e:  # noqa: BLE001 - other connections wait in this iteration: only this one ends
                self._fault(answer, e)
        if self._late:
            self._pool.reading.wait(self)
        self._steer()
        return charge

    def _catch_up(self) -> None:
        """Handle the deferred input before the end of the connection."""
        while self._late:
            self.deliver()
        self._pool.reading.drop(self)

    def eof_received(self) -> bool:
        self._catch_up()
        if self._answer is None:
            self._drop()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._poll = None
        self._catch_up()
        self._pool.discard(self)
        answer, receiver = self._answer, self._part()
        if answer is None:
            return
        try:
            if isinstance(exc, OSError) and exc.errno in OURS:  # while writing: no buffer, no memory
                receiver.lost(short_of(exc.strerror or str(exc)))
            elif exc is not None and not isinstance(exc, OSError):
                receiver.lost(internal())  # it is no error of the connection: a callback of ours raised it
            elif answer.framing is None:
                receiver.lost(unreachable(f"{CLOSED}{_detail(exc)}"))
            elif answer.until_close and exc is None:
                receiver.end()
            else:
                message = f"The engine closed the connection before the end of its answer{_detail(exc)}."
                receiver.lost(GatewayError(Code.UPSTREAM_TRUNCATED, message))
        except Exception as e:  # noqa: BLE001 - the receiver's fault: it gets an error
            raised("the end of an engine's connection", e)
            self._lost(receiver, internal())

    # -- ends -------------------------------------------------------------------------------------

    def _finish(self, answer: ResponseParser) -> None:
        """The response is complete: the connection returns to the pool, or is closed."""
        receiver = self._part()
        transport = self._transport
        try:
            if transport is not None:
                # A request that is not sent completely: the engine may take its rest for the next one.
                clean = not answer.surplus and not self._late and not transport.get_write_buffer_size()
                if clean and answer.framing is not None and answer.framing.keep and not transport.is_closing():
                    self._pool.release(self)
                elif clean:
                    transport.close()
                else:
                    transport.abort()  # `close` would wait for an engine that may not read any more
        except Exception as e:  # noqa: BLE001 - in doubt the connection is closed; the receiver has its response
            raised("the end of an exchange", e)
            self.abort()
        try:
            receiver.end()
        except Exception as e:  # noqa: BLE001 - the receiver's fault: it gets an error
            raised("the end of an engine's answer", e)
            self._lost(receiver, internal())

    def _part(self) -> Receiver:
        """End the exchange, if there is one. Only the caller may call its receiver, which is returned, from now
        on."""
        answer, receiver = self._answer, self._receiver
        self._answer, self._receiver, self._drains = None, _NOBODY, False
        if answer is not None:
            try:
                answer.close(_NOBODY)
            except Exception as e:  # noqa: BLE001 - the receiver must be called all the same
                raised("the end of an exchange", e)
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        return receiver

    def _refuse(self, why: str) -> None:
        receiver = self._part()
        self.abort()
        self._lost(
            receiver, GatewayError(Code.UPSTREAM_PROTOCOL, f"Malformed HTTP response from the engine: {why}.")
        )

    def _drop(self) -> None:
        """Remove it from the pool now, not when the loop has closed it."""
        self._pool.discard(self)
        self.abort()

    def _abort_if(self, answer: ResponseParser) -> None:
        if self._answer is answer:
            self.abort()

    def _lose(self, answer: ResponseParser) -> None:
        if self._answer is answer:
            self._lost(self._part(), unreachable("the connection was already closed"))


def _detail(exc: Exception | None) -> str:
    """The reason for a connection's end from the system or TLS, as ` (…)`."""
    text = str(getattr(exc, "strerror", None) or exc or "")
    return f" ({text})" if text else ""
