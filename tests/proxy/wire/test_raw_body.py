"""Bodies that pass through, over sockets: read once as an engine reads them, or refused before it has them."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from proxy.errors import GatewayError
from proxy.server.handlers.relay import is_allowed
from proxy.upstream.retry import repeatable
from proxy.wire.http.media_type import Media
from proxy.wire.raw_body import PASSED_PATHS, generates, read_passed, takes_json_only
from tests.kit.client import Answer, Connection, call, post_json
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.forms import FORM_TYPE, form_of, joined, part
from tests.kit.running import HELLO, gateway

OURS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/chat", "/embed"]
PASSED = [
    "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions/batch", "/v1/score",
    "/v1/rerank", "/score", "/rerank", "/v2/rerank", "/v2/embed", "/tokenize", "/detokenize", "/pooling",
    "/classify", "/v1/systemone", "/v1/a/b", "/generative_scoring", "/invocations",
]  # fmt: skip
AUDIO = ["/v1/audio/transcriptions", "/v1/audio/translations"]
TEXT = {
    "model": "m1",
    "messages": [{"role": "user", "content": "bluebird"}],
    "prompt": "bluebird",
    "input": "bluebird",
    "max_tokens": 99999,
    "max_output_tokens": 99999,
}
BODY = json.dumps(TEXT).encode()
DEFECTS = {
    "utf-16": json.dumps(TEXT).encode("utf-16"),
    "utf-16-le": json.dumps(TEXT).encode("utf-16-le"),
    "utf-16-be": json.dumps(TEXT).encode("utf-16-be"),
    "utf-32": json.dumps(TEXT).encode("utf-32"),
    "utf-32-le": json.dumps(TEXT).encode("utf-32-le"),
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "latin-1": BODY[:-1] + b', "x": "\xe9"}',
    "NaN": BODY[:-1] + b', "x": NaN}',
    "Infinity": BODY[:-1] + b', "x": [-Infinity]}',
    "half a surrogate pair": BODY[:-1] + b', "x": "\\ud800"}',
    "half a surrogate pair, raw": BODY[:-1] + b', "x": "\xed\xa0\x80"}',
    "a member twice": BODY[:-1] + b', "model": "m1"}',
    "a control character": BODY[:-1] + b', "x": "\x01"}',
    "nesting": BODY[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "more after it": BODY + b"x",
    "two values": BODY + b" " + BODY,
    "half of it": BODY[:-3],
    "nothing but space": b"  ",
}
PASSED_DEFECTS = DEFECTS | {
    "a member twice inside": BODY[:-1] + b', "x": [{"a": 1, "a": 2}]}',
    "a number too large": BODY[:-1] + b', "x": 1e999}',
}


def refusal(answer: Answer) -> tuple[int, Any]:
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert 10 < len(error["message"]) < 500
    if answer.json().get("type") == "error":  # Anthropic's shape, which has no code
        return answer.status, ANY
    return answer.status, error["code"]


@pytest.fixture
def guarded(tmp_path: Path) -> dict[str, Any]:
    """Every check that reads a body."""
    (tmp_path / "deny.txt").write_text("bluebird\n")
    return {
        "deny_file": str(tmp_path / "deny.txt"),
        "max_tokens_cap": 100,
        "rate_limit_tokens_per_minute": 10**9,
    }


@pytest.mark.parametrize("checks", [False, True])
@pytest.mark.parametrize("path", PASSED)
async def test_what_readers_differ_about_reaches_no_engine(
    engine: Engine, guarded: dict[str, Any], path: str, checks: bool
) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    async with gateway(engine, **(guarded if checks else {})) as app:
        for name, body in PASSED_DEFECTS.items():
            assert refusal(await call(app.url, "POST", path, body)) == (400, "invalid_json"), name
        if checks:
            for body in (BODY, b" " + BODY, b"\r\n\t" + BODY + b"\n "):
                assert refusal(await call(app.url, "POST", path, body)) == (400, "content_denied")
    assert not engine.requests


@pytest.mark.parametrize("path", OURS)
async def test_the_generating_paths_refuse_the_same(engine: Engine, guarded: dict[str, Any], path: str) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    async with gateway(engine) as app:
        for name, body in DEFECTS.items():
            assert refusal(await call(app.url, "POST", path, body)) == (400, "invalid_json"), name
    async with gateway(engine, **guarded) as app:
        for name, body in PASSED_DEFECTS.items():
            assert refusal(await call(app.url, "POST", path, body)) == (400, "invalid_json"), name
    assert not engine.requests


TYPES = [
    None, "", "text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded",
    "application/json; charset=utf-16", "application/json, text/plain", "text/plain; application/json",
    "multipart/mixed; boundary=x",
]  # fmt: skip


@pytest.mark.parametrize("path", [*OURS, *PASSED, *AUDIO, "/-/readers", "/v1/files"])
async def test_a_body_without_its_type_reaches_no_engine(engine: Engine, path: str) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    body = json.dumps({"request": HELLO | {"stream": True}, "delays_ms": [0]} if path == "/-/readers" else TEXT)
    async with gateway(engine) as app:
        for kind in [*TYPES, "multipart/form-data; boundary=x"]:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            head += "" if kind is None else f"Content-Type: {kind}\r\n"
            answer = await raw(app.url, f"{head}\r\n{body}".encode())
            status, code = refusal(answer)
            if kind is not None and kind.startswith("multipart/form-data") and not _json_only(path):
                assert (status, code) == (400, "invalid_value")  # it is no form
                continue
            assert (status, code) == (415, "unsupported_media_type"), kind
            assert "application/json" in answer.head["accept"]
            if kind is None or "charset=utf-16" not in kind:
                assert "-H 'content-type: application/json'" in answer.json()["error"]["message"]
    assert not engine.requests


def _json_only(path: str) -> bool:
    return path in OURS or path == "/-/readers" or takes_json_only(path)


async def raw(url: str, request: bytes) -> Answer:
    async with await Connection.open(url) as connection:
        await connection.send(request)
        return await connection.read()


@pytest.mark.parametrize("path", [*OURS, *PASSED])
@pytest.mark.parametrize("coding", ["gzip", "identity, gzip", "zstd"])
async def test_an_encoded_body_is_refused_by_what_is_taken(engine: Engine, path: str, coding: str) -> None:
    async with gateway(engine) as app:
        answer = await call(app.url, "POST", path, b"\x1f\x8b", [("Content-Encoding", coding)])
    assert refusal(answer) == (415, "unsupported_media_type")
    assert answer.head["accept-encoding"] == "identity"
    assert not engine.requests


async def test_what_nobody_can_read_passes_only_where_nothing_is_checked(
    engine: Engine, guarded: dict[str, Any]
) -> None:
    engine.auto(lambda turn: turn.respond(200, turn.body))
    odd = [("Content-Type", "application/octet-stream"), ("Content-Encoding", "gzip")]
    async with gateway(engine) as app:
        assert (await call(app.url, "POST", "/v1/a/b", b"\x1f\x8b", odd)).body == b"\x1f\x8b"
    async with gateway(engine, **guarded) as app:
        assert refusal(await call(app.url, "POST", "/v1/a/b", b"\x1f\x8b", odd)) == (415, "unsupported_media_type")
        assert (
            await call(app.url, "POST", "/v1/responses/r1/cancel", b"", [("Content-Length", "0")])
        ).status == 200
    assert len(engine.requests) == 2


async def test_valid_json_goes_up_as_it_came_spaces_and_all(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    bodies = [b' \n{"a": 1.0, "b":[ ]}\t', b'{"\\u0061":"\\ud83d\\ude00"}', b"[1]", b'"x"', '{"é": 1}'.encode()]
    async with gateway(engine) as app:
        for body in bodies:
            assert (await call(app.url, "POST", "/v1/responses", body)).status == 200
    assert [turn.body for turn in engine.requests] == bodies


@pytest.mark.parametrize("lead", [b"", b" ", b"\n\r\t "])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/tokenize", "/v1/a/b"])
async def test_leading_space_is_charged_as_everything_is(engine: Engine, path: str, lead: bytes) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    body = lead + json.dumps({"input": "x" * 4000, "max_tokens": 500}).encode()
    async with gateway(engine, rate_limit_tokens_per_minute=3200) as app:
        answers = [await call(app.url, "POST", path, body) for _ in range(6)]
    statuses = [answer.status for answer in answers]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert statuses.count(200) == (3 if path == "/tokenize" else 2)


async def test_a_cap_is_on_what_is_sent(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    async with gateway(engine, max_tokens_cap=5) as app:
        for body in (b' {"max_output_tokens": 9}', b'{"max_output_\\u0074okens": 9}'):
            assert (await call(app.url, "POST", "/v1/responses", body)).status == 200
    assert [turn.json() for turn in engine.requests] == [{"max_output_tokens": 5}] * 2


# -- forms


@pytest.mark.parametrize("path", AUDIO)
async def test_an_upload_goes_to_an_engine_that_serves_its_model(path: str) -> None:
    async def answer(turn: Turn) -> None:
        await turn.respond(200, turn.body)

    async with (
        Engine(answer, models=["llm"]) as one,
        Engine(answer, models=["whisper"]) as other,
        gateway(one, other) as app,
    ):
        body = form_of(b"x", {"model": "whisper"})
        for _ in range(12):
            assert (await call(app.url, "POST", path, body, [FORM_TYPE])).body == body
        assert (len(one.requests), len(other.requests)) == (0, 12)
        assert other.requests[0].headers["content-type"] == FORM_TYPE[1]


KEYS = """
[[keys]]
name = "limited"
sha256 = "{}"
models = ["whisper"]
"""


async def test_a_key_s_models_hold_for_uploads(engine: Engine, tmp_path: Path) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    keys = tmp_path / "keys.toml"
    keys.write_text(KEYS.format(sha256(b"sk-" + b"k" * 40).hexdigest()))
    keys.chmod(0o600)
    head = [FORM_TYPE, ("Authorization", "Bearer sk-" + "k" * 40)]
    path = AUDIO[0]
    async with gateway(engine, api_keys_file=str(keys)) as app:
        good = await call(app.url, "POST", path, form_of(b"x", {"model": "whisper"}), head)
        assert good.status == 200
        other = await call(app.url, "POST", path, form_of(b"x", {"model": "llm"}), head)
        assert refusal(other) == (404, "model_not_found")
        for body in (form_of(b"x", {}), form_of(b"x", {"model": ""}), form_of(b"x", {"Model": "whisper"})):
            assert refusal(await call(app.url, "POST", path, body, head)) == (400, "missing_field")
        query = await call(app.url, "POST", path + "?model=whisper", form_of(b"x", {"model": "llm"}), head)
        assert refusal(query) == (404, "model_not_found")
        tricks = [
            joined(b"x", part("model", b"whisper"), part("model", b"llm")),
            joined(b"x", part("model", b"whisper", filename="a")),
            joined(b"x", part("model", b"whisper\n")),
            joined(b"x", part("model", b" whisper")),
            form_of(b"x", {"model": "whisper"}) + joined(b"x", part("model", b"llm")),
            joined(b"y", part("model", b"llm")) + form_of(b"x", {"model": "whisper"}),
        ]
        for body in tricks:
            assert refusal(await call(app.url, "POST", path, body, head)) == (400, "invalid_value")
    assert len(engine.requests) == 1


async def test_limits_hold_for_uploads(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    body = form_of(b"x", {"model": "whisper", "max_completion_tokens": "400"})
    async with gateway(engine, rate_limit_tokens_per_minute=3000, max_tokens_cap=9) as app:
        answers = [(await call(app.url, "POST", AUDIO[0], body, [FORM_TYPE])).status for _ in range(4)]
    assert answers == [200, 200, 429, 429]
    assert b"\r\n\r\n9\r\n" in engine.requests[0].body


async def test_the_texts_of_a_form_are_denied_and_its_files_only_where_they_are_sound(
    engine: Engine, guarded: dict[str, Any]
) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    sent = [
        (AUDIO[0], form_of(b"x", {"model": "m", "prompt": "fine"}), None),
        (AUDIO[0], form_of(b"x", {"model": "m", "prompt": "BLUEbird"}), "content_denied"),
        (AUDIO[0], form_of(b"x", {"model": "m", "bluebird": "1"}), "content_denied"),
        (AUDIO[0], form_of(b"x", {"vllm_xargs": '{"a": "blue\\u0062ird"}'}), "content_denied"),
        (AUDIO[0], joined(b"x", part("prompt", b"bluebird", filename="a")), "invalid_value"),
        ("/v1/files", form_of(b"x", {"purpose": "batch"}, b"bluebird"), "invalid_value"),
        ("/v1/files", form_of(b"x", {"purpose": "batch"}, None), None),
    ]
    async with gateway(engine, **guarded) as app:
        for path, body, code in sent:
            answer = await call(app.url, "POST", path, body, [FORM_TYPE])
            if code is None:
                assert answer.status == 200
            else:
                assert refusal(answer) == (400, code)
    assert len(engine.requests) == 2


async def test_an_upload_may_be_larger_than_another_body(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, str(len(turn.body)).encode()))
    async with gateway(engine, max_body_bytes=2048, max_upload_bytes=3 * 2**20) as app:
        for size in (4096, 2_900_000):  # read on the loop, and in a child process
            body = form_of(b"x", {"model": "m"}, b"\xff" * size)
            answer = await call(app.url, "POST", AUDIO[0], body, [FORM_TYPE])
            assert (answer.status, answer.body) == (200, str(len(body)).encode())
        large = form_of(b"x", {"model": "m"}, b"\xff" * 3_200_000)
        assert refusal(await call(app.url, "POST", AUDIO[0], large, [FORM_TYPE])) == (413, "body_too_large")
        assert refusal(await post_json(app.url, "/v1/a/b", {"x": "y" * 4096})) == (413, "body_too_large")


async def test_a_page_of_another_origin_cannot_send_an_upload(engine: Engine) -> None:
    body = form_of(b"x", {"model": "m"})
    async with gateway(engine) as app:
        answer = await call(app.url, "POST", AUDIO[0], body, [FORM_TYPE, ("Origin", "http://evil.example")])
    assert refusal(answer) == (403, "origin_not_allowed")
    assert not engine.requests


# -- what is large


@pytest.mark.parametrize("checks", [False, True])
async def test_what_is_large_is_read_alike_in_another_process(
    engine: Engine, guarded: dict[str, Any], checks: bool
) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    long = json.dumps(TEXT | {"x": "y" * 2_200_000}).encode()
    async with gateway(engine, **(guarded if checks else {})) as app:
        for body in (
            b"\xef\xbb\xbf" + long,
            long + b"x",
            long[:-1] + b', "a": NaN}',
            long[:-1] + b', "model": 1}',
        ):
            assert refusal(await call(app.url, "POST", "/v1/responses", body)) == (400, "invalid_json")
        answer = await call(app.url, "POST", "/v1/responses", b" " + long)
        assert answer.status == (400 if checks else 200)
        form = form_of(b"x", {"model": "m"}, b"\xff" * 2_200_000)
        twice = await call(app.url, "POST", AUDIO[0], form[:-4] + form[1:], [FORM_TYPE])
        assert refusal(twice) == (400, "invalid_value")
    assert len(engine.requests) == (0 if checks else 1)


# -- the deny list


def spelled(path: str) -> list[dict[str, Any]]:
    """Ways for a text to reach the prompt."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call_of = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    user = {"role": "user", "content": "hi"}
    base: dict[str, Any] = {"model": "m1", "messages": [user], "input": "hi", "prompt": "hi"}
    word = "bluebird"
    more: list[dict[str, Any]] = [
        {"messages": [{"role": word, "content": "hi"}]},
        {"messages": [user | {"name": word}]},
        {"messages": [user | {word: 1}]},
        {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": word}]}]},
        {"messages": [{"role": "user", "content": [{"type": word}]}]},
        {"messages": [user, {"role": "assistant", "tool_calls": [call_of | {"id": word}]}]},
        {"messages": [user, {"role": "assistant", "tool_calls": [
            call_of | {"function": {"name": "f", "arguments": '{"\\u0062luebird": 1}'}}]}]},
        {"messages": [user, {"role": "assistant", "tool_calls": [
            call_of | {"function": {"name": "f", "arguments": {"url": word}}}]}]},
        {"tools": [tool | {"function": {"name": word}}]},
        {"tools": [tool | {"function": {"name": "f", "description": word}}]},
        {"tools": [tool | {"function": {"name": "f", "parameters": {"properties": {word: {}}}}}]},
        {"tools": [tool | {"function": {"name": "f", "parameters": {"enum": ["a", word]}}}]},
        {"documents": [{"title": word}]},
        {"documents": [{word: "x"}]},
        {"documents": [{"url": word, "data": "x"}]},
        {"documents": [{"type": "image_url", "image_url": {"url": word}}]},
        {"chat_template_kwargs": {word: True}},
        {"chat_template_kwargs": {"x": [{"y": word}]}},
        {"chat_template_kwargs": {"data": word}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": word, "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {word: {}}}}}},
        {"structured_outputs": {"choice": [word]}},
        {"suffix": word},
        {"stop": [word]},
        {"input": ["x", word]},
        {"prompt": ["x", word]},
        {"x": word},
        {word: 1},
    ]  # fmt: skip
    if path != "/v1/completions":
        halves = [{"type": "text", "text": half} for half in ("blue", "bird")]
        more.append({"messages": [{"role": "user", "content": halves}]})
    if path not in OURS:
        more += [
            {"system": word},
            {"system": [{"type": "text", "text": word}]},
            {"instructions": word},
            {"input": [{"type": "message", "content": [{"type": "input_text", "text": word}]}]},
            {"input": [{"type": "function_call_output", "output": word}]},
            {"input": [{"type": "function_call", "name": "f", "arguments": '{"a": "blue\\u0062ird"}'}]},
            {"prompt": {"id": "p", "variables": {"x": word}}},
            {"metadata": {word: "x"}},
            {"user": word},
            {"query": word},
            {"text_1": word},
        ]
    return [base | each for each in more]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/a/b"]
)
async def test_the_deny_list_sees_every_text_that_can_reach_a_prompt(
    engine: Engine, guarded: dict[str, Any], path: str
) -> None:
    engine.auto(echo_script())
    async with gateway(engine, deny_file=guarded["deny_file"]) as app:
        for body in spelled(path):
            text = json.dumps(body)
            for spelling in (text, text.replace("bluebird", "\\u0062lue\\u200bBird")):
                answer = await call(app.url, "POST", path, spelling.encode())
                assert refusal(answer) == (400, "content_denied"), spelling
    assert not engine.requests


