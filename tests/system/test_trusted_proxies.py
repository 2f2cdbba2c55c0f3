"""Who counts as one caller, through the whole gateway: proxies that are believed, and those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import Connection, request_bytes
from tests.kit.engine import Engine
from tests.kit.running import gateway, lines
from tests.proxy.server.listener.test_proxy_protocol import version_2

ONE: dict[str, Any] = {"rate_limit_rps": 0.001, "rate_limit_burst": 1}  # each caller may ask once
HERE = ("127.0.0.0/8",)


def models(*headers: tuple[str, str]) -> bytes:
    return request_bytes("GET", "/v1/models", b"", headers)


async def asked(url: str, data: bytes, step: int | None = None) -> int:
    """The status that one connection gets for these bytes."""
    async with await Connection.open(url) as client:
        await client.send(data, step=step)
        return (await client.read()).status


async def test_each_client_behind_a_trusted_proxy_has_limits_of_its_own(engine: Engine) -> None:
    async with gateway(engine, trusted_proxies=HERE, **ONE) as app:
        first, second = (models(("x-forwarded-for", f"192.0.2.{n}")) for n in (1, 2))
        forged = models(("x-forwarded-for", "198.51.100.9, 192.0.2.1"))
        assert [await asked(app.url, data) for data in (first, second)] == [200, 200]
        assert [await asked(app.url, data) for data in (first, second, forged)] == [429, 429, 429]


async def test_without_trust_a_header_buys_nothing(engine: Engine) -> None:
    async with gateway(engine, **ONE) as app:
        answers = [await asked(app.url, models(("x-forwarded-for", f"192.0.2.{n}"))) for n in range(3)]
        assert answers == [200, 429, 429]


@pytest.mark.parametrize("step", [None, 1], ids=["at once", "byte by byte"])
async def test_each_client_behind_a_balancer_has_limits_of_its_own(engine: Engine, step: int | None) -> None:
    async with gateway(engine, trusted_proxies=HERE, proxy_protocol=True, **ONE) as app:
        line = b"PROXY TCP4 192.0.2.1 127.0.0.1 5000 80\r\n"
        assert await asked(app.url, line + models(), step) == 200
        assert await asked(app.url, line + models(), step) == 429
        assert await asked(app.url, version_2("192.0.2.1") + models(), step) == 429
        assert await asked(app.url, version_2("192.0.2.2") + models(), step) == 200
        assert await asked(app.url, version_2("192.0.2.3", command=0x20) + models(), step) == 200  # 127.0.0.1's


async def test_a_proxy_behind_a_balancer_is_believed_where_it_is_trusted_too(engine: Engine) -> None:
    trusted = (*HERE, "203.0.113.7")
    async with gateway(engine, trusted_proxies=trusted, proxy_protocol=True, **ONE) as app:
        forwarded = models(("x-forwarded-for", "192.0.2.1"))
        assert await asked(app.url, version_2("203.0.113.7") + forwarded) == 200
        assert await asked(app.url, version_2("203.0.113.7") + forwarded) == 429
        assert await asked(app.url, version_2("192.0.2.1") + models()) == 429
        assert await asked(app.url, version_2("203.0.113.8") + forwarded) == 200  # not trusted: itself


async def test_one_connection_of_a_balancer_keeps_its_client(engine: Engine) -> None:
    async with (
        gateway(engine, trusted_proxies=HERE, proxy_protocol=True, **ONE) as app,
        await Connection.open(app.url) as client,
    ):
        await client.send(version_2("192.0.2.1") + models())
        assert (await client.read()).status == 200
        await client.send(models())
        assert (await client.read()).status == 429


@pytest.mark.parametrize("data", [models(), b"PROXY TCP4 x\r\n" + models()], ids=["none", "broken"])
async def test_a_balancer_that_does_not_say_whose_it_is_is_told(engine: Engine, data: bytes) -> None:
    async with (
        gateway(engine, trusted_proxies=HERE, proxy_protocol=True) as app,
        await Connection.open(app.url) as client,
    ):
        await client.send(data)
        answer = await client.read()
        assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_value")
        assert "PROXY protocol" in answer.json()["error"]["message"]
        assert await client.at_eof()


async def test_who_is_no_balancer_may_not_say_whose_it_is_and_that_is_told(engine: Engine, tmp_path: Path) -> None:
    log_to = tmp_path / "log"
    async with gateway(engine, log_to=log_to, trusted_proxies=("192.0.2.1",), proxy_protocol=True) as app:
        assert await asked(app.url, models()) == 200
        assert await asked(app.url, version_2("192.0.2.9") + models()) == 400
        assert await asked(app.url, b"PROXY TCP4 192.0.2.9 127.0.0.1 1 2\r\n" + models()) == 400
        async with await Connection.open(app.url) as client:
            await client.send(version_2("192.0.2.9") + models())
            assert "not in trusted_proxies" in (await client.read()).json()["error"]["message"]
    told = [line for line in lines(log_to) if line["msg"] == "unreadable request"]
    assert len(told) == 3
    assert {line["client"] for line in told} == {"127.0.0.1"}
    assert all("not in trusted_proxies" in line["detail"] for line in told)


async def test_a_refusal_s_line_says_who_it_was_and_which_limit(engine: Engine, tmp_path: Path) -> None:
    log_to = tmp_path / "log"
    async with gateway(engine, log_to=log_to, trusted_proxies=HERE, **ONE) as app:
        data = models(("x-forwarded-for", "192.0.2.1"))
        assert [await asked(app.url, data) for _ in range(2)] == [200, 429]
    passed, refused = [line for line in lines(log_to) if line["msg"] == "request"]
    assert (refused["client"], refused["limit"], refused["error"]) == (
        "192.0.2.1",
        "requests",
        "rate_limit_exceeded",
    )
    assert "client" not in passed
    assert "limit" not in passed
