"""The Embedder as the settings say; none where embeddings are not batched."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable

from proxy.config import Settings
from proxy.flights.embeddings.embedder import Embedder
from proxy.flights.embeddings.metrics import EmbedMetrics
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.key import Keyer
from proxy.flights.memory import Memory
from proxy.redis import Cache
from proxy.telemetry import Metrics
from proxy.upstream import Backend, Backends


def embedder_for(
    settings: Settings,
    submit: Callable[[Flight], None],
    *,
    group: FlightGroup,
    backends: Backends,
    cache: Cache | None,
    keyer: Keyer,
    metrics: Metrics,
    memory: Memory | None = None,
    promote: Callable[[Flight, int, float, Subscriber | None, Hashable], None],
    refused: Callable[[str], None],
    on_fault: Callable[[str, BaseException], None],
) -> Embedder | None:
    """None with `embed_batch_items` 1: requests then go to engines as they are, and are stored as one answer."""
    if settings.embed_batch_items < 2:
        return None
    embedder = Embedder(
        group=group,
        submit=submit,
        cache=cache,
        keyer=keyer,
        metrics=metrics,
        counts=EmbedMetrics(metrics.registry),
        loop=asyncio.get_running_loop(),
        items=settings.embed_batch_items,
        tokens=settings.embed_batch_tokens,
        window=settings.embed_batch_window_ms / 1000,
        calls=lambda model: settings.embed_batch_calls * max(1, len(backends.candidates(model))),
        mixes=lambda model: all(map(mixes, backends.candidates(model))),
        apart=backends.record_array_refused,
        makes=backends.makes,
        build_of=backends.build_of,
        limit=settings.queue_limit,
        max_batch=settings.max_batch,
        largest=settings.max_flight_bytes,
        memory=memory,
        promote=promote,
        refused=refused,
        on_fault=on_fault,
    )
    metrics.gauge("embed_requests_waiting", "Embeddings requests in the queue.", lambda: len(embedder.queue))
    metrics.gauge("embed_items_waiting", "Embedding inputs queued for an engine.", lambda: len(embedder.arrays))
    return embedder


def mixes(backend: Backend) -> bool:
    """Whether an engine may get inputs of several clients in one array. Not one that refused that, and not
    llama.cpp: it answers an array that has one input too long with 500, as if the engine had failed, so no request
    can be isolated, and the breaker would count it."""
    return backend.abilities.mixes and not any(model.get("owned_by") == "llamacpp" for model in backend.models)


def closing(embedder: Embedder | None, close: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A coroutine function that closes the Embedder, if there is one, and the scheduler."""

    async def both() -> None:
        if embedder is not None:
            embedder.close()
        await close()  # which ends every Flight, also one whose cancellation raised
        if embedder is not None:
            await embedder.wait_closed()

    return both
