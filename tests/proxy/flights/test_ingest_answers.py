"""A feeder and one answer, read by read: heads, frames, ends, what is counted, and what raises at its borders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights import ingest as module
from proxy.flights.flight import FREE, Flight, Subscriber
from proxy.flights.ingest import LATE, PUT_OFF, Callbacks, Ingest, StreamLimits, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.upstream.http import KnownHead
from proxy.wire import take_event
from proxy.wire.openai import decode
from proxy.wire.sse import chunk
from tests.kit.clock import virtual

SSE = [("content-type", "text/event-stream")]
JSON = [("content-type", "application/json")]
DONE = b"data: [DONE]\n\n"


def frame(text: str = "a", finish: str = "null", index: int = 0) -> bytes:
    return b'data: {"choices":[{"index":%d,"delta":{"content":"%b"},"finish_reason":%b}]}\n\n' % (
        index, text.encode(), finish.encode()
    )  # fmt: skip


STOP = frame("", '"stop"')


class Fed:
    """A feeder of one flight, by a clock that the test sets, and how its exchange ended."""

    def __init__(
        self,
        mode: Mode = Mode.STREAM,
        *,
        limits: StreamLimits | None = None,
        body: bytes | None = None,
        flight: Callable[..., Flight] = Flight,
        method: str = "POST",
        on_head: Any = None,
        on_first: Any = None,
        vet: Any = None,
        **more: Any,
    ) -> None:
        self.now = 0.0
        self.ends: list[GatewayError | None] = []
        api_request = decode("chat", body) if body is not None else None
        spec = FlightSpec(method, "/", b"", mode, "r", **{"key": b"k", "api_request": api_request} | more)
        self.flight = flight(spec, lambda: self.now)
        self.flight.enter(Phase.CONNECTING)
        self.flight.enter(Phase.PREFILL)
        self.lost: list[float] = []
        limits = limits or StreamLimits(first_token=5.0, token=2.0, total=60.0)
        self.watch = Timeouts(limits, asyncio.get_running_loop())
        self.ingest = Ingest(self.flight, self.watch, Callbacks(self.ends.append, on_head, on_first, vet))
        self.watch.close()

    @property
    def code(self) -> Code | None:
        (end,) = self.ends
        return end.code if end is not None else None


ASKED = b'{"messages":[{"role":"user","content":"x"}]}'


@virtual
async def test_a_stream_s_frames_are_counted_timed_and_whole() -> None:
    firsts: list[int] = []
    fed = Fed(body=ASKED, on_first=lambda: firsts.append(1))
    ingest, flight = fed.ingest, fed.flight
    assert (len(fed.watch), ingest.clean, ingest.answered, ingest.held) == (1, False, False, False)
    ingest.head(200, SSE)
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
    fed.now = 1.0
    ingest.body(role)
    assert (flight.content_events, flight.times.first, firsts) == (0, None, [])
    for now, data in ((2.0, frame()), (3.0, frame("b")), (4.0, frame() + frame("c")), (5.0, STOP)):
        fed.now = now
        ingest.body(data)
    assert (flight.content_events, flight.times.first, ingest.last, firsts) == (4, 2.0, 5.0, [1])
    fed.now = 6.0
    ingest.body(DONE)
    assert (fed.ends, flight.phase, flight.times.last) == ([None], Phase.LANDED, 6.0)
    assert (ingest.clean, ingest.surplus, ingest.error_frame, len(fed.watch)) == (True, False, False, 0)
    assert b"".join(flight.log) == b"".join(
        map(chunk, [role, frame(), frame("b"), frame(), frame("c"), STOP, DONE])
    )
    ingest.body(b"more")
    ingest.end()
    ingest.lost(GatewayError(Code.UPSTREAM_TRUNCATED, "late"))
    assert (fed.ends, ingest.answered) == ([None], False)


@pytest.mark.parametrize(("data", "surplus"), [(DONE + frame(), True), (DONE + b"data: h", True), (DONE, False)])
@virtual
async def test_what_comes_after_the_end_is_noticed(data: bytes, surplus: bool) -> None:
    fed = Fed()
    fed.ingest.head(200, SSE)
    fed.ingest.body(frame() + data)
    assert (fed.ends, fed.ingest.surplus, fed.flight.log[-1]) == ([None], surplus, chunk(DONE))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([frame()], "without any finish_reason"),
        ([frame(), frame("", '"error"')], "finish_reason 'error'"),
        ([], "without any finish_reason"),
    ],
)
@virtual
async def test_a_stream_that_is_not_whole_at_its_end_fails_with_the_reason_and_has_no_done(
    frames: list[bytes], words: str
) -> None:
    fed = Fed(body=ASKED)
    spoiled: list[Flight] = []
    fed.flight.on_spoiled = spoiled.append
    fed.ingest.head(200, SSE)
    for data in [*frames, DONE]:
        fed.ingest.body(data)
    assert fed.code is Code.UPSTREAM_INCOMPLETE
    assert fed.ends[0] is not None
    assert words in fed.ends[0].message
    assert (fed.ingest.clean, fed.flight.log) == (False, [chunk(one) for one in frames])
    assert spoiled == ([fed.flight] if '"error"' in str(frames) else [])


@virtual
async def test_an_engine_that_ends_at_once_what_it_has_not_begun_says_so_before_anything_goes_out() -> None:
    for body, data, code in (
        (ASKED, frame("", '"abort"'), Code.UPSTREAM_INCOMPLETE),
        (ASKED, STOP, None),
        (None, frame("", '"abort"'), None),
    ):
        fed = Fed(body=body)
        fed.ingest.head(200, SSE)
        fed.ingest.body(data)
        assert [end and end.code for end in fed.ends] == ([code] if code else [])
        assert fed.flight.log == ([] if code else [chunk(data)])
        fed.ingest.close()


class Divided(Flight):
    divides = True


@virtual
async def test_who_divides_an_answer_gets_its_end_though_choices_lack_and_after_an_error() -> None:
    fed = Fed(body=ASKED, flight=Divided)
    fed.ingest.head(200, SSE)
    fed.ingest.body(frame() + DONE)
    assert (fed.ends, fed.ingest.clean, fed.flight.log[-1]) == ([None], False, chunk(DONE))
    for kind, last in ((Divided, DONE), (Flight, b'data: {"error":{"message":"no"}}\n\n')):
        fed, spoiled = Fed(body=ASKED, flight=kind), list[Flight]()
        fed.flight.on_spoiled = spoiled.append
        fed.ingest.head(200, SSE)
        fed.ingest.body(frame())
        fed.ingest.body(b'data: {"error":{"message":"no"}}\n\n' + DONE)
        assert (fed.ends, fed.ingest.clean, fed.ingest.error_frame) == ([None], False, True)
        assert (fed.flight.log[-1], spoiled) == (chunk(last), [fed.flight])
    fed = Fed(body=ASKED, flight=Divided)
    fed.ingest.head(200, SSE)
    fed.ingest.body(frame("", '"abort"') + DONE)
    assert fed.code is Code.UPSTREAM_INCOMPLETE


@virtual
async def test_the_framing_s_end_is_the_answer_s_only_where_it_has_no_terminal_of_its_own() -> None:
    stream, raw, cut = Fed(), Fed(Mode.RAW), Fed(Mode.WHOLE)
    stream.ingest.head(200, SSE)
    stream.ingest.body(frame())
    raw.ingest.head(200, [("content-type", "text/plain")])
    raw.ingest.body(b"abc")
    for fed in (stream, raw, cut):
        fed.ingest.end()
    assert (stream.code, raw.code, cut.code) == (Code.UPSTREAM_TRUNCATED, None, Code.UPSTREAM_TRUNCATED)
    assert [fed.ingest.answered for fed in (stream, raw, cut)] == [True] * 3
    assert (raw.flight.phase, raw.ingest.clean) == (Phase.LANDED, False)
    raw.ingest.end()
    assert raw.ends == [None]


@pytest.mark.parametrize(
    ("status", "body", "code", "clean"),
    [
        (200, b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":2}}', None, True),
        (200, b'{"choices":[]}', Code.UPSTREAM_INCOMPLETE, False),
        (200, b"no JSON", Code.UPSTREAM_PROTOCOL, False),
        (200, b'{"choices":[{"index":0,"finish_reason":"\xff"}]}', Code.UPSTREAM_PROTOCOL, False),
        (200, b'{"a":' * 100_000, Code.UPSTREAM_PROTOCOL, False),
        (400, b"no JSON", None, False),
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
@virtual
async def test_a_body_is_whole_where_it_says_so(
    status: int, body: bytes, code: Code | None, clean: bool, pieces: int
) -> None:
    fed = Fed(Mode.WHOLE, body=ASKED)
    fed.ingest.head(status, [*JSON, ("content-length", "99")])
    half = len(body) // 2
    fed.now = 3.0
    for piece in (body,) if pieces == 1 else (body[:half], body[half:]):
        fed.ingest.body(piece)
    fed.ingest.end()
    assert (fed.code, fed.ingest.clean, len(fed.ends)) == (code, clean, 1)
    if code is None:
        head = fed.flight.head
        assert head is not None
        assert (head.status, head.length) == (status, len(body))
        assert (fed.flight.times.first, fed.flight.times.last) == (3.0, 3.0)
    assert (fed.flight.usage is not None) is clean


@virtual
async def test_an_engine_that_will_not_stream_answers_one_body() -> None:
    for status, headers, mode in ((200, SSE, Mode.STREAM), (200, JSON, Mode.WHOLE), (404, SSE, Mode.WHOLE)):
        fed = Fed()
        fed.ingest.head(status, headers)
        assert fed.flight.mode is mode
        assert (fed.flight.head is not None) is (mode is Mode.STREAM)
        fed.ingest.close()
    fed = Fed(Mode.WHOLE)
    fed.ingest.head(200, SSE)
    assert (fed.flight.mode, fed.flight.head) == (Mode.WHOLE, None)
    fed.ingest.close()


@virtual
async def test_what_a_head_asks_again_for_is_not_looked_at() -> None:
    asked: list[int] = []

    def on_head(status: int, headers: list[tuple[str, str]]) -> bool:
        asked.append(status)
        return status == 503

    fed = Fed(on_head=on_head)
    fed.now = 4.0
    fed.ingest.head(503, SSE)
    assert (fed.flight.head, fed.ingest.last) == (None, 0.0)
    fed.ingest.head(200, SSE)
    assert (asked, fed.flight.head is not None, fed.ingest.last) == ([503], True, 4.0)
    fed.ingest.close()


@pytest.mark.parametrize(
    ("status", "key", "many", "passed"),
    [
        (200, b"k", False, ["content-type", "retry-after"]),
        (200, None, True, ["content-type", "retry-after"]),
        (404, b"k", False, ["content-type", "retry-after", "x-own"]),
        (200, None, False, ["content-type", "retry-after", "x-own", "set-cookie"]),
    ],
)
@virtual
async def test_which_headers_are_passed_depends_on_who_may_read_the_answer(
    status: int, key: bytes | None, many: bool, passed: list[str]
) -> None:
    names = ("content-type", "retry-after", "x-own", "set-cookie", "x-request-id", "connection", "age")
    before = tuple((name, "1") for name in names)
    known = KnownHead(status, before, ())
    known.keep((key is None and not many, None), ((), False))  # what it is to other readers is not asked
    for times in range(3):
        fed = Fed(Mode.RAW, key=key, many=many)
        fed.ingest.head(status, [*before, ("content-length", str(times))], known if times else None)
        head = fed.flight.head
        assert head is not None
        assert ([name for name, _ in head.headers], head.length) == (passed, times)
        fed.ingest.close()


@pytest.mark.parametrize(
    ("links", "passed"),
    [
        (["close"], {"content-type", "x-a", "x-b", "x-c"}),
        (["Keep-Alive, X-A"], {"content-type", "x-b", "x-c"}),
        (["x-a\t,,x-b", "x-c, content-type"], {"content-type"}),
    ],
)
@virtual
async def test_a_header_of_the_engine_s_connection_is_not_passed(links: list[str], passed: set[str]) -> None:
    known = KnownHead(200, (), ())
    headers = [("x-a", "1"), *(("connection", link) for link in links), ("content-type", "text/plain")]
    for _ in range(2):
        fed = Fed(Mode.RAW, key=None)
        fed.ingest.head(200, [*headers, ("x-b", "1"), ("x-c", "1")], known)
        assert fed.flight.head is not None
        assert {name for name, _ in fed.flight.head.headers} == passed
        fed.ingest.close()


@virtual
async def test_a_known_head_is_searched_for_each_engine_s_own_address() -> None:
    before = (("x-one", "http://one:8000/a"), ("content-type", "text/event-stream"))
    known = KnownHead(200, before, (("x-two", "http://two:8000/b"),))
    for times in range(2):
        for name, kept in (("one", "x-two"), ("two", "x-one")):
            fed = Fed(Mode.RAW, key=None)
            fed.flight.dispatched(f"http://{name}:8000", lambda hold: None)
            fed.ingest.head(200, [*before, ("content-length", str(times)), *known.after], known)
            head = fed.flight.head
            assert head is not None
            assert {header for header, _ in head.headers} == {kept, "content-type"}
            assert head.length == times
            fed.ingest.close()


@pytest.mark.parametrize(
    ("value", "length"), [("12", 12), ("1_2", None), ("-1", None), ("\u0661", None), ("", None)]
)
@virtual
async def test_a_length_is_a_number_or_none(value: str, length: int | None) -> None:
    fed = Fed(Mode.RAW)
    fed.ingest.head(200, [("content-length", value)])
    assert fed.flight.head == Head(200, (), length)
    fed.ingest.close()


@pytest.mark.parametrize(("mode", "method", "lands"), [(Mode.RAW, "HEAD", True), (Mode.RAW, "GET", False)])
@virtual
async def test_an_answer_to_a_question_for_its_head_ends_with_it(mode: Mode, method: str, lands: bool) -> None:
    fed = Fed(mode, method=method)
    fed.ingest.head(200, [("content-length", "99")])
    assert fed.flight.ended is lands
    fed.ingest.close()


@virtual
async def test_what_no_answer_is_goes_no_further() -> None:
    vetted: list[bytes] = []

    def vet(data: bytes) -> bool:
        vetted.append(data)
        return data == b"no"

    fed = Fed(Mode.RAW, vet=vet)
    fed.ingest.head(200, JSON)
    fed.ingest.body(b"no")
    assert fed.flight.size == 0
    fed.ingest.body(b"yes")
    assert (vetted, fed.flight.log) == ([b"no", b"yes"], [chunk(b"yes")])
    fed.ingest.close()
    assert not callable(getattr(fed.ingest, "vet"))  # noqa: B009 - narrowed above
    fed.ingest.body(b"late")
    assert fed.flight.log == [chunk(b"yes")]


@virtual
async def test_comments_set_no_clock_and_reach_who_reads_along_once_there_is_an_answer() -> None:
    fed = Fed()
    got: list[bytes] = []

    class Pipe:
        def write(self, data: bytes | memoryview) -> bool:
            got.append(bytes(data))
            return True

    reader = Subscriber(fed.flight, pipe=Pipe())
    fed.flight.subscribers.add(reader)
    fed.ingest.head(200, SSE)
    fed.now = 1.0
    fed.ingest.body(b": before\n\n")
    assert (got, fed.ingest.last) == ([], 0.0)
    fed.ingest.body(frame())
    fed.now = 2.0
    fed.ingest.body(b": while\n\n")
    assert (fed.ingest.last, got) == (1.0, [chunk(frame()), chunk(b": while\n\n")])
    fed.ingest.body(b": with\n\n" + frame("b"))
    assert (fed.ingest.last, got[2:]) == (2.0, [chunk(b": with\n\n"), chunk(frame("b"))])
    fed.now = 3.0
    fed.ingest.body(b"data: hal")
    assert fed.ingest.last == 3.0, "it speaks"
    fed.ingest.close()
    raw = Fed(Mode.RAW)
    raw.ingest.head(200, SSE)
    for now, data, last in ((1.0, b": a\n\n", 0.0), (2.0, b": a\n\ndata: b\n\n", 2.0), (3.0, b"x", 3.0)):
        raw.now = now
        raw.ingest.body(data)
        assert (raw.ingest.last, raw.flight.times.first) == (last, None if now < 2.0 else 2.0)
    raw.ingest.close()


@virtual
async def test_a_frame_over_its_bound_fails_after_what_came_before_it() -> None:
    fed = Fed(limits=StreamLimits(frame=200))
    fed.ingest.head(200, SSE)
    fed.ingest.body(frame())
    fed.ingest.body(b"data: " + b"x" * 300)
    assert (len(fed.ends), fed.flight.log) == (1, [chunk(frame())])
    assert fed.code is not None


@pytest.mark.parametrize("bound", [10, FREE + 10])
@virtual
async def test_a_log_may_hold_as_much_as_is_set_and_not_a_byte_more(bound: int) -> None:
    fed = Fed(Mode.WHOLE, limits=StreamLimits(flight=bound))
    fed.ingest.head(200, JSON)
    fed.ingest.body(b"x" * bound)
    assert fed.ends == []
    fed.ingest.body(b"x")
    assert fed.code is Code.UPSTREAM_TOO_LARGE


@virtual
async def test_one_who_cannot_be_told_of_the_end_is_told_again() -> None:
    words: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: words.append(context["message"]))
    fed, told = Fed(Mode.RAW), list[GatewayError | None]()

    def on_done(error: GatewayError | None) -> None:
        told.append(error)
        if len(told) == 1:
            raise ZeroDivisionError

    fed.ingest = Ingest(fed.flight, fed.watch, Callbacks(on_done))
    fed.ingest.lost(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    assert (len(told), told[0] is told[1], words) == (2, True, ["the end of an exchange"])
    fed.watch.close()


@virtual
async def test_time_that_our_own_process_lost_is_no_engine_s_but_the_whole_answer_s_time_is_over() -> None:
    limits = StreamLimits(first_token=5.0, token=2.0, total=60.0)
    fed, since = Fed(limits=limits), list[float]()

    def lost(moment: float) -> float:
        since.append(moment)
        return 3.0

    fed.watch.lost = lost
    for now, ends in ((4.9, 0), (7.9, 0), (8.0, 1)):
        fed.now = now
        fed.ingest.look()
        assert len(fed.ends) == ends
    assert (fed.code, since) == (Code.UPSTREAM_FIRST_TOKEN_TIMEOUT, [0.0, 0.0])
    assert fed.ends[0] is not None
    assert fed.ends[0].message == "The engine sent no token within 5 s."
    fed.ingest.look()
    assert len(fed.ends) == 1
    for now, began in ((61.9, True), (60.0, False)):
        fed = Fed(limits=limits)
        fed.watch.lost = lost
        fed.ingest.head(200, SSE)
        fed.ingest.body(frame())
        if began:
            fed.now = 59.0
            fed.ingest.body(frame("b"))
        else:
            fed.ingest.hold(True)
        fed.now = now
        fed.ingest.look()
        assert fed.code is Code.UPSTREAM_TOTAL_TIMEOUT
        assert fed.ends[0] is not None
        assert fed.ends[0].message == "The engine did not complete the answer within 60 s."
    fed = Fed(limits=limits)
    fed.ingest.head(200, SSE)
    fed.now = 1.0
    fed.ingest.body(frame())
    fed.now = 3.0
    fed.ingest.look()
    assert fed.code is Code.UPSTREAM_TOKEN_TIMEOUT
    assert fed.ends[0] is not None
    assert fed.ends[0].message == "The engine sent nothing for 2 s."


class Timers:
    """A loop that only sets timers, by a clock of the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> Any:
        when = self.now + delay
        self.calls.append((delay, call))
        timers = self

        class Handle:
            def when(self) -> float:
                return when

            def cancel(self) -> None:
                timers.calls.append((-1.0, lambda: None))

        return Handle()


