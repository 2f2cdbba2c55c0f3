"""Owns the engines: which there are, what they serve, whether they live, and leases on their capacity.
Must not know flights, requests or HTTP: it is told what was seen of an engine.
Called by the scheduler (acquire, release), the app (refresh) and the gateway (models, readiness)."""

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
"""Looks in succession that found no listener, or a server that says it is broken, before an engine is gone. One
that is only slow to answer is not: it may be at work."""

SILENT_LOOKS: Final = 3
"""Looks in succession without any answer, after which requests there without a first byte move to an engine that
runs. None is ended for that."""


@dataclass(eq=False, slots=True)
class Backend:
    """One engine: its connections, its models, how much of it is in use."""

    name: str  # its URL, from settings only: safe as a metric label
    pool: Pool
    max_inflight: int
    inflight: int = 0
    up: bool | None = None  # None: not asked yet. This and `models` are changed by `Backends` alone
    models: list[dict[str, Any]] = field(default_factory=list)
    detail: str = ""  # why it is down
    breaker: Breaker = field(default_factory=Breaker)
    reported: float = 0.0  # load that it tells of besides ours, in requests; by `load.weigh`
    report: LoadReport | None = None
    few: bool = False  # since it came up it has answered fewer choices than it was asked for, or refused several
    leaving: bool = False  # it is asked nothing more; what is under way there ends in its own time
    seed: int = 0
    adaptive_limit: AdaptiveLimit | None = None  # finds `max_inflight`; None: it is set
    reached: bool = False  # since the pacer's last tick it had as much as it may
    echoes: bool | None = None  # the id of a request in its answer's `id`; None: not known. Journeys learn it
    missed: int = 0  # looks in succession that found it gone
    silent: int = 0  # the same, that had no answer in time
    checked_at: float = -math.inf  # when a check of our own, for its breaker, has ended last
    abilities: Abilities = field(default_factory=Abilities)
    build: Build = field(default_factory=Build)

    def __post_init__(self) -> None:
        self.seed = key_of(self.name.encode())

    @property
    def served(self) -> set[str]:
        return {str(model.get("id")) for model in self.models}

    @property
    def merges(self) -> bool:
        """Whether it samples `n` choices for the price of one prefill: vLLM does, llama.cpp does not."""
        return not self.few and any(model.get("owned_by") == "vllm" for model in self.models)


class Lease:
    """A place at an engine, for as long as the stream lasts."""

    __slots__ = ("_owner", "backend", "probe")

    def __init__(self, backend: Backend, owner: Backends) -> None:
        self.backend = backend
        self.probe = False  # of a half-open breaker, and its outcome has not been told
        self._owner: Backends | None = owner
        backend.inflight += 1
        if backend.inflight >= backend.max_inflight:
            backend.reached = True

    @property
    def held(self) -> bool:
        return self._owner is not None

    def release(self) -> None:
        """Give the place back, once however often it is called."""
        owner = self._owner
        if owner is not None:
            self._owner = None
            self.backend.inflight -= 1
            if self.probe:
                self.probe = False
                self.backend.breaker.left()
            if self.backend.leaving:
                owner.left(self.backend)
            owner.capacity_changed()


