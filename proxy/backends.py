"""Owns the engines: which there are, what they serve, whether they live, and leases on their capacity.
Must not know flights, requests or HTTP: it is told what was seen of an engine.
Called by the scheduler (acquire, release), the app (refresh) and the gateway (models, readiness)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.errors import Code, GatewayError
from proxy.upstream import Pool


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

    @property
    def served(self) -> set[str]:
        return {str(model.get("id")) for model in self.models}

    @property
    def merges(self) -> bool:
        """Whether it samples `n` choices for the price of one prefill: vLLM does, llama.cpp does not."""
        return any(model.get("owned_by") == "vllm" for model in self.models)


class Lease:
    """A place at an engine, for as long as the stream lasts."""

    __slots__ = ("_owner", "backend")

    def __init__(self, backend: Backend, owner: Backends) -> None:
        self.backend = backend
        self._owner: Backends | None = owner
        backend.inflight += 1

    def release(self) -> None:
        """Give the place back, once however often it is called."""
        owner = self._owner
        if owner is not None:
            self._owner = None
            self.backend.inflight -= 1
            owner.on_release()


class Backends:
    """All engines. Choosing is synchronous and pure of I/O; `refresh` is what asks them."""

    def __init__(self, backends: Sequence[Backend], *, refresh_timeout: float = 5.0) -> None:
        self.all = list(backends)
        self.on_release: Callable[[], None] = lambda: None
        self.on_change: Callable[[Backend], None] = lambda backend: None
        self._refresh_timeout = refresh_timeout
        self._chosen: dict[str | None, list[Backend]] = {}
        """Candidates of each model that an engine claims, and of all others by None; empty when something changed.
        Not of each name that comes: clients choose those, and their length."""

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

    def acquire(self, model: str | None, *, exclude: frozenset[Backend] = frozenset()) -> Lease | None:
        """A place at the least busy engine that serves the model; None while they are all full.

        Raises GatewayError 503 where there is no engine at all, or each has been excluded.
        """
        chosen = self._chosen or self._choose()
        candidates = chosen.get(model)
        if candidates is None:
            candidates = chosen[None]
        if exclude:
            candidates = [b for b in candidates if b not in exclude]
        if not candidates:
            raise GatewayError(Code.NO_BACKEND, "No engine is available for this request.", retry_after=1)
        best = None
        for backend in candidates:
            if backend.inflight < backend.max_inflight and (best is None or backend.inflight < best.inflight):
                best = backend
        return Lease(best, self) if best is not None else None

    def _choose(self) -> dict[str | None, list[Backend]]:
        claimed: set[str | None] = {None}
        claimed.update(*(backend.served for backend in self.all))
        self._chosen = {model: self.candidates(model) for model in claimed}
        return self._chosen

    def seen_down(self, backend: Backend, why: str) -> None:
        self._set(backend, up=False, detail=why)

    def _set(self, backend: Backend, *, up: bool, detail: str = "") -> None:
        self._chosen = {}
        changed = backend.up is not up
        backend.up, backend.detail = up, detail
        if changed:
            self.on_change(backend)

    async def refresh(self) -> None:
        """Ask every engine what it serves. None of them can hold the others up, or fail this."""
        await asyncio.gather(*(self._refresh(backend) for backend in self.all))

    async def _refresh(self, backend: Backend) -> None:
        try:
            async with asyncio.timeout(self._refresh_timeout):
                status, body = await backend.pool.get("/v1/models")
            if status == 200:
                listed = msgspec.json.decode(body, type=dict[str, Any]).get("data") or []
                listed = listed if isinstance(listed, list) else []
                backend.models = [m for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)]
            # Any answer that is not a server error shows a living engine: not all of them list models.
            self._set(backend, up=status < 500, detail="" if status < 500 else f"/v1/models: {status}")
        except TimeoutError:
            self._set(backend, up=False, detail=f"no answer to /v1/models in {self._refresh_timeout:g} s")
        except (GatewayError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            self._set(backend, up=False, detail=str(e))

    async def watch(self, every: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Refresh for ever; a down engine is asked again each second, so that it is not missed for long."""
        while True:
            await sleep(every if all(b.up for b in self.all) else min(every, 1.0))
            await self.refresh()
