"""The engines: which there are, what they serve, whether they are healthy, and leases on their capacity.
Choosing an engine is synchronous; health checks run in tasks."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from proxy.errors import Code, GatewayError
from proxy.upstream.abilities import Abilities
from proxy.upstream.breaker import Breaker, State
from proxy.upstream.builds import Build, in_common
from proxy.upstream.concurrency import AdaptiveLimit
from proxy.upstream.http.dial import ConnectionRefused
from proxy.upstream.http.pool import Pool
from proxy.upstream.load import LoadReport
from proxy.upstream.pulse import Pulse
from proxy.upstream.routing import LeastOutstanding, Router, key_of
from proxy.wire import ApiRequest

GONE_LOOKS: Final = 2
"""Consecutive health checks that found no listener, or a server that reports itself broken, before an engine
counts as gone. One that is slow to answer may be at work, and does not."""

SILENT_LOOKS: Final = 3
"""Consecutive health checks without an answer, after which requests there that have no first byte move to a
running engine. None is failed for that."""


@dataclass(eq=False, slots=True)
class Backend:
    """One engine: its connections, its models, its load."""

    name: str  # its URL, from settings only: safe as a metric label
    pool: Pool
    max_inflight: int
    inflight: int = 0
    up: bool | None = None  # None: not checked yet. Only `Backends` changes this and `models`
    models: list[dict[str, Any]] = field(default_factory=list)
    detail: str = ""  # why it is down
    breaker: Breaker = field(default_factory=Breaker)
    reported: float = 0.0  # reported load besides ours, in requests (`load.weigh`)
    report: LoadReport | None = None
    few: bool = False  # since it came up it has answered fewer choices than requested, or refused `n` > 1
    leaving: bool = False  # removed: it gets no more requests, those in flight finish
    seed: int = 0
    adaptive_limit: AdaptiveLimit | None = None  # adapts `max_inflight`; None: configured
    reached: bool = False  # the limit was reached since the last tick of `adaptive_limit`
    echoes: bool | None = None  # its answers' `id` holds the request's id; None: not known
    missed: int = 0  # consecutive health checks that found it gone
    silent: int = 0  # consecutive health checks that timed out
    checked_at: float = -math.inf  # end of the last check-up for its breaker
    abilities: Abilities = field(default_factory=Abilities)
    build: Build = field(default_factory=Build)

    def __post_init__(self) -> None:
        self.seed = key_of(self.name.encode())

    def learn_echo(self, *, echoes: bool) -> None:
        """Whether the `id` of its answers holds the request's id."""
        self.echoes = echoes

    @property
    def served(self) -> set[str]:
        return {str(model.get("id")) for model in self.models}

    @property
    def merges(self) -> bool:
        """Whether it samples `n` choices for one prefill: vLLM does, llama.cpp does not."""
        return not self.few and any(model.get("owned_by") == "vllm" for model in self.models)


class Lease:
    """A slot at an engine, for the duration of a stream."""

    __slots__ = ("_owner", "backend", "probe")

    def __init__(self, backend: Backend, owner: Backends) -> None:
        self.backend = backend
        self.probe = False  # it probes a half-open breaker, and its outcome is not recorded yet
        self._owner: Backends | None = owner
        backend.inflight += 1
        if backend.inflight >= backend.max_inflight:
            backend.reached = True

    @property
    def held(self) -> bool:
        return self._owner is not None

    def release(self) -> None:
        """Give the slot back. Later calls do nothing."""
        owner = self._owner
        if owner is not None:
            self._owner = None
            self.backend.inflight -= 1
            if self.probe:
                self.probe = False
                self.backend.breaker.abandoned()
            if self.backend.leaving:
                owner.close_if_drained(self.backend)
            owner.capacity_changed()


