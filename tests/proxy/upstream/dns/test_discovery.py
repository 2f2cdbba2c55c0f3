"""Engines by DNS, asked of a real server on loopback: what joins, what leaves, what a failure keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import dns.rcode
import pytest

from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from proxy.upstream.dns import Discovery
from proxy.upstream.dns.discovery import AGAIN, CEILING, FLOOR
from proxy.upstream.dns.name import MAX_ADDRESSES, EngineName, NameFailed
from tests.kit.client import get, post_json, streaming
from tests.kit.dns_server import DnsServer, dns_server
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.ports import free_port
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"
NAME = "dns+http://vllm.svc:8000/base"
SRV = "dns+http://_http._tcp.vllm.svc"


def name(server: DnsServer, url: str = NAME) -> EngineName:
    return EngineName(url, server.resolver)


async def test_each_address_of_both_families_is_an_engine() -> None:
    async with dns_server() as server:
        server.ttl = 7
        server.set("vllm.svc", "A", "10.0.0.2", "10.0.0.1")
        one = name(server)
        assert await one.look_up() == (("http://10.0.0.1:8000/base", "http://10.0.0.2:8000/base"), 7)
        server.set("vllm.svc", "AAAA", "fd00::1")
        found = await one.look_up()
        assert found.urls[-1] == "http://[fd00::1]:8000/base"
        assert len(found.urls) == 3


async def test_a_family_that_fails_keeps_what_it_had() -> None:
    async with dns_server() as server:
        server.set("vllm.svc", "A", "10.0.0.1")
        server.set("vllm.svc", "AAAA", "fd00::1")
        one = name(server)
        assert len((await one.look_up()).urls) == 2
        server.failing = {"AAAA"}
        server.set("vllm.svc", "A", "10.0.0.2")
        assert (await one.look_up()).urls == ("http://10.0.0.2:8000/base", "http://[fd00::1]:8000/base")


async def test_srv_records_give_host_and_port_and_the_lowest_priority_counts() -> None:
    async with dns_server() as server:
        server.set(
            "_http._tcp.vllm.svc", "SRV", "10 5 8001 A.pods.", "10 50 8000 b.pods.", "20 1 8000 spare.pods."
        )
        assert (await name(server, SRV).look_up()).urls == ("http://a.pods:8001", "http://b.pods:8000")
        assert (await name(server, SRV.replace("http:", "https:")).look_up()).urls[0] == "https://a.pods:8001"


@pytest.mark.parametrize(
    ("kind", "texts", "says"),
    [
        ("A", [], "no such name"),
        ("SRV", ["0 0 80 a\\032b.pods."], "SRV: a target that is no host name"),
        ("SRV", ["0 0 80 ."], "SRV: a target that is no host name"),
        (
            "A",
            [f"10.0.{n // 250}.{n % 250 + 1}" for n in range(MAX_ADDRESSES + 1)],
            "257 addresses, of at most 256",
        ),
    ],
)
async def test_what_cannot_be_used_is_refused_whole(kind: str, texts: Sequence[str], says: str) -> None:
    async with dns_server() as server:
        if texts:
            server.set("_http._tcp.vllm.svc" if kind == "SRV" else "vllm.svc", kind, *texts)
        with pytest.raises(NameFailed, match=says):
            await name(server, SRV if kind == "SRV" else NAME).look_up()


class Desk:
    """A Discovery with a clock of its own, without engines: `down` says which do not answer."""

    def __init__(self, server: DnsServer, path: Path, *urls: str) -> None:
        self.now = 100.0
        self.down: dict[str, str] = {}
        self.asked: list[str] = []
        self.used: list[list[str]] = []
        self.path = path / "log"
        self.file = self.path.open("ab")
        self.log = Log(self.file.fileno(), "json", "info")
        self.metrics = Metrics()
        self.discovery = Discovery(
            urls,
            change=self.change,
            answers=self.answers,
            log=self.log,
            metrics=self.metrics,
            clock=lambda: self.now,
            resolver=server.resolver,
        )

    async def change(self, urls: Sequence[str]) -> None:
        self.used.append(list(urls))

    async def answers(self, url: str) -> str:
        self.asked.append(url)
        return self.down.get(url, "")

    @property
    def due(self) -> float:
        return min(one.due for one in self.discovery._names.values()) - self.now

    def told(self) -> list[tuple[str, ...]]:
        self.log.close()
        self.file.close()
        return [(line["level"], line["msg"], line.get("detail", "")) for line in lines(self.path)]


@pytest.mark.parametrize(("ttl", "wait"), [(0, FLOOR), (7, 7.0), (3600, CEILING)])
async def test_a_ttl_is_kept_within_bounds(tmp_path: Path, ttl: int, wait: float) -> None:
    async with dns_server() as server:
        server.ttl = ttl
        server.set("vllm.svc", "A", "10.0.0.1")
        desk = Desk(server, tmp_path, NAME)
        await desk.discovery.begin()
        assert desk.due == wait
        asked = server.asked["A"]
        desk.now += wait - 0.01
        await desk.discovery._round()
        assert server.asked["A"] == asked
        desk.now += 0.02
        await desk.discovery._round()
        assert server.asked["A"] == asked + 1
        assert desk.told() == []


async def test_an_engine_joins_when_it_answers_and_leaves_when_dns_leaves_it_out(tmp_path: Path) -> None:
    async with dns_server() as server:
        server.set("vllm.svc", "A", "10.0.0.1", "10.0.0.2")
        one, two = "http://10.0.0.1:8000/base", "http://10.0.0.2:8000/base"
        desk = Desk(server, tmp_path, "http://fixed", NAME)
        desk.down = {two: "/health: 503"}
        await desk.discovery.begin()
        assert desk.used == [["http://fixed", one]]
        desk.now += 1
        await desk.discovery._round()
        desk.down.clear()
        await desk.discovery._round()
        assert desk.used[1:] == [["http://fixed", one, two]]
        asked = len(desk.asked)
        await desk.discovery._round()
        assert len(desk.asked) == asked, "one that has answered is the health checks' from then on"
        server.set("vllm.svc", "A", "10.0.0.2")
        desk.now += 1
        await desk.discovery._round()
        assert desk.used[2:] == [["http://fixed", two]]
        desk.down = {one: "/health: 503"}
        server.set("vllm.svc", "A", "10.0.0.1", "10.0.0.2")
        desk.now += 1
        await desk.discovery._round()
        assert len(desk.used) == 3, "one that comes back has to answer again"
        await desk.discovery.change(["http://fixed"])
        assert desk.used[3:] == [["http://fixed"]]
        assert desk.told() == [("info", "engine awaited", "/health: 503")] * 2


async def test_a_failure_keeps_the_engines_and_is_logged_once(tmp_path: Path) -> None:
    async with dns_server() as server:
        server.set("vllm.svc", "A", "10.0.0.1")
        desk = Desk(server, tmp_path, NAME)
        await desk.discovery.begin()
        server.rcode = dns.rcode.SERVFAIL
        for _ in range(3):
            desk.now += 10
            await desk.discovery._round()
            assert desk.due == AGAIN
        server.rcode = dns.rcode.NOERROR
        server.records.clear()
        desk.now += 10
        await desk.discovery._round()
        server.set("vllm.svc", "A", "10.0.0.1")
        desk.now += 10
        await desk.discovery._round()
        assert desk.used == [["http://10.0.0.1:8000/base"]]
        assert desk.told() == [
            ("warning", "dns failed", "A: every name server failed; 1 engines of before are kept"),
            ("warning", "dns failed", "A: no such name; 1 engines of before are kept"),
            ("info", "dns back", ""),
        ]


# -- through the gateway ----------------------------------------------------------------------------------


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DnsServer]:
    """The DNS server of this machine, as far as the gateway can tell."""
    async with dns_server() as server:
        make = server.resolver
        monkeypatch.setattr("dns.asyncresolver.Resolver", lambda *given, **more: make_once(monkeypatch, make))
        yield server


def make_once(monkeypatch: pytest.MonkeyPatch, make: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.undo()
        return make()


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[Engine]]:
    """Engines at one port of several loopback addresses."""
    port = free_port()
    made = [Engine(echo_script(tokens=2), host=f"127.0.0.{n + 2}", port=port) for n in range(count)]
    for engine in made:
        await engine.__aenter__()
    try:
        yield made
    finally:
        for engine in made:
            with suppress(Exception):
                await engine.__aexit__(None, None, None)


def names(app: Any) -> set[str]:
    return {backend.name for backend in app.backends.all}


async def test_requests_go_where_dns_says_and_a_stream_of_one_that_left_finishes(
    server: DnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.dns.discovery.FIRST_SECONDS", 60)  # it may be slow to find the first one
    log = tmp_path / "log"
    async with engines(2) as (one, two):
        two.silent = True
        server.set("vllm.svc", "A", one.host)
        async with gateway(f"dns+http://vllm.svc:{one.port}", log_to=log) as app:
            assert names(app) == {one.url}
            assert (await post_json(app.url, CHAT, HELLO)).status == 200
            one.auto(None)
            async with streaming(app.url, CHAT, HELLO_STREAM | {"seed": 1}) as client:
                turn = await one.next_request()
                await turn.send("a")
                server.set("vllm.svc", "A", two.host)
                await until(lambda: names(app) == set())
                answer = await post_json(app.url, CHAT, HELLO | {"seed": 2})
                assert answer.status == 503, "the new one has not answered yet, and gets nothing"
                assert two.requests == []
                two.silent = False
                await until(lambda: names(app) == {two.url})
                assert (await post_json(app.url, CHAT, HELLO | {"seed": 2})).status == 200
                assert [len(two.requests), len(one.requests)] == [1, 2]
                await turn.send("b")
                await turn.finish()
                assert b"[DONE]" in (await client.read()).body
            metrics = (await get(app.url, "/metrics")).body
            assert b"gateway_engines_awaited 0" in metrics
            server.silent = True
            assert (await post_json(app.url, CHAT, HELLO | {"seed": 3})).status == 200
    changes = [line for line in lines(log) if line["msg"] == "engines changed"]
    assert [(line.get("added"), line.get("removed")) for line in changes] == [
        (one.url, None),
        (None, one.url),
        (two.url, None),
    ]
