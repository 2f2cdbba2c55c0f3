"""Owns the ready-made scripts of the fake engine: echo, replay of recorded answers, timed generation.
Must not know the proxy or any one test: a script is a function from a Turn to its answer.
Called by tests (`Engine(script=echo_script())`) and by `python -m tests.kit.engine`."""

from __future__ import annotations

import asyncio
import struct
from base64 import b64encode
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from tests.kit.engine import Script, Turn
from tests.kit.engine_wire import dumps, embeddings_body, error_body, golden_response

WORDS = ["red", "blue", "green", "warm", "cold", "old", "new", "small", "large", "round", "soft", "loud"]


def text_of(body: dict[str, Any], tokens: int, *, choice: int = 0, seed: int = 0) -> list[str]:
    """The tokens that this engine answers: they depend on the prompt, the choice and the seed only."""
    prompt = dumps([body.get("messages", body.get("prompt")), choice, seed])
    digest = blake2b(prompt).digest()
    words = [WORDS[digest[i % len(digest)] % len(WORDS)] for i in range(tokens)]
    return [word if i == 0 else f" {word}" for i, word in enumerate(words)]


def echo_script(tokens: int = 8, *, seed: int = 0) -> Script:
    """Deterministic text from the prompt, at once: streamed or whole as asked, usage as asked."""
    return timed_script(ttft=0, itl=0, tokens=tokens, seed=seed)


def timed_script(*, ttft: float, itl: float, tokens: int, seed: int = 0) -> Script:
    """As echo_script, but the first token takes `ttft` seconds and each later one `itl`."""

    async def script(turn: Turn) -> None:
        path = turn.path.partition("?")[0]
        if path == "/v1/embeddings":
            await _embed(turn)
        elif path in ("/v1/chat/completions", "/v1/completions"):
            await generate(turn)
        else:
            await turn.respond(404, {"detail": "Not Found"})

    async def generate(turn: Turn) -> None:
        body = turn.json()
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or tokens
        reason = "length" if asked < tokens else "stop"
        choices = range(_choices(body))
        columns = [text_of(body, min(asked, tokens), choice=i, seed=seed) for i in choices]
        if not turn.wants_stream:
            await _pause(ttft + itl * (len(columns[0]) - 1))
            texts = ["".join(column) for column in columns]
            await turn.answer(*texts, reason=reason, tokens=sum(map(len, columns)))
            return
        await turn.start()
        if not itl:
            await _pause(ttft)
            for i in choices:
                await turn.send(*columns[i], index=i)
        else:
            for step in range(len(columns[0])):
                await _pause(itl if step else ttft)
                for i in choices:
                    await turn.send(columns[i][step], index=i)
        await turn.finish(reason=reason, choices=choices)

    return script


def paced_script(pieces: Sequence[str], *, ttft: float = 0.0, itl: float = 0.0) -> Script:
    """These pieces as the tokens of each choice, whatever is asked, at this pace in seconds."""

    async def script(turn: Turn) -> None:
        if turn.method != "POST":
            await turn.respond(404, {"detail": "Not Found"})
            return
        choices = range(_choices(turn.json()))
        for number, piece in enumerate(pieces):
            await _pause(itl if number else ttft)
            for choice in choices:
                await turn.send(piece, index=choice)
        await turn.finish(choices=choices)

    return script


async def _pause(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)


def _choices(body: dict[str, Any]) -> int:
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    return int(body.get("n") or 1) * prompts


async def _embed(turn: Turn) -> None:
    body = turn.json()
    items = body.get("input")
    if items in (None, "", []):
        await turn.respond(400, error_body("You must pass at least one prompt", status=400))
        return
    one = isinstance(items, str) or isinstance(items[0], int)
    answer = embeddings_body([items] if one else items, body.get("model", "m1"), turn.number)
    if body.get("encoding_format") == "base64":
        for datum in answer["data"]:
            vector = datum["embedding"]
            datum["embedding"] = b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    await turn.respond(200, answer)


def replay(name: str, *, step: int | None = None) -> Script:
    """The recorded response's exact bytes, its chunk framing and close included; `step` cuts the writes."""
    data = golden_response(name)
    closes = b"\r\nconnection: close\r\n" in data[: data.index(b"\r\n\r\n") + 2]

    async def script(turn: Turn) -> None:
        turn.started = True
        for at in range(0, len(data), step or len(data)):
            await turn.raw(data[at : at + (step or len(data))])
            await asyncio.sleep(0)
        if closes:
            await turn.drop()
        else:
            turn.mark_done()

    return script
