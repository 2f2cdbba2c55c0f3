"""The `cache_salt` that engines get: one for each tenant, a client's own bound to it, none unless asked."""

from __future__ import annotations

import asyncio
import hmac
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.resources import prepare
from tests.kit.client import post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, gateway, lines, until

CHAT = "/v1/chat/completions"
SECRET = "a-secret-of-20-chars"
ONE, TWO = [("Authorization", "Bearer one")], [("Authorization", "Bearer two")]
LONG = "," * 30_000  # so many that it is read in another process
KNOWN = (
    *("/v1/responses", "/v1/messages", "/v1/chat/completions/batch", "/generative_scoring", "/v1/systemone"),
    *("/v1/decisions", "/v1/rerank", "/score", "/pooling", "/classify"),
)
UNKNOWN = ("/tokenize", "/v1/messages/count_tokens", "/v2/embed")


def salt_of(credential: str, own: str | None = None) -> str:
    """By another road than the gateway's."""
    scope = sha256(f"Bearer {credential}".encode()).digest() if credential else b""
    text = b"%d:%b" % (len(scope), scope)
    if own is not None:
        text += b"%d:%b" % (len(own.encode()), own.encode())
    return hmac.new(SECRET.encode(), text, "sha256").hexdigest()


async def test_each_request_goes_up_with_its_tenants_salt_and_is_else_as_it_was(engine: Engine) -> None:
    engine.auto(echo_script())
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, HELLO),
        (CHAT, HELLO | {"stream": True}),
        (CHAT, {"messages": [{"role": "user", "content": LONG}], "seed": 1, "stream": True}),
        (CHAT, HELLO | {"prompt_logprobs": 1, "max_tokens": 100_000}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": LONG}]}),
        ("/embed", {"input": "c"}),
    ]
    async with gateway(engine, cache_salt=SECRET) as app:
        for path, body in bodies:
            for own in (None, "mine"):
                given = body | ({} if own is None else {"cache_salt": own})
                await post_json(app.url, path, given, ONE)
                got = engine.requests[-1].json()
                assert got.pop("cache_salt") == salt_of("one", own), (path, own)
                got.pop("stream_options", None)
                assert got == body
        engine.auto(lambda turn: turn.respond(200, b"{}"))
        for path in KNOWN:
            for body in ({}, {"input": "a"}, {"input": LONG}):
                await post_json(app.url, path, body, ONE)
                assert engine.requests[-1].json() == body | {"cache_salt": salt_of("one")}
                await post_json(app.url, path, body | {"cache_salt": "ä"}, ONE)
                assert engine.requests[-1].json() == body | {"cache_salt": salt_of("one", "ä")}
        for path in UNKNOWN:
            await post_json(app.url, path, {"input": "a"}, ONE)
            assert engine.requests[-1].json() == {"input": "a"}
            await post_json(app.url, path, {"input": "a", "cache_salt": "x"}, ONE)
            assert engine.requests[-1].json() == {"input": "a", "cache_salt": salt_of("one", "x")}
        await post_json(app.url, "/v1/responses", {"cache_salt": None}, TWO)
        assert engine.requests[-1].json() == {"cache_salt": salt_of("two")}
        await post_json(app.url, "/v1/responses", [1], TWO)
        assert engine.requests[-1].json() == [1]
        await post_json(app.url, "/v1/responses", {})
        assert engine.requests[-1].json() == {"cache_salt": salt_of("")}


async def test_a_clients_own_salt_is_not_another_tenants(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, cache_salt=SECRET) as app:
        for credential in (ONE, TWO):
            for own in ("same", salt_of("one"), salt_of("two")):
                await post_json(app.url, CHAT, HELLO | {"cache_salt": own}, credential)
            await post_json(app.url, CHAT, HELLO, credential)
    salts = [turn.json()["cache_salt"] for turn in engine.requests]
    assert len(set(salts)) == len(salts) == 8


