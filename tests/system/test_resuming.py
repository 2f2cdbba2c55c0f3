"""Clients that come back to their stream at one gateway: the rest is byte for byte what they lack, the generation
runs on for the grace and no longer, and what cannot be given is a typed error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import Connection, Head, call, get, post_json, split_events, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import paced_script
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
GRACE = (("x-gateway-resume", "30"),)
IDS = (("x-gateway-resume", "30; ids"),)
SAMPLED = HELLO_STREAM | {"temperature": 1}
BIG = 200_000
FORWARDED: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",)}
ELSEWHERE = (("x-forwarded-for", "192.0.2.9"),)


def name_of(head: Head | None) -> str:
    assert head is not None
    return head["x-gateway-stream"]


async def rest(client: Connection) -> list[bytes]:
    return [event.raw async for event in client.events()]


async def resumed(url: str, name: str, after: object, headers: tuple[tuple[str, str], ...] = ()) -> list[bytes]:
    """The events behind so many."""
    answer = await get(url, f"/v1/streams/{name}?after={after}", headers)
    assert answer.status == 200, answer.body
    return answer.events()


async def refused(url: str, path: str, headers: tuple[tuple[str, str], ...] = ()) -> tuple[int, str, str]:
    answer = await get(url, path, headers)
    error = answer.json()["error"]
    return answer.status, error["code"], error["message"]


@asynccontextmanager
async def left(
    engine: Engine, url: str, *, headers: tuple[tuple[str, str], ...] = GRACE, body: dict[str, Any] = SAMPLED
) -> AsyncIterator[tuple[Turn, str, list[bytes]]]:
    """A client that has left its stream after three events; the generation runs on."""
    async with streaming(url, CHAT, body, headers) as client:
        turn = await engine.next_request()
        await turn.send("a", "b")
        events = [event.raw for event in [await client.event() for _ in range(3)] if event is not None]
        name = name_of(client.head)
        await client.abort()
    yield turn, name, events


async def test_the_state_that_the_page_shows_counts_streams_without_a_client() -> None:
    async with Engine() as engine, gateway(engine) as app:
        assert (await get(app.url, "/-/state")).json()["resumable"] == 0
        async with left(engine, app.url) as (turn, name, _):
            assert (await get(app.url, "/-/state")).json()["resumable"] == 1
            await turn.finish()
            assert (await resumed(app.url, name, 3))[-1] == DONE
    async with Engine() as engine, gateway(engine, resume_grace_seconds_max=0.0) as app:
        assert (await get(app.url, "/-/state")).json()["resumable"] == 0


async def test_readers_are_clients_and_what_was_delivered_never_falls() -> None:
    async with Engine() as engine, gateway(engine) as app:

        async def shown() -> tuple[int, int]:
            state = (await get(app.url, "/-/state")).json()
            assert f"gateway_subscribers {state['readers']}\n".encode() in (await get(app.url, "/metrics")).body
            return state["readers"], state["total"]["delivered"]

        async with streaming(app.url, CHAT, SAMPLED, GRACE) as client:
            turn = await engine.next_request()
            await turn.send("a", "b")
            for _ in range(3):
                await client.event()
            assert await shown() == (1, 2), "the stream is kept, which is no client"
            await client.abort()
        await until(lambda: app.group.subscribers == 0)
        assert await shown() == (0, 2)
        await turn.finish("c")
        assert await shown() == (0, 2), "nobody was there to read more"


@pytest.mark.parametrize("body", [HELLO_STREAM, SAMPLED], ids=["shared", "alone"])
@pytest.mark.parametrize("options", [{}, {"include_usage": True}], ids=["plain", "usage"])
async def test_the_rest_is_byte_for_byte_what_a_client_lacks(
    body: dict[str, Any], options: dict[str, Any]
) -> None:
    body = body | ({"stream_options": options} if options else {})
    async with Engine() as engine, gateway(engine) as app:
        async with streaming(app.url, CHAT, body, GRACE) as whole:
            turn = await engine.next_request()
            await turn.send("a", "b")
            first = [await whole.event() for _ in range(3)]
            name = name_of(whole.head)
            assert whole.head is not None
            assert whole.head["x-gateway-resume"] == "30"
            async with await Connection.open(app.url) as again:
                await again.request("GET", f"/v1/streams/{name}?after=2")
                assert (await again.read_head())["content-type"] == whole.head["content-type"]
                assert name_of(again.head) == name
                await turn.send("c")
                await turn.finish()
                events = [event.raw for event in first if event is not None] + await rest(whole)
                assert await rest(again) == events[2:]
        assert events[-1] == DONE
        for after in range(len(events) + 1):  # after the end, for the grace
            assert await resumed(app.url, name, after) == events[after:]
        assert engine.generations == 1


async def test_ids_are_counted_on_and_go_before_the_query() -> None:
    async with Engine() as engine, gateway(engine) as app:
        async with left(engine, app.url, headers=IDS) as (turn, name, events):
            assert [event.split(b"\n")[0] for event in events] == [b"id: 1", b"id: 2", b"id: 3"]
            await turn.finish("c")
        answer = await get(app.url, f"/v1/streams/{name}?after=0", [("Last-Event-ID", "3")])
        assert [event.split(b"\n")[0] for event in answer.events()] == [b"id: 4", b"id: 5"]
        assert answer.events()[-1] == b"id: 5\n" + DONE


@pytest.mark.parametrize("form", ["plain", "resume", "ids", "back", "back with ids"])
@pytest.mark.parametrize("late", [False, True], ids=["begun", "waiting"])
async def test_a_deadline_ends_each_form_of_a_stream_by_one_error_frame(form: str, late: bool) -> None:
    """In the body that has begun: no second response is written into it."""
    headers = {"plain": (), "resume": GRACE, "back": GRACE}.get(form, IDS)
    soon = (("x-request-timeout", "1"),)
    async with Engine() as engine, gateway(engine, keepalive_seconds=0.1 if late else 30.0) as app:
        back = form.startswith("back")
        async with streaming(app.url, CHAT, HELLO_STREAM, headers if back else headers + soon) as client:
            turn = await engine.next_request()
            if not late:
                await turn.send("a")
            head = await client.read_head()
            if back:
                answer = await get(app.url, f"/v1/streams/{name_of(head)}?after=0", soon)
            else:
                answer = await client.read()
            await turn.finish()
        assert answer.raw.endswith(b"0\r\n\r\n")
        body = answer.body
        assert body.count(b'"code":"deadline_exceeded"') == 1
        assert b"HTTP/1.1" not in body
        assert b"[DONE]" not in body
        assert (b"id: 1\n" in body) is form.endswith("ids")


async def test_a_generation_runs_on_for_the_grace_and_no_longer() -> None:
    async with Engine() as engine, gateway(engine) as app:
        async with left(engine, app.url, headers=(("x-gateway-resume", "0.05"),)) as (turn, name, _):
            await turn.cancelled()
        status, code, words = await refused(app.url, f"/v1/streams/{name}")
        assert (status, code) == (404, "stream_not_found")
        assert "grace has passed" in words
        async with left(engine, app.url) as (turn, name, events):
            assert not turn.is_cancelled
            await turn.finish("c")
        assert (events + await resumed(app.url, name, 3))[-1] == DONE


async def test_without_the_header_nothing_is_held() -> None:
    async with Engine() as engine, gateway(engine) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await client.event()
            assert client.head is not None
            assert "x-gateway-stream" not in client.head
            await client.abort()
            await turn.cancelled()
        for text in ("0", "0.000"):
            async with streaming(app.url, CHAT, HELLO_STREAM, [("x-gateway-resume", text)]) as client:
                turn = await engine.next_request()
                await client.abort()
                await turn.cancelled()
        engine.auto(paced_script("ab"))
        answer = await post_json(app.url, CHAT, HELLO, GRACE)  # one body is no stream
        assert "x-gateway-stream" not in answer.head


async def test_it_can_be_turned_off() -> None:
    async with Engine(paced_script("ab")) as engine, gateway(engine, resume_grace_seconds_max=0.0) as app:
        answer = await post_json(app.url, CHAT, HELLO_STREAM, GRACE)
        assert "x-gateway-stream" not in answer.head


@pytest.mark.parametrize(
    "headers",
    [
        [("x-gateway-resume", text)]
        for text in ("", "x", "-1", "1e3", "30;", "30; id", "30 ids", "9" * 10, "١", "30; ids; ids", "\xff")
    ]
    + [[("x-gateway-resume", "1"), ("x-gateway-resume", "2")]],
)
async def test_a_wish_that_is_none_is_refused(headers: list[tuple[str, str]]) -> None:
    headers = [(name, text.encode().decode("latin-1")) for name, text in headers]
    async with Engine() as engine, gateway(engine) as app:
        answer = await post_json(app.url, CHAT, HELLO_STREAM, headers)
        assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_header")
        assert "'30; ids'" in answer.json()["error"]["message"]
        assert engine.generations == 0


async def test_positions_that_are_none_or_not_there() -> None:
    async with Engine() as engine, gateway(engine) as app, left(engine, app.url) as (turn, name, _):
        path = f"/v1/streams/{name}"
        for query in ("after=x", "after=", "after=-1", "after=1&after=2", "before=1", "after=" + "9" * 13):
            assert (await refused(app.url, f"{path}?{query}"))[:2] == (400, "invalid_value"), query
        for id in ("x", "1.5", "-3", "1-zz", "٣"):
            header = (("Last-Event-ID", id.encode().decode("latin-1")),)
            assert (await refused(app.url, path, header))[:2] == (400, "invalid_header"), id
        for more in ("after=4", "after=999999999999"):
            status, code, words = await refused(app.url, f"{path}?{more}")
            assert (status, code) == (416, "stream_position_unknown")
            assert "continue after event 3, or" in words
        other = (("Last-Event-ID", f"3-{'0' * 16}"),)
        assert (await refused(app.url, path, other))[0] == 416
        await turn.finish()
        assert len(await resumed(app.url, name, 3)) == 2


async def test_a_deleted_stream_ends_with_its_last_reader() -> None:
    """Also one that is generated for another client's request."""
    async with Engine() as engine, gateway(engine) as app:
        async with left(engine, app.url) as (turn, name, _):
            answer = await call(app.url, "DELETE", f"/v1/streams/{name}")
            assert (answer.status, answer.json()) == (200, {"id": name, "object": "stream", "deleted": True})
            await turn.cancelled()
        async with (
            left(engine, app.url, body=HELLO_STREAM) as (turn, name, events),
            streaming(app.url, CHAT, HELLO_STREAM) as twin,
        ):
            assert [event.raw for event in [await twin.event() for _ in range(3)] if event] == events
            assert (await call(app.url, "DELETE", f"/v1/streams/{name}")).status == 200
            assert (await refused(app.url, f"/v1/streams/{name}"))[:2] == (404, "stream_not_found")
            await turn.finish("c")
            assert (await rest(twin))[-1] == DONE
        for unknown in (name, "A" * 32, "%00"):
            assert (await call(app.url, "DELETE", f"/v1/streams/{unknown}")).status in (400, 404)
        assert engine.generations == 2


