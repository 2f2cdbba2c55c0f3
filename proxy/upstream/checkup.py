"""Checks an engine by requests of the gateway's own, /health and one token, where the failures of a single
caller made its breaker suspect it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from proxy.errors import Code, GatewayError
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.pulse import Pulse
from proxy.wire import whole_body

HEALTH_SECONDS: Final = 2.0
GENERATION_SECONDS: Final = 5.0  # for one token after a prompt of one character
EVERY: Final = 1.0  # seconds between two check-ups of one engine: each costs it some work
_BROKEN: Final = frozenset({500, 502, 503, 504})


class Seen(NamedTuple):
    """The result of a check-up: whether the engine works; None: undecided, because it is busy or `silent`."""

    good: bool | None
    why: str = ""
    silent: bool = False


class Checkup:
    """Checks suspected engines, each by one task at a time."""

    def __init__(
        self, backends: Backends, pulse: Pulse, *, clock: Callable[[], float], every: float = EVERY
    ) -> None:
        self._backends = backends
        self._pulse = pulse
        self._clock = clock
        self._every = every
        self._tasks: dict[Backend, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Checkup of {' '.join(backend.name for backend in self._tasks) or 'nothing'}>"

    def begin(self, backend: Backend) -> None:
        """Start a check-up of this engine, unless one is running."""
        if backend not in self._tasks:
            self._tasks[backend] = task = asyncio.ensure_future(self._check(backend))
            task.add_done_callback(lambda _: self._tasks.pop(backend, None))

    async def close(self) -> None:
        """Cancel all check-ups."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, backend: Backend) -> None:
        wait = backend.checked_at + self._every - self._clock()
        if wait > 0:
            await asyncio.sleep(wait)
        try:
            seen = await self._look(backend)
        except GatewayError as e:  # no connection, or no HTTP; or a shortage of our own
            seen = Seen(None if e.code is Code.LOCAL_RESOURCES else False, e.message)
        except Exception as e:  # noqa: BLE001 - the breaker must get a result
            seen = Seen(None, repr(e))
        backend.checked_at = self._clock()
        self._backends.checked(backend, seen.good, seen.why, silent=seen.silent)

    async def _look(self, backend: Backend) -> Seen:
        try:
            status, _ = await self._asked(backend, HEALTH_SECONDS, "GET", "/health", b"")
        except TimeoutError:
            return Seen(None, f"no answer to /health in {HEALTH_SECONDS:g} s", silent=True)
        if status >= 500:
            return Seen(False, f"/health: {status}")
        model = next(iter(backend.models), None)
        if model is None:
            return Seen(True)
        body = msgspec.json.encode({"model": model["id"], "prompt": "a", "max_tokens": 1, "temperature": 0})
        try:
            status, answer = await self._asked(backend, GENERATION_SECONDS, "POST", "/v1/completions", body)
        except TimeoutError:
            return Seen(None, f"no token in {GENERATION_SECONDS:g} s")
        if status == 200 and not whole_body(answer):
            return Seen(False, "/v1/completions: an incomplete answer")
        return Seen(status not in _BROKEN, f"/v1/completions: {status}")

    async def _asked(
        self, backend: Backend, seconds: float, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        async def attempt() -> tuple[int, bytes]:
            async with asyncio.timeout(seconds):
                return await backend.pool.ask(method, path, body, fresh=True)

        return await self._pulse.patiently(attempt)