@pytest.mark.parametrize(
    "more",
    [
        {"chat_template": "{{ 'blue' ~ 'bird' }}"},
        {"chat_template_kwargs": {"chat_template": "x"}},
        {"prompt": [1, 2]},
        {"input": [[1, 2], [3]]},
        {"prompt_token_ids": [5]},
        {"prompt_embeds": "x"},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "Ymx1ZQ=="}}]}]},
    ],
)
async def test_what_no_deny_list_can_read_is_refused_where_there_is_one(
    engine: Engine, guarded: dict[str, Any], more: dict[str, Any]
) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    async with gateway(engine, deny_file=guarded["deny_file"]) as app:
        assert refusal(await post_json(app.url, "/v1/a/b", {"model": "m1"} | more)) == (400, "invalid_value")
    assert not engine.requests


@pytest.mark.parametrize("rule", ["user", "role", "function", "content", "base64", "messages", "object"])
async def test_words_of_the_api_deny_nothing_by_being_there(engine: Engine, tmp_path: Path, rule: str) -> None:
    engine.auto(echo_script())
    (tmp_path / "deny.txt").write_text(rule)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{rule}"}}
    body: dict[str, Any] = HELLO | {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, image]}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    async with gateway(engine, deny_file=str(tmp_path / "deny.txt")) as app:
        assert (await post_json(app.url, OURS[0], body)).status == 200
        body["messages"][0]["content"][0]["text"] = f"the {rule} of it"
        assert refusal(await post_json(app.url, OURS[0], body)) == (400, "content_denied")