async def test_a_salt_that_is_no_text_is_refused(engine: Engine) -> None:
    wrong = [5, "", ["a"], {}, True, "x" * 513]
    async with gateway(engine, cache_salt=SECRET) as app:
        for path, content, salt in product((CHAT, "/v1/responses"), ("a", LONG), wrong):
            body = {"messages": [{"role": "user", "content": content}], "seed": 1, "cache_salt": salt}
            answer = await post_json(app.url, path, body)
            assert (answer.status, answer.json()["error"]["param"]) == (400, "cache_salt")
    assert engine.requests == []


async def test_identical_requests_share_within_a_tenant_only(engine: Engine) -> None:
    async with gateway(engine, cache_salt=SECRET) as app:
        tasks = [asyncio.create_task(post_json(app.url, CHAT, HELLO, who)) for who in (ONE, ONE, TWO)]
        turns = [await engine.next_request() for _ in range(2)]
        await until(lambda: sum(len(flight.subscribers) for flight in app.group.live) == 3)
        for turn in turns:
            await turn.answer("one")
        answers = await asyncio.gather(*tasks)
    assert sorted(answer.head["x-gateway-cache"] for answer in answers) == ["attached", "miss", "miss"]
    assert {turn.json()["cache_salt"] for turn in turns} == {salt_of("one"), salt_of("two")}


async def test_twins_with_salts_of_their_own_are_not_one_request(engine: Engine) -> None:
    engine.auto(echo_script())
    body = {key: value for key, value in HELLO.items() if key != "temperature"}
    async with gateway(engine, cache_salt=SECRET, batch_window_ms=50.0) as app:
        await asyncio.gather(
            *(post_json(app.url, CHAT, body | {"cache_salt": own}, ONE) for own in "aabb"),
        )
        await asyncio.gather(
            *(post_json(app.url, "/v1/embeddings", {"input": own, "cache_salt": own}) for own in "abc")
        )
    for turn in engine.requests:
        got = turn.json()
        if "messages" in got:
            assert got["cache_salt"] in (salt_of("one", "a"), salt_of("one", "b"))
        else:
            assert got["cache_salt"] in {salt_of("", own) for own in got["input"]}
            assert len(got["input"]) == 1


async def test_without_the_setting_a_request_is_as_its_client_wrote_it(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        await post_json(app.url, CHAT, HELLO)
        await post_json(app.url, CHAT, HELLO | {"cache_salt": "mine"})
    assert [turn.json() for turn in engine.requests] == [HELLO, HELLO | {"cache_salt": "mine"}]


async def test_neither_the_secret_nor_a_salt_is_logged_or_recorded(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    log, recording, file = tmp_path / "log", tmp_path / "recording", tmp_path / "salt"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    more: dict[str, Any] = {"record_file": str(recording), "record_prompts": "whole", "log_level": "debug"}
    async with gateway(engine, cache_salt_file=str(file), log_to=log, log_prompts=True, **more) as app:
        assert (await post_json(app.url, CHAT, HELLO, ONE)).status == 200
    assert engine.requests[-1].json()["cache_salt"] == salt_of("one")
    written = log.read_text() + recording.read_text()
    assert SECRET not in written
    assert salt_of("one") not in written
    assert lines(log)


async def test_a_file_with_another_secret_is_used_at_once(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    file = tmp_path / "salt"
    file.write_text("another-secret-of-the-file")
    file.chmod(0o600)
    async with gateway(engine, cache_salt_file=str(file)) as app:
        await post_json(app.url, CHAT, HELLO, ONE)
        file.write_text(SECRET)
        await app.reload()
        await post_json(app.url, CHAT, HELLO, ONE)
        file.write_text("short")
        await app.reload()
        await post_json(app.url, CHAT, HELLO, ONE)
    salts = [turn.json()["cache_salt"] for turn in engine.requests]
    assert salts[0] != salt_of("one")
    assert salts[1:] == [salt_of("one")] * 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(cache_salt=SECRET, share_scope="global"), "share_scope = global does not"),
        (Settings(cache_salt=SECRET, cache_salt_file="x"), "give one"),
        (Settings(cache_salt_file="/nowhere/x"), "No such file"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings: Settings, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as e:
        prepare(settings)
    assert SECRET not in str(e.value)


def test_auto_is_another_secret_at_each_start() -> None:
    first, second = (prepare(Settings(cache_salt="auto")).rules.cache_salt(b"t", None) for _ in range(2))
    assert first != second