async def test_another_tenant_gets_what_an_unknown_name_gets() -> None:
    mine, other = (("Authorization", "Bearer a"),), (("Authorization", "Bearer b"),)
    async with Engine() as engine, gateway(engine) as app:
        async with left(engine, app.url, headers=GRACE + mine) as (turn, name, _):
            await turn.finish("c")
        theirs = await refused(app.url, f"/v1/streams/{name}", other)
        unknown = await refused(app.url, f"/v1/streams/{'A' * 32}", other)
        assert theirs == (404, "stream_not_found", unknown[2].replace("A" * 32, name))
        assert (await refused(app.url, f"/v1/streams/{name}"))[0] == 404
        assert len(await resumed(app.url, name, 0, mine)) == 5
        for strange in ("%00", "a/b", "x" * 5000, "%ff", "é".encode().decode("latin-1")):
            assert (await get(app.url, f"/v1/streams/{strange}")).status in (400, 404), strange


async def test_two_may_read_at_once_and_too_many_are_refused() -> None:
    async with Engine() as engine, gateway(engine) as app, left(engine, app.url) as (turn, name, events):
        clients = [await Connection.open(app.url) for _ in range(9)]
        for client in clients:
            await client.request("GET", f"/v1/streams/{name}")
        heads = [await client.read_head() for client in clients]
        assert [head.status for head in heads] == [200] * 8 + [429]
        assert heads[8]["retry-after"] == "1"
        refusal = (await clients[8].read()).body
        assert b"At most 8 clients read one stream at a time; try again in 1 s." in refusal
        await turn.finish("c")
        answers = [await rest(client) for client in clients[:8]]
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][:3] == events
        for client in clients:
            await client.close()


