"""One connection to Redis at its bounds: sizes, times and counts to the last, and faults of those who are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.redis.resp import (
    GRACE,
    Bounds,
    Login,
    Lost,
    ReplyError,
    RespConnection,
    TooManyPending,
    Unhandled,
    pack,
)
from tests.kit.clock import virtual
from tests.kit.injection import Tracer
from tests.kit.resp_kit import BOUNDS, HELLO_REPLY, Opened


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("A" * 32 + " x", "A" * 32),
        ("A" * 33 + " x", "ERR"),
        ("MOVED", "MOVED"),
        ("Moved 1", "ERR"),
        ("ÉTAT x", "ERR"),
        ("123 x", "ERR"),
        ("\x1b[31OOM x", "ERR"),
        (b"OOM \xff", "OOM"),
    ],
)
def test_the_code_of_a_refusal_is_a_short_word_in_capitals(text: str | bytes, code: str) -> None:
    refused = ReplyError(text)
    assert refused.code == code
    assert str(refused).startswith(f"it refused ({code})")
    assert refused.text == (text if isinstance(text, str) else "OOM \ufffd")


@pytest.mark.parametrize(
    ("login", "steps"),
    [
        (Login(), [("HELLO", 3)]),
        (Login(None, "p"), [("HELLO", 3, "AUTH", "default", "p")]),
        (Login("u", ""), [("HELLO", 3, "AUTH", "u", "")]),
        (Login("u", None), [("HELLO", 3)]),
        (Login(db=1, name="n"), [("HELLO", 3, "SETNAME", "n"), ("SELECT", 1)]),
    ],
)
def test_what_is_said_first(login: Login, steps: list[tuple[Any, ...]]) -> None:
    assert list(login.hello()) == steps


@virtual
async def test_commands_may_be_under_way_up_to_the_last_byte() -> None:
    size = len(pack((b"GET", b"k")))
    on = Opened(bounds=Bounds(connect=5.0, pending=2 * size, reply=1000))
    for _ in range(3):
        on.ask()
    assert [type(reply) for reply in on.replies] == [TooManyPending]
    assert (on.wire.pending, str(on.replies[0])) == (
        2 * size,
        f"{2 * size} bytes are under way, of at most {2 * size}",
    )
    on.reply(b"+OK\r\n+OK\r\n")
    assert (on.wire.pending, on.replies[1:]) == (0, [b"OK", b"OK"])


@pytest.mark.parametrize(("more", "lost"), [(0, False), (1, True)])
@virtual
async def test_a_reply_may_have_as_many_bytes_as_the_bound(more: int, lost: bool) -> None:
    on = Opened()
    on.ask()
    on.reply(b"+OK\r\n")
    on.ask()
    head = b"$2000\r\n"
    on.reply(head)
    on.reply(b"x" * (BOUNDS.reply - len(head) + more))
    assert (on.wire.lost is not None) is lost


@virtual
async def test_a_loss_is_told_once_whatever_comes_after_it() -> None:
    on = Opened()
    on.ask()
    timer = on.wire._timer
    assert timer is not None
    first, second = Lost("first"), Lost("second")
    on.wire.lose(first)
    on.wire.lose(second)
    on.wire.connection_lost(None)
    on.wire.connection_lost(None)
    assert (on.replies, on.losses, on.wire.lost) == ([first], [on.wire], first)
    assert (on.wire.pending, on.transport.aborted, timer.cancelled(), on.wire._timer) == (0, True, True, None)
    assert on.wire.closed.done()
    await asyncio.sleep(0)
    assert on.transport.written == [], "what had not gone out does not"
    on.ask()
    assert (on.replies, on.wire.pending, on.wire._timer) == ([first, first], 0, None)


@virtual
async def test_one_who_cannot_be_told_of_a_loss_is_told_of_and_the_others_hear() -> None:
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["message"]))
    on, heard = Opened(), list[Any]()

    def fails(reply: Any) -> None:
        heard.append(type(reply))
        raise ZeroDivisionError

    def cannot_be_lost(wire: RespConnection) -> None:
        raise ZeroDivisionError

    on.wire._on_lost = cannot_be_lost
    on.wire.send((b"GET", b"a"), 1.0, fails)
    on.ask()
    on.wire.lose(Lost("why"))
    assert (heard, [str(reply) for reply in on.replies]) == ([Lost, Unhandled], ["why"])
    assert faults == ["a lost connection to Redis", *["a reply of Redis"] * 2]


@virtual
async def test_one_who_fails_at_a_reply_twice_is_told_of_twice_and_the_wire_goes_on() -> None:
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["message"]))
    on, heard = Opened(), list[Any]()

    def fails(reply: Any) -> None:
        heard.append(type(reply))
        raise ZeroDivisionError

    on.wire.send((b"GET", b"a"), 1.0, fails)
    on.ask()
    on.reply(b"+a\r\n+b\r\n")
    assert (heard, on.replies, faults) == ([bytes, Unhandled], [b"b"], ["a reply of Redis"] * 2)
    assert on.wire.lost is None


@virtual
async def test_a_push_that_cannot_be_handled_ends_the_connection() -> None:
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["message"]))
    on = Opened()
    on.wire._on_push = lambda push: 1 // 0  # type: ignore[assignment]
    on.ask()
    on.reply(b">1\r\n+x\r\n+late\r\n")
    assert [str(reply) for reply in on.replies] == ["the gateway failed to read its replies"]
    assert faults == ["the replies of Redis"]


@virtual
async def test_what_is_not_resp_is_lost_as_that() -> None:
    on = Opened()
    on.ask()
    on.reply(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert [str(reply) for reply in on.replies] == ["a reply that is not RESP: no Redis listens there"]


@pytest.mark.parametrize("code", ["ERR", "NOPROTO", "NOPERM"])
@virtual
async def test_only_hello_may_be_unknown_and_only_once(code: str) -> None:
    on = Opened(Login(db=1), greeted=False)
    on.wire.connection_made(on.transport)
    on.reply(f"-{code} unknown\r\n".encode())
    assert on.transport.written[1:] == [pack(("SELECT", 1))]
    on.reply(b"-ERR no such database\r\n")
    assert str(on.wire.lost) == "it refused the login (ERR)"
    assert repr(on.wire) == "<RespConnection lost waiting=0 bytes=0>"


@virtual
async def test_what_is_asked_while_it_opens_is_counted_and_told_of_its_state() -> None:
    on = Opened(greeted=False)
    assert repr(on.wire) == "<RespConnection opening waiting=1 bytes=0>"
    on.ask()
    size = on.wire.pending
    assert size == len(pack((b"GET", b"k")))
    before = on.wire.opened
    on.wire.connection_made(on.transport)
    assert (before, on.wire.opened) == (False, True)
    await asyncio.sleep(0)
    assert len(on.transport.written) == 1, "HELLO alone"
    on.reply(HELLO_REPLY)
    assert repr(on.wire) == f"<RespConnection ready waiting=1 bytes={size}>"


@virtual
async def test_the_time_to_open_is_for_all_steps_of_it() -> None:
    on = Opened(Login("u", "p", 1), greeted=False)
    await asyncio.sleep(2.0)
    on.wire.connection_made(on.transport)
    await asyncio.sleep(2.0)
    on.reply(HELLO_REPLY)
    await asyncio.sleep(0.9)
    assert on.wire.lost is None
    await asyncio.sleep(0.2)
    assert str(on.wire.lost) == "no connection within 5000 ms"


@virtual
async def test_a_deadline_is_looked_at_twice_and_a_later_one_not_before_its_time() -> None:
    loop = asyncio.get_running_loop()
    on = Opened()
    on.ask(timeout=1.0)
    on.ask(timeout=3.0)
    await asyncio.sleep(1.0 + GRACE / 2)
    assert on.wire.lost is None, "a loop that was busy has not read yet"
    on.reply(b"+OK\r\n")
    lost: list[float] = []
    on.wire._on_lost = lambda wire: lost.append(loop.time())
    await asyncio.sleep(5.0)
    assert on.replies[0] == b"OK"
    assert lost == [pytest.approx(3.0 + GRACE)]


@virtual
async def test_a_shorter_deadline_that_comes_later_is_kept() -> None:
    loop = asyncio.get_running_loop()
    on = Opened()
    lost: list[float] = []
    on.wire._on_lost = lambda wire: lost.append(loop.time())
    on.ask(timeout=9.0)
    timer = on.wire._timer
    on.ask(timeout=1.0)
    assert timer is not None
    assert timer.cancelled()
    await asyncio.sleep(2.0)
    assert lost == [pytest.approx(1.0 + GRACE)]


@virtual
async def test_a_connection_whose_timer_fails_is_lost_and_all_its_commands_get_an_error() -> None:
    on = Opened()
    on.ask(timeout=1.0)
    on.ask(timeout=9.0)
    with Tracer(RespConnection._check_deadlines.__code__) as tracer:
        await asyncio.sleep(2.0)
    assert tracer.raised
    assert [str(reply) for reply in on.replies] == ["the gateway failed to check its deadlines"] * 2


@virtual
async def test_with_nothing_under_way_no_timer_runs() -> None:
    on = Opened()
    on.ask(timeout=1.0)
    on.reply(b"+OK\r\n")
    await asyncio.sleep(9.0)
    assert (on.wire._timer, on.wire.lost) == (None, None)
    on.ask(timeout=1.0)
    await asyncio.sleep(2.0)
    assert str(on.wire.lost) == "no answer within 1000 ms"


@virtual
async def test_confirmations_are_counted_for_each_command() -> None:
    on = Opened()
    on.ask(b"SUBSCRIBE", b"a", b"b")
    on.ask(b"UNSUBSCRIBE", b"a", b"b")
    before = on.wire.pending
    push = b">3\r\n$%d\r\n%b\r\n$1\r\na\r\n:1\r\n"
    on.reply(push % (9, b"subscribe"))
    assert (on.wire.pending, on.replies) == (before, [])
    on.reply(push % (9, b"subscribe"))
    assert (len(on.replies), 0 < on.wire.pending < before) == (1, True)
    on.reply(push % (11, b"unsubscribe"))
    on.reply(b">1\r\n+other\r\n>0\r\n")
    assert len(on.replies) == 1
    on.reply(push % (11, b"unsubscribe"))
    assert (len(on.replies), on.wire.pending, len(on.pushes)) == (2, 0, 6)


@virtual
async def test_a_confirmation_that_nobody_waits_for_is_only_a_push() -> None:
    on = Opened()
    on.ask()
    on.reply(b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n+OK\r\n")
    assert (on.replies, len(on.pushes)) == ([b"OK"], 1)
    on.ask(b"SUBSCRIBE", b"a")
    on.reply(b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
    assert on.replies[1:] == [[b"subscribe", b"a", 1]]


@virtual
async def test_one_who_cannot_subscribe_hears_so_once() -> None:
    on = Opened()
    on.ask(b"SUBSCRIBE", b"a")
    on.reply(b"+OK\r\n")
    assert [str(reply) for reply in on.replies] == ["subscribing requires RESP3 (Redis 6 or newer)"]


@pytest.mark.parametrize("how", ["not connected", "opening", "unasked"])
@virtual
async def test_a_loss_is_no_fault_of_ours(how: str) -> None:
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["message"]))
    on = Opened(greeted=how == "unasked")
    if how == "opening":
        on.wire.connection_made(on.transport)
    if how == "unasked":
        on.reply(b"+OK\r\n")
    else:
        on.wire.lose(Lost("why"))
    assert (faults, len(on.losses)) == ([], 1)


@virtual
async def test_a_wire_that_was_lost_before_it_opened_sends_nothing() -> None:
    loop = asyncio.get_running_loop()
    on = Opened(greeted=False)
    on.wire.lose(Lost("why"))
    on.wire.connection_made(on.transport)
    on.wire.data_received(HELLO_REPLY)
    assert (on.transport.aborted, on.transport.written) == (True, [])
    other = RespConnection(loop, Login(), BOUNDS, on_push=on.pushes.append, on_lost=on.losses.append)
    other.connection_lost(None)
    assert str(other.lost) == "it closed the connection"