class Backends:
    """All engines. Choosing is synchronous and pure of I/O; `refresh` is what asks them."""

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
        """One caller's requests fail there: whoever takes this checks it by itself, and tells `checked`."""
        self.capacity_changed: Callable[[], None] = lambda: None
        """To be called when a queued request may find an engine: see `subscribe`."""
        self._on_gone: Callable[[Backend], None] = lambda backend: None
        self._on_silent: Callable[[Backend], None] = lambda backend: None
        self.on_left: Callable[[Backend], None] = lambda backend: None
        """One that was removed has nothing under way any more: nothing of it need be kept."""
        self._router = router or LeastOutstanding()
        self._clock = clock
        self._tripped: set[Backend] = set()  # whose breaker is not closed
        self._refresh_timeout = refresh_timeout
        self._pulse = pulse
        self.on_restart: Callable[[Backend], None] = lambda backend: None
        """Its process is another than before, though no look found it down."""
        self._named = {backend.name: backend for backend in self.all}
        self._builds: dict[str | None, frozenset[bytes]] = {}  # which builds answer for a model now
        self._woken: dict[Backend, asyncio.Event] = {}  # of each that is watched
        self._changed = asyncio.Event()  # others are to be watched
        self._chosen: dict[str | None, list[Backend]] = {}
        """Candidates of each model that an engine claims, and of all others by None; empty when something changed.
        Not of each name that comes: clients choose those, and their length."""

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
        """The union of what the engines that live serve, by id, first come first."""
        union: dict[str, dict[str, Any]] = {}
        for backend in self.all:
            if backend.up:
                for model in backend.models:
                    union.setdefault(str(model.get("id")), model)
        return list(union.values())

    def candidates(self, model: str | None) -> list[Backend]:
        """Those that may answer for a model. One that nobody claims goes to any: the engine's own 404 is the
        answer. With every engine down they are all tried: the one that just came back should not wait."""
        living = [b for b in self.all if b.up] or self.all
        claiming = [b for b in living if model is not None and model in b.served]
        if not claiming and model is not None and any(model in b.served for b in self.all):
            return [b for b in self.all if model in b.served]  # known, but down: try it, say so honestly
        return claiming or living

    def pool_of(self, model: str | None) -> str | None:
        """What waits for the same engines has the same: the model, where an engine claims it."""
        return model if model in (self._chosen or self._choose()) else None

    def acquire(
        self, model: str | None, *, exclude: frozenset[Backend] = frozenset(), affinity: int = 0
    ) -> Lease | None:
        """A place at an engine that serves the model, by the policy; None while they are all full, or wait for
        what becomes of a probe.

        Raises GatewayError 503 where there is no engine at all, each has been excluded, or every breaker is open.
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

    def another(self, model: str | None, tried: frozenset[Backend], affinity: int = 0) -> Lease | None:
        """A place at one that was not tried yet; None where there is none now."""
        try:
            return self.acquire(model, exclude=tried, affinity=affinity)
        except GatewayError:
            return None

    def folds(self, ask: ApiRequest, name: str | None) -> bool:
        """Whether a stream for this request folds for sure: at the engine of this name, or at all it may go to."""
        if name is None:
            engines = self._chosen.get(ask.model) or self.candidates(ask.model)
        else:
            engines = [self._named[name]] if name in self._named else []
        return bool(engines) and all(backend.abilities.folds(ask) for backend in engines)

    def makes(self, model: str | None, build: bytes) -> bool:
        """Whether an answer of this build is what an engine that serves the model gives now; with no build known,
        as before any engine was seen, it is."""
        builds = self._builds.get(model) or self._builds.get(None)
        return not builds or build in builds

    def build_of(self, name: str | None, model: str | None, since: float | None) -> bytes | None:
        """What made an answer that the engine of this name was asked for at `since`; None: nobody can say."""
        backend = self._named.get(name or "")
        if backend is None or since is None or backend.up is False:
            return None
        return backend.build.of(model, since)

    def started(self, backend: Backend, at: float) -> None:
        """Its process began then, as it reports. One that has restarted is looked at soon."""
        if not backend.leaving and backend.build.began(at, self._clock()):
            self._anew(backend)
            self._wake(backend)
            self.on_restart(backend)

    def _anew(self, backend: Backend) -> None:
        """It may be another engine: what it was seen to do and not to do is forgotten."""
        backend.few = False
        backend.abilities.forget()

    def _wake(self, backend: Backend) -> None:
        """Have it looked at soon."""
        woken = self._woken.get(backend)
        if woken is not None:
            woken.set()

    def _acquire_guarded(
        self, model: str | None, candidates: list[Backend], exclude: frozenset[Backend], affinity: int
    ) -> Lease | None:
        """The same while any breaker is not closed."""
        now = self._clock()
        admitted = [b for b in candidates if b.breaker.admits(now)]
        if not admitted:
            admitted = self._perhaps_back(model, candidates, exclude, now)
        if not admitted:
            if any(b.breaker.probing for b in candidates):
                return None  # whose end is a release: whoever waits is looked at then
            wait = math.ceil(min(b.breaker.until for b in candidates) - now)
            raise GatewayError(
                Code.NO_BACKEND, "Every engine for this request has failed too often lately.", retry_after=wait
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
        """Take back places that nobody holds."""
        backend.inflight = max(0, backend.inflight - places)
        if backend.leaving:
            self.left(backend)
        self.capacity_changed()

    def _perhaps_back(
        self, model: str | None, candidates: list[Backend], exclude: frozenset[Backend], now: float
    ) -> list[Backend]:
        """Engines that are marked down where no other takes a request: one may just have come back. Only those
        that nobody listened at, which refuse at once (one that is silent would hold its request): one for each."""
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

    def seen_down(self, backend: Backend, why: str) -> None:
        """It cannot be connected to: nobody tries until it answers a look, and the next look is soon."""
        self._set(backend, up=False, detail=why)

    def seen_good(self, lease: Lease) -> None:
        """A request went well there, as far as the engine is concerned."""
        backend, probe = lease.backend, lease.probe
        lease.probe = False
        if backend.breaker.good(self._clock(), probe=probe):
            self._closed(backend)

    def seen_bad(self, lease: Lease, why: str, who: Hashable | None = None) -> None:
        """The engine failed a request of this caller's; None: it was not a client's."""
        backend, probe = lease.backend, lease.probe
        lease.probe = False
        opened = backend.breaker.bad(self._clock(), who=who, probe=probe)
        if backend.leaving:
            return
        if opened:
            self._opened(backend, why)
        elif backend.breaker.suspect:
            self.on_suspect(backend)

    def checked(self, backend: Backend, good: bool | None, why: str, *, silent: bool = False) -> None:
        """What a check of our own saw of an engine that is suspect; see `Availability.checked`."""
        changed = backend.breaker.checked(self._clock(), good, silent=silent)
        if backend.leaving:
            return
        if changed and backend.breaker.state is State.OPEN:
            self._opened(backend, f"opened by a check of our own: {why}")
        elif changed:
            self._closed(backend)
            return
        self.capacity_changed()  # who waited for what becomes of it

    def _opened(self, backend: Backend, why: str) -> None:
        self._tripped.add(backend)
        self.on_breaker(backend, why)

    def _closed(self, backend: Backend) -> None:
        self._tripped.discard(backend)
        self.on_breaker(backend, "")
        self.capacity_changed()  # who waited for the probe

    def seen_few(self, lease: Lease) -> None:
        """The engine answered fewer choices than it was asked for: it is asked for one by one."""
        lease.backend.few = True

    def seen_apart(self, name: str | None) -> None:
        """An engine refused inputs of several clients together that it took in parts."""
        if name in self._named:
            self._named[name].abilities.refuses_arrays()

    def not_few(self, lease: Lease) -> None:
        """What it refused with several choices it refuses with one too."""
        lease.backend.few = False

    def _set(self, backend: Backend, *, up: bool, detail: str = "") -> None:
        if backend.leaving:
            return
        self._chosen = {}
        changed = backend.up is not up
        back = up and backend.up is False
        backend.up, backend.detail = up, detail
        if back:
            backend.breaker.half()  # it was away, and is back: a request may try now
            self._anew(backend)
        if changed:
            self._wake(backend)
            self.on_change(backend)
            if back:
                self.capacity_changed()  # who waits, because it was away

    def change(self, added: Iterable[Backend], removed: Iterable[Backend]) -> None:
        """Other engines from now on. One that is removed ends what it has under way."""
        gone = list(removed)
        self.all = [*(b for b in self.all if b not in gone), *added]
        self._named = {backend.name: backend for backend in self.all}
        self._builds = in_common(backend.build for backend in self.all)
        self._chosen = {}
        for backend in gone:
            backend.leaving = True
            self._tripped.discard(backend)
            self.left(backend)
        self._changed.set()

    def left(self, backend: Backend) -> None:
        """One that is leaving may be let go, once nothing is under way there."""
        if backend.inflight == 0:
            backend.pool.close()
            self.on_left(backend)

    async def refresh(self, backends: Iterable[Backend] | None = None) -> None:
        """Ask every engine, or these, how it is and what it serves. None of them can hold the others up, or fail
        this."""
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
                return  # which says nothing of the engine
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
        """Whether it is gone, and why it is down, if it is. Any answer that is not a server error shows a living
        engine: one may have no /health, and not all of them list models."""
        path = "/health"
        try:
            async with asyncio.timeout(self._refresh_timeout):
                # By a new connection: an engine that takes none any more may still serve out the old ones.
                status, body = await backend.pool.get(path, fresh=True)
                if status >= 500:  # vLLM's server outlives its engine
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
        """Look at every engine for ever, at each by a task of its own: a slow one delays nobody's look."""
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
        """Look at one engine; each second while it is down, and soon after it was seen down."""
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
            except Exception as e:  # noqa: BLE001 - one engine's look must not be the last one
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a look at an engine", "exception": e}
                )
                await asyncio.sleep(1.0)
            woken.clear()  # by what this look has changed itself
