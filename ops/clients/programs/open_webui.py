"""Open WebUI's requests, as open_webui/routers/openai.py of release 0.12.4 makes them: aiohttp, a Bearer key, one
session; a chat is a stream, its title a body; a user who presses stop closes the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from ops.clients.programs.kit import COLOUR, COUNT, LONG, PIXEL, SHORT, TYPED, WEATHER, Target, busy, main, stops
from ops.clients.programs.openai_python import TOOL

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none"}


def chat(target: Target, content: Any = COLOUR, tokens: int = SHORT, **more: Any) -> dict[str, Any]:
    """A user's message. `stream_options` are there where "usage" is ticked for the model."""
    system = {"role": "system", "content": "You are helpful."}
    payload = {"stream": True, "model": target.model, "messages": [system, {"role": "user", "content": content}]}
    return {**payload, "temperature": 0, "max_tokens": tokens, **more}


@asynccontextmanager
async def sent(url: str, payload: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
    async with (
        aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(total=120)) as session,
        session.request("POST", url, data=json.dumps(payload), headers=HEADERS) as answer,
    ):
        yield answer


async def events(target: Target, payload: dict[str, Any]) -> list[dict[str, Any]]:
    """It reads lines, skips those without `data:`, and stops at `[DONE]`."""
    found = []
    async with sent(f"{target.url}/v1/chat/completions", payload) as answer:
        said = await answer.read() if answer.status >= 400 else b""
        assert answer.status == 200, f"{answer.status} {said.decode()[:300]}"
        assert "text/event-stream" in answer.headers["Content-Type"]
        async for line in answer.content:
            data = line.decode().strip().removeprefix("data:").strip()
            if line.startswith(b"data:") and data != "[DONE]":
                found.append(json.loads(data))
    return found


async def body(url: str, payload: dict[str, Any]) -> dict[str, Any]:
    async with sent(url, payload) as answer:
        said = await answer.text()
        assert answer.status == 200, f"{answer.status} {said[:300]}"
        return dict(json.loads(said))


def models(target: Target) -> None:
    async def ask() -> Any:
        async with (
            aiohttp.ClientSession(trust_env=True) as session,
            session.get(f"{target.url}/v1/models", headers=HEADERS) as answer,
        ):
            return await answer.json()

    assert target.model in [model["id"] for model in asyncio.run(ask())["data"]]


def title(target: Target) -> None:
    payload = chat(target, f"Generate a title for: {COLOUR}", stream=False)
    answer = asyncio.run(body(f"{target.url}/v1/chat/completions", payload))
    assert answer["choices"][0]["message"]["content"]


def stream(target: Target) -> None:
    parts = asyncio.run(events(target, chat(target)))
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)


def usage(target: Target) -> None:
    parts = asyncio.run(events(target, chat(target, stream_options={"include_usage": True})))
    assert parts[-1]["usage"]["completion_tokens"] > 0


def tools_streamed(target: Target) -> None:
    """Its "native" calls of functions."""
    parts = asyncio.run(events(target, chat(target, WEATHER, TYPED, tools=[TOOL], tool_choice="required")))
    calls = [call for part in parts for call in part["choices"][0]["delta"].get("tool_calls") or []]
    assert json.loads("".join(call["function"].get("arguments") or "" for call in calls))


def image(target: Target) -> None:
    content = [{"type": "text", "text": COLOUR}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    asyncio.run(events(target, chat(target, content)))


def embeddings(target: Target) -> None:
    """Of its search in documents."""
    answer = asyncio.run(
        body(f"{target.embeds}/v1/embeddings", {"model": target.embed_model, "input": ["a", "b"]})
    )
    assert len(answer["data"]) == 2


def abort(target: Target) -> None:
    async def leave() -> None:
        payload = chat(target, COUNT, LONG, ignore_eos=True)
        async with sent(f"{target.url}/v1/chat/completions", payload) as answer:
            await answer.content.readline()
            loop = asyncio.get_running_loop()
            await asyncio.to_thread(stops, target, lambda: loop.call_soon_threadsafe(answer.close))

    asyncio.run(leave())


def silence(target: Target) -> None:
    with busy(target):
        stream(target)


if __name__ == "__main__":
    main(
        {
            "models": models,
            "whole": title,
            "stream": stream,
            "usage": usage,
            "tools, streamed": tools_streamed,
            "image": image,
            "embeddings": embeddings,
            "abort": abort,
            "silence": silence,
        }
    )
