"""Whether one Redis is used or left alone: a circuit breaker that the first loss opens, and the task that probes
Redis until it answers. The answer cache and the shared rate limits each have one.

Which error is a loss is decided here, once, for both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from proxy.redis.resp import ReplyError, TooManyPending, Unhandled, WireError
from proxy.telemetry import raised

AWAY: Final = frozenset({"LOADING", "NOAUTH"})
"""Error codes that every command gets until something changes at the server. A Redis that is full (OOM), read-only
or moved still answers look-ups: only that one command fails."""

OnChange = Callable[[bool, str], None]
"""Called with (away, reason) when the breaker opens or closes. The reason holds no secret."""


def is_away(e: WireError) -> bool:
    """Whether an error says that Redis serves no command at all now. One that this process caused, or that only
    one command gets, does not."""
    if isinstance(e, ReplyError):
        return e.code in AWAY
    return not isinstance(e, TooManyPending | Unhandled)


class Availability:
    """The breaker and its probe. Open from the first loss until a probe succeeds.

    `probe` is awaited while the breaker is open: first after `pause` seconds, then after twice the pause each
    time, at most `longest`. It raises WireError where Redis does not answer.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[object]],
        on_change: OnChange,
        *,
        pause: float = 0.25,
        longest: float = 5.0,
    ) -> None:
        self.open = False  # an attribute: each request reads it
        self.pause = pause  # seconds until the next probe
        self._first, self._longest = pause, longest
        self._probe = probe
        self._on_change = on_change
        self._last_loss: WireError | None = None
        self._opened = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Availability {'open' if self.open else 'closed'} pause={self.pause:g}>"

    def failed(self, e: WireError) -> bool:
        """Report the error of a command; one that `is_away` opens the breaker. False: it is known already. A lost
        connection fails all its commands with one error, and `stop` fails the rest."""
        if self._stopping or e is self._last_loss:
            return False
        if is_away(e):
            self._last_loss = e
            if self._failure():
                self._on_change(True, str(e))
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

    def _failure(self) -> bool:
        """True where it opened the breaker. Each further failure doubles the pause."""
        opened = not self.open
        self.pause = self._first if opened else min(self.pause * 2, self._longest)
        self.open = True
        return opened

    async def _run(self) -> None:
        while True:
            await self._opened.wait()
            while self.open:
                await asyncio.sleep(self.pause)
                try:
                    await self._probe()
                except WireError:
                    self._failure()
                except Exception as e:  # noqa: BLE001 - else the breaker would stay open for ever
                    raised("the probe of Redis", e)
                    self._failure()
                else:
                    self.open = False
                    self._on_change(False, "it answers again")
            self._opened.clear()
