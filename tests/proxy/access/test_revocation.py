"""A key that ends: what it has under way ends with a typed error, in every phase; others' answers go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy.access.revocation import AT_ONCE
from proxy.app import App
from tests.kit.client import Answer, Connection, IncompleteBody, get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.patience import patience
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until
from tests.proxy.access.test_policy import bearer, entry

CHAT = "/v1/chat/completions"
BLUE = 'tenant = "blue"'


def write(path: Path, *entries: str) -> None:
    path.write_text("".join(entries))
    path.chmod(0o600)


A, B, OPS = entry("ka", "team-a", BLUE), entry("kb", "team-b", BLUE), entry("ko", "ops", 'role = "operator"')


@asynccontextmanager
async def keyed(engine: Engine, folder: Path, **changes: object) -> AsyncIterator[App]:
    write(folder / "keys.toml", A, B, OPS)
    async with gateway(engine, api_keys_file=str(folder / "keys.toml"), log_to=folder / "log", **changes) as app:
        yield app


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


UPLOAD = (
    f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ka\r\n"
    "Content-Type: application/json\r\nContent-Length: 50000\r\n\r\n"
)


async def test_a_stream_of_a_removed_key_ends_with_a_typed_error_within_seconds_and_its_twin_goes_on(
    engine: Engine, tmp_path: Path
) -> None:
    async with (
        keyed(engine, tmp_path) as app,
        streaming(app.url, CHAT, HELLO_STREAM, bearer("ka")) as mine,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        async with streaming(app.url, CHAT, HELLO_STREAM, bearer("kb")) as theirs:
            for client in (mine, theirs):
                event = await client.event()
                assert event is not None
            await until(lambda: app.group.subscribers == 2)
            async with patience(5.0):
                write(tmp_path / "keys.toml", B, OPS)  # nobody is told: it is noticed
                body = await mine.read()
            last = body.events()[-1]
            assert b'"key_revoked"' in last
            assert b"[DONE]" not in body.body
            assert code(await post_json(app.url, CHAT, HELLO, bearer("ka"))) == (401, "invalid_api_key")
            await turn.send(" b")
            await turn.finish(" c")
            whole = await theirs.read()
            assert b"[DONE]" in whole.body
            assert b"error" not in whole.body
    told = lines(tmp_path / "log")
    (reloaded,) = [line for line in told if line["msg"] == "reloaded"]
    assert reloaded["what"] == "removed: team-a"
    (ended,) = [line for line in told if line["msg"] == "requests ended"]
    assert (ended["who"], ended["reason"]) == ("team-a", "key_revoked")
    mine_line = next(line for line in told if line["msg"] == "request" and line.get("error") == "key_revoked")
    assert mine_line["key"] == "team-a"


@pytest.mark.parametrize("resume", [(), (("x-gateway-resume", "30"),), (("x-gateway-resume", "30; ids"),)])
async def test_the_last_reader_that_is_ended_cancels_the_generation(
    engine: Engine, tmp_path: Path, resume: tuple[tuple[str, str], ...]
) -> None:
    headers = (*bearer("ka"), *resume)
    async with keyed(engine, tmp_path) as app, streaming(app.url, CHAT, HELLO_STREAM, headers) as mine:
        turn = await engine.next_request()
        await turn.send("a")
        assert await mine.event() is not None
        write(tmp_path / "keys.toml", B, OPS)
        await app.reload()
        ended = await mine.read()
        assert b'"key_revoked"' in ended.body
        assert b"HTTP/1.1" not in ended.body
        if not resume:
            await turn.cancelled()
        else:
            await turn.finish()


async def test_what_waits_in_the_queue_for_its_body_or_for_an_answer_is_refused(
    engine: Engine, tmp_path: Path
) -> None:
    async with keyed(engine, tmp_path, max_inflight=1) as app, await Connection.open(app.url) as upload:
        whole = asyncio.ensure_future(post_json(app.url, CHAT, HELLO, bearer("ka")))
        turn = await engine.next_request()
        other = HELLO | {"messages": [{"role": "user", "content": "other"}]}
        queued = asyncio.ensure_future(post_json(app.url, CHAT, other | {"stream": True}, bearer("ka")))
        theirs = asyncio.ensure_future(post_json(app.url, CHAT, other | {"seed": 5}, bearer("kb")))
        await upload.send(UPLOAD.encode() + b"{")
        await until(lambda: len(app.scheduler.queue) == 2)
        write(tmp_path / "keys.toml", B, OPS)
        await app.reload()
        for each in (whole, queued):
            assert code(await each) == (401, "key_revoked")
        await turn.cancelled()
        assert (await upload.read_head()).status == 401
        await (await engine.next_request()).answer("a")
        assert (await theirs).status == 200


async def test_a_reader_that_lags_is_ended_too(engine: Engine, tmp_path: Path) -> None:
    async with (
        keyed(engine, tmp_path) as app,
        streaming(app.url, CHAT, HELLO_STREAM, bearer("ka")) as mine,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        assert await mine.event() is not None
        write(tmp_path / "keys.toml", B, OPS)
        await turn.send("x" * 3_000_000)  # more than sockets hold: it is being written in slices
        await until(lambda: any(reader.lagging for flight in app.group.live for reader in flight.subscribers))
        await app.reload()
        await until(lambda: len(app.group) == 0)


async def test_a_key_expires_by_the_clock_in_force_and_under_way(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())

    async def expires_in(seconds: float) -> None:
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        write(tmp_path / "keys.toml", B, OPS, entry("ka", "team-a", f"expires = {expiry}"))
        await app.reload()

    async with keyed(engine, tmp_path) as app:
        await expires_in(3600)
        async with await Connection.open(app.url) as upload:
            await upload.send(UPLOAD.encode() + b"{")
            assert (await post_json(app.url, CHAT, HELLO, bearer("ka"))).status == 200
            await expires_in(2)
            answer = await upload.read_head()
            assert answer.status == 401
        assert code(await post_json(app.url, CHAT, HELLO, bearer("ka"))) == (401, "key_expired")
        metrics = (await get(app.url, "/metrics", bearer("ko"))).body
        assert b'gateway_keys_refused_total{reason="expired"} 1' in metrics
        assert b'gateway_keys_refused_total{reason="ended"} 1' in metrics


async def test_a_changed_key_holds_for_the_next_request_and_ends_nothing(engine: Engine, tmp_path: Path) -> None:
    async with keyed(engine, tmp_path) as app, streaming(app.url, CHAT, HELLO_STREAM, bearer("ka")) as mine:
        turn = await engine.next_request()
        await turn.send("a")
        assert await mine.event() is not None
        write(tmp_path / "keys.toml", entry("ka", "team-a", BLUE + '\nmodels = ["m2"]'), B, OPS)
        await app.reload()
        assert code(await post_json(app.url, CHAT, HELLO, bearer("ka"))) == (404, "model_not_found")
        await turn.finish()
        assert b"[DONE]" in (await mine.read()).body
        engine.auto(echo_script())
        write(tmp_path / "keys.toml", entry("ka", "team-a", BLUE + "\nrps = 0.001\nburst = 1"), B, OPS)
        await app.reload()
        found = [(await post_json(app.url, CHAT, HELLO, bearer("ka"))).status for _ in range(2)]
        assert found == [200, 429]


async def test_an_operator_who_is_none_any_more_watches_no_longer(engine: Engine, tmp_path: Path) -> None:
    async with keyed(engine, tmp_path) as app, await Connection.open(app.url) as client:
        await client.request("GET", "/-/state", headers=[("accept", "text/event-stream"), *bearer("ko")])
        assert await client.event() is not None
        write(tmp_path / "keys.toml", A, B, entry("ko", "ops"))
        await app.reload()
        last = [event async for event in client.events()][-1]
        assert last.json()["error"]["code"] == "key_revoked"
        assert (await get(app.url, "/-/state", bearer("ko"))).status == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_as_its_key_ends_is_one_that_left(
    engine: Engine, tmp_path: Path, stream: bool
) -> None:
    async with keyed(engine, tmp_path) as app:
        client = await Connection.open(app.url)
        body = b'{"model":"m1","messages":[],"stream":%s}' % (b"true" if stream else b"false")
        await client.request("POST", CHAT, body, bearer("ka"))
        turn = await engine.next_request()
        write(tmp_path / "keys.toml", B, OPS)
        await client.abort()
        await app.reload()
        await turn.cancelled()
        await until(lambda: len(app.group) == 0)


async def test_hundreds_of_streams_of_one_key_end_a_few_in_each_turn(engine: Engine, tmp_path: Path) -> None:
    async with keyed(engine, tmp_path) as app, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM, bearer("ka")))
            for _ in range(300)
        ]
        other = await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM, bearer("kb")))
        turn = await engine.next_request()
        await until(lambda: app.group.subscribers == 301)
        await turn.send("a")
        for client in clients:
            assert await client.event() is not None
        write(tmp_path / "keys.toml", B, OPS)
        await app.reload()
        left = {app.group.subscribers}
        while app.group.subscribers > 1:
            await asyncio.sleep(0)
            left.add(app.group.subscribers)
        assert len(left) > 300 / AT_ONCE
        for client in clients:
            assert b'"key_revoked"' in (await client.read()).body
        await turn.finish()
        assert b"[DONE]" in (await other.read()).body
    (ended,) = [line for line in lines(tmp_path / "log") if line["msg"] == "requests ended"]
    assert ended["what"] == "300 requests"


async def test_a_stream_that_passes_through_ends_with_its_connection_and_not_as_if_it_were_whole(
    engine: Engine, tmp_path: Path
) -> None:
    async with keyed(engine, tmp_path) as app, streaming(app.url, "/v1/a/b", {}, bearer("ka")) as mine:
        turn = await engine.next_request()
        await turn.start()
        await turn.frame(b"data: {}\n\n")
        assert await mine.chunk() == b"data: {}\n\n"
        write(tmp_path / "keys.toml", B, OPS)
        await app.reload()
        with pytest.raises(IncompleteBody):
            await mine.read()
        await turn.cancelled()


async def test_a_playground_of_an_operator_who_is_none_any_more_ends_with_all_its_readers(
    engine: Engine, tmp_path: Path
) -> None:
    async with keyed(engine, tmp_path) as app:
        body = {"request": HELLO_STREAM, "delays_ms": [0, 0, 0]}
        async with streaming(app.url, "/-/readers", body, bearer("ko")) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await until(lambda: app.group.subscribers == 3)
            assert await client.event() is not None
            write(tmp_path / "keys.toml", A, B)
            await app.reload()
            last = [event async for event in client.events()][-1]
            assert last.json()["error"]["code"] == "key_revoked"
            await turn.cancelled()
            await until(lambda: len(app.group) == 0)
