"""Owns one connection to an engine: an `asyncio.Protocol` of our own that speaks HTTP/1.1 as a client.
Must not know flights, SSE or sharing: bytes go to a Receiver as they arrive, no task wakes for them.
Called by the pool in upstream and by the scheduler (one exchange at a time)."""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol

from proxy.errors import Code, GatewayError
from proxy.telemetry import internal, raised
from proxy.upstream.http.dial import OURS, short_of, unreachable
from proxy.upstream.http.framing import InvalidResponse
from proxy.upstream.http.read_budget import SMALL, ReadBudget
from proxy.upstream.http.response import ResponseParser

DRAIN_SECONDS: Final = 1.0  # for the end of a message whose receiver is already content


class Receiver(Protocol):
    """Takes one answer. Exactly one of `end` and `lost` is called, last, unless it was released before. None of
    these may raise.

    `body` is called once for each read that had any body in it, however many chunks those bytes came in: the
    chunks' boundaries mean nothing.
    """

    def head(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def body(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def lost(self, error: GatewayError) -> None: ...


class Owner(Protocol):
    """Who keeps the connection between exchanges."""

    loop: asyncio.AbstractEventLoop
    reading: ReadBudget

    def give(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...


class _Nobody:
    """Receives what is left of an answer whose receiver is through with it."""

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        pass

    def body(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def lost(self, error: GatewayError) -> None:
        pass


_NOBODY: Final = _Nobody()


class Connection(asyncio.Protocol):
    """One connection to an engine, one exchange at a time.

    The law of reuse: it is kept only if the answer ended where its own framing said, nothing came after it, the
    request had gone out whole, and neither side had said `close`. Whatever is in doubt closes it: the next
    exchange on it may be another client's.
    """

    __slots__ = (
        "_answer", "_drain", "_held", "_late", "_poll", "_pool", "_receiver", "_transport",
        "idle_since", "received",
    )  # fmt: skip

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._answer: ResponseParser | None = None  # None between exchanges
        self._receiver: Receiver = _NOBODY
        self._drain: asyncio.TimerHandle | None = None
        self._held = False  # its reader lags: nothing is read until it has caught up
        self._late = (
            b""  # read, but there was no room for it in that turn: nothing more is read until it is handled
        )
        self.idle_since = 0.0
        self.received = False  # any byte of the present answer

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

    # -- for the scheduler ------------------------------------------------------------------------

    def send(self, request: bytes, receiver: Receiver) -> None:
        """Start an exchange on a connection that has none."""
        transport = self._transport
        answer = self._answer = ResponseParser(receiver, bodiless=request.startswith(b"HEAD "))
        self._receiver = receiver
        self.received = False
        if transport is None or transport.is_closing():
            self._pool.loop.call_soon(self._lose, answer)
        else:
            transport.write(request)

    def release(self, receiver: Receiver, *, content: bool) -> None:
        """The receiver is through. If it has all it wanted the connection is kept, should the message end by
        itself soon; else it is closed, and so it is where more comes of an answer that was a success: what the
        receiver had was all of it. A connection that serves the next exchange already is left alone."""
        answer = self._answer
        if answer is None or self._receiver is not receiver:
            return
        if not content or answer.until_close or not self.usable:
            self.abort()
            return
        self._receiver = _NOBODY
        answer.to = self if answer.status < 400 else _NOBODY  # a refusal may be left before its body has come
        self._drain = self._pool.loop.call_later(DRAIN_SECONDS, self._abort_if, answer)
        self.resume()

    def abort(self) -> None:
        """Close at once: the engine sees it and stops generating."""
        self._part()
        if self._late:
            self._late = b""
            self._pool.reading.drop(self)
        if self._transport is not None:
            self._transport.abort()

    def throttle(self, receiver: Receiver, hold: bool) -> None:
        """Hold back an engine whose only reader lags, or let it go on."""
        if self._receiver is receiver:
            self._held = hold
            self._steer()

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        """Of an answer that is over: see `body`."""

    def body(self, data: bytes) -> None:
        """More of an answer that was over: nobody can tell what it is."""
        self.abort()

    # -- for the pool -----------------------------------------------------------------------------

    def resume(self) -> None:
        self._held = False
        self._steer()

    def _steer(self) -> None:
        """The one place where reading is paused and resumed. Either is without effect where it is so already."""
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

    @property
    def quiet(self) -> bool:
        """Whether nothing has come in that the loop has not read yet: on an idle connection that is its end, or
        what nobody asked for. Costs a system call."""
        return self._poll is None or not self._poll.poll(0)

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
            self._drop()  # nobody asked: whatever this is, it must not be taken for the next answer
            return
        self.received = True
        if (data[SMALL : SMALL + 1] or self._late) and self._put_off(data):
            return
        try:
            ended = answer.feed(data)
        except InvalidResponse as e:
            if self._answer is answer:
                self._refuse(str(e))
            return
        except Exception as e:  # noqa: BLE001 - the receiver's own: its exchange ends, and the loop goes on
            self._fault(answer, e)
            return
        if ended and self._answer is answer:
            self._finish(answer)

    def _fault(self, answer: ResponseParser, error: Exception) -> None:
        """Handling what came raised: nobody knows where in the answer that was."""
        raised("an engine's answer", error)
        if self._answer is answer:
            receiver = self._part()
            self.abort()
            self._lost(receiver, internal())

    def _lost(self, receiver: Receiver, error: GatewayError) -> None:
        try:
            receiver.lost(error)
        except Exception as e:  # noqa: BLE001 - as above
            raised("an engine's answer that was lost", e)

    def _feed(self, answer: ResponseParser, data: bytes) -> None:
        """What `data_received` has in place: a call less for each token. `deliver` contains what it raises."""
        try:
            ended = answer.feed(data)
        except InvalidResponse as e:
            if self._answer is answer:
                self._refuse(str(e))
            return
        if ended and self._answer is answer:
            self._finish(answer)

    def _put_off(self, data: bytes) -> bool:
        """True: enough was handled in this turn of the loop, so that this is handled in a later one."""
        reading = self._pool.reading
        if not self._late and reading.take(len(data)):
            return False
        self._late += data
        reading.wait(self)
        self._steer()
        return True

    def deliver(self) -> int:
        """Handle what was put off, and read on unless the reader lags. The bytes that were handled."""
        late, self._late = self._late, b""
        answer = self._answer
        if answer is not None and late:
            try:
                self._feed(answer, late)
            except Exception as e:  # noqa: BLE001 - others wait for this turn too: only this connection ends
                self._fault(answer, e)
        self._steer()
        return len(late)

    def _catch_up(self) -> None:
        """Handle what was put off, before the end of the connection is."""
        if self._late:
            self._pool.reading.drop(self)
            self.deliver()

    def eof_received(self) -> bool:
        self._catch_up()
        if self._answer is None:
            self._drop()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._poll = None
        self._catch_up()
        self._pool.forget(self)
        answer, receiver = self._answer, self._part()
        if answer is None:
            return
        try:
            if isinstance(exc, OSError) and exc.errno in OURS:  # to write: no buffer, no memory
                receiver.lost(short_of(exc.strerror or str(exc)))
            elif answer.framing is None:
                receiver.lost(unreachable(f"it closed the connection before it answered{_detail(exc)}"))
            elif answer.until_close and exc is None:
                receiver.end()
            else:
                message = f"The engine closed the connection in mid-answer{_detail(exc)}."
                receiver.lost(GatewayError(Code.UPSTREAM_TRUNCATED, message))
        except Exception as e:  # noqa: BLE001 - as in `_finish`
            raised("the end of an engine's connection", e)
            self._lost(receiver, internal())

    # -- ends -------------------------------------------------------------------------------------

    def _finish(self, answer: ResponseParser) -> None:
        receiver = self._part()
        try:
            self._leave(answer)
        except Exception as e:  # noqa: BLE001 - a connection in doubt is closed; its receiver has its answer
            raised("the end of an exchange", e)
            self.abort()
        try:
            receiver.end()
        except Exception as e:  # noqa: BLE001 - the receiver's own: it is told that it has failed
            raised("the end of an engine's answer", e)
            self._lost(receiver, internal())

    def _leave(self, answer: ResponseParser) -> None:
        """Back to the pool, or closed."""
        transport = self._transport
        if transport is None:
            return
        # A request that is still going out: the engine may take its rest for the next one.
        clean = not answer.surplus and not transport.get_write_buffer_size()
        if clean and answer.framing is not None and answer.framing.keep and not transport.is_closing():
            self._pool.give(self)
        elif clean:
            transport.close()
        else:
            transport.abort()  # a close would wait for an engine that may read no more

    def _part(self) -> Receiver:
        """End the exchange, if there is one. Its receiver hears no more but from who called this."""
        answer, receiver = self._answer, self._receiver
        self._answer, self._receiver = None, _NOBODY
        if answer is not None:
            answer.to = _NOBODY
            try:
                answer.close()
            except Exception as e:  # noqa: BLE001 - a parser that is not let go of: its receiver must hear all the same
                raised("the end of an exchange", e)
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        return receiver

    def _refuse(self, why: str) -> None:
        receiver = self._part()
        self.abort()
        self._lost(receiver, GatewayError(Code.UPSTREAM_PROTOCOL, f"The engine's answer cannot be read: {why}."))

    def _drop(self) -> None:
        """Out of the pool now, not only once the loop has closed it."""
        self._pool.forget(self)
        self.abort()

    def _abort_if(self, answer: ResponseParser) -> None:
        if self._answer is answer:
            self.abort()

    def _lose(self, answer: ResponseParser) -> None:
        if self._answer is answer:
            self._lost(self._part(), unreachable("the connection was already closed"))


def _detail(exc: Exception | None) -> str:
    """What the system or TLS said of a connection's end, as ` (…)`."""
    text = str(getattr(exc, "strerror", None) or exc or "")
    return f" ({text})" if text else ""
