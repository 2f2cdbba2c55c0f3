"""How a connection to Redis opens: what is said first, to whom, and what a refusal tells."""

from __future__ import annotations

import asyncio

import pytest

from proxy.redis.resp import Login, Lost, pack
from tests.kit.clock import virtual
from tests.kit.resp_kit import HELLO_REPLY, Opened


@virtual
async def test_what_is_asked_while_it_opens_goes_out_once_it_is_logged_in() -> None:
    on = Opened(Login("u", "p", 3, "gw"), greeted=False)
    on.ask(b"GET", b"a")
    on.wire.connection_made(on.transport)
    await asyncio.sleep(0)
    assert on.transport.written == [pack((b"HELLO", 3, b"AUTH", b"u", b"p", b"SETNAME", b"gw"))]
    on.reply(HELLO_REPLY)
    assert on.transport.written[1:] == [pack((b"SELECT", 3))]
    on.reply(b"+OK\r\n")
    assert on.transport.written[2:] == [pack((b"GET", b"a"))]
    on.reply(b"$1\r\nx\r\n")
    assert on.replies == [b"x"]


@pytest.mark.parametrize(
    ("login", "steps"),
    [
        (Login(), []),
        (Login(None, "p"), [(b"AUTH", b"p")]),
        (Login("u", "p", 2, "n"), [(b"AUTH", b"u", b"p"), (b"CLIENT", b"SETNAME", b"n"), (b"SELECT", 2)]),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["asked for by the URL", "HELLO is not known"])
def test_a_server_older_than_hello_is_greeted_as_it_was_then(
    login: Login, steps: list[tuple[bytes, ...]], known: bool
) -> None:
    @virtual
    async def run() -> None:
        chosen = Login(login.username, login.password, login.db, login.name, 2 if known else 3)
        on = Opened(chosen, greeted=False)
        on.ask()
        on.wire.connection_made(on.transport)
        if not known:
            on.reply(b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `u`, `p`\r\n")
        for _ in steps:
            on.reply(b"+OK\r\n")
        assert on.transport.written[not known :] == [pack(step) for step in [*steps, (b"GET", b"k")]]

    run()


@pytest.mark.parametrize("code", ["WRONGPASS", "NOAUTH", "DENIED", "LOADING"])
def test_a_refused_login_is_a_loss_that_tells_no_secret(code: str) -> None:
    @virtual
    async def run() -> None:
        on = Opened(Login("u", "secret"), greeted=False)
        on.ask()
        on.wire.connection_made(on.transport)
        on.reply(f"-{code} with args beginning with: `secret`\r\n".encode())
        (loss,) = on.replies
        assert isinstance(loss, Lost)
        assert code in str(loss)
        assert "secret" not in repr(loss) + repr(on.wire) + repr(Login("u", "secret"))
        assert on.transport.aborted

    run()


@virtual
async def test_connecting_has_its_bound_and_a_command_may_have_a_shorter_one() -> None:
    on = Opened(greeted=False)
    on.ask(timeout=0.2)
    await asyncio.sleep(0.21)
    assert [str(reply) for reply in on.replies] == ["no connection within 200 ms"]
    on.wire.connection_made(on.transport)  # it came after all
    assert on.transport.aborted
    slow = Opened(greeted=False)
    slow.ask(timeout=60.0)
    await asyncio.sleep(5.01)
    assert [str(reply) for reply in slow.replies] == ["no connection within 5000 ms"]
