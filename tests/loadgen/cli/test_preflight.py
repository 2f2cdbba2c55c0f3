"""What is settled before a run: a server that answers, a model, enough descriptors; or why not, in words."""

from __future__ import annotations

import asyncio
import resource

import pytest

from loadgen.cli import preflight
from loadgen.cli.flags.common import base_of
from loadgen.cli.main import parser_for
from loadgen.cli.preflight import SPARE, connection_limit, model_of, proxy_note
from loadgen.cli.run import prepare
from loadgen.drive.capture.client import Client
from loadgen.errors import UsageError
from loadgen.secrets import Hide
from tests.loadgen.kit.running import on_our_loop
from tests.loadgen.kit.servers import QUICK, answering, serving, whole


async def asked(answer: bytes, wait: float = 0.0) -> str:
    async with serving(answering(answer)) as url:
        client = Client(QUICK, kernel=False)
        try:
            return await model_of(client, url, QUICK, wait=wait)
        except UsageError as error:
            return str(error)
        finally:
            await client.close()


@on_our_loop
async def test_the_first_model_is_taken_and_what_is_no_list_is_said() -> None:
    for body, said in (
        (b'{"object":"list","data":[{"id":"m1"},{"id":"m2"}]}', "m1"),
        (b'{"data":[]}', "serves no model"),
        (b"<html>", "did not answer with a list of models"),
        (b'{"data":[{}]}', "did not answer with a list of models"),
    ):
        assert said in await asked(whole("200 OK", body))
    assert "answered 404" in await asked(whole("404 Not Found", b"{}"))
    assert "set OPENAI_API_KEY" in await asked(whole("403 Forbidden", b"{}"))


@on_our_loop
async def test_a_server_that_is_still_starting_is_waited_for() -> None:
    preflight_retry = preflight.RETRY
    preflight.RETRY = 0  # type: ignore[misc]
    try:
        answers = (
            whole("503 Starting", b"{}"),
            whole("503 Starting", b"{}"),
            whole("200 OK", b'{"data":[{"id":"m"}]}'),
        )
        async with serving(answering(*answers)) as url:
            client = Client(QUICK, kernel=False)
            assert await model_of(client, url, QUICK, wait=30.0) == "m"
            await client.close()
    finally:
        preflight.RETRY = preflight_retry  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environ", "url", "said"),
    [
        ({}, "http://gpu-1:8000", ""),
        ({"http_proxy": "http://p:1"}, "http://u:pw@gpu-1:8000", "http_proxy of the environment is not used: "),
        ({"HTTPS_PROXY": "http://p:1"}, "https://gpu-1", "HTTPS_PROXY of the environment is not used: "),
        ({"HTTPS_PROXY": "http://p:1"}, "http://gpu-1:8000", ""),
        ({"http_proxy": "http://p:1", "no_proxy": "other,gpu-1"}, "http://gpu-1:8000", ""),
    ],
)
def test_a_proxy_that_is_not_used_is_told(
    environ: dict[str, str], url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    note = proxy_note([url])
    assert note.startswith(said)
    assert bool(note) is bool(said)
    assert "pw" not in note


@pytest.mark.parametrize(
    ("words", "said"), [((), " --base-url URL names another server"), (("--base-url", "http://127.0.0.1:9"), "")]
)
def test_an_address_that_was_not_given_is_told_with_the_flag(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(Client, "get", refused)
    args = parser_for(["run"]).parse_args(["run", *words])
    with pytest.raises(UsageError, match=rf"^no response from http://127.0.0.1:\d+: .*running\?{said}$"):
        asyncio.run(prepare(args, {"a": base_of(args)}, Hide([])))


def limits(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: asked.append(both))
    return asked


def test_the_soft_limit_is_raised_as_far_as_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = limits(monkeypatch, 256, 4096)
    assert connection_limit(1000) == 1000
    assert asked == [(1000 + SPARE, 4096)]


def test_more_than_the_system_allows_is_refused_with_the_limit_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, 256, 1024)
    with pytest.raises(UsageError, match=f"`ulimit -n {2000 + SPARE}`"):
        connection_limit(2000)


def test_without_a_cap_what_the_system_allows_is_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = limits(monkeypatch, 256, 1024)
    assert connection_limit(None) == 1024 - SPARE
    assert asked == [(1024, 1024)]
