"""What is settled before a run: a server that answers, a model, enough descriptors; or why not, in words."""

from __future__ import annotations

import resource

import pytest

from loadgen.cli import preflight
from loadgen.cli.preflight import SPARE, connection_limit, model_of
from loadgen.drive.capture.client import Client
from loadgen.errors import UsageError
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