async def test_streams_beyond_the_bounds_are_not_held() -> None:
    """Half of the streams are one caller's, whatever credentials it makes up. One that a client got to its end
    makes room for another."""
    async with (
        Engine() as engine,
        gateway(engine, resume_streams_max=4, **FORWARDED) as app,
        left(engine, app.url) as (one, first, _),
        left(engine, app.url) as (two, _, _),
    ):
        engine.auto(paced_script("ab"))
        for n in range(20):
            credential = (("Authorization", f"Bearer {n}"),) if n else ()
            answer = await post_json(app.url, CHAT, SAMPLED, GRACE + credential)
            assert "x-gateway-stream" not in answer.head
        names = [name_of((await post_json(app.url, CHAT, SAMPLED, GRACE + ELSEWHERE)).head) for _ in range(20)]
        assert [(await get(app.url, f"/v1/streams/{name}")).status for name in names] == [404] * 18 + [200] * 2
        await one.finish()
        await two.finish()
        assert (await resumed(app.url, first, 3))[-1] == DONE


async def test_memory_bounds_what_is_held() -> None:
    """Clients that ask and leave hold no more than the budget's part."""
    async with Engine(paced_script(["x" * BIG, "y"])) as engine, gateway(engine, memory_budget=4 << 20) as app:
        held = 0
        for _ in range(40):
            async with streaming(app.url, CHAT, SAMPLED, GRACE) as client:
                head = await client.read_head()
                held += "x-gateway-stream" in head
                await client.abort()
        assert 0 < held < 40
        await until(lambda: not len(app.group))
        assert app.memory.held <= 4 << 20
        assert (await post_json(app.url, CHAT, SAMPLED)).status == 200


