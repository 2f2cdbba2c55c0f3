"""Whether one Redis is used or left alone: a circuit breaker that the first loss or refusal opens, and the task
that probes Redis until it does again what is asked of it. Look-ups, stores and the shared rate limits each have
one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from proxy.redis.refusal import kind_of
from proxy.redis.resp import Lost, NodeAway, ReplyError, TooManyPending, Unhandled, WireError
from proxy.telemetry import raised

SETTLED: Final = 30.0
"""Seconds without a refusal after which a Redis that refused is reported as good again. One that is full refuses
and accepts in turns."""

_AWAY: Final = frozenset({"LOADING", "BUSY", "MASTERDOWN", "NOAUTH"})
"""Error codes that every command gets until something changes at the server."""
_ONE_KEY: Final = "WRONGTYPE"  # a refusal that says nothing of other keys: it is reported, and opens nothing

OnChange = Callable[[WireError | None], None]
"""Called with what went wrong when the trouble begins and when it becomes one of another kind, and with None when
it is over. The error's text holds no secret."""


def of_one_key(e: WireError) -> bool:
    """Whether an error says something of one key alone: another program has written to it."""
    return isinstance(e, ReplyError) and e.reason == _ONE_KEY


def is_away(e: WireError) -> bool:
    """Whether an error says that Redis serves no command at all now."""
    if isinstance(e, ReplyError):
        return e.reason in _AWAY
    return not isinstance(e, TooManyPending | Unhandled | NodeAway)


class Availability:
    """The breaker and its probe. Open from the first loss or refusal until a probe succeeds.

    `probe` is awaited while the breaker is open: first after `pause` seconds, then after twice the pause each
    time, at most `longest`. It does what requests ask and raises WireError where Redis does not do it.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[object]],
        on_change: OnChange,
        *,
        pause: float = 0.25,
        longest: float = 5.0,
        settled: float = SETTLED,
    ) -> None:
        self.open = False  # an attribute: each request reads it
        self.pause = pause  # seconds until the next probe
        self.trouble: WireError | None = None  # as reported; it may outlast `open` by `settled` seconds
        self._first, self._longest, self._settled = pause, longest, settled
        self._probe = probe
        self._on_change = on_change
        self._kinds: set[str] = set()  # of the present trouble, reported already
        self._last_loss: WireError | None = None
        self._opened = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Availability {'open' if self.open else 'closed'} pause={self.pause:g}>"

    def failed(self, e: WireError) -> bool:
        """Report the error of a command, which opens the breaker unless this process, one key or one master of a
        Cluster caused it. False:
        it is known already. A lost connection fails all its commands with one error, and `stop` fails the rest."""
        if self._stopping or e is self._last_loss:
            return False
        if self.open and isinstance(e, ReplyError):
            return True  # of a command sent before it opened: many refusals are no reason to probe less
        if not isinstance(e, TooManyPending | Unhandled | NodeAway):
            self._last_loss = e
            self._failure(e)
            self._opened.set()
        return True

    def start(self) -> None:
        """Probe from now on, whenever the breaker is open."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the probe. Errors reported later are of our own closing and count for nothing."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _failure(self, e: WireError) -> None:
        """Each failure doubles the pause, until the trouble is over."""
        if not of_one_key(e):
            self.pause = self._first if self.trouble is None else min(self.pause * 2, self._longest)
            self.open = True
        self.trouble = e
        kind = kind_of(e.reason)
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._on_change(e)

    async def _run(self) -> None:
        while True:
            await self._opened.wait()
            while self.open:
                await asyncio.sleep(self.pause)
                try:
                    await self._probe()
                except WireError as e:
                    self._failure(e)
                except Exception as e:  # noqa: BLE001 - else the breaker would stay open for ever
                    raised("the probe of Redis", e)
                    self._failure(Lost("the gateway's probe failed"))
                else:
                    self.open = False
            self._opened.clear()
            if not await self._reopened():
                self.trouble = None
                self._kinds.clear()
                self._on_change(None)

    async def _reopened(self) -> bool:
        """Whether it refused again before it had settled. A loss is over with the first reply."""
        if not isinstance(self.trouble, ReplyError) or not kind_of(self.trouble.reason):
            return False
        try:
            async with asyncio.timeout(self._settled):
                await self._opened.wait()
        except TimeoutError:
            return False
        return True
