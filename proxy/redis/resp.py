"""Owns one connection to Redis: commands out, joined once per turn of the loop; replies matched in order.
Must not know what is asked or why, and never reconnects: a connection that was lost stays lost.
Called by `redis_link`. What Redis or the way to it has in place of an answer becomes a WireError here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis

from proxy.telemetry import raised

GRACE: Final = 0.001
"""Seconds between a deadline and giving up: a loop that was busy itself may not have read what is there yet."""

Word = bytes | str | int | float
Done = Callable[[Any], None]
"""Called with the reply or with a WireError; perhaps before `send` returns. Once more, with an Unhandled, where it
raised."""

_MORE: Final = object()
_CONFIRMATIONS: Final = frozenset(
    {b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe", b"ssubscribe", b"sunsubscribe"}
)
_UNPAIRED: Final = frozenset({b"MONITOR", b"SYNC", b"PSYNC", b"RESET", b"QUIT", b"HELLO"})


class WireError(Exception):
    """What came in place of an answer. Its text never holds what was sent."""


class ReplyError(WireError):
    """Redis answered with an error, and lives. `code` is its first word: ERR, OOM, READONLY, MOVED, NOSCRIPT..."""

    def __init__(self, text: str | bytes) -> None:
        self.text = text if isinstance(text, str) else text.decode("utf-8", "replace")  # may quote the command
        word = self.text.partition(" ")[0]
        self.code = word if word.isascii() and word.isupper() and len(word) <= 32 else "ERR"
        super().__init__(f"it refused ({self.code})")


class Lost(WireError):
    """No answer will come: not connected, cut, too late, or not Redis. The same object for all it took along.
    Whether the command was carried out is not known."""


class TooManyPending(WireError):
    """Not sent: as many bytes as may be are already under way."""


class Unhandled(WireError):
    """A reply came, and its receiver raised: it is told, so that it ends its request. Redis works."""


def pack(command: Sequence[Word]) -> bytes:
    """A command as RESP has it: an array of bulk strings."""
    data: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub has a tuple of one
    return data


@dataclass(frozen=True, slots=True)
class Login:
    """How a connection opens. `protocol` 2 is for servers and proxies that cannot bear HELLO."""

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
        """As it was before Redis 6."""
        if self.password is not None:
            yield ("AUTH", self.username, self.password) if self.username else ("AUTH", self.password)
        if self.name is not None:
            yield ("CLIENT", "SETNAME", self.name)
        if self.db:
            yield ("SELECT", self.db)


@dataclass(frozen=True, slots=True)
class Bounds:
    connect: float  # seconds for connecting and logging in
    pending: int  # bytes of commands that may be unanswered
    reply: int  # bytes of one reply


class RespConnection(asyncio.Protocol):
    """One connection, from before it is open until it is lost. Any number of commands may be under way.

    Every command has its own bound in time. The first that runs out of it takes the connection along: what
    still comes on it is never read, so a late reply cannot meet the wrong command.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        login: Login,
        bounds: Bounds,
        *,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[RespConnection], None],
    ) -> None:
        self._loop, self._login, self._bounds = loop, login, bounds
        self._on_push, self._on_lost = on_push, on_lost
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_MORE)
        self._steps = login.hello() if login.protocol == 3 else login.old()
        self._hello_sent = False
        self._ready = False
        # deadline, seconds it was given, bytes, confirmations it gets instead of a reply, who waits
        self._waiting: deque[tuple[float, float, int, int, Done]] = deque()
        self._confirmed = 0
        self._out: list[bytes] = []
        self._flush_due = False
        self._unparsed = 0  # bytes read since the last whole reply
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._last_look = False
        self._open_by = loop.time() + bounds.connect
        self.pending = 0  # bytes of commands that wait for their reply
        self.lost: WireError | None = None
        self.opened = False
        self.closed: asyncio.Future[None] = loop.create_future()  # the socket is gone too
        self._expect(self._open_by, bounds.connect)

    def __repr__(self) -> str:
        state = "lost" if self.lost else "ready" if self._ready else "opening"
        return f"<Wire {state} waiting={len(self._waiting)} bytes={self.pending}>"

    def send(self, command: Sequence[Word], timeout: float, done: Done) -> None:
        """Send a command, at the end of this turn of the loop or once logged in. `timeout` in seconds."""
        if self.lost is not None:
            done(self.lost)
            return
        data = pack(command)
        size = len(data)
        if self.pending + size > self._bounds.pending:
            done(TooManyPending(f"{self.pending} bytes are under way, of at most {self._bounds.pending}"))
            return
        deadline = self._loop.time() + timeout
        self._waiting.append((deadline, timeout, size, _confirmations(command), done))
        self.pending += size
        self._out.append(data)
        if self._timer is None or deadline < self._timer_at:
            self._arm(deadline)
        if self._ready and not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def lose(self, why: WireError) -> None:
        """Give the connection up. All that waits is told so, with this very object."""
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
        self._on_lost(self)
        for *_, done in waiting:
            self._tell(done, why)

    def _tell(self, done: Done, reply: Any) -> None:
        """Hand a reply over. What its receiver raises is no other receiver's."""
        try:
            done(reply)
        except Exception as e:  # noqa: BLE001 - as said: replies come in order, and the next ones have other owners
            raised("a reply of Redis", e)

    # -- opening ------------------------------------------------------------------------------------

    def _expect(self, deadline: float, seconds: float) -> None:
        self._waiting.appendleft((deadline, seconds, 0, 0, self._greet))
        if self._timer is None:
            self._arm(deadline)

    def _greet(self, reply: Any) -> None:
        """The next step of logging in. Nothing else is sent before the last is answered."""
        if self.lost is not None or self._transport is None:
            return
        if isinstance(reply, ReplyError):
            if not self._hello_sent or reply.code not in ("ERR", "NOPROTO", "NOPERM"):
                self.lose(Lost(f"it refused the login ({reply.code})"))  # its text may quote the password
                return
            self._steps = self._login.old()  # it knows no HELLO
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
        self._waiting.popleft()  # the connection itself was waited for
        self._greet(None)

    # -- under way ----------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_due = False
        out = self._out
        if out and self._transport is not None and self.lost is None:
            # `pending` bounds what may lie in the transport too: it needs no mark of its own.
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        self._unparsed += len(data)
        try:
            reader.feed(data)
            while self.lost is None and (reply := reader.gets()) is not _MORE:
                self._unparsed = 0
                self._answer(reply)
        except (hiredis.HiredisError, ValueError, MemoryError):
            self.lose(Lost("what it sent is not RESP"))
        except Exception as e:  # noqa: BLE001 - which reply is whose is not known any more
            raised("the replies of Redis", e)
            self.lose(Lost("the gateway failed to read its replies"))
        if self._unparsed > self._bounds.reply:
            self.lose(Lost(f"it sent a reply of more than {self._bounds.reply} bytes"))

    def _answer(self, reply: Any) -> None:
        if type(reply) is hiredis.PushNotification:
            self._pushed(reply)
            return
        if not self._waiting:
            self.lose(Lost("it sent what nobody asked for"))
            return
        _, _, size, confirmations, done = self._waiting.popleft()
        self.pending -= size
        if confirmations and not isinstance(reply, WireError):
            lost = Lost("to subscribe takes RESP3, which Redis has from version 6 on")
            self._tell(done, lost)
            self.lose(lost)
            return
        try:
            done(reply)
        except Exception as e:  # noqa: BLE001 - as `_tell`, without its call
            raised("a reply of Redis", e)
            self._tell(done, Unhandled("the gateway failed to handle the reply"))

    def _pushed(self, push: list[Any]) -> None:
        """RESP3: what came by itself, or one of the confirmations that a SUBSCRIBE gets in place of a reply."""
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
        self.lose(Lost("it closed the connection"))
        if not self.closed.done():
            self.closed.set_result(None)

    # -- time ---------------------------------------------------------------------------------------

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._look_at_time)

    def _look_at_time(self) -> None:
        """One timer for all: it is not moved by an answer, only looks whether the first deadline has passed."""
        self._timer = None
        if not self._waiting:
            return
        now = self._loop.time()
        deadline, seconds, *_ = min(self._waiting, key=lambda waiting: waiting[0])
        if deadline > now:
            self._last_look = False
            self._arm(max(deadline, now + GRACE))
        elif not self._last_look:
            self._last_look = True
            self._arm(now + GRACE)
        else:
            self.lose(Lost(f"no {'answer' if self._ready else 'connection'} within {seconds * 1000:g} ms"))


def _confirmations(command: Sequence[Word]) -> int:
    """How many confirmations the command gets in place of a reply; 0 for one that has a reply.

    Raises ValueError for a command that has neither: replies could not be told apart any more.
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
