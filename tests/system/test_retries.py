"""Retries, failover and load as clients, the log and Prometheus see them, over loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxy.upstream.breaker import State
from tests.kit.client import get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_wire import error_body
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"
SAMPLED: dict[str, Any] = HELLO | {"temperature": 1}


def busy(status: int, **headers: str) -> Any:
    said = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda turn: turn.respond(status, error_body("busy", status=status), said)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("ask", [HELLO, HELLO_STREAM], ids=["whole", "stream"])
async def test_a_busy_engine_s_request_is_another_s(tmp_path: Path, status: int, ask: dict[str, Any]) -> None:
    async with (
        Engine(busy(status)) as one,
        Engine(echo_script()) as two,
        gateway(one, two, routing="round-robin", log_to=tmp_path / "log") as app,
    ):
        answer = await post_json(app.url, CHAT, ask)
        assert answer.status == 200
        page = (await get(app.url, "/metrics")).body.decode()
        assert f'gateway_retries_total{{cause="{status}"}} 1' in page
    (line,) = [line for line in lines(tmp_path / "log") if line["msg"] == "request" and "model_id" in line]
    assert (line["attempts"], line["backend"]) == (2, two.url)


async def test_when_every_engine_is_busy_the_last_one_s_own_answer_is_passed_on() -> None:
    async with Engine(busy(503, retry_after="7")) as one, gateway(one, retry_max_wait=1.0) as app:
        answer = await post_json(app.url, CHAT, SAMPLED)
        assert (answer.status, answer.json()["error"]["message"]) == (503, "busy")
        assert answer.head["retry-after"] == "7"
        assert one.generations == 1


@pytest.mark.parametrize("status", [400, 404, 422, 500])
async def test_an_error_that_is_the_request_s_own_is_not_asked_for_again(status: int) -> None:
    async with Engine(busy(status)) as one, Engine(echo_script()) as two, gateway(one, two) as app:
        for _ in range(8):
            await post_json(app.url, CHAT, SAMPLED)
        asked = [turn for engine in (one, two) for turn in engine.requests if turn.path == CHAT]
        assert len(asked) == 8  # besides a check of our own, should one engine have had five in a row


async def test_bad_requests_never_open_a_breaker_and_failures_do() -> None:
    async with Engine(busy(400)) as one, gateway(one, retries=0, refresh_seconds=60.0) as app:
        for _ in range(30):
            assert (await post_json(app.url, CHAT, SAMPLED)).status == 400
        one.auto(busy(503))
        for _ in range(5):
            assert (await post_json(app.url, CHAT, SAMPLED)).json()["error"]["message"] == "busy"
        # They are one caller's: a request of our own finds the engine failing too.
        await until(lambda: app.backends.all[0].breaker.state is State.OPEN)
        answer = await post_json(app.url, CHAT, SAMPLED)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "no_backend")
        assert int(answer.head["retry-after"]) >= 1
        assert one.generations == 36
        page = (await get(app.url, "/metrics")).body.decode()
        assert f'gateway_backend_breaker{{backend="{one.url}"}} 2' in page
        assert f'gateway_backend_breaker_changes_total{{backend="{one.url}",to="open"}} 1' in page


async def test_a_breaker_closes_when_a_probe_goes_well(tmp_path: Path) -> None:
    async with (
        Engine(busy(503)) as one,
        gateway(one, retries=0, breaker_failures=1, breaker_seconds=0.01, log_to=tmp_path / "log") as app,
    ):
        assert (await post_json(app.url, CHAT, SAMPLED)).status == 503
        await until(lambda: app.backends.all[0].breaker.state is State.OPEN)
        one.auto(echo_script())
        while (await post_json(app.url, CHAT, SAMPLED)).status != 200:
            pass
    told = [line["msg"] for line in lines(tmp_path / "log") if "breaker" in line["msg"]]
    assert told == ["engine breaker open", "engine breaker closed"]


async def cut_before(turn: Turn) -> None:
    await turn.start()
    await turn.drop()


async def half_a_body(turn: Turn) -> None:
    await turn.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
    await turn.drop()


async def another_answers(script: Any, path: str, ask: dict[str, Any], cause: str) -> None:
    """The request fails at one engine by this script, is retried once for this cause, and another one answers."""
    async with (
        Engine(script) as one,
        Engine(echo_script()) as two,
        gateway(one, two, routing="round-robin") as app,
    ):
        answer = await post_json(app.url, path, ask)
        assert answer.status == 200
        assert b"error" not in answer.body
        assert f'gateway_retries_total{{cause="{cause}"}} 1'.encode() in (await get(app.url, "/metrics")).body
        assert [[turn.path for turn in engine.requests].count(path) for engine in (one, two)] == [1, 1]


@pytest.mark.parametrize(("ask", "script"), [(HELLO_STREAM, cut_before), (HELLO, half_a_body)])
async def test_an_answer_cut_before_its_first_frame_comes_whole_from_another_engine(
    ask: dict[str, Any], script: Any
) -> None:
    await another_answers(script, CHAT, ask, "truncated")


async def test_readers_who_share_a_flight_share_its_second_attempt() -> None:
    async with Engine() as one, Engine(echo_script()) as two, gateway(one, two, routing="round-robin") as app:
        async with (
            streaming(app.url, CHAT, HELLO_STREAM) as first,
            streaming(app.url, CHAT, HELLO_STREAM) as second,
        ):
            await until(lambda: app.group.subscribers == 2)
            for _ in range(2):  # the first was a kept connection: as if it had been stale
                turn = await one.next_request()
                await turn.drop(reset=True)
            answers = [await client.read() for client in (first, second)]
        assert answers[0].body == answers[1].body
        assert answers[0].events()[-1] == b"data: [DONE]\n\n"
        assert two.generations == 1


@pytest.mark.parametrize("on", [False, True])
async def test_a_slow_first_token_goes_elsewhere_only_where_it_is_set_so(on: bool) -> None:
    changes: dict[str, Any] = {"retry_on": "first-token"} if on else {}
    async with (
        Engine() as one,
        Engine(echo_script()) as two,
        gateway(one, two, routing="round-robin", first_token_timeout=0.5, **changes) as app,
    ):
        waiting = asyncio.create_task(post_json(app.url, CHAT, HELLO_STREAM))
        turn = await one.next_request()
        answer = await waiting
        await turn.cancelled()
        assert answer.status == (200 if on else 504)


async def test_a_post_that_may_do_something_is_not_sent_twice() -> None:
    async def dies(turn: Turn) -> None:
        await turn.drop(reset=True)

    async with Engine(dies) as one, Engine(dies) as two, gateway(one, two) as app:
        assert (await post_json(app.url, "/v1/responses", {"input": "x"})).status == 502
        assert len(one.requests) + len(two.requests) == 1
        assert (await post_json(app.url, "/tokenize", {"prompt": "x"})).status == 502
        # Three attempts, and one more for each engine's kept connection that had died.
        assert len(one.requests) + len(two.requests) == 1 + 3 + 2


async def test_engines_are_chosen_by_what_they_report_of_their_load() -> None:
    async with Engine(echo_script()) as busy_one, Engine(echo_script()) as idle:
        busy_one.metrics = b'vllm:num_requests_running{model_name="m1"} 40\nvllm:num_requests_waiting 9\n'
        idle.metrics = b"vllm:num_requests_running 0\n"
        async with gateway(busy_one, idle, load_seconds=0.01) as app:
            await until(lambda: app.backends.all[0].reported > 0)
            for _ in range(10):
                assert (await post_json(app.url, CHAT, SAMPLED)).status == 200
            assert (busy_one.generations, idle.generations) == (0, 10)
            page = (await get(app.url, "/metrics")).body.decode()
            assert f'gateway_backend_requests_waiting{{backend="{busy_one.url}"}} 9' in page


async def test_turns_of_a_conversation_go_to_the_same_engine_by_prefix() -> None:
    def turn(talk: int, length: int) -> dict[str, Any]:
        words = [("user", f"talk {talk}"), ("assistant", "yes"), ("user", "go on"), ("assistant", "so")]
        return SAMPLED | {"messages": [{"role": r, "content": c} for r, c in words[: length * 2 - 1]]}

    async with (
        Engine(echo_script()) as one,
        Engine(echo_script()) as two,
        gateway(one, two, routing="prefix") as app,
    ):
        for talk in range(12):
            before = one.generations
            for length in (1, 2, 2):
                assert (await post_json(app.url, CHAT, turn(talk, length))).status == 200
            assert one.generations - before in (0, 3)
        assert min(one.generations, two.generations) > 0


async def test_a_place_at_an_engine_is_held_until_the_stream_ends_and_given_back_once(engine: Engine) -> None:
    async with gateway(engine) as app, streaming(app.url, CHAT, HELLO_STREAM) as client:
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()
        (backend,) = app.backends.all
        held = backend.inflight
        await turn.finish(" b")
        await client.read()
        assert (held, backend.inflight) == (1, 0)