class Looked:
    def __init__(self) -> None:
        self.looks = 0

    def look(self) -> None:
        self.looks += 1


@pytest.mark.parametrize(("late", "looks"), [(0.0, [1, 2]), (LATE - 0.01, [1, 2]), (LATE + 0.01, [0, 1])])
def test_a_tick_that_is_late_is_put_off_once(late: float, looks: list[int]) -> None:
    timers, one = Timers(), Looked()
    watch = Timeouts(StreamLimits(), timers)  # type: ignore[arg-type]
    watch.add(one)  # type: ignore[arg-type]
    delays, counts = [timers.calls[0][0]], []
    for _ in range(2):
        delay, call = timers.calls[-1]
        timers.now += delay + late
        call()
        counts.append(one.looks)
        delays.append(timers.calls[-1][0])
    assert (counts, delays) == (looks, [1.0, PUT_OFF if looks[0] == 0 else 1.0, 1.0])
    delay, call = timers.calls[-1]
    timers.now += delay + late
    call()
    assert one.looks == looks[1] + (looks[0] == 1), "and one that is late after that is put off too"


@pytest.mark.parametrize(
    ("limits", "every"),
    [
        (StreamLimits(0.0, 0.0, 5.0), 0.5),
        (StreamLimits(3.0, 0.0, 0.0), 0.3),
        (StreamLimits(0.0, 4.0, 900.0), 0.4),
        (StreamLimits(), 1.0),
    ],
)
def test_how_often_the_clocks_are_looked_at(limits: StreamLimits, every: float) -> None:
    timers = Timers()
    watch = Timeouts(limits, timers)  # type: ignore[arg-type]
    watch.add(Looked())  # type: ignore[arg-type]
    assert [delay for delay, _ in timers.calls] == [pytest.approx(every)]
    assert watch.lost(0.0) == 0.0
    watch.close()
    watch.close()
    assert [delay for delay, _ in timers.calls] == [pytest.approx(every), -1.0]


@virtual
async def test_once_no_whole_answer_is_possible_later_events_are_only_searched_for_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[bytes] = []

    def noted(frame: bytes, *arguments: Any, **options: Any) -> Any:
        taken.append(frame)
        return take_event(frame, *arguments, **options)

    monkeypatch.setattr(module, "take_event", noted)
    fed = Fed(body=ASKED)
    fed.ingest.head(200, SSE)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'
    fed.ingest.body(frame("x") + b"data: 1\n\n" * 100 + STOP + usage + DONE)
    assert taken == [b"data: 1\n\n", STOP]
    assert fed.flight.usage is not None
    assert fed.flight.usage.completion_tokens == 4
    assert (fed.code, fed.ingest.clean) == (None, False)
