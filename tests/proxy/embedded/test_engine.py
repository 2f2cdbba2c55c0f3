"""The engine that comes along: one server for chat, completions and embeddings, at one address."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from proxy.embedded.engine import EmbeddedEngine
from proxy.embedded.model import model_file
from proxy.errors import SettingsError
from tests.proxy.embedded.processes import Events, Watched

MESSAGES = [{"role": "user", "content": "Say hello."}]
WALL = 600.0  # seconds of the clock: the time limit of the test, which gives a busy machine more, comes first


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One engine for the tests that only ask: in a loop of its own that turns to start and to stop it."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        engine = EmbeddedEngine()
        yield runner.run(engine.start())
        runner.run(engine.stop())


def ask(url: str, path: str, body: dict[str, Any]) -> bytes:
    request = Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=WALL) as answer:
        whole: bytes = answer.read()
        return whole


def test_it_answers_a_chat(url: str) -> None:
    body = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    answer = json.loads(ask(url, "/v1/chat/completions", body))
    assert answer["choices"][0]["message"]["content"]
    assert answer["model"] == "smollm2"
    assert answer["usage"]["completion_tokens"] == 4


def test_it_streams_a_chat_with_usage_before_done(url: str) -> None:
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 4, "temperature": 0, **asked}
    events = ask(url, "/v1/chat/completions", body).decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


def test_it_answers_a_completion(url: str) -> None:
    body = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 4, "temperature": 0}
    assert json.loads(ask(url, "/v1/completions", body))["choices"][0]["text"]


def test_it_embeds_short_and_long_texts(url: str) -> None:
    answer = json.loads(ask(url, "/v1/embeddings", {"model": "smollm2", "input": ["cat", "word " * 600]}))
    assert [len(item["embedding"]) for item in answer["data"]] == [576, 576]


def test_it_refuses_what_does_not_fit_one_slot(url: str) -> None:
    body = {"model": "smollm2", "prompt": "word " * 3000, "max_tokens": 1}
    with pytest.raises(HTTPError) as caught:
        ask(url, "/v1/completions", body)
    with caught.value as answer:
        assert answer.code == 400
        assert json.loads(answer.read())["error"]["type"] == "exceed_context_size_error"


def test_it_counts_what_it_generates(url: str) -> None:
    def predicted() -> int:
        with urlopen(f"{url}/metrics", timeout=WALL) as answer:
            lines = answer.read().decode().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("llamacpp:tokens_predicted_total"))

    before = predicted()
    ask(url, "/v1/completions", {"model": "smollm2", "prompt": "One,", "max_tokens": 5, "ignore_eos": True})
    assert predicted() - before == 5


async def test_when_it_is_killed_it_comes_back_at_the_same_address_and_stop_leaves_nothing() -> None:
    events = Events()
    engine = EmbeddedEngine(events)
    url = await engine.start()
    try:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await events.until(lambda: len(events.details("up")) == 2)
        body = {"model": "smollm2", "prompt": "One,", "max_tokens": 1}
        assert await asyncio.to_thread(ask, url, "/v1/completions", body)
        process = Watched(engine.pid)
    finally:
        await engine.stop()
    assert process.gone(0)


async def test_the_model_file_is_found_without_importing_its_package() -> None:
    found = await model_file()
    assert found.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(("absent", "named"), [("xllamacpp", "xllamacpp")])
async def test_without_the_extra_the_message_has_the_command_that_fixes_it(
    absent: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(SettingsError) as caught:
        await EmbeddedEngine().start()
    for words in (f"{named} is missing", "pip install xllamacpp", "--backend http://"):
        assert words in str(caught.value)
