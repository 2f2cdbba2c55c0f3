"""The page: its headers, what it may load, who may see what, and its readers on the gateway's road."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from proxy.config.keys_file import hash_of
from proxy.errors import GatewayError
from proxy.server.page.document import document
from proxy.server.page.handlers import MAX_WATCHERS
from proxy.server.page.prompt import MAX_READERS, wanted
from tests.kit.client import Connection, call, get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

READERS = "/-/readers"
STREAM = ("accept", "text/event-stream")
KEY = "sk-" + "k" * 40


ROLE = 'role = "operator"\n'


def keys(folder: Path) -> str:
    """A keys file with one key."""
    path = folder / "keys.toml"
    path.write_text(f'[[keys]]\nname = "one"\nsha256 = "{hash_of(KEY).hex()}"\nmodels = ["m1"]\n' + ROLE)
    path.chmod(0o600)
    return str(path)


async def told(client: Connection) -> list[dict[str, Any]]:
    return [event.json() async for event in client.events()]


def texts(events: list[dict[str, Any]]) -> dict[int, str]:
    """Each reader's frames, joined."""
    found: dict[int, str] = {}
    for event in events:
        if "frames" in event:
            found[event["reader"]] = found.get(event["reader"], "") + "".join(event["frames"])
    return found


def ends(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {event["reader"]: event["end"] for event in events if "end" in event}


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# -- the document ---------------------------------------------------------------------------------


def test_the_page_is_small_loads_nothing_from_elsewhere_and_has_no_handlers_in_its_html() -> None:
    html = document().html.decode()
    assert len(html) < 40_000
    for tag, attributes in Tags(html).found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    addresses = set(re.findall(r"https?://[\w.]+", html))
    assert addresses == {"http://www.w3.org"}, "names of namespaces only"
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|setAttribute\(\"style", html
    )


def test_the_policy_lets_run_what_is_inside_by_its_hash_and_nothing_else() -> None:
    policy = dict(document().headers)["content-security-policy"]
    rules = {name: rest for name, _, rest in (part.partition(" ") for part in policy.split("; "))}
    assert (
        rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == rules["form-action"] == "'none'"
    )
    assert rules["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules["script-src"])
    assert "unsafe" not in policy


async def test_the_page_is_there_with_its_headers_and_off_by_setting(engine: Engine) -> None:
    async with gateway(engine) as app:
        answer = await get(app.url, "/")
        assert answer.status == 200
        assert answer.body == document().html
        for name, value in document().headers:
            assert answer.head[name] == value
        assert (await get(app.url, "/index.html")).status == 404
    async with gateway(engine, page=False) as app:
        for path in ("/", "/-/state", READERS):
            assert (await get(app.url, path)).status == 404


# -- who may ----------------------------------------------------------------------------------------


async def test_with_keys_the_form_is_open_and_its_data_and_its_readers_are_not(
    engine: Engine, tmp_path: Path
) -> None:
    engine.auto(echo_script(3))
    bearer = ("authorization", f"Bearer {KEY}")
    body = {"request": HELLO_STREAM, "delays_ms": [0]}
    async with gateway(engine, api_keys_file=keys(tmp_path)) as app:
        assert (await get(app.url, "/")).status == 200
        assert (await get(app.url, "/-/state")).status == 401
        assert (await get(app.url, "/-/state", [STREAM])).status == 401
        assert (await post_json(app.url, READERS, body)).status == 401
        assert (await get(app.url, "/-/state", [bearer])).json()["models"] == ["m1"]
        async with streaming(app.url, READERS, body, [bearer]) as client:
            assert ends(await told(client))[0]["status"] == 200
    assert engine.generations == 1


async def test_a_key_sees_only_the_models_that_it_may_name(tmp_path: Path) -> None:
    async with Engine(models=("m1", "secret")) as engine, gateway(engine, api_keys_file=keys(tmp_path)) as app:
        state = (await get(app.url, "/-/state", [("authorization", f"Bearer {KEY}")])).json()
        assert state["models"] == ["m1"]
        assert [one["models"] for one in state["backends"]] == [["m1"]]


# -- the state ----------------------------------------------------------------------------------------


async def test_the_state_shows_what_is_under_way_and_adds_up_when_it_is_over(engine: Engine) -> None:
    async with gateway(engine) as app, streaming(app.url, "/v1/chat/completions", HELLO_STREAM) as client:
        turn = await engine.next_request()
        await turn.send("a", "b")
        for _ in range(3):
            await client.event()
        state = (await get(app.url, "/-/state")).json()
        assert (state["flights"], state["readers"], state["ready"]) == (1, 1, True)
        assert state["backends"][0]["inflight"] == 1
        assert (state["total"]["generated"], state["total"]["delivered"]) == (2, 2)
        await turn.finish()
        await client.read()
        await until(lambda: len(app.group) == 0)
        state = (await get(app.url, "/-/state")).json()
        assert state["flights"] == 0
        assert state["total"]["verdicts"]["miss"] == 1
        assert (state["total"]["generated"], state["total"]["delivered"]) == (2, 2)
        assert state["total"]["ttft_ms"]["p50"] > 0


async def test_watchers_are_bounded_and_one_that_leaves_makes_room(engine: Engine) -> None:
    async with gateway(engine) as app:
        watching = []
        for _ in range(MAX_WATCHERS):
            client = await Connection.open(app.url)
            await client.request("GET", "/-/state", headers=[STREAM])
            event = await client.event()
            assert event is not None
            assert event.json()["version"]
            watching.append(client)
        answer = await get(app.url, "/-/state", [STREAM])
        assert (answer.status, answer.head["retry-after"]) == (503, "5")
        await watching.pop().abort()
        status = 503
        while status == 503:
            async with await Connection.open(app.url) as client:
                await client.request("GET", "/-/state", headers=[STREAM])
                status = (await client.read_head()).status
        for client in watching:
            await client.abort()


async def test_who_watches_does_not_hold_the_drain(engine: Engine) -> None:
    async with gateway(engine, drain_timeout=1000.0) as app:  # which the test's own time-out would end
        client = await Connection.open(app.url)
        await client.request("GET", "/-/state", headers=[STREAM])
        assert await client.event() is not None
    async with client:
        await client.read()  # ended as a whole answer is


# -- the readers ----------------------------------------------------------------------------------------


async def test_twenty_readers_are_twenty_requests_of_one_generation(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        gateway(engine, log_to=log) as app,
        streaming(app.url, READERS, {"request": HELLO_STREAM, "delays_ms": [0.0] * 20}) as client,
    ):
        turn = await engine.next_request()
        await until(lambda: app.group.subscribers == 20)
        await turn.send("a", " b")
        await turn.finish(" c")
        events = await told(client)
    assert engine.generations == 1
    assert events[-1] == {"done": True}
    assert len(set(texts(events).values())) == 1
    assert texts(events)[0].count("data: ") == 5, "the role comes with the first token; usage was not asked for"
    verdicts = [end["verdict"] for _, end in sorted(ends(events).items())]
    assert verdicts == ["miss", *["attached"] * 19]
    assert {event["flight"] for event in events if "flight" in event} == {0}
    logged = [line for line in lines(log) if line["msg"] == "request" and line["endpoint"] == "chat"]
    assert len(logged) == 20
    assert len({line["request_id"] for line in logged}) == 20


async def test_readers_that_sample_are_merged_and_say_which_request_they_rode_in(engine: Engine) -> None:
    body = {"request": HELLO_STREAM | {"temperature": 1}, "delays_ms": [0.0, 0.0, 0.0]}
    other = HELLO_STREAM | {"messages": [{"role": "user", "content": "other"}]}
    async with gateway(engine, max_inflight=1) as app, streaming(app.url, "/v1/chat/completions", other):
        first = await engine.next_request()  # the only place is taken: what comes now waits together
        async with streaming(app.url, READERS, body) as client:
            await until(lambda: len(app.scheduler.queue) == 3)
            await first.finish()
            turn = await engine.next_request()
            assert turn.json()["n"] == 3
            for n in range(3):
                await turn.send(f"sample {n}", index=n)
            await turn.finish(choices=range(3))
            events = await told(client)
    merged = [event for event in events if event.get("verdict") == "merged"]
    assert {event["flight"] for event in merged} == {0, 1, 2}
    assert {event["ask"] for event in merged} == {0}
    assert all(end["status"] == 200 for end in ends(events).values())


async def test_each_reader_is_charged_and_refused_for_itself(engine: Engine) -> None:
    engine.auto(echo_script(2))
    async with gateway(engine, rate_limit_rps=0.001, rate_limit_burst=3) as app:
        async with streaming(app.url, READERS, {"request": HELLO_STREAM, "delays_ms": [0.0] * 5}) as client:
            found = ends(await told(client))
        assert sorted(end["status"] for end in found.values()) == [200, 200, 200, 429, 429]
        refused = next(end for end in found.values() if end["status"] == 429)
        assert refused["error"]["code"] == "rate_limit_exceeded"


async def test_the_page_leaving_is_all_its_readers_leaving_and_the_end_of_the_page_s_own_request(
    engine: Engine, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with gateway(engine, log_to=log) as app:
        async with await Connection.open(app.url) as watcher:
            await watcher.request("GET", "/-/state", headers=[STREAM])
            assert await watcher.event() is not None
        async with streaming(app.url, READERS, {"request": HELLO_STREAM, "delays_ms": [0, 0, 60_000]}) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await client.event()
            await client.abort()
        await turn.cancelled()
        await until(lambda: len(app.group) == 0)
    logged = sorted((line["endpoint"], line["status"]) for line in lines(log) if line["msg"] == "request")
    assert logged == [("chat", 499), ("chat", 499), ("readers", 200), ("state", 200)], "one had not started"


async def test_an_engine_s_error_and_a_broken_stream_reach_every_reader(engine: Engine) -> None:
    async with gateway(engine, retries=0) as app:
        async with streaming(app.url, READERS, {"request": HELLO_STREAM, "delays_ms": [0, 0]}) as client:
            await (await engine.next_request()).respond(400, {"error": {"message": "no such thing"}})
            events = await told(client)
            assert [json.loads(e["body"])["error"]["message"] for e in events if "body" in e] == [
                "no such thing"
            ] * 2
            assert [end["status"] for end in ends(events).values()] == [400, 400]
        async with streaming(app.url, READERS, {"request": HELLO_STREAM, "delays_ms": [0, 0]}) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await turn.drop()
            found = ends(await told(client))
            assert [end["error"]["code"] for end in found.values()] == ["upstream_truncated"] * 2


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_a_form_of_another_site_cannot_ask_for_readers(engine: Engine, kind: str) -> None:
    body = json.dumps({"request": HELLO_STREAM, "delays_ms": [0]}).encode()
    async with gateway(engine) as app:
        assert (await call(app.url, "POST", READERS, body, [("content-type", kind)])).status == 415
        assert "access-control-allow-origin" not in (await get(app.url, "/-/state")).head
    assert engine.generations == 0


async def test_a_head_of_the_page_has_its_headers_and_no_body(engine: Engine) -> None:
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.request("HEAD", "/")
        head = await client.read_head()
        assert (head.status, head["content-length"]) == (200, str(len(document().html)))
        await client.request("HEAD", "/-/state", headers=[STREAM])
        assert (await client.read_head()).status == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "The body must be"),
        (b"[]", "The body must be"),
        (b'{"request": {}, "delays_ms": [0], "more": 1}', "more"),
        (b'{"request": {}, "delays_ms": []}', "1 to 50"),
        (json.dumps({"request": HELLO_STREAM, "delays_ms": [0] * (MAX_READERS + 1)}).encode(), "51"),
        (json.dumps({"request": HELLO_STREAM, "delays_ms": [-1]}).encode(), "delay"),
        (json.dumps({"request": HELLO_STREAM, "delays_ms": [1e9]}).encode(), "delay"),
        (json.dumps({"request": HELLO, "delays_ms": [0]}).encode(), '"stream": true'),
        (json.dumps({"request": {"stream": True}, "delays_ms": [0]}).encode(), "messages"),
    ],
)
def test_what_the_readers_cannot_be_is_refused_in_words(body: bytes, says: str) -> None:
    with pytest.raises(GatewayError) as refused:
        wanted(body)
    assert refused.value.status == 400
    assert says in refused.value.message
