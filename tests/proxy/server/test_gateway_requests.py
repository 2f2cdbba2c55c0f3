"""One request at the gateway: how each way in which it may end is answered, logged and given back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.access.hosts import Hosts
from proxy.config.settings import Settings
from proxy.errors import Code, GatewayError
from proxy.flights.flight import SLICE_BYTES
from proxy.flights.memory import Memory
from proxy.flights.spec import Items, Mode
from proxy.server.context import RequestContext
from proxy.wire.sse import LAST_CHUNK
from tests.kit.clock import virtual
from tests.kit.gateway_stage import BODY, CHAT, STREAM, Asked, Stage, refused
from tests.kit.wire_end import turns

REFUSED = GatewayError(Code.NOT_FOUND, "x")
FRAME = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'


@virtual
async def test_a_request_keeps_its_id_where_it_is_a_plain_one() -> None:
    stage = Stage()
    for given, kept in (("my-id", True), ("no id", False), (None, False)):
        asked = Asked("/health", b"", "GET", **({} if given is None else {"x_request_id": given}))
        assert await stage.answered(asked)
        assert (f"x-request-id: {given}".encode() in asked.sent) is kept
    assert stage.records == []  # it is no line where it is well


@virtual
async def test_each_listener_has_hosts_of_its_own() -> None:
    stage = Stage(hosts=Hosts("", ("a",)), admin_hosts=Hosts("", ("b",)))
    for host, admin, status in (("a", False, 200), ("b", False, 421), ("b", True, 200), ("a", True, 421)):
        asked = Asked("/health", b"", "GET")
        asked.host = host
        await stage.answered(asked, admin=admin)
        assert f" {status} ".encode() in asked.sent
    brought = Asked("/health", b"", "GET")
    brought.host = "x"
    brought.source = "1.2.3.4"  # type: ignore[attr-defined]
    await stage.answered(brought)
    assert b" 200 " in brought.sent
    assert [(record.status, record.error) for record in stage.records] == [(421, "host_not_allowed")] * 2


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"origin": "http://evil"}, "/health", 403),
        ({"sec_fetch_site": "cross-site"}, "/health", 403),
        ({"sec_fetch_site": "same-origin"}, "/health", 200),
        ({}, "/health", 200),
        (
            {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"},
            "/health",
            200,
        ),
        (
            {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"},
            "/v1/x",
            403,
        ),
    ],
)
@virtual
async def test_a_page_of_another_origin_may_follow_a_link_to_our_own_paths_alone(
    headers: dict[str, str], path: str, status: int
) -> None:
    stage, asked = Stage(), Asked(path, b"", "GET", **headers)
    await stage.answered(asked)
    assert f" {status} ".encode() in asked.sent
    assert stage.flights == []


@virtual
async def test_a_client_s_deadline_is_known_and_a_missed_one_told() -> None:
    stage = Stage()
    deadlines: list[float] = []

    async def slow(call: Any) -> None:
        deadlines.append(call.deadline)
        await asyncio.sleep(9.0)

    stage.answers(slow)
    asked = Asked(x_request_timeout="5")
    await stage.answered(asked)
    assert deadlines == [5.0]
    assert stage.told == [("missed", "arriving")]
    assert b"deadline_exceeded" in asked.sent
    await stage.answered(Asked())
    assert deadlines[1] == float("inf")


@pytest.mark.parametrize(
    ("error", "keeps"),
    [
        (REFUSED, True),
        (GatewayError(Code.SHUTTING_DOWN, "x"), False),
        (GatewayError(Code.BODY_TIMEOUT, "x"), False),
    ],
)
@virtual
async def test_a_refusal_says_whether_the_connection_goes_on(error: GatewayError, keeps: bool) -> None:
    stage, asked = Stage(), Asked()
    stage.answers(refused(error))
    assert await stage.answered(asked) is keeps
    assert (b"connection: close" in asked.sent) is not keeps
    (record,) = stage.records
    assert (record.status, record.error, record.client) == (error.status, error.code.code, "10.0.0.1")
    assert record.bytes_out == len(asked.sent)


@pytest.mark.parametrize(
    ("method", "expect", "whole", "keeps"),
    [
        ("POST", "100-continue", False, False),
        ("POST", "100-continue", True, True),
        ("POST", None, False, True),
        ("CONNECT", None, True, False),
    ],
)
@virtual
async def test_after_a_refusal_no_body_is_taken_for_a_request(
    method: str, expect: str | None, whole: bool, keeps: bool
) -> None:
    stage = Stage()
    asked = Asked(CHAT, BODY, method, **({} if expect is None else {"expect": expect}))
    cast(Any, asked.content).is_eof = lambda: whole
    stage.answers(refused(REFUSED))
    assert await stage.answered(asked) is keeps


@virtual
async def test_a_client_that_stalls_is_cut_and_logged_as_one_that_stalled() -> None:
    for gone in (False, True):
        stage, asked = Stage(), Asked()
        stage.answers(lambda call: TimeoutError())
        if gone:
            asked.transport = None
        with pytest.raises(ConnectionResetError, match="took nothing"):
            await stage.answered(asked)
        assert asked.aborted is not gone
        (record,) = stage.records
        assert (record.error, record.status, record.client_left) == ("client_stalled", 499, True)


@virtual
async def test_a_client_that_leaves_is_logged_as_one_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.server.outcome.ClientConnection", Asked)
    for error in (ConnectionResetError(), asyncio.CancelledError()):
        for stalled in (False, True):
            stage, asked = Stage(), Asked()
            asked.stalled = stalled
            stage.answers(refused(error))
            with pytest.raises(type(error)):
                await stage.answered(asked)
            (record,) = stage.records
            assert (record.status, record.error) == (499, "client_stalled" if stalled else None)


@virtual
async def test_who_is_cut_by_us_is_told_why_unless_it_has_left_too() -> None:
    for left in (0, 1):
        stage, asked = Stage(), Asked()
        asked.task.uncancel = lambda left=left: left

        def cut(call: Any) -> BaseException:
            call.ending = GatewayError(Code.KEY_REVOKED, "revoked")
            return asyncio.CancelledError()

        stage.answers(cut)
        if left:
            with pytest.raises(asyncio.CancelledError):
                await stage.answered(asked)
        else:
            assert await stage.answered(asked)
            assert b"key_revoked" in asked.sent
        assert stage.records[0].status == (499 if left else 401)


@virtual
async def test_a_fault_of_ours_is_told_to_the_log_and_not_to_the_client() -> None:
    stage, asked = Stage(), Asked()
    stage.answers(lambda call: ZeroDivisionError("s3cret"))
    assert await stage.answered(asked)
    assert b" 500 " in asked.sent
    assert b"s3cret" not in asked.sent
    ((level, what, at, more),) = stage.told
    assert (level, what, more["where"]) == ("error", "internal error", at)
    assert "s3cret" in more["fault"]


@virtual
async def test_what_raises_at_the_end_of_a_request_is_told_and_changes_no_answer() -> None:
    stage, asked = Stage(), Asked()
    closes: list[int] = []

    def answer(call: Any) -> None:
        def fails() -> None:
            closes.append(1)
            raise ZeroDivisionError

        call.held = SimpleNamespace(release=fails)

    stage.answers(answer)
    stage.metrics.request = lambda *facts: 1 / 0  # type: ignore[method-assign,assignment]
    assert await stage.answered(asked)
    assert [where for where, _ in stage.told] == ["the end of a request"] * 2 + ["the record of a request"]
    assert len(closes) == 2


# -- generations


@virtual
async def test_a_request_becomes_a_flight_with_its_plan() -> None:
    stage = Stage(affinity=lambda api_request, headers: 77)
    tasks = [
        stage.handle(Asked(CHAT, body, x_request_id="mine", x_gateway_priority="low")) for body in (BODY, STREAM)
    ]
    await turns()
    whole, stream = stage.flights
    for flight in (whole, stream):
        spec = flight.spec
        assert (spec.method, spec.path, spec.model, spec.affinity) == ("POST", CHAT, "m1", 77)
        assert spec.request_id != "mine"  # others may read the answer
        assert spec.key is not None
        assert (spec.fresh, spec.storable, spec.fold) == (False, True, True)
        assert (flight.queue_state.priority, flight.queue_state.merge) == (2, False)
    assert (whole.spec.mode, stream.spec.mode) == (Mode.WHOLE, Mode.STREAM)
    assert (whole.spec.usage_added, stream.spec.usage_added) == (False, True)
    assert not next(iter(stream.subscribers)).usage
    assert next(iter(whole.subscribers)).whole
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    stage.end()


@virtual
async def test_what_shares_nothing_keeps_its_id_and_sees_what_the_engine_sends() -> None:
    stage = Stage()
    task = stage.handle(Asked(CHAT, STREAM, x_gateway_share="off", x_request_id="mine"))
    await turns()
    (flight,) = stage.flights
    assert (flight.spec.request_id, flight.spec.key, flight.spec.usage_added) == ("mine", None, False)
    (reader,) = flight.subscribers
    assert (reader.usage, reader.verdict) == (True, "bypass")
    flight.frames([FRAME])
    flight.land()
    assert await task
    stage.end()


@virtual
async def test_a_twin_is_attached_and_raises_the_class_of_what_it_joins() -> None:
    stage = Stage()
    first, second = Asked(), Asked(CHAT, BODY, x_request_timeout="9")
    tasks = [stage.handle(first)]
    await turns()
    tasks.append(stage.handle(second))
    await turns()
    (flight,) = stage.flights
    assert len(flight.subscribers) == 2
    ((what, promoted, priority, deadline, _),) = stage.told
    assert (what, promoted is flight, priority, deadline) == ("promoted", True, 1, 9.0)
    flight.append_body(b"{}")
    flight.land()
    assert await asyncio.gather(*tasks) == [True, True]
    assert b"x-gateway-cache: miss" in first.sent
    assert b"x-gateway-cache: attached" in second.sent
    stage.end()


@virtual
async def test_the_age_and_the_items_of_an_answer_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.server.context.time.time", lambda: 1000.9)
    for stored, told in ((990.0, b"age: 10\r\n"), (2000.0, b"age: 0\r\n"), (None, None)):
        stage, asked = Stage(), Asked()
        task = stage.handle(asked)
        await turns()
        (flight,) = stage.flights
        flight.stored_at, flight.items = stored, Items(5, 2, 0)
        flight.append_body(b"{}")
        flight.land()
        await task
        assert b"x-gateway-cached-items: 2/5" in asked.sent
        assert (b"\r\nage: " in asked.sent) is (told is not None)
        assert told is None or told in asked.sent
        stage.end()


@virtual
async def test_a_flight_that_cannot_be_submitted_leaves_nobody_waiting() -> None:
    for path, body in ((CHAT, BODY), ("/v1/x", b"{}")):
        for error, abandoned in ((GatewayError(Code.QUEUE_FULL, "full"), 0), (ZeroDivisionError(), 1)):
            stage, asked = Stage(), Asked(path, body)

            def fails(flight: Any, error: Exception = error) -> None:
                raise error

            stage.scheduler.submit = fails
            await stage.answered(asked)
            assert (b" 503 " in asked.sent) is not bool(abandoned)
            assert [what for what, *_ in stage.told if what == "abandoned"] == ["abandoned"] * abandoned
            stage.end()


@virtual
async def test_what_passes_through_goes_up_as_it_is() -> None:
    stage = Stage(Settings(forward_authorization=True))
    asked = Asked("/v1/x", b'{"model": "m2"}', authorization="Bearer k", x_request_timeout="9")
    task = stage.handle(asked)
    await turns()
    (flight,) = stage.flights
    spec = flight.spec
    assert (spec.mode, spec.path, spec.body, spec.model, spec.key) == (
        Mode.RAW,
        "/v1/x",
        b'{"model": "m2"}',
        "m2",
        None,
    )
    assert ("authorization", "Bearer k") in spec.headers
    assert ("X-Request-Id", spec.request_id) in spec.headers
    state = flight.queue_state
    assert (state.deadline, state.latest, state.priority) == (9.0, 9.0, 1)
    assert spec.cost is not None
    (reader,) = flight.subscribers
    assert (reader.usage, reader.whole, reader.verdict) == (True, False, "bypass")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stage.end()


@virtual
async def test_a_client_that_streams_gets_one_body_where_the_engine_will_not_stream() -> None:
    stage, asked = Stage(), Asked(CHAT, STREAM)
    task = stage.handle(asked)
    await turns()
    (flight,) = stage.flights
    flight.mode = Mode.WHOLE
    flight.append_body(b'{"a": 1}')
    flight.land()
    assert await task
    assert asked.sent.endswith(b'\r\n\r\n{"a": 1}')
    assert stage.records[0].status == 200
    stage.end()


@virtual
async def test_a_large_body_is_charged_to_its_reader_where_it_is_its_own() -> None:
    for shared, size, charged in (
        (False, SLICE_BYTES, 0),
        (False, SLICE_BYTES + 1, SLICE_BYTES + 1),
        (True, SLICE_BYTES + 1, 0),
    ):
        memory = Memory(10**7)
        stage, asked = Stage(memory=memory), Asked()
        seen: list[int] = []

        async def drain(seen: list[int] = seen, memory: Memory = memory) -> None:
            seen.append(memory.kinds.get("answers", 0))

        asked.drain = drain  # type: ignore[method-assign]
        asked.write_paused = True
        call = RequestContext(request=cast(Any, asked), id="r")
        await stage.gateway.responder.send(call, 200, [], b"x" * size, shared=shared)
        assert seen[:1] == [charged]
        assert memory.held == 0
        assert call.bytes_out == len(asked.sent)


@virtual
async def test_a_body_for_which_there_is_no_memory_ends_its_connection() -> None:
    stage, asked = Stage(memory=Memory(SLICE_BYTES)), Asked()
    call = RequestContext(request=cast(Any, asked), id="r")
    with pytest.raises(ConnectionResetError, match="no memory"):
        await stage.gateway.responder.send(call, 200, [], b"x" * (SLICE_BYTES + 1))
    assert asked.aborted


@virtual
async def test_a_stream_is_written_and_counted() -> None:
    stage, asked = Stage(), Asked(CHAT, STREAM)
    task = stage.handle(asked)
    await turns()
    (flight,) = stage.flights
    flight.frames([FRAME])
    flight.land()
    assert await task
    assert asked.sent.endswith(LAST_CHUNK)
    (record,) = stage.records
    assert (record.status, record.bytes_out, record.stream, record.verdict) == (200, len(asked.sent), True, "miss")
    stage.end()


@pytest.mark.parametrize(
    ("path", "status", "logged"),
    [
        ("/health", 200, False),
        ("/ready", 200, False),
        ("/metrics", 200, False),
        ("/v1/models", 200, True),
        ("/x", 404, True),
    ],
)
@virtual
async def test_looks_of_machines_are_no_lines_of_the_log(path: str, status: int, logged: bool) -> None:
    stage, asked = Stage(), Asked(path, b"", "GET")
    await stage.answered(asked)
    assert f" {status} ".encode() in asked.sent
    assert len(stage.records) == logged
    stage.backends.ready = False
    await stage.answered(Asked("/ready", b"", "GET"))
    assert stage.records[-1].error == "no_backend"
