"""The kit itself: the fake engine, the raw client, the leak checks."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import sys
from types import ModuleType

import pytest

from proxy.flights.group import FlightGroup
from tests.kit.client import Connection, IncompleteBody, NoAnswer, get, post_json, sse_events, streaming
from tests.kit.engine import ClientGone, Engine, Turn, full_backlog
from tests.kit.engine_scripts import echo_script, replay
from tests.kit.engine_wire import GOLDEN, BadRequest, RequestReader, golden_response, http_chunk
from tests.kit.leaks import check_groups, check_tasks, recorded_groups

CHAT = "/v1/chat/completions"
GOLDEN_NAMES = sorted(p.name.removesuffix(".response.http") for p in GOLDEN.glob("*.response.http"))


def ask(prompt: str = "hello", **fields: object) -> dict[str, object]:
    return {"model": "m1", "messages": [{"role": "user", "content": prompt}], "stream": True, **fields}


def shape_of(obj: object) -> object:
    """An answer with every value but its nulls blanked: its keys, in order."""
    if isinstance(obj, dict):
        return [(key, shape_of(value)) for key, value in obj.items()]
    if isinstance(obj, list):
        return [shape_of(value) for value in obj]
    return None if obj is None else "value"


# The engine, turn by turn


async def test_nothing_is_answered_until_the_test_says_so(engine: Engine) -> None:
    async with streaming(engine.url, CHAT, ask()) as client:
        turn = await engine.next_request()
        assert (turn.method, turn.path, turn.json()["model"]) == ("POST", CHAT, "m1")
        await turn.start(headers=[("x-request-id", "r1")])
        head = await client.read_head()
        assert head.status == 200
        assert head["x-request-id"] == "r1"
        await turn.send("a")
        events = client.events()
        assert (await anext(events)).json()["choices"][0]["delta"]["role"] == "assistant"
        assert (await anext(events)).text == "a"
        await turn.frame(b": a comment\n\n")
        assert (await anext(events)).raw == b": a comment\n\n"
        await turn.finish("b", reason="length")
        finish = await anext(events)
        assert finish.text == "b"
        assert finish.json()["choices"][0]["finish_reason"] == "length"
        assert (await anext(events)).is_done
        assert [event async for event in events] == []
    assert engine.generations == 1
    assert not turn.is_cancelled


@pytest.mark.parametrize("name", ["chat-greedy-stream", "completion-stream"])
@pytest.mark.parametrize("usage", [False, True])
async def test_scripted_chunks_have_the_keys_of_recorded_ones(engine: Engine, name: str, usage: bool) -> None:
    path = CHAT if name.startswith("chat") else "/v1/completions"
    options = {"stream_options": {"include_usage": True}} if usage else {}
    async with streaming(engine.url, path, {**ask(), "prompt": "x", **options}) as client:
        turn = await engine.next_request()
        await turn.send("a", "b")
        await turn.finish("c", reason="length")
        scripted = await client.read()
    async with Engine(replay(name + "-usage" * usage)) as recorder:
        recorded = await post_json(recorder.url, path, ask())
    ours, theirs = ([json.loads(e[6:]) for e in a.events()[:-1]] for a in (scripted, recorded))
    one_of_each = [*theirs[: 3 if path == CHAT else 2], *theirs[-2 if usage else -1 :]]
    assert list(map(shape_of, ours)) == list(map(shape_of, one_of_each))
    assert {k.lower() for k, _ in scripted.head.headers} == {
        k.lower() for k, _ in recorded.head.headers if k != "connection"
    }


@pytest.mark.parametrize(("name", "path"), [("chat-greedy", CHAT), ("completion", "/v1/completions")])
async def test_whole_answers_have_the_keys_of_recorded_ones(engine: Engine, name: str, path: str) -> None:
    async with streaming(engine.url, path, ask(stream=False)) as client:
        turn = await engine.next_request()
        await turn.answer("a b")
        answer = await client.read()
    recorded = golden_response(name).partition(b"\r\n\r\n")[2]
    assert shape_of(answer.json()) == shape_of(json.loads(recorded))


async def test_one_connection_serves_many_requests(engine: Engine) -> None:
    async with await Connection.open(engine.url) as client:
        for number in (1, 2):
            await client.request("POST", CHAT, json.dumps(ask()).encode())
            turn = await engine.next_request()
            assert (turn.number, turn.connection) == (number, 1)
            await turn.respond(404, {"detail": "Not Found"})
            assert (await client.read()).json() == {"detail": "Not Found"}
        assert engine.open_connections == 1
        await client.close()
        await engine.until(lambda: not engine.open_connections)
    assert engine.accepted == 1


async def test_cancelled_fires_when_the_client_leaves(engine: Engine) -> None:
    for abort in (False, True):
        async with streaming(engine.url, CHAT, ask()) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await client.read_head()
            before = turn.is_cancelled
            await (client.abort() if abort else client.close())
            await turn.cancelled()
            assert (before, turn.is_cancelled) == (False, True)
            with pytest.raises(ClientGone):
                await turn.send("b")


@pytest.mark.parametrize("reset", [False, True])
async def test_a_drop_is_seen_as_an_incomplete_body(engine: Engine, reset: bool) -> None:
    async with streaming(engine.url, CHAT, ask()) as client:
        turn = await engine.next_request()
        await turn.start(role=False)
        await client.read_head()
        await turn.frame(b"data: 1\n\n")
        assert await client.chunk() == b"data: 1\n\n"
        await turn.drop(reset=reset)
        with pytest.raises(IncompleteBody):
            await client.read()
    assert not turn.is_cancelled


@pytest.mark.parametrize(
    "tail",
    [b"", b"0\r\n", b"5\r\nab", b"content-length"],
    ids=["no last chunk", "half a last chunk", "half a chunk", "short of its content-length"],
)
async def test_every_kind_of_truncation_is_told_from_an_end(engine: Engine, tail: bytes) -> None:
    async with streaming(engine.url, CHAT, ask()) as client:
        turn = await engine.next_request()
        if tail == b"content-length":
            await turn.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcd")
        else:
            await turn.start(role=False)
            await turn.raw(http_chunk(b"abcd") + tail)
        await turn.drop()
        with pytest.raises(IncompleteBody) as caught:
            await client.read()
        assert caught.value.received == (b"abcdab" if tail.endswith(b"ab") else b"abcd")


async def test_a_body_that_ends_inside_a_frame_is_incomplete(engine: Engine) -> None:
    async with streaming(engine.url, CHAT, ask()) as client:
        turn = await engine.next_request()
        await turn.start(role=False)
        await turn.end(b"data: 1\n\n", b"data: 2")
        with pytest.raises(IncompleteBody):
            [event async for event in client.events()]


async def test_a_drop_before_the_head_is_no_answer(engine: Engine) -> None:
    async with streaming(engine.url, CHAT, ask()) as client:
        await (await engine.next_request()).drop()
        with pytest.raises(NoAnswer):
            await client.read_head()


# Scripts


@pytest.mark.parametrize("name", GOLDEN_NAMES)
async def test_replay_is_byte_exact(name: str) -> None:
    async with Engine(replay(name, step=97)) as engine, streaming(engine.url, CHAT, ask()) as client:
        assert await client.reader.read() == golden_response(name)


async def test_the_client_reads_recorded_framing_exactly() -> None:
    async with Engine(replay("chat-greedy-stream")) as engine:
        answer = await post_json(engine.url, CHAT, ask())
    assert golden_response("chat-greedy-stream").endswith(b"\r\n\r\n" + answer.raw)
    assert answer.raw == b"".join(map(http_chunk, answer.chunks)) + b"0\r\n\r\n"
    assert answer.events() == list(answer.chunks)


async def test_echo_says_the_same_streamed_and_whole() -> None:
    async with Engine(echo_script(tokens=5)) as engine:
        whole = await post_json(engine.url, CHAT, ask(stream=False, n=2))
        usage = {"include_usage": True}
        events = [e async for e in sse_events(engine.url, CHAT, ask(n=2, stream_options=usage))]
        other = await post_json(engine.url, CHAT, ask("another", stream=False))
        short = await post_json(engine.url, CHAT, ask(stream=False, max_tokens=3))
    texts = ["", ""]
    for event in events[:-2]:
        for choice in event.json()["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole.json()["choices"]]
    counts = [a["usage"]["completion_tokens"] for a in (events[-2].json(), whole.json(), short.json())]
    assert counts == [10, 10, 3]
    assert short.json()["choices"][0]["finish_reason"] == "length"
    assert other.json()["choices"][0]["message"]["content"] != texts[0]
    assert [e.order for e in events] == sorted(e.order for e in events)
    assert engine.generations == 4


async def test_polls_disturb_no_script_unless_taken(engine: Engine) -> None:
    models = await get(engine.url, "/v1/models")
    assert [model["id"] for model in models.json()["data"]] == ["m1"]
    assert (await get(engine.url, "/health")).status == 200
    assert engine.polls == {"/v1/models": 1, "/health": 1}
    assert engine.requests == []
    engine.take("/v1/models")
    async with streaming(engine.url, "/v1/models", {}) as client:
        turn = await engine.next_request()
        await turn.respond(500, b"no")
        assert (await client.read()).status == 500


async def test_the_engine_refuses_and_listens_again_on_the_same_port(engine: Engine) -> None:
    url = engine.url
    engine.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        await get(url, "/health")
    await engine.listen()
    assert (await get(url, "/health")).status == 200


async def test_a_server_closed_while_it_accepts_leaves_no_connection_open() -> None:
    made: list[asyncio.Protocol] = []

    def protocol() -> asyncio.Protocol:
        made.append(asyncio.Protocol())
        return made[-1]

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1")
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        select.select([server.sockets[0]], [], [])  # the client may be connected before it can be accepted
        for _ in range(2):  # accepted in the first turn, given to the server in the second
            await asyncio.sleep(0)
        server.close()
        client.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    assert made == []


async def test_a_silent_engine_accepts_and_never_answers(engine: Engine) -> None:
    engine.silent = True
    async with await Connection.open(engine.url) as client:
        await client.request("GET", "/health")
        await engine.until(lambda: engine.polls["/health"] == 1)
        await engine.drop_connections()
        with pytest.raises(NoAnswer):
            await client.read_head()


def test_a_full_backlog_neither_accepts_nor_refuses() -> None:
    async def connect(url: str) -> None:
        async with asyncio.timeout(0.05):
            await Connection.open(url)

    with full_backlog() as url, pytest.raises(TimeoutError):
        asyncio.run(connect(url))


async def test_a_failing_script_fails_the_test() -> None:
    async def broken(turn: Turn) -> None:
        raise ZeroDivisionError

    engine = await Engine(broken).__aenter__()
    with pytest.raises(NoAnswer):
        await post_json(engine.url, CHAT, ask())
    with pytest.raises(ExceptionGroup) as caught:
        await engine.__aexit__(None, None, None)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


async def test_a_request_on_top_of_an_unanswered_one_fails_the_test() -> None:
    engine = await Engine().__aenter__()
    async with streaming(engine.url, CHAT, ask()) as client:
        await engine.next_request()
        await client.request("POST", CHAT, b"{}")
        with pytest.raises(NoAnswer):
            await client.read_head()
    with pytest.raises(ExceptionGroup) as caught:
        await engine.__aexit__(None, None, None)
    assert isinstance(caught.value.exceptions[0], BadRequest)


def test_requests_are_read_whole_under_any_split() -> None:
    plain = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    chunked = b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    for step in range(1, 60):
        reader, requests = RequestReader(), []
        data = plain + chunked
        for at in range(0, len(data), step):
            requests += reader.feed(data[at : at + step])
        assert [(r.path, r.body) for r in requests] == [("/a", b"abc"), ("/b", b"abc")]


# The leak checks


async def never() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_leaked_task_is_caught() -> None:
    task = asyncio.get_running_loop().create_task(never())
    with pytest.raises(AssertionError, match="1 tasks left running"):
        await check_tasks()
    task.cancel()
    await check_tasks()


def test_a_flight_left_in_its_group_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class FlightGroup(dict[str, str]):
        pass

    module = ModuleType("proxy.flights.group")
    module.__dict__["FlightGroup"] = FlightGroup
    monkeypatch.setitem(sys.modules, "proxy.flights.group", module)
    with recorded_groups() as groups:
        group = FlightGroup()
    check_groups(groups)
    group["key"] = "flight"
    with pytest.raises(AssertionError, match="flights left in 1 groups"):
        check_groups(groups)
    assert "__init__" not in vars(FlightGroup) or FlightGroup.__init__ is dict.__init__


def test_the_flight_group_that_is_watched_is_the_proxy_s_own() -> None:
    with recorded_groups() as groups:
        group = FlightGroup()
    assert groups == [group]
