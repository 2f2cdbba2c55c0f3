"""Answers that are checked, and how they end: too large, cut short, closed, or by an exception of our own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.access.denylist.filter import AT_ONCE, NOTHING, FilteringIngest, denied_in_body, texts_of
from proxy.access.denylist.rules import DenyList, read_deny_list
from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.ingest import Callbacks, StreamLimits, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.wire.openai import Endpoint, decode
from proxy.wire.sse import unchunks
from tests.kit.clock import virtual
from tests.proxy.access.denylist.test_filter import DONE, ENDS, LONG, RULES, SSE, frame

TEXTS = read_deny_list("bad\n", "d")
WAITS = frame("ba")  # may begin a text of the list


class Guard:
    """A feeder with what becomes of its flight."""

    def __init__(
        self,
        deny: DenyList = TEXTS,
        *,
        mode: Mode = Mode.STREAM,
        endpoint: Endpoint | None = "chat",
        limits: StreamLimits | None = None,
        on_hit: Callable[[int], None] = lambda line: None,
        check: Any = None,
        vet: Any = None,
        status: int = 200,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.raised: list[str] = []
        loop.set_exception_handler(lambda _, context: self.raised.append(context["message"]))
        api_request = (
            None if endpoint is None else decode(endpoint, b'{"messages": [], "prompt": "", "input": ""}')
        )
        self.flight = Flight(FlightSpec("POST", "/", b"", mode, "r", key=b"k", api_request=api_request), loop.time)
        self.flight.enter(Phase.CONNECTING)
        self.flight.enter(Phase.PREFILL)
        self.ends: list[GatewayError | None] = []
        self.hits: list[int] = []
        limits = limits or StreamLimits()
        self.watch = Timeouts(limits, loop)

        def hit(_: Flight, line: int) -> None:
            self.hits.append(line)
            on_hit(line)

        self.ingest = FilteringIngest(
            self.flight,
            self.watch,
            Callbacks(self.ends.append, vet=vet),
            deny=deny,
            window=16,
            on_hit=hit,
            check=check,
        )
        self.ingest.head(status, SSE if mode is Mode.STREAM else [("content-type", "application/json")])

    async def turns(self, count: int = 200) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
        self.watch.close()

    @property
    def out(self) -> list[bytes]:
        return unchunks(b"".join(self.flight.log))

    @property
    def code(self) -> Code | None:
        """By which error it ended; None: well, or not yet."""
        return self.ends[0].code if self.ends and self.ends[0] is not None else None


@virtual
async def test_what_waits_counts_towards_the_bytes_of_an_answer() -> None:
    for limit, code in ((2 * len(WAITS), None), (2 * len(WAITS) - 1, Code.UPSTREAM_TOO_LARGE)):
        guard = Guard(limits=StreamLimits(flight=limit))
        guard.ingest.body(WAITS)
        guard.ingest.body(frame("ba", 1))
        assert (guard.out, guard.code) == ([], code)
        if code is not None:
            assert f"exceeds {limit} bytes" in str(guard.ends[0])
        guard.watch.close()


@virtual
async def test_what_was_let_out_waits_no_more() -> None:
    more = frame("x")
    size = len(b"%x\r\n\r\n" % len(more))
    guard = Guard(limits=StreamLimits(flight=2 * len(more) + 2 * size))
    guard.ingest.body(more)
    guard.ingest.body(more)
    assert guard.ends == []
    guard.ingest.body(more)
    assert guard.code is Code.UPSTREAM_TOO_LARGE
    guard.watch.close()


@virtual
async def test_what_is_looked_at_later_counts_too() -> None:
    for limit, code in ((len(LONG), None), (len(LONG) - 1, Code.UPSTREAM_TOO_LARGE)):
        guard = Guard(limits=StreamLimits(flight=limit))
        guard.ingest.body(LONG)
        assert guard.code is code
        guard.watch.close()
        guard.ingest.close()


@virtual
async def test_an_answer_that_is_no_stream_is_not_taken_apart() -> None:
    guard = Guard(mode=Mode.WHOLE)
    guard.ingest.body(b"data: x\n\nda")
    guard.ingest.body(b"ta: y")
    assert b"".join(guard.flight.log) == b"data: x\n\ndata: y"
    guard.watch.close()


@virtual
async def test_after_its_end_nothing_of_an_answer_is_taken() -> None:
    guard = Guard()
    guard.ingest.body(frame("a") + ENDS[0] + DONE)
    assert guard.ends == [None]
    guard.ingest.body(frame("b"))
    guard.ingest.lost(GatewayError(Code.UPSTREAM_TRUNCATED, "x"))
    assert (guard.ends, guard.out[-1]) == ([None], DONE)
    guard.watch.close()


@virtual
async def test_bytes_that_are_no_answer_to_this_request_are_not_taken() -> None:
    guard = Guard(vet=lambda data: data == b"no")
    guard.ingest.body(b"no")
    guard.ingest.body(frame("a") + ENDS[0] + DONE)
    assert guard.out == [frame("a"), ENDS[0], DONE]
    guard.watch.close()


@virtual
async def test_more_that_comes_while_a_long_frame_is_looked_at_follows_it() -> None:
    guard = Guard()
    guard.ingest.body(LONG)
    await asyncio.sleep(0)
    for piece in (frame("a"), LONG, ENDS[0], DONE):
        guard.ingest.body(piece)
    await guard.turns()
    assert guard.out == [LONG, frame("a"), LONG, ENDS[0], DONE]
    assert guard.ends == [None]


@virtual
async def test_a_connection_that_is_lost_is_told_after_what_came_before() -> None:
    for late in (False, True):
        guard = Guard()
        guard.ingest.body(LONG if late else frame("x"))
        guard.ingest.lost(GatewayError(Code.UPSTREAM_TOKEN_TIMEOUT, "lost"))
        guard.ingest.lost(GatewayError(Code.INTERNAL, "never told"))
        if late:
            guard.ingest.end()
            assert guard.ends == []
        await guard.turns()
        assert (guard.code, guard.out) == (Code.UPSTREAM_TOKEN_TIMEOUT, [LONG if late else frame("x")])
        assert len(guard.ends) == 1


@virtual
async def test_an_event_that_is_too_large_is_told_after_what_came_before() -> None:
    limits = StreamLimits(frame=len(LONG))
    guard = Guard(limits=limits)
    guard.ingest.body(LONG)
    guard.ingest.body(b"x" * (len(LONG) + 1))
    guard.ingest.lost(GatewayError(Code.INTERNAL, "never told"))
    assert guard.ends == []
    await guard.turns()
    assert (guard.code, guard.out) == (Code.UPSTREAM_TOO_LARGE, [LONG])
    guard = Guard(limits=limits)
    guard.ingest.body(b"x" * (len(LONG) + 1))
    assert guard.code is Code.UPSTREAM_TOO_LARGE
    guard.watch.close()


@virtual
async def test_a_closed_answer_is_looked_at_no_further() -> None:
    guard = Guard()
    guard.ingest.body(LONG + frame("bad") + LONG)
    await asyncio.sleep(0)
    guard.ingest.close()
    await guard.turns()
    assert (guard.ends, guard.hits, guard.out) == ([], [], [])


@virtual
async def test_what_ends_an_answer_while_it_is_looked_at_is_its_only_end() -> None:
    guard = Guard()
    guard.ingest.body(LONG + frame("bad") + LONG)
    guard.ingest.end()
    await guard.turns()
    assert (guard.code, guard.hits, guard.out) == (Code.CONTENT_DENIED, [1], [LONG])
    assert len(guard.ends) == 1


@virtual
async def test_many_small_frames_at_once_are_looked_at_in_turns() -> None:
    one = frame("fine ")
    frames = [one] * (2 * (AT_ONCE // len(one)) + 1)
    guard = Guard()
    guard.ingest.body(b"".join(frames))
    seen = []
    for _ in range(5):
        await asyncio.sleep(0)
        seen.append(sum(map(len, guard.out)))
    assert seen[0] == AT_ONCE // len(one) * len(one)
    assert seen[1] == 2 * seen[0]
    assert seen[2] == seen[3] == len(frames) * len(one)
    guard.ingest.body(ENDS[0] + DONE)
    assert (guard.ends, guard.out[-1]) == ([None], DONE)
    guard.watch.close()


@virtual
async def test_just_as_much_as_one_turn_takes_is_looked_at_at_once() -> None:
    for more in (0, 1):
        exact = frame("a" * (AT_ONCE - len(frame("")) + more))
        guard = Guard()
        guard.ingest.body(exact)
        assert guard.out == ([] if more else [exact])
        await guard.turns()
        assert guard.out == [exact]


@virtual
async def test_an_exception_while_it_is_looked_at_ends_the_answer_alone() -> None:
    def fails(line: int) -> None:
        raise ZeroDivisionError

    guard = Guard(on_hit=fails)
    guard.ingest.body(LONG + frame("bad") + frame(" x"))
    await guard.turns()
    assert guard.raised == ["the look at an answer"]
    assert (guard.code, guard.hits) == (Code.INTERNAL, [1])


@virtual
async def test_the_end_of_a_long_text_waits_as_any_other() -> None:
    guard = Guard()
    guard.ingest.body(frame("fine " * 20_000 + "ba"))
    await guard.turns()
    assert (guard.out, guard.flight.content_events) == ([], 1)
    guard.ingest.body(frame("d."))
    assert (guard.out, guard.hits) == ([], [1])


@virtual
async def test_at_the_end_nothing_waits_any_more() -> None:
    guard = Guard()
    guard.ingest.body(frame("x ba") + ENDS[0] + DONE)
    assert (guard.out, guard.ends, guard.ingest.surplus) == ([frame("x ba"), ENDS[0], DONE], [None], False)
    denied = Guard()
    denied.ingest.body(frame("a bad") + ENDS[0] + DONE)
    assert (denied.out, denied.hits, denied.code) == ([], [1], Code.CONTENT_DENIED)
    assert (len(denied.ends), denied.flight.phase) == (1, Phase.PREFILL)
    for more in (frame("x"), b"data: h"):
        surplus = Guard()
        surplus.ingest.body(frame("x") + ENDS[0] + DONE + more)
        assert (surplus.ends, surplus.ingest.surplus) == ([None], True)


@virtual
async def test_an_answer_that_was_aborted_at_once_is_told_before_anything_goes_out() -> None:
    guard = Guard()
    guard.ingest.body(frame("x") + ENDS[0].replace(b"stop", b"abort"))
    assert (guard.code, guard.out) == (Code.UPSTREAM_INCOMPLETE, [])
    late = Guard()
    late.ingest.body(frame("x"))
    late.ingest.body(ENDS[0].replace(b"stop", b"abort"))
    assert (late.ends, len(late.out)) == ([], 1)
    late.watch.close()
    late.ingest.close()


@virtual
async def test_a_frame_of_one_choice_waits_behind_anothers() -> None:
    guard = Guard()
    guard.ingest.body(WAITS + frame("x", 1))
    assert guard.out == []
    guard.ingest.body(frame("r"))
    assert guard.out == [WAITS, frame("x", 1), frame("r")]
    guard.watch.close()


# Bodies


def whole(text: str, size: int = 0) -> bytes:
    body = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}
    return json.dumps(body).encode().ljust(size)


class Check:
    """What looks at a body elsewhere."""

    def __init__(self, says: int | Exception = 0) -> None:
        self.says = says
        self.bodies: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, flight: Flight, body: bytes) -> int:
        self.bodies.append(body)
        await self.go.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@virtual
async def test_a_body_is_looked_at_elsewhere_from_so_many_bytes_on() -> None:
    for size, elsewhere in ((AT_ONCE, False), (AT_ONCE + 1, True)):
        check = Check()
        guard = Guard(mode=Mode.WHOLE, check=check)
        guard.ingest.body(whole("fine", size))
        guard.ingest.end()
        await guard.turns()
        assert (guard.ends, guard.flight.phase) == ([None], Phase.LANDED)
        assert check.bodies == ([whole("fine", size)] if elsewhere else [])


@virtual
async def test_a_body_that_was_looked_at_elsewhere_is_not_looked_at_again() -> None:
    guard = Guard(mode=Mode.WHOLE, check=Check())
    guard.ingest.body(whole("bad", AT_ONCE + 1))  # as no check would let it pass
    guard.ingest.end()
    await guard.turns()
    assert (guard.ends, guard.hits) == ([None], [])


@pytest.mark.parametrize(
    ("says", "code", "hits", "told"),
    [
        (7, Code.CONTENT_DENIED, [7], []),
        (GatewayError(Code.MEMORY_FULL, "x"), Code.MEMORY_FULL, [], []),
        (ZeroDivisionError(), Code.INTERNAL, [], ["the look at an answer"]),
    ],
)
@virtual
async def test_what_the_look_elsewhere_comes_to_ends_the_answer(
    says: int | Exception, code: Code, hits: list[int], told: list[str]
) -> None:
    guard = Guard(mode=Mode.WHOLE, check=Check(says))
    guard.ingest.body(whole("fine", AT_ONCE + 1))
    guard.ingest.end()
    await guard.turns()
    assert (guard.code, guard.hits, guard.raised) == (code, hits, told)
    assert len(guard.ends) == 1


@virtual
async def test_a_look_elsewhere_ends_with_its_answer() -> None:
    check = Check(7)
    check.go.clear()
    guard = Guard(mode=Mode.WHOLE, check=check)
    guard.ingest.body(whole("fine", AT_ONCE + 1))
    guard.ingest.end()
    await guard.turns(3)
    assert len(check.bodies) == 1
    guard.ingest.close()
    await guard.turns()  # nothing is left that waits for the check
    assert (guard.ends, guard.hits) == ([], [])


@pytest.mark.parametrize(
    "options",
    [{"check": None}, {"status": 500}, {"endpoint": None}, {"endpoint": "embeddings"}],
    ids=["none is given", "an error", "no request for text", "vectors"],
)
@virtual
async def test_a_body_that_is_no_generated_answer_is_looked_at_nowhere_else(options: dict[str, Any]) -> None:
    check = Check()
    guard = Guard(**{"mode": Mode.WHOLE, "check": check, **options})
    body = json.dumps({"data": [{"index": 0, "embedding": [1]}], "bad": "bad"}).encode().ljust(AT_ONCE + 1)
    guard.ingest.body(whole("fine", AT_ONCE + 1) if options == {"check": None} else body)
    guard.ingest.end()
    await guard.turns()
    assert (guard.ends, check.bodies, guard.hits) == ([None], [], [])


@virtual
async def test_a_body_that_is_not_whole_is_refused_for_that() -> None:
    guard = Guard(mode=Mode.WHOLE)
    guard.ingest.body(whole("bad").replace(b'"stop"', b'"abort"'))
    guard.ingest.end()
    assert (guard.code, guard.hits) == (Code.UPSTREAM_INCOMPLETE, [])
    guard = Guard(mode=Mode.WHOLE)
    guard.ingest.body(whole("bad"))
    guard.ingest.end()
    assert (guard.code, guard.hits) == (Code.CONTENT_DENIED, [1])
    assert guard.flight.phase is not Phase.LANDED
    guard.watch.close()


# Texts


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b'{"choices":[{"index":0,"message":{"content":"ba"}},{"index":1,"message":{"content":"d"}}]}', None),
        (b'{"choices":[{"index":0,"message":{"content":["ba","d"]}}]}', None),
        (b'{"choices":\r\n[{"index":0,"text":"bad"}]}', 1),
        (b'{"choices":[{"index":0,"text":"x"},{"index":1,"text":"a cat"}]}', 2),
        (b'{"choices":[]}', None),
        (b'{"bad":"bad"}', None),
    ],
)
def test_a_body_is_denied_by_the_texts_of_each_choice(body: bytes, line: int | None) -> None:
    assert denied_in_body(RULES, body) == line
    assert denied_in_body(NOTHING, body) is None


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"choices":[{"index":2,"delta":{"content":"a","role":"x"}}]}', [(("2", "delta", "content"), "a")]),
        (b'{"choices":[{"text":"a"}]}', [(("0", "text"), "a")]),
        (
            b'{"choices":[{"delta":{"tool_calls":[{"index":3,"id":"x","function":{"name":"f"}},"b"]}}]}',
            [
                (("0", "delta", "tool_calls", "3", "function", "name"), "f"),
                (("0", "delta", "tool_calls", "1"), "b"),
            ],
        ),
        (
            b'{"choices":[{"message":{"a":{"b":"1"},"c":"2"}}]}',
            [(("0", "message", "a", "b"), "1"), (("0", "message", "c"), "2")],
        ),
        (b'{"choices":5,"error":["a","b"]}', [(("raw",), "a"), (("raw",), "b")]),
        (b"7", []),
        (b"[" * 100_000, [(("raw",), "[" * 100_000)]),
        (b'"\xff"', [(("raw",), '"\ufffd"')]),
        (b'{"choices":[5,{"text":"a"}]}', [(("0", "text"), "a")]),
    ],
    ids=lambda each: str(each)[:30],
)
def test_each_text_is_of_its_choice_and_its_member(data: bytes, found: list[Any]) -> None:
    assert list(texts_of(b"data: " + data + b"\n\n")) == found
