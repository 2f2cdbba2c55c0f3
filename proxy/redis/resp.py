"""One connection to Redis over RESP: commands are written once per event loop iteration, replies are matched in
order. It never reconnects. Anything in place of a reply becomes a WireError."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

import hiredis

from proxy.redis.refusal import code_of, explained, reason_of
from proxy.telemetry import raised

GRACE: Final = 0.001
"""Seconds between a deadline and giving up: a busy event loop may not have read a reply that has arrived."""

Word = bytes | str | int | float
Done = Callable[[Any], None]
"""Called with the reply or a WireError, possibly before `send` returns; once more, with an Unhandled, where it
raised."""

_MORE: Final = object()
_CONFIRMATIONS: Final = frozenset(
    {b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe", b"ssubscribe", b"sunsubscribe"}
)
_ANSWERED: Final = frozenset({b"MGET", b"SET", b"EVALSHA"})
"""The commands of requests, which get one reply: `_confirmations` without a call."""
_FULL: Final = "max number of clients"  # it says so in place of the first reply, and closes the connection
_TLS_ALERT: Final = b"\x15"  # the first byte of what a TLS server answers to plain RESP
NO_TLS: Final = "a Redis without TLS needs redis://"
ONLY_TLS: Final = "a Redis with TLS needs rediss://"
_UNPAIRED: Final = frozenset({b"MONITOR", b"SYNC", b"PSYNC", b"RESET", b"QUIT", b"HELLO"})


class WireError(Exception):
    """What came in place of a reply. Its text never quotes the command's arguments."""

    reason = ""
    """Where Redis refused: its reason (`refusal.reason_of`)."""


class ReplyError(WireError):
    """Redis answered with an error. `code` is its first word."""

    def __init__(self, text: str | bytes) -> None:
        self.text = text if isinstance(text, str) else text.decode("utf-8", "replace")  # may quote the command
        self.code = code_of(self.text)
        self.reason = reason_of(self.text)
        super().__init__(f"it refused {explained(self.text)}")


class Lost(WireError):
    """No reply will come: not connected, cut, too late, refused at the login, or not Redis. All commands lost
    together get the same object. Whether they were carried out is not known."""

    def __init__(self, why: str, reason: str = "") -> None:
        self.reason = reason
        super().__init__(why)


class TooManyPending(WireError):
    """Not sent: the bound of bytes in flight is reached."""


class Unhandled(WireError):
    """A reply came and its receiver raised; the receiver gets this, so that it ends its request. Redis works."""


class NodeAway(WireError):
    """Not carried out: the one master of a Redis Cluster that has this key does not serve; others do. It is
    reported by the Cluster, which probes that master."""


def pack(command: Sequence[Word]) -> bytes:
    """A command in RESP: an array of bulk strings."""
    data: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub has a tuple of one
    return data


