"""What vLLM was recorded to answer comes out of the gateway byte for byte, for a client that shares nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.client import Connection
from tests.kit.engine import Engine
from tests.kit.engine_scripts import replay
from tests.kit.engine_wire import golden_request, golden_response
from tests.kit.running import gateway

GOLDEN = Path(__file__).parents[1] / "golden"
# What the gateway refuses or answers itself; and vLLM's paths that are not offered.
OURS = {
    "error-bad-json",
    "error-empty-body",
    "error-messages-type",
    "error-missing-messages",
    "error-not-object",
    "get-chat-405",
    "get-health",
    "get-load",
    "get-models",
    "embed-get-models",
}
NAMES = sorted(path.name.removesuffix(".request.http") for path in GOLDEN.glob("*.request.http"))
THROUGH = [name for name in NAMES if name not in OURS]
GUARDS = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
HOP = {"connection", "transfer-encoding", "content-length", "x-request-id", "request-id", "x-gateway-cache"}


async def through(app_url: str, data: bytes) -> tuple[int, dict[str, str], bytes, tuple[bytes, ...]]:
    async with await Connection.open(app_url) as connection:
        await connection.send(data.replace(b"Host: engine", b"Host: engine\r\nx-gateway-share: off", 1))
        answer = await connection.read()
    headers = {name.lower(): value for name, value in answer.head.headers if name.lower() not in HOP}
    return answer.status, headers, answer.body, answer.chunks


@pytest.mark.parametrize("step", [None, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", THROUGH)
async def test_a_recorded_answer_comes_through_byte_for_byte(name: str, step: int | None) -> None:
    recorded = golden_response(name)
    if step is not None and len(recorded) > 6000:
        step = 7  # as telling, and quicker
    async with Engine(script=replay(name, step=step)) as engine, gateway(engine, allowed_hosts=("engine",)) as app:
        status, headers, body, chunks = await through(app.url, golden_request(name))
    async with Engine(script=replay(name)) as engine:
        direct_status, direct_headers, direct_body, direct_chunks = await through(engine.url, golden_request(name))
    assert (status, headers, body) == (direct_status, direct_headers | GUARDS, direct_body)
    if step is None and "stream" in name and name.startswith(("chat", "completion")):
        assert chunks == direct_chunks  # what only passes through is cut as it was read
