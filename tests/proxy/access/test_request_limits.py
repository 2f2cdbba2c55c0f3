"""How large a request may be: lowered or refused, and what goes up is what was decided."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.request_limits import RequestLimits
from proxy.errors import GatewayError
from proxy.wire.http.media_type import Media
from proxy.wire.openai import decode
from proxy.wire.raw_body import read_passed
from tests.kit.client import Answer, call, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.forms import form_of
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"


def admitted(sizes: RequestLimits, **fields: Any) -> dict[str, Any]:
    api_request = decode("chat", msgspec.json.encode({"messages": [], **fields}))
    done = sizes.check(api_request)
    body: dict[str, Any] = json.loads(done.body)
    assert body == {name: json.loads(bytes(raw)) for name, raw in done.fields.items()}
    return body


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"max_tokens": 10}),
        ({"max_tokens": None}, {"max_tokens": 10}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 10}, {"max_tokens": 10}),
        ({"max_tokens": 11}, {"max_tokens": 10}),
        ({"max_completion_tokens": 99}, {"max_completion_tokens": 10}),
        ({"max_completion_tokens": 3}, {"max_completion_tokens": 3}),
        ({"max_tokens": 99, "max_completion_tokens": 99}, {"max_tokens": 10, "max_completion_tokens": 10}),
        ({"max_tokens": 99, "max_completion_tokens": 3}, {"max_tokens": 10, "max_completion_tokens": 3}),
        ({"n_predict": 99}, {"n_predict": 10}),
    ],
)
def test_tokens_asked_for_are_lowered_to_the_cap(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert admitted(RequestLimits(max_tokens=10), **given) == {"messages": [], **sent}


@pytest.mark.parametrize(
    ("sizes", "fields", "status", "param"),
    [
        (RequestLimits(max_tokens=10, action="refuse"), {"max_tokens": 11}, 400, "max_tokens"),
        (
            RequestLimits(max_tokens=10, action="refuse"),
            {"max_completion_tokens": 11},
            400,
            "max_completion_tokens",
        ),
        (RequestLimits(max_tokens=10, action="refuse"), {}, 400, "max_tokens"),
        (RequestLimits(max_tokens=10), {"max_tokens": "11"}, 400, "max_tokens"),
        (RequestLimits(max_tokens=10), {"max_tokens": 11.0}, 400, "max_tokens"),
        (RequestLimits(max_tokens=10), {"max_tokens": True}, 400, "max_tokens"),
        (RequestLimits(max_tokens=10), {"n_predict": -1}, 400, "n_predict"),
        (RequestLimits(max_tokens=10), {"max_tokens": 0}, 400, "max_tokens"),  # no limit, to some engines
        (
            RequestLimits(max_tokens=10),
            {"max_completion_tokens": 0, "max_tokens": 5},
            400,
            "max_completion_tokens",
        ),
        (RequestLimits(max_tokens=10), {"n_predict": 0}, 400, "n_predict"),
        (RequestLimits(n=2), {"n": 3}, 400, "n"),
        (RequestLimits(n=2), {"n": "3"}, 400, "n"),
        (RequestLimits(best_of=2), {"best_of": 3}, 400, "best_of"),
        (RequestLimits(messages=1), {"messages": [{"content": "a"}] * 2}, 400, "messages"),
        (RequestLimits(prompt_chars=3), {"messages": [{"content": "ab"}, {"content": "cd"}]}, 413, "messages"),
        (
            RequestLimits(prompt_chars=3),
            {"messages": [{"content": [{"type": "text", "text": "abcd"}]}]},
            413,
            "messages",
        ),
    ],
)
def test_what_is_too_much_is_refused_and_named(
    sizes: RequestLimits, fields: dict[str, Any], status: int, param: str
) -> None:
    with pytest.raises(GatewayError) as e:
        admitted(sizes, **fields)
    assert (e.value.status, e.value.param) == (status, param)


@pytest.mark.parametrize(
    "sizes",
    [
        RequestLimits(),
        RequestLimits(n=2),
        RequestLimits(best_of=2),
        RequestLimits(messages=2),
        RequestLimits(prompt_chars=4),
        RequestLimits(max_tokens=9),
    ],
)
def test_what_is_within_its_limits_goes_on_as_the_client_wrote_it(sizes: RequestLimits) -> None:
    body = b'{ "messages" : [{"content":"abcd"}], "n": 2, "best_of":2,"max_tokens": 9 ,"x":1.50}'
    assert sizes.check(decode("chat", body)).body == body


def test_a_completion_may_ask_for_no_token() -> None:
    body = b'{"prompt": "a", "echo": true, "max_tokens": 0}'
    assert RequestLimits(max_tokens=10).check(decode("completions", body)).body == body


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/a/b"])
@pytest.mark.parametrize("name", ["max_tokens", "max_output_tokens", "max_completion_tokens", "n_predict"])
def test_no_token_at_all_is_no_cap_of_what_passes_through(path: str, name: str) -> None:
    passed = read_passed(Media("json"), b'{"%b": 0}' % name.encode())
    with pytest.raises(GatewayError) as e:
        RequestLimits(max_tokens=10).check_raw(path, passed)
    assert e.value.param == name


def test_a_cap_that_is_added_leaves_every_byte_before_it() -> None:
    body = b'{ "messages" : [ ], "x" : 1.50 } '
    assert (
        RequestLimits(max_tokens=7).check(decode("chat", body)).body
        == b'{ "messages" : [ ], "x" : 1.50 ,"max_tokens":7}'
    )
    lowered = RequestLimits(max_tokens=7).check(
        decode("chat", b'{ "messages" : [ ], "x" : 1.50, "max_tokens": 8}')
    )
    assert lowered.body == b'{"messages":[ ],"x":1.50,"max_tokens":7}'


@given(
    st.integers(1, 50),
    st.dictionaries(
        st.sampled_from(["max_tokens", "max_completion_tokens", "n_predict", "other"]),
        st.none() | st.integers(1, 100),
    ),
)
def test_no_number_over_the_cap_ever_goes_up_and_one_always_does(cap: int, fields: dict[str, int | None]) -> None:
    sent = admitted(RequestLimits(max_tokens=cap), **fields)
    asked = [sent.get(name) for name in ("max_tokens", "max_completion_tokens", "n_predict")]
    numbers = [number for number in asked if number is not None]
    assert numbers
    assert max(numbers) <= cap
    assert sent.get("other") == fields.get("other")


@pytest.mark.parametrize(
    ("path", "body", "sent"),
    [
        ("/v1/responses", {"input": "a"}, {"input": "a", "max_output_tokens": 5}),
        ("/v1/responses/", {"max_output_tokens": 9}, {"max_output_tokens": 5}),
        ("/v1/messages", {"max_tokens": 9}, {"max_tokens": 5}),
        ("/v1/messages", {"max_tokens": 3, "n_predict": 9}, {"max_tokens": 3, "n_predict": 5}),
        ("/v1/a/b", {"max_tokens": 9}, {"max_tokens": 5}),
        ("/v1/a/b", {"x": 9}, {"x": 9}),
        ("/tokenize", {"max_tokens": 9}, {"max_tokens": 9}),
        ("/v1/responses", [1], [1]),
    ],
)
def test_what_is_passed_through_is_capped_where_it_generates(path: str, body: Any, sent: Any) -> None:
    passed = RequestLimits(max_tokens=5).check_raw(path, read_passed(Media("json"), json.dumps(body).encode()))
    assert json.loads(passed.body) == passed.value == sent


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"max_completion_tokens": "5"}),
        ({"max_completion_tokens": "9"}, {"max_completion_tokens": "5"}),
        ({"max_completion_tokens": "4", "n_predict": "9"}, {"max_completion_tokens": "4", "n_predict": "5"}),
    ],
)
def test_a_form_s_numbers_are_capped_too(given: dict[str, str], sent: dict[str, str]) -> None:
    media = Media("form", b"x")
    passed = read_passed(media, form_of(b"x", {"model": "m"} | given))
    capped = RequestLimits(max_tokens=5).check_raw("/v1/audio/transcriptions", passed)
    assert capped.form is not None
    assert {name: capped.form.text(name) for name in sent} == sent
    assert read_passed(media, capped.body).model == "m"
    with pytest.raises(GatewayError):
        RequestLimits(max_tokens=5, action="refuse").check_raw("/v1/audio/transcriptions", passed)


@pytest.mark.parametrize("number", ["x", "-1", "5.0", " 5", "0x5", "\u0665", ""])
def test_a_number_of_a_form_is_plain_digits(number: str) -> None:
    passed = read_passed(Media("form", b"x"), form_of(b"x", {"max_completion_tokens": number}))
    if not number:
        capped = RequestLimits(max_tokens=5).check_raw("/v1/audio/transcriptions", passed)
        assert capped.form is not None
        assert capped.form.text("max_completion_tokens") == "5"
        return
    with pytest.raises(GatewayError) as e:
        RequestLimits(max_tokens=5).check_raw("/v1/audio/transcriptions", passed)
    assert (e.value.status, e.value.param) == (400, "max_completion_tokens")


@pytest.mark.parametrize(
    ("sizes", "body", "param"),
    [
        (RequestLimits(n=2), {"n": 3}, "n"),
        (RequestLimits(messages=1), {"messages": [1, 2]}, "messages"),
        (RequestLimits(messages=1), {"input": [1, 2]}, "input"),
        (RequestLimits(prompt_chars=3), {"input": "abcd"}, None),
    ],
)
def test_what_is_passed_through_has_the_other_limits_too(
    sizes: RequestLimits, body: Any, param: str | None
) -> None:
    with pytest.raises(GatewayError) as e:
        sizes.check_raw("/v1/a/b", read_passed(Media("json"), json.dumps(body).encode()))
    assert e.value.param == param


def test_what_cannot_be_read_is_refused_where_there_is_a_limit() -> None:
    with pytest.raises(GatewayError) as e:
        RequestLimits(n=2).check_raw("/v1/a/b", read_passed(Media("other"), b"x"))
    assert e.value.status == 415
    assert RequestLimits(n=2).check_raw("/v1/a/b", read_passed(None, b"")).kind == "none"


# -- over loopback


def error_of(answer: Answer) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status, error["code"], error["param"]


async def test_the_engine_is_asked_for_the_cap_and_twins_of_one_effective_number_share(engine: Engine) -> None:
    engine.auto(echo_script(tokens=8))
    async with gateway(engine, max_tokens_cap=3) as app:
        whole = await post_json(app.url, CHAT, HELLO | {"max_tokens": 500})
        assert engine.requests[0].json()["max_tokens"] == 3
        assert whole.json()["choices"][0]["finish_reason"] == "length"
        streamed = await post_json(app.url, CHAT, HELLO_STREAM)
        assert engine.requests[1].json()["max_tokens"] == 3
        assert engine.requests[1].json()["stream_options"]["include_usage"] is True
        assert streamed.events()[-1] == b"data: [DONE]\n\n"


async def test_requests_that_the_cap_makes_alike_are_one_generation(engine: Engine) -> None:
    async with gateway(engine, max_tokens_cap=3) as app:
        first = asyncio.ensure_future(post_json(app.url, CHAT, HELLO | {"max_tokens": 500}))
        turn = await engine.next_request()
        second = asyncio.ensure_future(post_json(app.url, CHAT, HELLO | {"max_tokens": 400}))
        await until(lambda: app.group.subscribers == 2)
        await turn.answer("a")
        assert {(await first).head["x-gateway-cache"], (await second).head["x-gateway-cache"]} == {
            "miss",
            "attached",
        }
        assert engine.generations == 1


@pytest.mark.parametrize(
    ("changes", "fields", "refusal"),
    [
        (
            {"max_tokens_cap": 3, "max_tokens_action": "refuse"},
            {"max_tokens": 4},
            (400, "invalid_value", "max_tokens"),
        ),
        ({"max_n": 1}, {"n": 2}, (400, "invalid_value", "n")),
        ({"max_best_of": 1}, {"best_of": 2}, (400, "invalid_value", "best_of")),
        (
            {"max_messages": 1},
            {"messages": [{"role": "user", "content": "a"}] * 2},
            (400, "invalid_value", "messages"),
        ),
        ({"max_prompt_chars": 4}, {}, (413, "prompt_too_large", "messages")),
    ],
)
async def test_a_limit_by_its_setting(
    engine: Engine, changes: dict[str, Any], fields: dict[str, Any], refusal: tuple[int, str, str]
) -> None:
    async with gateway(engine, **changes) as app:
        assert error_of(await post_json(app.url, CHAT, HELLO | fields)) == refusal
        assert engine.requests == []


async def test_a_path_that_is_passed_through_is_no_way_around_the_cap(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, max_tokens_cap=3, max_prompt_chars=4) as app:
        for path in ("/v1/responses", "/v1/respons%65s"):
            await post_json(app.url, path, {"input": "a", "max_output_tokens": 9})
            assert engine.requests[-1].json() == {"input": "a", "max_output_tokens": 3}
        assert error_of(await post_json(app.url, "/v1/responses", {"input": "abcde"}))[:2] == (
            413,
            "prompt_too_large",
        )


async def test_more_header_fields_than_allowed_are_refused(engine: Engine) -> None:
    async with gateway(engine, max_headers=10) as app:
        answer = await call(app.url, "GET", "/health", headers=[(f"x-{n}", "1") for n in range(20)])
        assert error_of(answer)[:2] == (431, "headers_too_large")
        assert (await call(app.url, "GET", "/health", headers=[(f"x-{n}", "1") for n in range(5)])).status == 200
