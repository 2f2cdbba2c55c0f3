"""The engines: which there are, what they serve, whether they are up, and leases on their capacity. No I/O:
`health_checks` reports to them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from proxy.errors import Code, GatewayError
from proxy.upstream.abilities import Abilities
from proxy.upstream.breaker import Breaker, State
from proxy.upstream.builds import Build, in_common
from proxy.upstream.concurrency import AdaptiveLimit
from proxy.upstream.http.pool import Pool
from proxy.upstream.load import LoadReport
from proxy.upstream.routing import LeastOutstanding, Router, key_of
from proxy.wire import ApiRequest, settable

GONE_LOOKS: Final = 2
"""Consecutive health checks that found no listener, or a server that reports itself broken, before an engine
counts as gone. One that is slow to answer may be at work, and does not."""

SILENT_LOOKS: Final = 3
"""Consecutive health checks without an answer, after which requests there that have no first byte move to a
running engine. None is failed for that."""


News = Literal["down", "open", "probe", "idle", "closed"]
"""What processes tell each other of an engine: it is down; its breaker has opened, is being probed, was probed
without an outcome, has closed."""


@dataclass(eq=False, slots=True)
class Backend:
    """One engine: its connections, its models, its load."""

    name: str  # its URL, from settings only: safe as a metric label
    pool: Pool
    max_inflight: int  # that this process may have now
    inflight: int = 0
    up: bool | None = None  # None: not checked yet
    models: list[dict[str, Any]] = field(default_factory=list)
    detail: str = ""  # why it is down; where it is up, why it lists no models
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
    check_soon: asyncio.Event = field(default_factory=asyncio.Event, repr=False)  # its next health check is due
    most: int = field(init=False)  # its concurrency limit, for all processes together
    allotted: int = 10**9  # places of the limit that this process may use
    abilities: Abilities = field(default_factory=Abilities)
    build: Build = field(default_factory=Build)
    served: Set[str] = field(init=False, repr=False, default=frozenset())  # the ids of its models

    def __post_init__(self) -> None:
        self.most = self.max_inflight
        self.list_models(self.models)
        self.seed = key_of(self.name.encode())

    def report_load(self, report: LoadReport | None, besides: float = 0.0) -> None:
        """The load that it reports; None: it reports none. `besides`: of others, in requests."""
        self.report, self.reported = report, besides

    def take_reached(self) -> bool:
        """Whether its limit was reached since the last call."""
        reached, self.reached = self.reached or self.inflight >= self.max_inflight, False
        return reached

    def limit(self, most: int) -> None:
        """Set its concurrency limit."""
        self.most = most
        self.max_inflight = min(most, self.allotted)

    def allot(self, places: int) -> None:
        """Of its limit, this process may use so many places: others use the rest."""
        self.allotted = places
        self.max_inflight = min(self.most, places)

    def mark_reached(self) -> None:
        """Its limit was reached, by the requests of all processes together."""
        self.reached = True

    def learn_echo(self, *, echoes: bool) -> None:
        """Whether the `id` of its answers holds the request's id."""
        self.echoes = echoes

    def list_models(self, models: list[dict[str, Any]]) -> bool:
        """Set the models that it lists. True: others than before."""
        before = self.served
        self.models = models
        self.served = frozenset(str(model.get("id")) for model in models)
        return self.served != before

    @property
    def merges(self) -> bool:
        """Whether it samples `n` choices for one prefill: vLLM does, llama.cpp does not."""
        return not self.few and any(model.get("owned_by") == "vllm" for model in self.models)


@settable
class Lease(msgspec.Struct, eq=False):
    """A slot at an engine, for the duration of a stream."""

    backend: Backend
    _owner: Backends | None
    probe: bool = False  # it probes a half-open breaker, and its outcome is not recorded yet

    def __post_init__(self) -> None:
        backend = self.backend
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
                owner.tell(self.backend.name, "idle", 0.0, "")
            if self.backend.leaving:
                owner.close_if_drained(self.backend)
            if self.backend.inflight >= self.backend.max_inflight:
                owner.given_back()
            owner.capacity_changed()


