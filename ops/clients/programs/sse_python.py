"""Readers of server-sent events in Python: `sse_python READER TARGETS`, of `httpx-sse` or `aiohttp-sse-client`."""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import httpx_sse

from ops.clients.programs.kit import COLOUR, COUNT, LONG, SHORT, Target, busy, main, stops

Events = Callable[[str, dict[str, Any]], AsyncGenerator[str, None]]
PATH = "/v1/chat/completions"


async def httpx_events(url: str, ask: dict[str, Any]) -> AsyncGenerator[str, None]:
    async with (
        httpx.AsyncClient(timeout=120) as client,
        httpx_sse.aconnect_sse(client, "POST", url, json=ask) as source,
    ):
        source.response.raise_for_status()
        async for event in source.aiter_sse():
            yield event.data


async def aiohttp_events(url: str, ask: dict[str, Any]) -> AsyncGenerator[str, None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from aiohttp_sse_client import client
    async with client.EventSource(url, option={"method": "POST"}, json=ask, max_connect_retry=0) as source:
        async for event in source:
            yield event.data
            if event.data == "[DONE]":
                return


def asking(target: Target, prompt: str = COLOUR, tokens: int = SHORT, **more: Any) -> dict[str, Any]:
    ask = {"model": target.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    return {**ask, "stream": True, "temperature": 0, **more}


class Trials:
    """Those of one reader."""

    def __init__(self, events: Events) -> None:
        self._events = events

    async def _read(self, target: Target, **more: Any) -> list[str]:
        return [event async for event in self._events(target.url + PATH, asking(target, **more))]

    def stream(self, target: Target) -> None:
        *events, last = asyncio.run(self._read(target))
        assert last == "[DONE]"
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        assert "".join(choice["delta"].get("content") or "" for choice in choices)
        assert choices[-1]["finish_reason"] in ("stop", "length")

    def usage(self, target: Target) -> None:
        events = asyncio.run(self._read(target, stream_options={"include_usage": True}))
        assert json.loads(events[-2])["usage"]["completion_tokens"] > 0

    def abort(self, target: Target) -> None:
        async def reading() -> None:
            events = self._events(target.url + PATH, asking(target, COUNT, LONG, ignore_eos=True))
            await anext(events)
            loop = asyncio.get_running_loop()

            def leave() -> None:
                asyncio.run_coroutine_threadsafe(events.aclose(), loop).result()

            await asyncio.to_thread(stops, target, leave)

        asyncio.run(reading())

    def silence(self, target: Target) -> None:
        with busy(target):
            self.stream(target)


READERS: dict[str, Events] = {"httpx-sse": httpx_events, "aiohttp-sse-client": aiohttp_events}

if __name__ == "__main__":
    ours = Trials(READERS[sys.argv.pop(1)])
    main({"stream": ours.stream, "usage": ours.usage, "abort": ours.abort, "silence": ours.silence})
