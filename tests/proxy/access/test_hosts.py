"""Which hosts a request may be for: against DNS rebinding on loopback, and what opens it."""

from __future__ import annotations

import pytest

from proxy.access.hosts import KEPT, Hosts, is_loopback
from proxy.errors import GatewayError
from tests.kit.client import call, get
from tests.kit.engine import Engine
from tests.kit.running import HELLO, gateway

EVIL = (("host", "evil.example"),)


def allowed(hosts: Hosts, host: str) -> bool:
    try:
        hosts.check(host)
    except GatewayError as e:
        assert (e.status, e.code.code) == (421, "host_not_allowed")
        assert "allowed_hosts" in e.message
        return False
    return True


@pytest.mark.parametrize(
    ("listens", "names", "host", "right"),
    [
        ("127.0.0.1", (), "localhost", True),
        ("127.0.0.1", (), "a.localhost", True),
        ("127.0.0.1", (), "127.9.9.9", True),
        ("127.0.0.1", (), "::1", True),
        ("127.0.0.1", (), "::ffff:7f00:1", True),
        ("127.0.0.1", (), "evil.example", False),
        ("127.0.0.1", (), "localhost.evil.example", False),
        ("127.0.0.1", (), "xlocalhost", False),
        ("127.0.0.1", (), "127.0.0.1.evil.example", False),
        ("127.0.0.1", (), "0.0.0.0", False),
        ("127.0.0.1", (), "127.1", False),
        ("127.0.0.1", (), "10.0.0.1", False),
        ("localhost", (), "evil.example", False),
        ("::1", (), "evil.example", False),
        ("0.0.0.0", (), "evil.example", True),
        ("10.0.0.1", (), "10.0.0.1", True),
        ("127.0.0.1", ("api.example.com",), "api.example.com", True),
        ("127.0.0.1", ("API.example.com",), "api.example.com", True),
        ("127.0.0.1", ("api.example.com",), "evil.example", False),
        ("127.0.0.1", ("*.example.com",), "a.b.example.com", True),
        ("127.0.0.1", ("*.example.com",), "example.com", False),
        ("127.0.0.1", ("*.example.com",), "evilexample.com", False),
        ("127.0.0.1", ("*",), "evil.example", True),
        ("0.0.0.0", ("gateway",), "gateway", True),
        ("0.0.0.0", ("gateway",), "localhost", True),
        ("0.0.0.0", ("gateway",), "evil.example", False),
    ],
)
def test_a_host_is_ours_or_not(listens: str, names: tuple[str, ...], host: str, right: bool) -> None:
    assert allowed(Hosts(listens, names), host) is right


def test_a_name_that_stands_for_loopback_is_loopback() -> None:
    assert not allowed(Hosts("myhost", (), ["127.0.1.1"]), "evil.example")
    assert allowed(Hosts("myhost", (), ["127.0.1.1"]), "myhost")
    assert allowed(Hosts("myhost", (), ["127.0.1.1", "10.0.0.1"]), "evil.example")


def test_what_was_allowed_is_known_within_a_bound() -> None:
    hosts = Hosts("127.0.0.1", ())
    for number in range(3 * KEPT):
        hosts.check(f"{number}.localhost")
        assert f"{number}.localhost" in hosts.known
        assert len(hosts.known) <= KEPT
    assert "" in hosts.known  # HTTP/1.0 without one


def test_loopback_is_told_by_the_text_alone() -> None:
    assert is_loopback("127.0.0.1")
    assert not is_loopback("localhost.")
    assert not is_loopback("ip6-localhost")


PATHS = ["/", "/health", "/ready", "/metrics", "/-/state", "/v1/models", "/v1/models/m1", "/nothing", "/v1/x"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_by_dns_rebinding_reads_nothing(engine: Engine, path: str) -> None:
    async with gateway(engine) as app:
        answer = await get(app.url, path, EVIL)
        assert answer.status == 421
        assert answer.json()["error"]["code"] == "host_not_allowed"
        assert engine.requests == []


async def test_a_page_by_dns_rebinding_generates_nothing(engine: Engine) -> None:
    async with gateway(engine) as app:
        for path in ("/v1/chat/completions", "/v1/responses", "/embed", "/-/readers"):
            for target in (path, f"http://evil.example{path}"):
                host = EVIL if target is path else ()
                answer = await call(app.url, "POST", target, str(HELLO).encode(), host)
                assert answer.status == 421
        assert engine.requests == []


async def test_names_of_loopback_and_those_allowed_are_served(engine: Engine) -> None:
    async with gateway(engine, allowed_hosts=("api.example.com", "*.internal")) as app:
        for host in ("localhost:1", "127.0.0.1", "[::1]:99", "API.example.com", "a.internal:443"):
            assert (await get(app.url, "/health", (("host", host),))).status == 200
        assert (await get(app.url, "/health", EVIL)).status == 421
        evil_host = await get(app.url, "http://localhost/health", EVIL)
        assert evil_host.status == 200  # RFC 9112 3.2.2: the target's authority takes the place of Host
