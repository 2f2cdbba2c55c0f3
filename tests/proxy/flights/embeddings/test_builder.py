"""The settings' Embedder: where there is none, what it is made of, and which engines spoil an array."""

from __future__ import annotations

from typing import Any, cast

from proxy.config.settings import Settings
from proxy.flights.embeddings.builder import closing, embedder_for, mixes
from proxy.flights.group import FlightGroup
from proxy.flights.key import Keyer
from proxy.telemetry.metrics import Metrics
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.http.pool import Pool


def engine(owner: str) -> Backend:
    made = Backend("e", cast(Pool, None), 1, up=True)
    made.models = [{"id": "m", "owned_by": owner}]
    return made


def made(metrics: Metrics, *engines: Backend, **settings: Any) -> Any:
    return embedder_for(
        Settings(**settings),
        lambda flight: None,
        group=FlightGroup(),
        backends=Backends(engines),
        cache=None,
        keyer=Keyer(),
        metrics=metrics,
        promote=lambda *given: None,
        refused=lambda why: None,
        on_fault=lambda where, error: None,
    )


async def test_arrays_are_as_the_settings_say_and_one_item_an_array_is_none() -> None:
    metrics = Metrics()
    assert made(metrics, embed_batch_items=1) is None
    embedder = made(
        metrics, engine("vllm"), engine("vllm"), embed_batch_items=2, embed_batch_tokens=7, embed_batch_calls=3,
        embed_batch_window_ms=5,
    )  # fmt: skip
    assert (embedder.arrays.items, embedder.arrays.tokens, embedder.arrays.window) == (2, 7, 0.005)
    kind = cast(Any, type("Kind", (), {"model": "m"}))
    assert (embedder._room(kind), embedder._mixes("m")) == (6, True)
    page = metrics.render("text/plain")[0].decode()
    assert "gateway_embed_requests_waiting 0" in page
    assert "gateway_embed_items_waiting 0" in page
    ended: list[str] = []

    async def close() -> None:
        ended.append(str(embedder._closed))

    await closing(embedder, close)()
    await closing(None, close)()
    assert ended == ["True", "True"]


async def test_without_engines_one_call_may_wait_and_llama_cpp_is_given_one_client_at_a_time() -> None:
    alone = made(Metrics(), embed_batch_calls=3)
    assert alone._room(cast(Any, type("Kind", (), {"model": "m"}))) == 3
    assert not made(Metrics(), engine("vllm"), engine("llamacpp"))._mixes("m")
    assert (mixes(engine("llamacpp")), mixes(engine("vllm"))) == (False, True)
    both = engine("vllm")
    both.models = [*both.models, {"id": "n", "owned_by": "llamacpp"}]
    assert not mixes(both)