async def test_a_stream_that_failed_says_so_to_all_that_come_back() -> None:
    async with Engine() as engine, gateway(engine) as app:
        async with left(engine, app.url) as (turn, name, events):
            await turn.drop()
            await until(lambda: not len(app.group))
        last = (await resumed(app.url, name, 0))[-1]
        assert b"upstream_truncated" in last
        assert await resumed(app.url, name, 3) == [last]
        assert await resumed(app.url, name, 4) == [last]  # it has counted the error
        assert (await refused(app.url, f"/v1/streams/{name}?after=5"))[0] == 416
        assert split_events(b"".join(events))[1] == b""


async def test_an_answer_that_is_an_error_has_no_name() -> None:
    async with Engine() as engine, gateway(engine, retries=0) as app:
        async with streaming(app.url, CHAT, SAMPLED, GRACE) as client:
            turn = await engine.next_request()
            await turn.respond(400, {"error": {"message": "no", "type": "BadRequestError", "code": 400}})
            head = await client.read_head()
            assert head.status == 400
            assert "x-gateway-stream" not in head
        page = (await get(app.url, "/metrics")).body
        assert b"gateway_resumable_streams 0" in page


async def test_methods_and_origins() -> None:
    page = (("Origin", "https://chat.example"),)
    async with (
        Engine() as engine,
        gateway(engine, cors_origins=("https://chat.example",)) as app,
        left(engine, app.url, headers=GRACE + page) as (turn, name, _),
    ):
        path = f"/v1/streams/{name}"
        head = (await call(app.url, "OPTIONS", path)).head
        assert (head.status, head["allow"]) == (204, "GET, DELETE, HEAD")
        preflight = (*page, ("Access-Control-Request-Method", "GET"))
        assert (
            "GET" in (await call(app.url, "OPTIONS", path, headers=preflight)).head["access-control-allow-methods"]
        )
        assert (await call(app.url, "POST", path, b"{}")).status == 405
        async with await Connection.open(app.url) as client:
            await client.request("HEAD", path)
            assert name_of(await client.read_head()) == name
        await turn.finish("c")
        answer = await get(app.url, path, page)
        assert answer.head["access-control-expose-headers"] == "*"
        assert len(answer.events()) == 5


async def test_a_slow_client_comes_back_to_a_large_stream_in_slices() -> None:
    text = ["z" * BIG for _ in range(20)]
    async with Engine(paced_script(text)) as engine, gateway(engine) as app:
        whole = await post_json(app.url, CHAT, SAMPLED, GRACE)
        path = f"/v1/streams/{name_of(whole.head)}?after=1"
        async with await Connection.open(app.url) as client:
            await client.request("GET", path)
            assert (await client.read_head()).status == 200
            assert (await get(app.url, "/health")).status == 200  # while it does not read
            assert await rest(client) == whole.events()[1:]
        assert engine.generations == 1


