"""One connection to Redis without a socket: what is written, what is read, in which order, until when."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.redis.resp import GRACE, Lost, ReplyError, TooManyPending, Unhandled, WireError, pack
from tests.kit.clock import run_virtual, virtual
from tests.kit.resp_kit import Opened


@virtual
async def test_the_commands_of_one_turn_are_one_write() -> None:
    on = Opened()
    on.ask(b"GET", b"a")
    on.ask(b"GET", b"b")
    assert on.transport.written == []
    await asyncio.sleep(0)
    on.ask(b"GET", b"c")
    await asyncio.sleep(0)
    assert on.transport.written == [pack((b"GET", b"a")) + pack((b"GET", b"b")), pack((b"GET", b"c"))]


REPLIES = st.recursive(
    st.one_of(
        st.tuples(st.just("bulk"), st.binary(max_size=40)),
        st.tuples(st.just("int"), st.integers(-(2**63), 2**63 - 1)),
        st.just(("nil", None)),
    ),
    lambda inner: st.tuples(st.just("array"), st.lists(inner, max_size=4)),
    max_leaves=8,
)


def wired(reply: tuple[str, Any]) -> bytes:
    kind, value = reply
    if kind == "bulk":
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if kind == "int":
        return b":%d\r\n" % value
    return b"$-1\r\n" if kind == "nil" else b"*%d\r\n" % len(value) + b"".join(map(wired, value))


def plain(reply: tuple[str, Any]) -> Any:
    kind, value = reply
    return [plain(inner) for inner in value] if kind == "array" else value


@given(st.lists(REPLIES, min_size=1, max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_each_command_gets_its_own_reply_however_the_bytes_are_cut(
    replies: list[tuple[str, Any]], cuts: list[int]
) -> None:
    async def run() -> None:
        on = Opened()
        for _ in replies:
            on.ask()
        data = b"".join(map(wired, replies))
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for start, end in pairwise(edges):
            on.reply(data[start:end])
        assert on.replies == [plain(reply) for reply in replies]
        assert on.wire.pending == 0

    run_virtual(run())


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"+OK\r\n", b"*2\r\n", b"$5\r\nab", b">1\r\n"])))
)
def test_garbage_ends_the_connection_at_worst_and_everyone_is_told_once(pieces: list[bytes]) -> None:
    async def run() -> None:
        on = Opened()
        for _ in range(3):
            on.ask()
        for piece in pieces:
            if not on.transport.aborted:
                on.reply(piece)
        on.wire.connection_lost(None)
        assert len(on.replies) == 3
        assert on.losses == [on.wire]

    run_virtual(run())


@virtual
async def test_the_first_deadline_takes_the_connection_along_and_a_late_reply_meets_nobody() -> None:
    on = Opened()
    on.ask(timeout=9.0)
    on.ask(timeout=0.5)
    await asyncio.sleep(0.5 + 3 * GRACE)
    assert [str(reply) for reply in on.replies] == ["no answer within 500 ms"] * 2
    assert on.replies[0] is on.replies[1]
    assert on.transport.aborted
    on.reply(b"+late\r\n")
    on.ask()
    assert [type(reply) for reply in on.replies] == [Lost] * 3


@virtual
async def test_each_command_has_its_own_time_from_when_it_was_asked() -> None:
    on = Opened()
    for _ in range(5):
        on.ask(timeout=0.1)
        await asyncio.sleep(0.08)
        on.reply(b"+OK\r\n")
        await asyncio.sleep(0.03)
    assert on.replies == [b"OK"] * 5
    await asyncio.sleep(100)
    assert on.wire.lost is None


@virtual
async def test_a_reply_that_lies_there_when_the_deadline_passes_is_still_read() -> None:
    on = Opened()
    on.ask(timeout=0.1)
    await asyncio.sleep(0.1 + GRACE / 2)  # as after a turn of the loop that took too long
    on.reply(b"+OK\r\n")
    await asyncio.sleep(1)
    assert on.replies == [b"OK"]
    assert on.wire.lost is None


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("LOADING Redis is loading the dataset in memory", "LOADING"),
        ("READONLY You can't write against a read only replica.", "READONLY"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        ("NOAUTH Authentication required.", "NOAUTH"),
        ("MOVED 3999 127.0.0.1:6381", "MOVED"),
        ("ERR unknown command", "ERR"),
        ("something else", "ERR"),
        ("", "ERR"),
    ],
)
def test_a_refusal_is_a_reply_and_the_next_one_is_not_touched(line: str, code: str) -> None:
    @virtual
    async def run() -> None:
        on = Opened()
        on.ask()
        on.ask()
        on.reply(f"-{line}\r\n+OK\r\n".encode())
        refused, fine = on.replies
        assert isinstance(refused, ReplyError)
        assert refused.code == code
        assert str(refused).startswith(f"it refused ({code})")
        assert fine == b"OK"

    run()


@virtual
async def test_an_error_inside_an_array_stays_in_its_place() -> None:
    on = Opened()
    on.ask()
    on.reply(b"*3\r\n$1\r\na\r\n-WRONGTYPE not a string\r\n$-1\r\n")
    ((first, error, last),) = on.replies
    assert (first, error.code, last) == (b"a", "WRONGTYPE", None)


@virtual
async def test_cut_in_mid_reply_all_that_waits_is_lost() -> None:
    on = Opened()
    on.ask()
    on.ask()
    on.reply(b"$100\r\nthe beg")
    on.wire.connection_lost(None)
    assert [str(reply) for reply in on.replies] == ["it closed the connection"] * 2


@virtual
async def test_a_reply_that_nobody_asked_for_ends_the_connection() -> None:
    on = Opened()
    on.ask()
    on.reply(b"+OK\r\n+OK\r\n")
    assert on.replies == [b"OK"]
    assert str(on.wire.lost) == "an unexpected reply"


@virtual
async def test_more_than_may_be_under_way_is_not_sent_and_harms_nothing() -> None:
    on = Opened()
    on.ask(b"SET", b"k", b"x" * 900)
    on.ask(b"SET", b"k", b"x" * 900)
    assert [type(reply) for reply in on.replies] == [TooManyPending]
    on.reply(b"+OK\r\n")
    on.ask(b"SET", b"k", b"x" * 900)
    assert on.replies[1:] == [b"OK"]
    assert on.wire.lost is None


@virtual
async def test_a_reply_without_end_is_given_up() -> None:
    on = Opened()
    on.ask()
    on.reply(b"$100000\r\n")
    on.reply(b"x" * 999)
    assert str(on.wire.lost) == "a reply of more than 1000 bytes"
    assert isinstance(on.replies[0], Lost)


@virtual
async def test_subscriptions_are_confirmed_by_pushes_and_messages_disturb_no_reply() -> None:
    on = Opened()
    on.ask(b"SUBSCRIBE", b"a", b"b")
    on.ask(b"GET", b"k")
    on.reply(b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nm\r\n")
    assert on.replies == []
    on.reply(b">3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nn\r\n+v\r\n")
    assert on.replies == [[b"subscribe", b"b", 2], b"v"]
    assert [push[2] for push in on.pushes] == [1, b"m", 2, b"n"]
    on.ask(b"subscribe", b"c")
    on.reply(b"-NOPERM no\r\n")
    assert isinstance(on.replies[2], ReplyError)


@virtual
async def test_without_resp3_a_subscription_is_refused_rather_than_mixed_up() -> None:
    on = Opened()
    on.ask(b"SUBSCRIBE", b"a")
    on.reply(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
    assert "RESP3" in str(on.replies[0])
    assert on.transport.aborted


@pytest.mark.parametrize("command", [(b"MONITOR",), ("quit",), (b"hello", 3), (b"subscribe",)])
def test_a_command_without_a_reply_of_its_own_is_not_taken(command: tuple[Any, ...]) -> None:
    @virtual
    async def run() -> None:
        on = Opened()
        with pytest.raises(ValueError, match=r"reply of its own|needs its channels"):
            on.ask(*command)
        assert on.wire.pending == 0

    run()


def test_every_error_of_the_wire_is_one_family() -> None:
    assert all(issubclass(kind, WireError) for kind in (ReplyError, Lost, TooManyPending))


@virtual
async def test_a_reply_that_cannot_be_handled_is_told_of_and_its_command_hears_so() -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, words: told.append(words["message"]))
    on, heard = Opened(), list[Any]()

    def done(reply: Any) -> None:
        heard.append(reply)
        if len(heard) == 1:
            raise ZeroDivisionError

    on.wire.send((b"GET", b"a"), 1.0, done)
    on.ask()
    on.reply(b"$1\r\nx\r\n$1\r\ny\r\n")
    assert (heard[0], type(heard[1]), on.replies) == (b"x", Unhandled, [b"y"])
    assert told == ["a reply of Redis"]
