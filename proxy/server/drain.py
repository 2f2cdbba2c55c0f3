"""The shutdown: which requests are still answered, how long those under way may take, and how they are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from proxy.server.gateway import Gateway, Stage
from proxy.server.listener.listener import Listener
from proxy.telemetry import Log

FLUSH_SECONDS: Final = 2.0  # for the error frames of those that were cut to be written
CLOSE_SECONDS: Final = 0.5  # for connections that do not even take these


class Drain:
    """The end, in its order.

    1. `/ready` answers 503 and all else is served for `delay` seconds more: a load balancer sends requests until
       it has noticed.
    2. The listener is closed. A connection that is open is answered 503 `shutting_down` and closed. Requests
       under way have `timeout` seconds.
    3. The rest is ended: a stream by an error frame without [DONE], others by a 503; so are streams whose clients
       may come back, for which no request is under way. Engines are told.

    An exception, and so a second signal, skips to the third step.
    """

    def __init__(
        self,
        listener: Listener,
        runner: web.ServerRunner,
        gateway: Gateway,
        end_all: Callable[[], Awaitable[None]],
        *,
        delay: float,
        timeout: float,
        log: Log,
        abandoned: Callable[[], int] = lambda: 0,
    ) -> None:
        """`abandoned`: answers that are generated though nobody reads them now."""
        self._listener = listener
        self._runner = runner
        self._gateway = gateway
        self._end_all = end_all
        self._delay = delay
        self._timeout = timeout
        self._log = log
        self._abandoned = abandoned
        self._left = False

    async def leave(self) -> None:
        """Another process has this one's place: accept no connection, and end once the clients have left, each
        with the answer to its next request. At most for the time of the drain."""
        self._left = True
        for site in self._runner.sites:
            await site.stop()
        await self._listener.leave(self._timeout)

    async def __call__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                await self._leave()
        finally:
            await self._stop_listening()
            cut = self._listener.busy + self._abandoned()
            await self._end_all()
            await self._listener.finish(FLUSH_SECONDS)
            await self._runner.cleanup()
            self._log.event("warning" if cut else "info", "drained", cut=cut)

    async def _leave(self) -> None:
        if not self._left:
            self._gateway.enter(Stage.NOT_READY)
            if self._delay:
                await asyncio.sleep(self._delay)
        await self._stop_listening()
        if self._timeout:
            await self._listener.finish(self._timeout)

    async def _stop_listening(self) -> None:
        for site in self._runner.sites:
            await site.stop()
        self._gateway.enter(Stage.DRAINING)
