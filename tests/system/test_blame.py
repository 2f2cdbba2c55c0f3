"""Whose fault a failure is: one caller's requests, an engine, or this machine; over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.config.settings import Settings
from proxy.upstream.breaker import State
from tests.kit.client import post_json
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_wire import error_body
from tests.kit.running import gateway, lines, pause, until

CHAT = "/v1/chat/completions"
BEHIND: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",)}
POISON = 12
Script = Callable[[Turn], Awaitable[None]]


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m1", "messages": [{"role": "user", "content": text}], "temperature": 1} | more


def of(address: str) -> list[tuple[str, str]]:
    return [("x-forwarded-for", address)]


def says(status: int) -> Script:
    return lambda turn: turn.respond(status, error_body("out of range", status=status))


async def not_strict(turn: Turn) -> None:
    await turn.respond(200, b'{"choices": [{"logprobs": -Infinity}]}')


async def resets(turn: Turn) -> None:
    await turn.drop(reset=True)


async def half_a_stream(turn: Turn) -> None:
    await turn.start()
    await turn.send("half")
    await turn.drop()


async def not_http(turn: Turn) -> None:
    await turn.raw(b"no such thing\r\n\r\n")
    await turn.drop()


def poisoned(script: Script) -> Script:
    """An engine that does this to what one caller asks, and serves all else."""
    serve = echo_script()
    return lambda turn: script(turn) if b"poison" in turn.body else serve(turn)


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        *((says(status), False) for status in (500, 502, 503, 504)),
        (not_strict, False),
        (resets, False),
        (half_a_stream, True),
        (not_http, False),
    ],
    ids=["500", "502", "503", "504", "not-json", "reset", "truncated", "not-http"],
)
async def test_one_caller_s_requests_that_fail_everywhere_close_no_engine_to_the_others(
    script: Script, stream: bool
) -> None:
    made = poisoned(script)
    async with Engine(made) as one, Engine(made) as two, gateway(one, two, **BEHIND) as app:

        async def poison() -> None:
            for n in range(POISON):
                answer = await post_json(app.url, CHAT, ask(f"poison {n}", stream=stream), of("10.0.0.1"))
                assert answer.status >= 500 or b'"error"' in answer.body

        async def innocent() -> list[int]:
            await poison()  # nobody's success comes between these failures
            return [
                (await post_json(app.url, CHAT, ask(f"well {n}"), of("10.0.0.2"))).status for n in range(POISON)
            ]

        assert await innocent() == [200] * POISON
        statuses, _ = await asyncio.gather(innocent(), poison())
        assert statuses == [200] * POISON
        assert [backend.breaker.state for backend in app.backends.all] == [State.CLOSED] * 2


@pytest.mark.parametrize("script", [says(500), resets, not_http], ids=["500", "reset", "not-http"])
async def test_an_engine_that_fails_its_one_caller_is_found_out_by_a_check_of_our_own(
    script: Script, tmp_path: Path
) -> None:
    async with Engine(script) as one, gateway(one, breaker_seconds=5.0, log_to=tmp_path / "log") as app:
        for n in range(5):
            await post_json(app.url, CHAT, ask(f"{n}"))
        await until(lambda: app.backends.all[0].breaker.state is State.OPEN)
        answer = await post_json(app.url, CHAT, ask("more"))
        assert (answer.status, answer.json()["error"]["code"]) == (503, "no_backend")
        one.auto(echo_script())
        while (await post_json(app.url, CHAT, ask("again"))).status != 200:
            await pause()
        assert app.backends.all[0].breaker.state is State.CLOSED
    told = [line for line in lines(tmp_path / "log") if line["msg"] == "engine breaker open"]
    assert "opened by a check of our own" in told[0]["detail"]


async def test_what_several_callers_see_opens_it_without_a_check() -> None:
    async with Engine(says(500)) as one, gateway(one, retries=0, **BEHIND) as app:
        for n in range(5):
            await post_json(app.url, CHAT, ask(f"{n}"), of(f"10.0.0.{n % 2}"))
        assert app.backends.all[0].breaker.state is State.OPEN
        assert one.generations == 5


async def test_half_open_a_poison_does_not_open_it_again() -> None:
    async with Engine(says(500)) as one, gateway(one, breaker_seconds=0.01, **BEHIND) as app:
        breaker = app.backends.all[0].breaker
        for n in range(5):
            await post_json(app.url, CHAT, ask(f"{n}"), of(f"10.0.0.{n % 2}"))
        assert breaker.state is State.OPEN
        one.auto(poisoned(says(500)))
        while (await post_json(app.url, CHAT, ask("poison"), of("10.0.0.1"))).status != 500:
            pass
        await until(lambda: breaker.state is State.CLOSED)


def test_the_defaults_are_what_the_tests_take_them_for() -> None:
    assert (Settings().breaker_failures, Settings().retries) == (5, 2)