@dataclass(frozen=True, slots=True)
class Login:
    """How a connection logs in. `protocol` 2 is for servers and proxies without HELLO."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    name: str | None = None
    protocol: int = 3

    def hello(self) -> Iterator[tuple[Word, ...]]:
        words: tuple[Word, ...] = ("HELLO", 3)
        if self.password is not None:
            words += ("AUTH", self.username or "default", self.password)
        if self.name is not None:
            words += ("SETNAME", self.name)
        yield words
        if self.db:
            yield ("SELECT", self.db)

    def old(self) -> Iterator[tuple[Word, ...]]:
        """The login before Redis 6."""
        if self.password is not None:
            yield ("AUTH", self.username, self.password) if self.username else ("AUTH", self.password)
        if self.name is not None:
            yield ("CLIENT", "SETNAME", self.name)
        if self.db:
            yield ("SELECT", self.db)


@dataclass(frozen=True, slots=True)
class Bounds:
    connect: float  # seconds for connecting and logging in
    pending: int  # bytes of commands in flight
    reply: int  # bytes of one reply


class RespConnection(asyncio.Protocol):
    """One connection, from before it is open until it is lost. Any number of commands may be in flight.

    Each command has its own timeout. The first one that expires ends the connection: nothing is read from it any
    more, so a late reply cannot be matched to the wrong command. `tls`: whether it is spoken; None: it cannot be.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        login: Login,
        bounds: Bounds,
        *,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[RespConnection], None],
        tls: bool | None = None,
    ) -> None:
        self._loop, self._login, self._bounds, self._tls = loop, login, bounds, tls
        self._on_push, self._on_lost = on_push, on_lost
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_MORE)
        self._steps = login.hello() if login.protocol == 3 else login.old()
        self._hello_sent = False
        self._ready = False
        # (deadline, timeout, bytes, number of confirmations in place of a reply, done)
        self._waiting: deque[tuple[float, float, int, int, Done]] = deque()
        self._confirmed = 0
        self._out: list[bytes] = []
        self._flush_due = False
        self._unparsed = 0  # bytes read since the last whole reply
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._last_look = False
        self._open_by = loop.time() + bounds.connect
        self.pending = 0  # bytes of commands without a reply yet
        self.lost: WireError | None = None
        self.opened = False
        self.closed: asyncio.Future[None] = loop.create_future()  # the socket is closed too
        self._expect(self._open_by, bounds.connect)

    def __repr__(self) -> str:
        state = "lost" if self.lost else "ready" if self._ready else "opening"
        return f"<RespConnection {state} waiting={len(self._waiting)} bytes={self.pending}>"

    def send(self, command: Sequence[Word], timeout: float, done: Done) -> None:
        """Send a command at the end of this event loop iteration, or once logged in. `timeout` in seconds."""
        if self.lost is not None:
            done(self.lost)
            return
        data: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # as `pack`, without its call
        size = len(data)
        confirmations = 0 if command[0] in _ANSWERED else _confirmations(command)
        if self.pending + size > self._bounds.pending:
            done(TooManyPending(f"{self.pending} bytes are under way, of at most {self._bounds.pending}"))
            return
        deadline = self._loop.time() + timeout
        self._waiting.append((deadline, timeout, size, confirmations, done))
        self.pending += size
        self._out.append(data)
        if self._timer is None or deadline < self._timer_at:
            self._arm(deadline)
        if self._ready and not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def lose(self, why: WireError) -> None:
        """Give the connection up. All commands in flight get `why`, the same object."""
        if self.lost is not None:
            return
        self.lost = why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        self._out.clear()
        self.pending = 0
        try:
            self._on_lost(self)
        except Exception as e:  # noqa: BLE001 - the commands are lost all the same
            raised("a lost connection to Redis", e)
        for *_, done in waiting:
            self._tell(done, why)

    def _tell(self, done: Done, reply: Any) -> None:
        """Deliver a reply. An exception of its receiver reaches no other receiver."""
        try:
            done(reply)
        except Exception as e:  # noqa: BLE001 - the next replies have other receivers
            self._unhandled(done, e)

    def _unhandled(self, done: Done, error: Exception) -> None:
        """The receiver of a reply raised this: it gets an Unhandled, or its request would wait for ever."""
        raised("a reply of Redis", error)
        try:
            done(Unhandled("the gateway failed to handle the reply"))
        except Exception as e:  # noqa: BLE001 - there is nobody else to tell
            raised("a reply of Redis", e)

    def _hinted(self, why: str, *, tls: bool) -> Lost:
        """With the likely cause, where it is lost before the login and speaks TLS, or not, as `tls`."""
        if self._ready or self._tls is not tls:
            return Lost(why)
        return Lost(f"{why}; {NO_TLS if tls else ONLY_TLS}")

    # -- opening ------------------------------------------------------------------------------------

    def _expect(self, deadline: float, seconds: float) -> None:
        self._waiting.appendleft((deadline, seconds, 0, 0, self._greet))
        if self._timer is None:
            self._arm(deadline)

    def _greet(self, reply: Any) -> None:
        """The next step of the login. Other commands are sent after its last step."""
        if self.lost is not None or self._transport is None:
            return
        if isinstance(reply, ReplyError):
            if not self._hello_sent or reply.code not in ("ERR", "NOPROTO", "NOPERM") or _FULL in reply.text:
                self.lose(Lost(f"it refused the login {explained(reply.text)}", reply.reason))
                return
            self._steps = self._login.old()  # a server without HELLO
        step = next(self._steps, None)
        self._hello_sent = step is not None and step[0] == "HELLO"
        if step is None:
            self._ready = True
            self._flush()
            return
        self._expect(self._open_by, self._bounds.connect)
        self._transport.write(pack(step))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.opened = True
        if self.lost is not None:
            transport.abort()  # type: ignore[attr-defined]
            return
        self._waiting.popleft()  # the entry of the connection itself
        self._greet(None)

    # -- in use -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what was sent in this event loop iteration."""
        if self._ready:
            self._flush()

    def _flush(self) -> None:
        self._flush_due = False
        out = self._out
        if out and self._transport is not None and self.lost is None:
            # `pending` bounds the transport's buffer too: no high-water mark is needed.
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        self._unparsed += len(data)
        try:
            reader.feed(data)
            while self.lost is None and (reply := reader.gets()) is not _MORE:
                self._unparsed = 0
                waiting = self._waiting
                if not waiting or waiting[0][3] or type(reply) is hiredis.PushNotification:
                    self._answer(reply)
                    continue
                _, _, size, _, done = waiting.popleft()
                self.pending -= size
                try:
                    done(reply)
                except Exception as e:  # noqa: BLE001 - the next replies have other receivers
                    self._unhandled(done, e)
        except (hiredis.HiredisError, ValueError, MemoryError):
            why = "a reply that is not RESP: no Redis listens there"
            self.lose(self._hinted(why, tls=False) if data[:1] == _TLS_ALERT else Lost(why))
        except Exception as e:  # noqa: BLE001 - replies cannot be matched to commands any more
            raised("the replies of Redis", e)
            self.lose(Lost("the gateway failed to read its replies"))
        if self._unparsed > self._bounds.reply:
            self.lose(Lost(f"a reply of more than {self._bounds.reply} bytes"))

    def _answer(self, reply: Any) -> None:
        """A push message, or a reply that answers no command or one that is confirmed by push messages."""
        if type(reply) is hiredis.PushNotification:
            self._pushed(reply)
            return
        if not self._waiting:
            self.lose(Lost("an unexpected reply"))
            return
        _, _, size, _, done = self._waiting.popleft()
        self.pending -= size
        if isinstance(reply, WireError):
            self._tell(done, reply)
            return
        lost = Lost("subscribing requires RESP3 (Redis 6 or newer)")
        self._tell(done, lost)
        self.lose(lost)

    def _pushed(self, push: list[Any]) -> None:
        """RESP3: a push message, or one of the confirmations of a SUBSCRIBE, which come in place of a reply."""
        waiting = self._waiting
        if waiting and waiting[0][3] and push and push[0] in _CONFIRMATIONS:
            self._confirmed += 1
            if self._confirmed == waiting[0][3]:
                self._confirmed = 0
                _, _, size, _, done = waiting.popleft()
                self.pending -= size
                self._tell(done, push)
        self._on_push(push)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lose(self._hinted("it closed the connection", tls=False))
        if not self.closed.done():
            self.closed.set_result(None)

    # -- time ---------------------------------------------------------------------------------------

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._look_at_time)

    def _look_at_time(self) -> None:
        """The one timer of all commands. A reply does not move it; it checks whether the first deadline has
        passed. A connection whose timer fails is lost: its commands would wait for ever."""
        self._timer = None
        try:
            self._check_deadlines(self._loop.time())
        except Exception as e:  # noqa: BLE001 - what has no timer any more is given up
            raised("the deadlines of Redis", e)
            self.lose(Lost("the gateway failed to check its deadlines"))

    def _check_deadlines(self, now: float) -> None:
        if not self._waiting:
            return
        deadline, seconds, *_ = min(self._waiting, key=itemgetter(0))
        if deadline > now:
            self._last_look = False
            self._arm(max(deadline, now + GRACE))
        elif not self._last_look:
            self._last_look = True
            self._arm(now + GRACE)
        else:
            why = f"no {'answer' if self._ready else 'connection'} within {seconds * 1000:g} ms"
            self.lose(Lost(why) if self.opened else self._hinted(why, tls=True))


def _confirmations(command: Sequence[Word]) -> int:
    """The number of confirmations that the command gets in place of a reply; 0 for one with a reply.

    Raises ValueError for a command with neither: replies could not be matched any more.
    """
    first = command[0]
    name = (first if isinstance(first, bytes) else str(first).encode()).upper()
    if name.endswith(b"SUBSCRIBE") and name.lower() in _CONFIRMATIONS:
        if len(command) < 2:
            raise ValueError(f"{name.decode()} needs its channels")
        return len(command) - 1
    if name in _UNPAIRED:
        raise ValueError(f"{name.decode()} has no reply of its own and cannot share a connection")
    return 0