async def test_http_1_0_gets_the_rest_without_chunks() -> None:
    async with Engine() as engine, gateway(engine) as app, left(engine, app.url, headers=IDS) as (turn, name, _):
        await turn.finish("c")
        async with await Connection.open(app.url) as client:
            await client.send(f"GET /v1/streams/{name}?after=3 HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            answer = await client.read()
            assert "transfer-encoding" not in answer.head
            assert answer.events()[-1] == b"id: 5\n" + DONE
            assert len(answer.events()) == 2


async def test_ten_thousand_that_leave_hold_nothing_beyond_the_bounds() -> None:
    """In small: each leaves before its first event."""
    async with Engine() as engine, gateway(engine, resume_streams_max=8, max_inflight=8, queue_limit=64) as app:
        for n in range(60):
            body = SAMPLED | {"messages": [{"role": "user", "content": str(n)}]}
            async with streaming(app.url, CHAT, body, GRACE) as client:
                await until(lambda n=n: len(engine.requests) > min(n, 3) and len(app.group) > 0)  # type: ignore[misc]
                await client.abort()
        await until(lambda: len(app.group) <= 4)
        assert len(app.group) == 4  # half of the streams: one caller's
        for _ in range(4):
            turn = await engine.next_request()
            await turn.finish("x")
        await until(lambda: not len(app.group))
        await asyncio.sleep(0)


async def test_a_client_that_comes_back_pays_one_request_and_no_tokens() -> None:
    body = SAMPLED | {"max_tokens": 900}
    async with Engine() as engine, gateway(engine, rate_limit_rps=0.001, rate_limit_burst=1) as app:
        async with left(engine, app.url, body=body) as (turn, name, _):
            await turn.finish("c")
            await until(lambda: not len(app.group))
        answer = await get(app.url, f"/v1/streams/{name}")
        assert answer.status == 429  # the burst is one request
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    async with Engine() as engine, gateway(engine, rate_limit_tokens_per_minute=1000) as app:
        async with left(engine, app.url, body=body) as (turn, name, _):
            for _ in range(3):  # while 900 tokens are reserved
                async with await Connection.open(app.url) as client:
                    await client.request("GET", f"/v1/streams/{name}")
                    assert (await client.read_head()).status == 200
            await turn.finish("c")
        assert len(await resumed(app.url, name, 0)) == 5


async def test_a_key_reads_streams_of_its_models_only(tmp_path: Path) -> None:
    """Two keys of one tenant: the other one may not use the model. Models are as clients name them."""
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[[keys]]\nname = "one"\ntenant = "t"\nmodels = ["alias"]\nsha256 = "{sha256(b"sk-one").hexdigest()}"\n'
        f'[[keys]]\nname = "two"\ntenant = "t"\nmodels = ["m2"]\nsha256 = "{sha256(b"sk-two").hexdigest()}"\n'
    )
    file.chmod(0o600)
    one, two = ((("Authorization", f"Bearer sk-{name}"),) for name in ("one", "two"))
    names = (("alias", (("m1", 1.0),)),)
    body = SAMPLED | {"model": "alias"}
    async with Engine() as engine, gateway(engine, api_keys_file=str(file), models=names) as app:
        async with left(engine, app.url, headers=GRACE + one, body=body) as (turn, name, _):
            await turn.finish("c")
        assert (await refused(app.url, f"/v1/streams/{name}", two))[:2] == (404, "model_not_found")
        assert (await refused(app.url, f"/v1/streams/{name}"))[0] == 401
        assert len(await resumed(app.url, name, 0, one)) == 5


