"""An ended exchange to a record: bytes under any cutting, times or intervals, and one failure at most."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.drive.capture import decode as reading
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.decode import MAX_DETAIL, answer_of, decode_exchange
from loadgen.drive.capture.exchange import Exchange
from loadgen.record import GENERATED, Kind, Record
from loadgen.spec import Endpoint

MS = 1_000_000
DONE = b"data: [DONE]\n\n"


def sse(**message: Any) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"


def delta(*, finish: str | None = None, **fields: Any) -> bytes:
    return sse(choices=[{"index": 0, "delta": fields, "finish_reason": finish}])


USAGE = sse(
    choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
)
STREAM = (
    delta(role="assistant", content="") + delta(content="a") + delta(content="b", finish="stop") + USAGE + DONE
)


class Still(Clock):
    """Both clocks are one, and the run began at 0."""

    def __init__(self) -> None:
        super().__init__(lambda: 0, lambda: 0)


def exchange(
    *parts: bytes, complete: bool = True, stream: bool = True, status: int = 200, **more: Any
) -> Exchange:
    """One part per read: read number i is stamped i+1 ms, and in hand 0.1 ms later."""
    made = Exchange(Record(index=0, id="x", prompt="p", due_ns=0, stream=stream))
    made.status, made.complete = status, complete
    made.content_type = "text/event-stream" if stream else "application/json"
    for i, part in enumerate(parts, 1):
        if part:
            made.parts.append(part)
        made.size += len(part)
        made.add_read(i * MS, i * MS + MS // 10, 0)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def kinds(record: Record) -> list[Kind]:
    return [event.kind for event in record.events]


ALL = [Kind.ROLE, Kind.CONTENT, Kind.CONTENT, Kind.USAGE, Kind.DONE]


def test_a_stream_gives_its_events_its_usage_and_no_failure() -> None:
    record = decode_exchange(exchange(STREAM), Still())
    assert kinds(record) == ALL
    assert record.failure is None
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (7, 2, 3)
    assert record.bytes_in == len(STREAM)


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_no_cutting_of_the_bytes_changes_what_they_say(cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), len(STREAM)]
    parts = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    record = decode_exchange(exchange(*parts), Still())
    assert kinds(record) == ALL
    assert record.failure is None
    ends = [event.at_ns for event in record.events]
    assert ends == sorted(ends)


def test_events_split_at_every_byte_are_each_stamped_by_their_last_byte() -> None:
    record = decode_exchange(exchange(*(STREAM[i : i + 1] for i in range(len(STREAM)))), Still())
    assert kinds(record) == ALL
    assert record.events[0].at_ns == len(delta(role="assistant", content="")) * MS
    assert all(event.low_ns == event.at_ns for event in record.events)


@pytest.mark.parametrize(
    "body",
    [
        STREAM.replace(b"\n", b"\r\n"),
        STREAM.replace(b"data: ", b"data:"),
        b": keep-alive\n\n" + STREAM,
        b"\xef\xbb\xbf" + STREAM,
        STREAM.replace(b"data: [DONE]", b"event: x\ndata: [DONE]"),
    ],
    ids=["CRLF", "no space", "comment", "BOM", "event field"],
)
def test_every_spelling_of_the_same_stream_is_read(body: bytes) -> None:
    record = decode_exchange(exchange(body), Still())
    assert [kind for kind in kinds(record) if kind is not Kind.OTHER] == ALL
    assert record.failure is None


# Times


def test_an_event_that_ends_a_read_is_exact_and_one_before_it_is_an_interval() -> None:
    one, two = delta(content="a"), delta(content="b")
    record = decode_exchange(exchange(one, two + one + two, DONE), Still())
    first, second, third, fourth, _ = record.events
    assert (first.low_ns, first.at_ns) == (MS, MS)
    assert (second.low_ns, second.at_ns) == (third.low_ns, third.at_ns) == (MS, 2 * MS)
    assert (fourth.low_ns, fourth.at_ns, fourth.user_ns) == (2 * MS, 2 * MS, 2 * MS + MS // 10)


def test_merged_events_never_get_a_gap_of_zero_without_being_marked() -> None:
    record = decode_exchange(exchange(b"", delta(content="a") * 5, DONE), Still())
    generated = [event for event in record.events if event.kind in GENERATED]
    assert [event.low_ns < event.at_ns for event in generated] == [True] * 4 + [False]


def test_what_the_loop_had_looked_for_and_not_found_bounds_the_interval() -> None:
    made = exchange()
    for part, at, nothing in ((delta(content="a"), 1, 0), (delta(content="b") + DONE, 9, 7)):
        made.parts.append(part)
        made.size += len(part)
        made.add_read(at * MS, at * MS, nothing * MS)
    record = decode_exchange(made, Still())
    assert (record.events[1].low_ns, record.events[1].at_ns) == (7 * MS, 9 * MS)


def test_without_the_kernels_stamp_the_programs_time_counts() -> None:
    made = exchange()
    made.parts.append(STREAM)
    made.size = len(STREAM)
    made.add_read(0, 5 * MS, 0)
    record = decode_exchange(made, Still())
    assert record.events[-1].at_ns == record.events[-1].user_ns == record.end_ns == 5 * MS


def test_a_stamp_after_the_bytes_were_in_hand_is_cut_back_to_when_they_were() -> None:
    made = exchange()
    made.parts.append(STREAM)
    made.size = len(STREAM)
    made.add_read(5 * MS + 900, 5 * MS, 0)
    assert decode_exchange(made, Still()).events[-1].at_ns == 5 * MS


def test_the_kernels_send_time_counts_and_else_the_programs() -> None:
    assert decode_exchange(exchange(STREAM, wrote_ns=500, tx_ns=700), Still()).sent_ns == 700
    record = decode_exchange(exchange(STREAM, wrote_ns=500), Still())
    assert (record.sent_ns, record.write_ns) == (500, 500)
    record = decode_exchange(exchange(STREAM, wrote_ns=500, last_write_ns=600), Still())
    assert (record.sent_ns, record.write_ns) == (600, 500)


# Tokens


def test_continuous_usage_counts_each_events_tokens() -> None:
    body = b"".join(
        sse(choices=[{"index": 0, "delta": {"content": "x"}}], usage={"prompt_tokens": 1, "completion_tokens": n})
        for n in (1, 4, 5)
    )
    record = decode_exchange(exchange(body + DONE), Still())
    assert [event.tokens for event in record.events] == [1, 3, 1, None]
    assert record.completion_tokens == 5


def test_usage_that_begins_late_is_not_taken_for_one_events_tokens() -> None:
    body = delta(content="a") + sse(
        choices=[{"index": 0, "delta": {"content": "b"}}], usage={"completion_tokens": 9}
    )
    record = decode_exchange(exchange(body + DONE), Still())
    assert [event.tokens for event in record.events] == [None, None, None]


def test_several_choices_in_a_chunk_are_several_events() -> None:
    body = sse(choices=[{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}])
    record = decode_exchange(exchange(body + DONE), Still())
    assert [(event.kind, event.choice) for event in record.events[:2]] == [(Kind.CONTENT, 0), (Kind.CONTENT, 1)]


def usage(completion: int) -> bytes:
    return sse(choices=[], usage={"prompt_tokens": 7 if completion else 0, "completion_tokens": completion})


@pytest.mark.parametrize(
    ("usages", "counts"),
    [
        (usage(2) + usage(0), (7, 2)),
        (usage(0) + usage(2), (7, 2)),
        (usage(0), (0, None)),
    ],
)
def test_a_usage_of_0_is_no_count_of_content_and_replaces_none(
    usages: bytes, counts: tuple[int, int | None]
) -> None:
    """Requests with content and a usage of 0 were not among those without usage, and lowered the mean length."""
    record = decode_exchange(exchange(delta(content="a", finish="stop") + usages + DONE), Still())
    assert (record.failure, record.prompt_tokens, record.completion_tokens) == (None, *counts)


def test_an_answer_without_content_has_0_tokens() -> None:
    record = decode_exchange(exchange(delta(finish="stop") + usage(0) + DONE), Still())
    assert (record.failure, record.completion_tokens) == (None, 0)


def test_missing_usage_is_no_failure_and_no_count() -> None:
    record = decode_exchange(exchange(delta(content="a", finish="stop") + DONE), Still())
    assert record.failure is None
    assert record.completion_tokens is None


# Failures


@pytest.mark.parametrize(
    ("body", "failure", "said"),
    [
        (
            delta(content="a") + sse(error={"message": "engine died", "code": 500}) + DONE,
            "error_frame",
            "engine died",
        ),
        (delta(content="a") + b'event: error\ndata: {"detail":1}\n\n', "error_frame", "detail"),
        (delta(content="a"), "truncated", "without [DONE]"),
        (delta(content="a") + DONE, "truncated", "0 of 1 choices"),
        (delta(content="a") + delta(finish="abort") + DONE, "aborted", "finish_reason 'abort'"),
        (delta(content="a", finish="error") + delta(finish="stop") + DONE, "aborted", "finish_reason 'error'"),
        (
            delta(content="a", finish="stop") + sse(choices=[{"index": 1, "delta": {"content": "b"}}]) + DONE,
            "truncated",
            "1 of 2 choices",
        ),
        (delta(content="a") + b"data: {nonsense\n\n" + DONE, "garbage", "not a message"),
        (b"<html>hello</html>", "garbage", "not an event stream"),
        (b"data: [DONE]\n\n", "garbage", "without any choice"),
        (b"", "garbage", "empty body"),
    ],
    ids=[
        "error frame",
        "error event",
        "no DONE",
        "no reason",
        "abort",
        "error",
        "half",
        "broken JSON",
        "HTML",
        "DONE alone",
        "empty",
    ],
)
def test_a_200_that_is_no_answer_is_a_failure(body: bytes, failure: str, said: str) -> None:
    record = decode_exchange(exchange(body), Still())
    assert record.failure == failure
    assert said in record.detail


def test_a_huge_event_is_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_EVENT", 1000)
    record = decode_exchange(exchange(delta(content="a") + delta(content="x" * 2000) + DONE), Still())
    assert record.failure == "garbage"
    assert "larger than 1000 bytes" in record.detail
    assert kinds(record)[0] is Kind.CONTENT


def test_what_came_before_a_cut_is_kept() -> None:
    record = decode_exchange(exchange(delta(content="a") + b"data: {", complete=False), Still())
    assert (record.failure, kinds(record)) == ("truncated", [Kind.CONTENT])


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503, 302])
def test_another_status_is_the_failure_and_its_body_the_words(status: int) -> None:
    body = json.dumps({"error": {"message": "no such model", "type": "x"}}).encode()
    record = decode_exchange(exchange(body, status=status), Still())
    assert (record.failure, record.status, record.detail) == ("status", status, f"{status}: no such model")
    assert record.events == []


def test_secrets_that_a_server_repeats_are_masked() -> None:
    body = json.dumps({"error": {"message": "bad key sk-123"}}).encode()
    record = decode_exchange(exchange(body, status=401), Still(), lambda text: text.replace("sk-123", "***"))
    assert record.detail == "401: bad key ***"


KEY = "sk-" + "k" * 40


@pytest.mark.parametrize("before", range(MAX_DETAIL + 40, 40, -7))
@pytest.mark.parametrize("endpoint", ["chat", "messages"])
def test_no_cut_leaves_a_part_of_a_secret(before: int, endpoint: Endpoint) -> None:
    """A key that was cut at 200 bytes was not found, and not hidden."""
    text = ("x" * before + KEY).encode()
    refused = exchange()
    refused.fail("refused", text.decode())
    for made in (
        exchange(text, status=500),
        exchange(text),
        exchange(text, stream=False),
        exchange(b"data: %b\n\n" % text),
        exchange(b"event: error\ndata: {}%b\n\n" % text),
        refused,
    ):
        record = decode_exchange(made, Still(), lambda said: said.replace(KEY, "***"), endpoint=endpoint)
        assert record.failure is not None
        assert "kk" not in record.detail


def test_a_json_body_where_a_stream_was_asked_for_is_garbage_or_the_error_it_is() -> None:
    whole = exchange(b'{"choices":[{"index":0,"message":{"content":"x"}}]}', content_type="application/json")
    assert decode_exchange(whole, Still()).failure == "garbage"
    error = exchange(b'{"error":{"message":"overloaded"}}', content_type="application/json")
    assert decode_exchange(error, Still()).failure == "error_frame"


@pytest.mark.parametrize(
    "odd",
    [
        delta(content="a").replace(b'"a"', b'"\\ud83d"') + delta(content="b").replace(b'"b"', b'"\\ude00"'),
        sse(choices=[{"index": 0, "delta": {"content": "a"}, "logprobs": float("nan")}]),
        sse(choices=[], usage={"prompt_tokens": 7.0, "completion_tokens": 2.0}),
        sse(choices=[{"index": 0, "delta": {"content": "a"}}], error=""),
    ],
    ids=["halves of an emoji", "NaN", "5.0", "empty error"],
)
def test_what_most_clients_read_is_read(odd: bytes) -> None:
    record = decode_exchange(exchange(odd + STREAM), Still())
    assert (record.failure, record.completion_tokens) == (None, 2), record.detail


HALF = b'"half \\ud83d of it"'


@pytest.mark.parametrize(
    ("body", "more", "failure"),
    [
        (b'{"error":{"message":%b}}' % HALF, {"status": 500}, "status"),
        (b'{"error":{"message":%b}}' % HALF, {"content_type": "application/json"}, "error_frame"),
        (b'data: {"error":{"message":%b}}\n\n' % HALF + DONE, {}, "error_frame"),
        (b'data: {"choices":[{"index":0,"delta":{},"finish_reason":%b}]}\n\n' % HALF + DONE, {}, "aborted"),
        (delta(content="x").replace(b'"x"', HALF) + STREAM, {}, None),
        (delta(reasoning="x").replace(b'"x"', HALF) + STREAM, {}, None),
        (STREAM, {"shared": "m\udcff"}, None),
        (b'{"choices":[{"message":{"content":%b},"finish_reason":"stop"}]}' % HALF, {"stream": False}, None),
    ],
)
def test_no_text_of_a_server_is_one_that_no_file_can_hold(
    body: bytes, more: dict[str, Any], failure: str | None
) -> None:
    """One such message ended the whole run."""
    made = exchange(body, **more)
    record = decode_exchange(made, Still(), keep_answer=True)
    assert record.failure == failure
    assert msgspec.json.encode(record)
    assert (answer_of(made, "chat") or "").encode() is not None


def test_the_halves_of_an_emoji_are_one_character_of_the_answer() -> None:
    halves = delta(content="x").replace(b'"x"', b'"\\ud83d"') + delta(content="y").replace(b'"y"', b'"\\ude00"')
    record = decode_exchange(exchange(halves + STREAM), Still(), keep_answer=True)
    assert record.answer == "\U0001f600ab"


# Whole bodies


def test_a_whole_body_is_one_event() -> None:
    body = (
        b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    )
    record = decode_exchange(exchange(body[:20], body[20:], stream=False), Still())
    assert [(event.kind, event.at_ns) for event in record.events] == [(Kind.WHOLE, 2 * MS)]
    assert (record.failure, record.completion_tokens) == (None, 2)


def test_embeddings_are_a_whole_body() -> None:
    body = b'{"object":"list","data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":4,"total_tokens":4}}'
    record = decode_exchange(exchange(body, stream=False), Still())
    assert (record.failure, record.prompt_tokens, kinds(record)) == (None, 4, [Kind.WHOLE])


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"not json", "garbage"),
        (b"{}", "garbage"),
        (b'{"error":"x"}', "error_frame"),
        (b'{"choices":[{"message":{"content":"x"},"finish_reason":"abort"}]}', "aborted"),
        (b'{"choices":[{"message":{"content":"x"},"finish_reason":null}]}', "truncated"),
    ],
)
def test_a_whole_body_that_is_no_answer_is_a_failure(body: bytes, failure: str) -> None:
    assert decode_exchange(exchange(body, stream=False), Still()).failure == failure


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_any_bytes_at_all_give_a_record(body: bytes, stream: bool, complete: bool) -> None:
    record = decode_exchange(exchange(body, stream=stream, complete=complete), Still())
    assert record.failure is not None or kinds(record)


@pytest.mark.parametrize(
    ("metrics", "times"),
    [
        ({"queue_time_ms": 4.5, "time_to_first_token_ms": 30, "mean_itl_ms": 9}, (4.5, 30)),
        ({"time_to_first_token_ms": 30}, (None, 30)),
        ({"queue_time_ms": "soon"}, (None, None)),
        (["of another engine"], (None, None)),
        (None, (None, None)),
    ],
)
def test_the_engines_own_times_are_kept_where_it_tells_them(
    metrics: object, times: tuple[float | None, float | None]
) -> None:
    last = sse(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 1}, metrics=metrics)
    record = decode_exchange(exchange(delta(content="b", finish="stop") + last + DONE), Still())
    assert record.failure is None
    assert (record.engine_queue_ms, record.engine_prefill_ms) == times
