"""OpenAI's Responses at a real vLLM that keeps them: continued, read, cancelled and run in the background through
the gateway, with OpenAI's client."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.app import App
from tests.kit.client import get
from tests.kit.engine import Engine
from tests.kit.engine_turn import Turn
from tests.kit.late import late
from tests.kit.missing import lacking
from tests.kit.running import gateway

if TYPE_CHECKING:
    import openai
else:
    openai = late("openai")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MODEL, ASK, SHORT = "smollm2", "Name a colour.", 8
KEEPS = "VLLM_ENABLE_RESPONSES_API_STORE=1 python -m pytest tests/real/test_responses.py -m vllm"
PENDING = ("queued", "in_progress")


@pytest.fixture
async def keeper(engine: str) -> str:
    """The URL of an engine that keeps responses."""
    async with openai.AsyncOpenAI(base_url=f"{engine}/v1", api_key="none", max_retries=0) as client:
        made = await client.responses.create(model=MODEL, input=ASK, max_output_tokens=SHORT)
        try:
            await client.responses.retrieve(made.id)
        except openai.NotFoundError:
            lacking("an engine that keeps responses", KEEPS, in_ci="VLLM_URL" not in os.environ)
    return engine


@asynccontextmanager
async def client_of(app: App) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def ended(client: openai.AsyncOpenAI, id: str) -> openai.types.responses.Response:
    """The response once it is not pending. Every look is a request that takes its time."""
    while True:
        kept = await client.responses.retrieve(id)
        if kept.status not in PENDING:
            return kept


async def test_a_response_is_read_and_continued(keeper: str) -> None:
    async with gateway(keeper) as app, client_of(app) as client:
        first = await client.responses.create(model=MODEL, input=ASK, max_output_tokens=SHORT)
        kept = await client.responses.retrieve(first.id)
        assert kept.output_text == first.output_text != ""
        second = await client.responses.create(
            model=MODEL, input="And another?", previous_response_id=first.id, max_output_tokens=SHORT
        )
        assert second.previous_response_id == first.id
        assert first.usage is not None
        assert second.usage is not None
        assert second.usage.input_tokens > first.usage.input_tokens, "the conversation is in it"
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model=MODEL, input=ASK, previous_response_id="resp_nowhere")


async def test_a_gateway_that_does_not_know_an_id_finds_its_engine(keeper: str) -> None:
    async def nothing(turn: Turn) -> None:
        await turn.respond(404, {"error": {"message": "not found", "code": 404}})

    async with gateway(keeper) as before, client_of(before) as client:
        first = await client.responses.create(model=MODEL, input=ASK, max_output_tokens=SHORT)
    async with Engine(nothing, models=[MODEL]) as other, gateway(other, keeper) as app, client_of(app) as client:
        for _ in range(2):
            next_ = await client.responses.create(
                model=MODEL, input=ASK, previous_response_id=first.id, max_output_tokens=SHORT
            )
            assert next_.previous_response_id == first.id
        assert [turn.method for turn in other.requests] == ["GET"], "it was asked once whether it has the response"


async def test_a_response_is_generated_in_the_background_and_streamed_again(keeper: str) -> None:
    async with gateway(keeper) as app, client_of(app) as client:
        made = await client.responses.create(model=MODEL, input=ASK, max_output_tokens=SHORT, background=True)
        assert made.status in PENDING
        done = await ended(client, made.id)
        assert (done.status in ("completed", "incomplete"), bool(done.output_text)) == (True, True)

        stream = await client.responses.create(
            model=MODEL, input=ASK, max_output_tokens=SHORT, background=True, stream=True
        )
        begun = [event async for event in stream]
        assert begun[0].type == "response.created"
        again = await client.responses.retrieve(begun[0].response.id, stream=True)
        assert [event.type async for event in again] == [event.type for event in begun]


async def test_a_response_in_the_background_is_cancelled_at_the_engine(keeper: str) -> None:
    async with gateway(keeper) as app, client_of(app) as client:
        made = await client.responses.create(
            model=MODEL, input="Count from 1 to 1000.", max_output_tokens=3000, background=True
        )
        assert (await client.responses.cancel(made.id)).status == "cancelled"
        assert (await client.responses.retrieve(made.id)).status == "cancelled"
        await _quiet(keeper)


async def _quiet(url: str) -> None:
    """Until the engine generates nothing; bounded by the test's own timeout."""
    while True:
        page = (await get(url, "/metrics")).body.decode()
        running = [line for line in page.splitlines() if line.startswith("vllm:num_requests_running")]
        if sum(float(line.rpartition(" ")[2]) for line in running) == 0:
            return