async def test_a_stream_that_is_left_keeps_its_slot_while_it_is_generated() -> None:
    """A client that comes back has the slot again."""
    async with Engine() as engine, gateway(engine, rate_limit_streams=1) as app:
        limits = app.admission
        assert limits is not None
        async with left(engine, app.url) as (turn, name, _):
            for _ in range(3):
                answer = await post_json(app.url, CHAT, SAMPLED, GRACE)
                assert (answer.status, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
                async with await Connection.open(app.url) as client:
                    await client.request("GET", f"/v1/streams/{name}?after=0")
                    assert (await client.read_head()).status == 200
                    assert limits.limiter.local.streams == 1
                    await client.abort()
                    await until(lambda: limits.limiter.local.streams == 1)
            await turn.finish("c")
            await until(lambda: limits.limiter.local.streams == 0)
        async with left(engine, app.url, headers=(("x-gateway-resume", "0.05"),)) as (turn, _, _):
            await turn.cancelled()
        await until(lambda: limits.limiter.local.streams == 0)
        engine.auto(paced_script("ab"))
        assert (await post_json(app.url, CHAT, SAMPLED)).status == 200
        assert engine.generations == 3


async def test_a_refused_client_leaves_the_slot_to_its_stream() -> None:
    async with Engine() as engine, gateway(engine, rate_limit_streams=2, rate_limit_rps=0.001) as app:
        limits = app.admission
        assert limits is not None
        async with left(engine, app.url) as (turn, name, _):
            await until(lambda: limits.limiter.local.streams == 1)
            for _ in range(3):
                assert (await get(app.url, f"/v1/streams/{name}")).status == 429
                assert limits.limiter.local.streams == 1
            await turn.finish("c")
            await until(lambda: limits.limiter.local.streams == 0)


@pytest.mark.parametrize(
    "place",
    [
        lambda n: (),
        lambda n: (("Authorization", f"Bearer {n}"),),
        lambda n: (("x-api-key", f"{n}"),),
        lambda n: (("x-forwarded-for", f"2001:db8::{n}"),),
    ],
    ids=["plain", "bearer", "x-api-key", "network"],
)
async def test_a_caller_cannot_take_every_place_without_a_connection(
    place: Callable[[int], tuple[tuple[str, str], ...]],
) -> None:
    """With half of the places at streams that nobody reads, further ones end with their clients: a credential
    that nobody checks makes no other caller, nor does another address of an IPv6 network."""
    async with Engine() as engine, gateway(engine, max_inflight=4, **FORWARDED) as app:
        turns = []
        for n in range(2):
            async with left(engine, app.url, headers=GRACE + place(n)) as (turn, _, _):
                turns.append(turn)
        for n in range(4):
            async with streaming(app.url, CHAT, SAMPLED, GRACE + place(n)) as client:
                turn = await engine.next_request()
                await turn.send("a")
                assert "x-gateway-stream" not in await client.read_head()
                await client.abort()
                await turn.cancelled()
        async with left(engine, app.url, headers=GRACE + ELSEWHERE) as (other, _, _):
            turns.append(other)
        for turn in turns:
            assert not turn.is_cancelled
            await turn.finish()


async def test_a_drain_counts_the_streams_that_nobody_reads(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Engine() as engine:
        async with gateway(engine, log_to=log) as app, left(engine, app.url) as (turn, _, _):
            pass
        await turn.cancelled()
    assert json.loads(log.read_text().splitlines()[-1])["cut"] == 1


async def test_names_of_streams_never_go_to_an_engine() -> None:
    async with Engine(paced_script("ab")) as engine:
        for grace in (60.0, 0.0):
            async with gateway(engine, resume_grace_seconds_max=grace) as app:
                for path in (
                    "/v1/streams/NAME/../",
                    "/v1/streams/NAME/",
                    "/v1/Streams/NAME",
                    "/v1/streams;x/NAME",
                ):
                    assert (await get(app.url, path)).status == 404, path
        assert not [each for each in engine.requests if "streams" in each.path.lower()]


@pytest.mark.parametrize("before", [b"id: 0\n", b"id\n", b"\xef\xbb\xbf"], ids=["ids", "reset", "bom"])
async def test_an_engine_s_own_ids_do_not_move_a_client_s_place(engine: Engine, before: bytes) -> None:
    async def script(turn: Turn) -> None:
        frames = [turn.shape.role(), turn.shape.content("a"), turn.shape.finish("stop"), DONE]
        await turn.start()
        await turn.end(*(before + frame for frame in frames))

    engine.auto(script)
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, SAMPLED, IDS)
        lines = [line for line in answer.body.split(b"\n") if line]
        assert lines[::2] == [b"id: 1", b"id: 2", b"id: 3", b"id: 4"]
        assert all(line.startswith(b"data: ") for line in lines[1::2])
        again = await get(app.url, f"/v1/streams/{name_of(answer.head)}", [("Last-Event-ID", "2")])
        assert again.body == answer.body[answer.body.index(b"id: 3") :]
