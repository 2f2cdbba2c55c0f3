"""The health checks of engines: `HealthChecks` asks each one every few seconds for /health and its models; a
`Checkup` asks for /health and one token where the failures of a single caller made a breaker suspect an engine.
Results go to `Backends`, which decides what they mean."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from proxy.errors import Code, GatewayError
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.http.connection import CLOSED
from proxy.upstream.http.dial import NO_TLS, ConnectionRefused
from proxy.upstream.http.response import NO_STATUS_LINE
from proxy.upstream.pulse import Pulse
from proxy.wire import whole_body

HEALTH_SECONDS: Final = 2.0
GENERATION_SECONDS: Final = 5.0  # for one token after a prompt of one character
AGAIN: Final = 1.0  # seconds between two looks for new models
LIST_SECONDS: Final = 2.0  # for an engine's models, in such a look
EVERY: Final = 1.0  # seconds between two check-ups of one engine: each costs it some work
_BROKEN: Final = frozenset({500, 502, 503, 504})
_REFUSED: Final = frozenset({401, 403})
_OURS: Final = frozenset({Code.LOCAL_RESOURCES, Code.INTERNAL})
"""A shortage or a fault of the gateway's own."""


class HealthChecks:
    """Checks every engine's health and models, each in its own task: a slow one delays no other."""

    def __init__(
        self,
        backends: Backends,
        *,
        pulse: Pulse | None = None,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout`: seconds for each answer; `clock`: that of `backends`."""
        self._backends = backends
        self._pulse = pulse
        self._timeout = timeout
        self._clock = clock
        self._relook: asyncio.Task[None] | None = None
        self._relooked = -math.inf

    async def look_again(self, *, patient: bool) -> None:
        """Ask the engines that are up for their models, as one may have got an adapter meanwhile. All callers of
        one time share the look, and one begins AGAIN seconds after the one before at the earliest: a caller that
        is not `patient` does without. Never raises."""
        if self._relook is None:
            if not patient and self._clock() < self._relooked + AGAIN:
                return
            self._relook = task = asyncio.ensure_future(self._look_again())
            task.add_done_callback(self._looked_again)
        await asyncio.shield(self._relook)

    def _looked_again(self, task: asyncio.Task[None]) -> None:
        self._relook = None

    async def _look_again(self) -> None:
        wait = self._relooked + AGAIN - self._clock()
        if wait > 0:
            await asyncio.sleep(wait)
        self._relooked = self._clock()
        engines = [backend for backend in self._backends.all if backend.up]
        await asyncio.gather(*(self._list(backend) for backend in engines))

    async def _list(self, backend: Backend) -> None:
        """The models of one engine, within LIST_SECONDS. A failure changes nothing: the health checks judge."""
        try:
            async with asyncio.timeout(LIST_SECONDS):
                status, body = await backend.pool.get("/v1/models")
            if status == 200:
                self._backends.record_models(backend, models_in(body))
        except (TimeoutError, GatewayError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass

    async def close(self) -> None:
        """End a look that is under way."""
        if self._relook is not None:
            self._relook.cancel()
            await asyncio.gather(self._relook, return_exceptions=True)

    async def check(self, backends: Iterable[Backend] | None = None) -> None:
        """Check all engines, or these, concurrently. Never raises."""
        chosen = self._backends.all if backends is None else backends
        await asyncio.gather(*(self._check(backend) for backend in chosen))

    async def run(self, every: float) -> None:
        """Check every engine until cancelled, every so many seconds, also those that are added meanwhile."""
        tasks: dict[Backend, asyncio.Task[None]] = {}
        try:
            while True:
                self._backends.changed.clear()
                self._watch_all(tasks, every)
                await self._backends.changed.wait()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _watch_all(self, tasks: dict[Backend, asyncio.Task[None]], every: float) -> None:
        for backend in self._backends.all:
            if backend not in tasks:
                backend.check_soon.clear()
                tasks[backend] = asyncio.ensure_future(self._watch(backend, every))
        for backend in [backend for backend in tasks if backend.leaving]:
            tasks.pop(backend).cancel()

    async def _watch(self, backend: Backend, every: float) -> None:
        """Check one engine every `every` seconds, or each second while it is down, or soon where that is due."""
        while True:
            if backend.up:
                try:
                    async with asyncio.timeout(every):
                        await backend.check_soon.wait()
                except TimeoutError:
                    pass
            if not backend.up:
                await asyncio.sleep(min(every, 1.0))
            try:
                await self._check(backend)
            except Exception as e:  # noqa: BLE001 - the health checks must go on
                asyncio.get_running_loop().call_exception_handler({"message": "a health check", "exception": e})
                await asyncio.sleep(1.0)
            backend.check_soon.clear()  # this check may have set it

    async def _check(self, backend: Backend) -> None:
        gone = silent = False
        unlisted = ""
        try:
            if self._pulse is None:
                gone, down, unlisted = await self._look(backend)
            else:
                gone, down, unlisted = await self._pulse.patiently(lambda: self._look(backend))
        except TimeoutError as e:
            silent, down = True, f"no answer to {e} in {self._timeout:g} s"
        except ConnectionRefused as e:
            gone, down = True, str(e)
        except (GatewayError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            if isinstance(e, GatewayError) and e.code in _OURS:
                return  # it says nothing of the engine
            down = str(e)
            if isinstance(e, GatewayError) and not backend.models:  # it has never been this engine
                down += _remedy(e, backend.name)
        self._backends.record_health(backend, down=down, gone=gone, silent=silent, unlisted=unlisted)

    async def _look(self, backend: Backend) -> tuple[bool, str, str]:
        """(gone, why it is down or empty, why it lists no models or empty). Any answer but a server error counts
        as healthy: an engine may have no /health, or list no models."""
        path = "/health"
        try:
            async with asyncio.timeout(self._timeout):
                # By a new connection: an engine that accepts none any more may still serve the old ones.
                status, body = await backend.pool.get(path, fresh=True)
                if status >= 500:  # vLLM's API server outlives its engine core
                    return True, f"{path}: {status}", ""
                path = "/v1/models"
                status, body = await backend.pool.get(path)
        except TimeoutError:
            raise TimeoutError(path) from None
        if status >= 500:
            return False, f"{path}: {status}", ""
        if status != 200:
            key = ": it requires a key (backend_api_key)" if status in _REFUSED else ": is this vLLM's address?"
            return False, "", f"{path} answered {status}{key}"
        models = models_in(body)
        self._backends.record_models(backend, models)
        if await backend.build.look(backend.pool, models, away=backend.up is False, clock=self._clock):
            self._backends.record_build()
        return False, "", "" if models else f"{path} lists no model"


def models_in(body: bytes) -> list[dict[str, Any]]:
    """The models of an answer to /v1/models. Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError."""
    listed = msgspec.json.decode(body, type=dict[str, Any]).get("data") or []
    listed = listed if isinstance(listed, list) else []
    return [model for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]


def _remedy(error: GatewayError, url: str) -> str:
    """What the operator may have written wrongly; empty where that is not known."""
    if NO_TLS in error.message:
        return " Does it speak TLS? Try http://."
    if CLOSED in error.message or NO_STATUS_LINE in error.message:
        return " Is it HTTP?" + " For TLS write https://." * url.startswith("http://")
    return ""


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
        except GatewayError as e:  # no connection, or no HTTP; or a fault of our own
            seen = Seen(None if e.code in _OURS else False, e.message)
        except Exception as e:  # noqa: BLE001 - the breaker must get a result
            seen = Seen(None, repr(e))
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