class Backends:
    """All engines."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        router: Router | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[Backend], None] = lambda backend: None,
        on_breaker: Callable[[Backend, str], None] = lambda backend, why: None,
        on_suspect: Callable[[Backend], None] = lambda backend: None,
        on_left: Callable[[Backend], None] = lambda backend: None,
        on_restart: Callable[[Backend], None] = lambda backend: None,
    ) -> None:
        """Called with an engine: `on_change` when it comes up or goes down; `on_breaker` when its breaker opens
        (and why) or closes (an empty text); `on_suspect` when a single caller's requests fail there: the receiver
        checks it and reports to `checked`; `on_left` when it is removed and has no request in flight any more;
        `on_restart` when its process has restarted, though no health check found it down."""
        self.all = list(backends)
        self._on_change = on_change
        self._on_breaker = on_breaker
        self._on_suspect = on_suspect
        self._on_left = on_left
        self._on_restart = on_restart
        self.capacity_changed: Callable[[], None] = lambda: None
        """To be called when a queued request may find an engine: see `subscribe`."""
        self.given_back: Callable[[], None] = lambda: None
        """To be called when a slot beyond an engine's limit is released: others may use it. See `share`."""
        self.wanted: Callable[[], None] = lambda: None
        """To be called when requests queue for an engine, or the engines have changed. See `share`."""
        self.tell: Callable[[str, News, float, str], None] = lambda *news: None
        """To be called with what other processes should know of an engine. See `share`."""
        self._step = 0.0
        self._divided = False
        self._on_gone: Callable[[Backend], None] = lambda backend: None
        self._on_silent: Callable[[Backend], None] = lambda backend: None
        self._on_removed: Callable[[Backend], None] = lambda backend: None
        self._router = router or LeastOutstanding()
        self._clock = clock
        self._tripped: set[Backend] = set()  # engines whose breaker is not closed
        self._named = {backend.name: backend for backend in self.all}
        self._builds: dict[str | None, frozenset[bytes]] = {}  # builds that answer for each model now
        self.changed = asyncio.Event()  # the set of engines has changed
        self.listed: Set[str | None] = frozenset((None,))
        """The models that an engine listed when candidates were chosen last; and None, for a request without a
        model."""
        self._chosen: dict[str | None, list[Backend]] = {}
        """The candidates of each model that an engine lists; by None those of all other names, which clients
        choose and which are therefore no keys here. Empty after a change."""

    def subscribe(
        self,
        *,
        capacity_changed: Callable[[], None],
        gone: Callable[[Backend], None] = lambda backend: None,
        silent: Callable[[Backend], None] = lambda backend: None,
        removed: Callable[[Backend], None] = lambda backend: None,
    ) -> None:
        """Set what the scheduler is called with: `capacity_changed` when an engine may have room, `gone` when an
        engine does not run any more, `silent` when one has not answered checks for a while. These two are
        called with each check, for the requests that are under way there. `removed` when one has been removed that
        has requests in flight."""
        self.capacity_changed, self._on_gone, self._on_silent = capacity_changed, gone, silent
        self._on_removed = removed

    def divide(self) -> None:
        """Other processes use the same engines: one that is added gets no request before its `allot`."""
        self._divided = True

    def share(
        self,
        *,
        given_back: Callable[[], None],
        wanted: Callable[[], None],
        tell: Callable[[str, News, float, str], None],
        step: float,
    ) -> None:
        """Other processes use the same engines. `given_back` is called when a slot beyond an engine's limit is
        released, `wanted` when requests queue for an engine or the engines have changed, `tell` with an engine's
        name and what they should `hear` of it. `step`: seconds after the others' turn to probe before it is this
        one's."""
        self.divide()
        self.given_back, self.wanted, self.tell, self._step = given_back, wanted, tell, step

    def hear(self, name: str, news: News, seconds: float, detail: str) -> None:
        """What another process has found out of an engine. This one's own health checks go on."""
        backend = self._named.get(name)
        if backend is None or backend.leaving:
            return
        now, breaker = self._clock(), backend.breaker
        if news == "down":
            if backend.up is not False:
                self._set(backend, up=False, detail=f"found by another worker: {detail}", told=True)
        elif news == "open":
            self._tripped.add(backend)
            breaker.follow(now, seconds + self._step)
        elif news == "probe":
            breaker.follow_probe(now)
        elif news == "idle":
            breaker.follow_abandoned()
        elif breaker.follow_close(now):
            self._tripped.discard(backend)
        self.capacity_changed()  # requests may have waited for the outcome

    def serving(self, pool: str | None) -> list[str]:
        """The names of the engines that requests of a pool wait for."""
        return [backend.name for backend in (self._chosen or self._choose()).get(pool, ())]

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

    def named(self, name: str) -> Backend | None:
        """The engine of this name; None where there is none now."""
        return self._named.get(name)

    def serves(self, model: str | None) -> bool:
        """Whether an engine that is not down may serve the model: it lists this one, or none at all."""
        return any(b.up is not False and (model in b.served or not b.models) for b in self.all)

    def lists(self, model: str) -> bool:
        """Whether an engine that is up lists the model."""
        return any(b.up and model in b.served for b in self.all)

    def pool_of(self, model: str | None) -> str | None:
        """The name under which requests for the same engines queue: the model, where an engine lists it, else
        None."""
        return model if model in (self._chosen or self._choose()) else None

    def acquire(
        self,
        model: str | None,
        *,
        exclude: frozenset[Backend] = frozenset(),
        affinity: int = 0,
        only: str | None = None,
    ) -> Lease | None:
        """A slot at an engine that serves the model, chosen by the routing policy; None while all are full, or a
        probe is in flight. `only`: the name of the one engine that may be chosen.

        Raises GatewayError 503 where there is no engine, all are excluded, or all breakers are open.
        """
        chosen = self._chosen or self._choose()
        candidates = chosen.get(model)
        if candidates is None:
            candidates = chosen[None]
        if exclude:
            candidates = [b for b in candidates if b not in exclude]
        if only is not None:
            candidates = [self._named[only]] if only in self._named else []
        if not candidates:
            raise GatewayError(Code.NO_BACKEND, "No engine is available for this request.", retry_after=1)
        if self._tripped:
            return self._acquire_guarded(model, candidates, exclude, affinity, only)
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
        build = backend.build
        if since < build.changed_at:
            return None  # it may have been another one
        return build.digests.get(model) or build.digests.get(None, b"")

    def started(self, backend: Backend, at: float) -> None:
        """It reports that its process started at `at` (Unix time). A restarted engine is checked soon."""
        if not backend.leaving and backend.build.began(at, self._clock()):
            self._anew(backend)
            backend.check_soon.set()
            self._on_restart(backend)

    def _anew(self, backend: Backend) -> None:
        """It may be another engine or version: forget what it was seen to do."""
        backend.few = False
        backend.abilities.forget()

    def _acquire_guarded(
        self,
        model: str | None,
        candidates: list[Backend],
        exclude: frozenset[Backend],
        affinity: int,
        only: str | None,
    ) -> Lease | None:
        """`acquire` while any breaker is not closed."""
        now = self._clock()
        admitted = [b for b in candidates if b.breaker.admits(now)]
        if not admitted and only is None:
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
            self.tell(best.name, "probe", 0.0, "")
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
        """The candidates for each model, as `candidates` has them: in one pass, as engines may list thousands."""
        living = [backend for backend in self.all if backend.up] or self.all
        chosen: dict[str | None, list[Backend]] = {None: living}
        for backend in living:
            for model in backend.served:
                chosen.setdefault(model, []).append(backend)
        up = frozenset(chosen)
        for backend in self.all:
            for model in backend.served - up:  # known, but down
                chosen.setdefault(model, []).append(backend)
        self._chosen, self.listed = chosen, chosen.keys()
        return chosen

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
            self._on_suspect(backend)

    def checked(self, backend: Backend, good: bool | None, why: str, *, silent: bool = False) -> None:
        """The result of a check-up of a suspect engine; see `Breaker.checked`."""
        backend.checked_at = now = self._clock()
        changed = backend.breaker.checked(now, good, silent=silent)
        if backend.leaving:
            return
        if changed and backend.breaker.state is State.OPEN:
            self._opened(backend, f"opened by a check of our own: {why}")
        elif changed:
            self._closed(backend)
            return
        elif backend.breaker.state is State.HALF_OPEN and not backend.breaker.probing:
            self.tell(backend.name, "idle", 0.0, "")  # undecided: it is for the next probe, of any process
        self.capacity_changed()  # requests may have waited for the result

    def _opened(self, backend: Backend, why: str) -> None:
        self._tripped.add(backend)
        self.tell(backend.name, "open", backend.breaker.until - self._clock(), why)
        self._on_breaker(backend, why)

    def _closed(self, backend: Backend) -> None:
        self._tripped.discard(backend)
        self.tell(backend.name, "closed", 0.0, "")
        self._on_breaker(backend, "")
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

    def _set(self, backend: Backend, *, up: bool, detail: str = "", told: bool = False) -> None:
        if backend.leaving:
            return
        changed = backend.up is not up
        back = up and backend.up is False
        backend.up, backend.detail = up, detail
        if back:
            backend.breaker.half_open()  # it is back: a request may probe it now
            self._anew(backend)
        if changed:
            self._chosen = {}
            backend.check_soon.set()
            if not up and not told:
                self.tell(backend.name, "down", 0.0, detail)
            self._on_change(backend)
            if back:
                self.capacity_changed()  # requests may have waited for it

    def record_models(self, backend: Backend, models: list[dict[str, Any]]) -> None:
        """The models that it lists."""
        if backend.list_models(models):
            self._chosen = {}

    def record_build(self) -> None:
        """The build of an engine has changed."""
        self._builds = in_common(backend.build for backend in self.all)

    def record_health(
        self, backend: Backend, *, down: str, gone: bool = False, silent: bool = False, unlisted: str = ""
    ) -> None:
        """The result of a health check. `down`: why it is down, empty where it is up; `gone`: no listener, or it
        says that it is broken; `silent`: it did not answer in time; `unlisted`: why it lists no models."""
        if not gone:
            backend.missed = 0
        elif not backend.leaving:
            backend.missed += 1
        backend.silent = backend.silent + 1 if silent else 0
        self._set(backend, up=not down, detail=down or unlisted)
        if backend.silent >= SILENT_LOOKS:
            self._on_silent(backend)
        if backend.missed >= GONE_LOOKS:
            backend.pool.drop_idle()
            self._on_gone(backend)

    def change(self, added: Iterable[Backend], removed: Iterable[Backend]) -> None:
        """Add and remove engines. A removed one finishes its requests in flight. One of `added` that is leaving
        comes back with them: it is checked as a new one is, and they count."""
        gone, new = list(removed), list(added)
        for backend in new:
            if backend.leaving:
                self._come_back(backend)
            elif self._divided:
                backend.allot(0)
        self.all = [*(b for b in self.all if b not in gone), *new]
        self._named = {backend.name: backend for backend in self.all}
        self._builds = in_common(backend.build for backend in self.all)
        self._chosen = {}
        for backend in gone:
            backend.leaving = True
            self._tripped.discard(backend)
            if backend.inflight:
                self._on_removed(backend)
            self.close_if_drained(backend)
        self.changed.set()
        self.wanted()

    def _come_back(self, backend: Backend) -> None:
        backend.leaving = False
        backend.up, backend.detail = None, ""
        backend.missed = backend.silent = 0
        self._anew(backend)
        if backend.breaker.state is not State.CLOSED:
            self._tripped.add(backend)

    def close_if_drained(self, backend: Backend) -> None:
        """Close a leaving engine's pool once it has no request in flight."""
        if backend.inflight == 0:
            backend.pool.close()
            self._on_left(backend)