# -- the reading itself


@pytest.mark.parametrize(
    ("path", "generated", "json_only"),
    [
        ("/v1/responses", True, True),
        ("/v1/responses/", True, True),
        ("/v1/messages/count_tokens", False, True),
        ("/tokenize", False, True),
        ("/v1/audio/transcriptions", True, False),
        ("/v1/a/b", True, False),
    ],
)
def test_what_a_path_is_known_for(path: str, generated: bool, json_only: bool) -> None:
    assert (generates(path), takes_json_only(path)) == (generated, json_only)


KNOWN = {
    "/tokenize": "offered repeatable silent json",
    "/detokenize": "offered repeatable silent json",
    "/v2/embed": "offered repeatable silent json",
    "/v1/messages/count_tokens": "offered repeatable silent json",
    "/score": "offered repeatable silent json salted",
    "/v1/score": "offered repeatable silent json salted",
    "/rerank": "offered repeatable silent json salted",
    "/v1/rerank": "offered repeatable silent json salted",
    "/v2/rerank": "offered repeatable silent json salted",
    "/pooling": "offered repeatable silent json salted",
    "/classify": "offered repeatable silent json salted",
    "/generative_scoring": "offered repeatable silent json salted",
    "/v1/embeddings": "offered repeatable json salted",
    "/v1/messages": "offered repeatable json salted",
    "/v1/responses": "offered json salted",
    "/v1/chat/completions/batch": "offered json salted",
    "/v1/systemone": "offered json salted",
    "/v1/decisions": "offered json salted",
    "/v1/audio/speech": "offered json",
    "/invocations": "offered json salted",
    "/version": "offered silent",
    "/tokenizer_info": "offered silent",
    "/v1/audio/transcriptions": "offered",
    "/v1/a/b": "offered",
    "/metrics": "",
    "/v2/score": "",
}


def test_every_known_path_is_tested_below() -> None:
    assert PASSED_PATHS.keys() <= KNOWN.keys()


@pytest.mark.parametrize("path", KNOWN)
def test_what_is_known_of_each_path_that_is_passed_through(path: str) -> None:
    facts = {
        "offered": is_allowed(path),
        "repeatable": repeatable("POST", path),
        "silent": not generates(path),
        "json": takes_json_only(path),
        "salted": read_passed(Media("json"), b"{}").takes_salt(path),
    }
    assert " ".join(name for name, known in facts.items() if known) == KNOWN[path]


def test_a_number_is_whole_and_above_nothing() -> None:
    passed = read_passed(Media("json"), b'{"a": 1, "b": 0, "c": true, "d": "5", "e": 2.0, "model": ["m"]}')
    assert [passed.number(name) for name in "abcdef"] == [1, None, None, 5, 2, None]
    assert passed.model is None
    assert read_passed(Media("json"), b"[1]").members == {}


def test_a_form_s_model_is_one_plain_text() -> None:
    for value in (b"m ", b"m\n", "m\u2028".encode()):
        with pytest.raises(GatewayError) as e:
            read_passed(Media("form", b"x"), joined(b"x", part("model", value)))
        assert e.value.param == "model"