class Backends:
    """All engines. Choosing one does no I/O; `refresh` checks their health."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        router: Router | None = None,
        refresh_timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        pulse: Pulse | None = None,
    ) -> None:
        self.all = list(backends)
        self.on_change: Callable[[Backend], None] = lambda backend: None
        self.on_breaker: Callable[[Backend, str], None] = lambda backend, why: None  # it opened (why), or closed
        self.on_suspect: Callable[[Backend], None] = lambda backend: None
        """A single caller's requests fail there: the receiver checks the engine and reports to `checked`."""
        self.capacity_changed: Callable[[], None] = lambda: None
        """To be called when a queued request may find an engine: see `subscribe`."""
        self._on_gone: Callable[[Backend], None] = lambda backend: None
        self._on_silent: Callable[[Backend], None] = lambda backend: None
        self.on_left: Callable[[Backend], None] = lambda backend: None
        """A removed engine has no request in flight any more."""
        self._router = router or LeastOutstanding()
        self._clock = clock
        self._tripped: set[Backend] = set()  # engines whose breaker is not closed
        self._refresh_timeout = refresh_timeout
        self._pulse = pulse
        self.on_restart: Callable[[Backend], None] = lambda backend: None
        """Its process has restarted, though no health check found it down."""
        self._named = {backend.name: backend for backend in self.all}
        self._builds: dict[str | None, frozenset[bytes]] = {}  # builds that answer for each model now
        self._woken: dict[Backend, asyncio.Event] = {}  # wakes the health check of each engine
        self._changed = asyncio.Event()  # the set of engines has changed
        self._chosen: dict[str | None, list[Backend]] = {}
        """The candidates of each model that an engine lists; by None those of all other names, which clients
        choose and which are therefore no keys here. Empty after a change."""

    def subscribe(
        self,
        *,
        capacity_changed: Callable[[], None],
        gone: Callable[[Backend], None] = lambda backend: None,
        silent: Callable[[Backend], None] = lambda backend: None,
    ) -> None:
        """Set what the scheduler is called with: `capacity_changed` when an engine may have room, `gone` when an
        engine does not run any more, `silent` when one has not answered checks for a while. The last two are
        called with each check, for the requests that are under way there."""
        self.capacity_changed, self._on_gone, self._on_silent = capacity_changed, gone, silent

    def __repr__(self) -> str:
        states = " ".join(f"{b.name}={b.inflight}/{b.max_inflight}{'' if b.up else '!'}" for b in self.all)
        return f"<Backends {states}>"

    @property
    def ready(self) -> bool:
        return any(backend.up for backend in self.all)

    def models(self) -> list[dict[str, Any]]:
        """The models that healthy engines serve, each id once, as the first engine lists it."""
        union: dict[str, dict[str, Any]] = {}
        for backend in self.all:
            if backend.up:
                for model in backend.models:
                    union.setdefault(str(model.get("id")), model)
        return list(union.values())

    def candidates(self, model: str | None) -> list[Backend]:
        """The engines that may answer for a model. A model that no engine lists goes to any of them: the
        engine's 404 is the answer. With all engines down all are candidates: one may just have come back."""
        living = [b for b in self.all if b.up] or self.all
        claiming = [b for b in living if model is not None and model in b.served]
        if not claiming and model is not None and any(model in b.served for b in self.all):
            return [b for b in self.all if model in b.served]  # known, but down: try it, and report that
        return claiming or living

    def pool_of(self, model: str | None) -> str | None:
        """The name under which requests for the same engines queue: the model, where an engine lists it, else
        None."""
        return model if model in (self._chosen or self._choose()) else None

    def acquire(
        self, model: str | None, *, exclude: frozenset[Backend] = frozenset(), affinity: int = 0
    ) -> Lease | None:
        """A slot at an engine that serves the model, chosen by the routing policy; None while all are full, or a
        probe is in flight.

        Raises GatewayError 503 where there is no engine, all are excluded, or all breakers are open.
        """
        chosen = self._chosen or self._choose()
        candidates = chosen.get(model)
        if candidates is None:
            candidates = chosen[None]
        if exclude:
            candidates = [b for b in candidates if b not in exclude]
        if not candidates:
            raise GatewayError(Code.NO_BACKEND, "No engine is available for this request.", retry_after=1)
        if self._tripped:
            return self._acquire_guarded(model, candidates, exclude, affinity)
        if len(candidates) == 1:
            best: Backend | None = candidates[0]
            if best is not None and best.inflight >= best.max_inflight:
                return None
        else:
            best = self._router.choose(candidates, affinity)
        return Lease(best, self) if best is not None else None

    def acquire_untried(self, model: str | None, tried: frozenset[Backend], affinity: int = 0) -> Lease | None:
        """A slot at an engine that was not tried yet; None where there is none now."""
        try:
            return self.acquire(model, exclude=tried, affinity=affinity)
        except GatewayError:
            return None

    def folds(self, api_request: ApiRequest, name: str | None) -> bool:
        """Whether a stream for this request certainly folds: at the engine of this name, or (None) at all
        candidates."""
        if name is None:
            engines = self._chosen.get(api_request.model) or self.candidates(api_request.model)
        else:
            engines = [self._named[name]] if name in self._named else []
        return bool(engines) and all(backend.abilities.folds(api_request) for backend in engines)

    def makes(self, model: str | None, build: bytes) -> bool:
        """Whether an answer of this build is what an engine that serves the model gives now; with no build known,
        as before any engine was seen, it is."""
        builds = self._builds.get(model) or self._builds.get(None)
        return not builds or build in builds

    def build_of(self, name: str | None, model: str | None, since: float | None) -> bytes | None:
        """The build that made an answer requested from the engine of this name at `since`; None: not known."""
        backend = self._named.get(name or "")
        if backend is None or since is None or backend.up is False:
            return None
        return backend.build.of(model, since)

    def started(self, backend: Backend, at: float) -> None:
        """It reports that its process started at `at` (Unix time). A restarted engine is checked soon."""
        if not backend.leaving and backend.build.began(at, self._clock()):
            self._anew(backend)
            self._wake(backend)
            self.on_restart(backend)

    def _anew(self, backend: Backend) -> None:
        """It may be another engine or version: forget what it was seen to do."""
        backend.few = False
        backend.abilities.forget()

    def _wake(self, backend: Backend) -> None:
        """Check its health soon."""
        woken = self._woken.get(backend)
        if woken is not None:
            woken.set()

    def _acquire_guarded(
        self, model: str | None, candidates: list[Backend], exclude: frozenset[Backend], affinity: int
    ) -> Lease | None:
        """`acquire` while any breaker is not closed."""
        now = self._clock()
        admitted = [b for b in candidates if b.breaker.admits(now)]
        if not admitted:
            admitted = self._perhaps_back(model, candidates, exclude, now)
        if not admitted:
            if any(b.breaker.probing for b in candidates):
                return None  # the probe's end is a release, which serves the queue
            wait = math.ceil(min(b.breaker.until for b in candidates) - now)
            raise GatewayError(
                Code.NO_BACKEND, "Every engine for this request has failed too often recently.", retry_after=wait
            )
        best = self._router.choose(admitted, affinity)
        if best is None:
            return None
        lease = Lease(best, self)
        if best.breaker.state is State.HALF_OPEN:
            lease.probe = True
            best.breaker.probe(now)
        return lease

    def reclaim(self, backend: Backend, places: int) -> None:
        """Take back leaked slots."""
        backend.inflight = max(0, backend.inflight - places)
        if backend.leaving:
            self.close_if_drained(backend)
        self.capacity_changed()

    def _perhaps_back(
        self, model: str | None, candidates: list[Backend], exclude: frozenset[Backend], now: float
    ) -> list[Backend]:
        """Engines that are marked down, where no other takes a request: one may just have come back. Only those
        without a listener, which refuse at once (a silent one would hold the request), and one request at each."""
        known = any(model in b.served for b in self.all)
        return [
            b
            for b in self.all
            if b.missed and b.up is False and not b.inflight and b not in candidates and b not in exclude
            and (not known or model in b.served) and b.breaker.admits(now)
        ]  # fmt: skip

    def _choose(self) -> dict[str | None, list[Backend]]:
        claimed: set[str | None] = {None}
        claimed.update(*(backend.served for backend in self.all))
        self._chosen = {model: self.candidates(model) for model in claimed}
        return self._chosen

    def record_unreachable(self, backend: Backend, why: str) -> None:
        """It cannot be connected to: it is down until a health check succeeds, and the next one is soon."""
        self._set(backend, up=False, detail=why)

    def record_success(self, lease: Lease) -> None:
        """A request succeeded there, as far as the engine is concerned."""
        backend, probe = lease.backend, lease.probe
        lease.probe = False
        if backend.breaker.success(self._clock(), probe=probe):
            self._closed(backend)

    def record_failure(self, lease: Lease, why: str, who: Hashable | None = None) -> None:
        """The engine failed a request of this caller; None: one of the gateway's own."""
        backend, probe = lease.backend, lease.probe
        lease.probe = False
        opened = backend.breaker.failure(self._clock(), who=who, probe=probe)
        if backend.leaving:
            return
        if opened:
            self._opened(backend, why)
        elif backend.breaker.suspect:
            self.on_suspect(backend)

    def checked(self, backend: Backend, good: bool | None, why: str, *, silent: bool = False) -> None:
        """The result of a check-up of a suspect engine; see `Breaker.checked`."""
        changed = backend.breaker.checked(self._clock(), good, silent=silent)
        if backend.leaving:
            return
        if changed and backend.breaker.state is State.OPEN:
            self._opened(backend, f"opened by a check of our own: {why}")
        elif changed:
            self._closed(backend)
            return
        self.capacity_changed()  # requests may have waited for the result

    def _opened(self, backend: Backend, why: str) -> None:
        self._tripped.add(backend)
        self.on_breaker(backend, why)

    def _closed(self, backend: Backend) -> None:
        self._tripped.discard(backend)
        self.on_breaker(backend, "")
        self.capacity_changed()  # requests may have waited for the probe

    def record_too_few_choices(self, lease: Lease) -> None:
        """The engine answered fewer choices than requested: it gets one at a time from now on."""
        lease.backend.few = True

    def record_array_refused(self, name: str | None) -> None:
        """An engine refused an array of several clients' inputs that it accepted in parts."""
        if name in self._named:
            self._named[name].abilities.refuses_arrays()

    def clear_too_few_choices(self, lease: Lease) -> None:
        """It refuses with one choice what it refused with several: that was not because of `n`."""
        lease.backend.few = False

    def _set(self, backend: Backend, *, up: bool, detail: str = "") -> None:
        if backend.leaving:
            return
        self._chosen = {}
        changed = backend.up is not up
        back = up and backend.up is False
        backend.up, backend.detail = up, detail
        if back:
            backend.breaker.half_open()  # it is back: a request may probe it now
            self._anew(backend)
        if changed:
            self._wake(backend)
            self.on_change(backend)
            if back:
                self.capacity_changed()  # requests may have waited for it

    def change(self, added: Iterable[Backend], removed: Iterable[Backend]) -> None:
        """Add and remove engines. A removed one finishes its requests in flight."""
        gone = list(removed)
        self.all = [*(b for b in self.all if b not in gone), *added]
        self._named = {backend.name: backend for backend in self.all}
        self._builds = in_common(backend.build for backend in self.all)
        self._chosen = {}
        for backend in gone:
            backend.leaving = True
            self._tripped.discard(backend)
            self.close_if_drained(backend)
        self._changed.set()

    def close_if_drained(self, backend: Backend) -> None:
        """Close a leaving engine's pool once it has no request in flight."""
        if backend.inflight == 0:
            backend.pool.close()
            self.on_left(backend)

    async def refresh(self, backends: Iterable[Backend] | None = None) -> None:
        """Check the health and the models of all engines, or of these, concurrently. Never raises."""
        await asyncio.gather(*(self._refresh(backend) for backend in (self.all if backends is None else backends)))

    async def _refresh(self, backend: Backend) -> None:
        gone = silent = False
        try:
            if self._pulse is None:
                gone, down = await self._look(backend)
            else:
                gone, down = await self._pulse.patiently(lambda: self._look(backend))
        except TimeoutError as e:
            silent, down = True, f"no answer to {e} in {self._refresh_timeout:g} s"
        except ConnectionRefused as e:
            gone, down = True, str(e)
        except (GatewayError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            if isinstance(e, GatewayError) and e.code is Code.LOCAL_RESOURCES:
                return  # our own shortage says nothing of the engine
            down = str(e)
        if not gone:
            backend.missed = 0
        elif not backend.leaving:
            backend.missed += 1
        backend.silent = backend.silent + 1 if silent else 0
        self._set(backend, up=not down, detail=down)
        if backend.silent >= SILENT_LOOKS:
            self._on_silent(backend)
        if backend.missed >= GONE_LOOKS:
            backend.pool.drop_idle()
            self._on_gone(backend)

    async def _look(self, backend: Backend) -> tuple[bool, str]:
        """(gone, why it is down or empty). Any answer but a server error counts as healthy: an engine may have no
        /health, or list no models."""
        path = "/health"
        try:
            async with asyncio.timeout(self._refresh_timeout):
                # By a new connection: an engine that accepts none any more may still serve the old ones.
                status, body = await backend.pool.get(path, fresh=True)
                if status >= 500:  # vLLM's API server outlives its engine core
                    return True, f"{path}: {status}"
                path = "/v1/models"
                status, body = await backend.pool.get(path)
        except TimeoutError:
            raise TimeoutError(path) from None
        if status == 200:
            listed = msgspec.json.decode(body, type=dict[str, Any]).get("data") or []
            listed = listed if isinstance(listed, list) else []
            backend.models = [m for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)]
            if await backend.build.look(backend.pool, backend.models, away=backend.up is False, clock=self._clock):
                self._builds = in_common(each.build for each in self.all)
        return False, "" if status < 500 else f"{path}: {status}"

    async def watch(self, every: float) -> None:
        """Check the health of every engine until cancelled, each in its own task: a slow one delays no other."""
        tasks: dict[Backend, asyncio.Task[None]] = {}
        try:
            while True:
                self._changed.clear()
                self._watch_all(tasks, every)
                await self._changed.wait()
        finally:
            self._woken.clear()
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _watch_all(self, tasks: dict[Backend, asyncio.Task[None]], every: float) -> None:
        for backend in self.all:
            if backend not in tasks:
                self._woken[backend] = asyncio.Event()
                tasks[backend] = asyncio.ensure_future(self._watch(backend, every))
        for backend in [backend for backend in tasks if backend.leaving]:
            tasks.pop(backend).cancel()
            del self._woken[backend]

    async def _watch(self, backend: Backend, every: float) -> None:
        """Check one engine every `every` seconds, or each second while it is down, or soon when woken."""
        woken = self._woken[backend]
        while True:
            if backend.up:
                try:
                    async with asyncio.timeout(every):
                        await woken.wait()
                except TimeoutError:
                    pass
            if not backend.up:
                await asyncio.sleep(min(every, 1.0))
            try:
                await self._refresh(backend)
            except Exception as e:  # noqa: BLE001 - the health checks must go on
                asyncio.get_running_loop().call_exception_handler({"message": "a health check", "exception": e})
                await asyncio.sleep(1.0)
            woken.clear()  # this check may have set it
