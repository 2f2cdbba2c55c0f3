"""Which requests the gateway still answers while it shuts down, and a request without a host."""

from __future__ import annotations

import pytest

from proxy.access.hosts import NONE, Hosts
from proxy.config.settings import Settings
from proxy.server.gateway import Stage as Stages
from tests.kit.clock import virtual
from tests.kit.gateway_stage import Asked, Stage


@pytest.mark.parametrize(
    ("at", "path", "status"),
    [
        (Stages.ACCEPTING, "/ready", 200),
        (Stages.NOT_READY, "/ready", 503),
        (Stages.NOT_READY, "/v1/models", 200),
        (Stages.NOT_READY, "/health", 200),
        (Stages.DRAINING, "/ready", 503),
        (Stages.DRAINING, "/v1/models", 503),
        (Stages.DRAINING, "/health", 200),
        (Stages.DRAINING, "/metrics", 200),
    ],
)
@virtual
async def test_less_is_answered_at_each_stage_of_the_end(at: Stages, path: str, status: int) -> None:
    stage, asked = Stage(), Asked(path, b"", "GET")
    stage.gateway.enter(at)
    await stage.answered(asked)
    assert f" {status} ".encode() in asked.sent
    assert (b"shutting_down" in asked.sent, b"retry-after: 1\r\n" in asked.sent) == (status == 503, status == 503)


@virtual
async def test_without_a_host_a_request_is_answered_and_by_another_s_it_is_not() -> None:
    stage = Stage(Settings(), hosts=Hosts("127.0.0.1", ()))
    for host, status in ((NONE, 200), ("127.0.0.1", 200), ("other", 421), (NONE, 200)):
        asked = Asked("/health", b"", "GET")
        asked.host = host
        await stage.answered(asked)
        assert f" {status} ".encode() in asked.sent
