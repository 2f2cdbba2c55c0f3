"""Listeners bound: which hosts each may be asked for, and what is said where one cannot be bound."""

from __future__ import annotations

import socket

import pytest

from proxy.errors import GatewayError, ListenError
from proxy.server.bind import host_of, hosts_of
from tests.kit.client import Connection, get
from tests.kit.engine import Engine
from tests.kit.ports import free_port
from tests.kit.running import gateway

EVIL = "evil.example"


async def test_a_name_that_stands_for_loopback_is_loopback() -> None:
    for listens in ("127.0.0.1", "::1", "localhost"):
        hosts = await hosts_of(listens, ())
        hosts.check("localhost")
        with pytest.raises(GatewayError):
            hosts.check(EVIL)
    for listens in ("0.0.0.0", "name.that.is.none.invalid"):
        (await hosts_of(listens, ())).check(EVIL)


async def test_the_operators_listener_on_loopback_checks_hosts_though_the_public_one_is_open(
    engine: Engine,
) -> None:
    async with gateway(engine, host="0.0.0.0", admin_port=free_port()) as app:
        async with await Connection.open(app.admin_url) as client:
            await client.send(f"GET /metrics HTTP/1.1\r\nHost: {EVIL}\r\n\r\n".encode())
            assert (await client.read()).status == 421
        assert (await get(app.admin_url, "/metrics")).status == 200


async def test_a_port_of_operators_that_is_taken_is_named(engine: Engine) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ListenError, match=f"admin_port = {port}") as raised:
            async with gateway(engine, admin_port=port):
                pass
    assert raised.value.port == "admin_port"


async def test_a_port_that_is_taken_is_told_without_its_address(engine: Engine) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(ListenError) as raised:
            async with gateway(engine, port=sock.getsockname()[1]):
                pass
    assert str(raised.value) == "Address already in use"


@pytest.mark.parametrize(
    ("listens", "host"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.1", "10.0.0.1"), ("name", "name")],
)
def test_the_url_that_is_printed_can_be_opened(listens: str, host: str) -> None:
    assert host_of(listens) == host
