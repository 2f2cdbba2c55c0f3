"""The benchmark of sharing modes: its requests, its counts and its table, against a scripted engine."""

from __future__ import annotations

import argparse

import pytest

from ops.bench.vllm import modes
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import gateway


class Counting(Engine):
    """Its /metrics counts its generations, as vLLM's does."""

    @property
    def metrics(self) -> bytes | None:
        return b'vllm:request_success_total{finished_reason="stop"} %d.0\n' % self.generations

    @metrics.setter
    def metrics(self, value: bytes | None) -> None:
        assert value is None


@pytest.mark.parametrize("kind", modes.KINDS)
def test_each_kind_has_a_path_and_a_prompt_of_its_own(kind: str) -> None:
    path, body = modes.request(kind, 7, "m", 5)
    other = modes.request(kind, 8, "m", 5)[1]
    assert path in ("/v1/chat/completions", "/v1/completions")
    assert (body["model"], body["max_tokens"]) == ("m", 5)
    assert body != other
    assert "prompts" not in body


async def test_generations_through_the_gateway_are_counted_beside_direct_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(modes, "HEAD_START", 0.0)
    args = argparse.Namespace(bodies=3, tokens=4, seed=1, only=["chat"])
    async with Counting(echo_script()) as engine, gateway(engine, probe="on") as app:
        ((kind, (direct, _, made, _, stored)),) = await modes.measure(
            args, {"direct": engine.url, "gateway": app.url}
        )
    assert (kind, direct) == ("chat", 4.0)
    assert 1.0 <= made <= 2.0
    assert 1.0 <= stored <= 4.0
    lines = modes.table([(kind, [4.0, 2.25, 1.0, 0.5, 1.0])], 3).split("\n")
    assert lines[-1] == "| chat | 4 | 1 | 2.2 s | 0.5 s | 1 |"
