"""What conversations, cancelled requests, models and an `ab`'s answers come to, from records alone."""

from __future__ import annotations

from typing import Any

from loadgen.analysis.definitions import measure
from loadgen.analysis.loads import Loads, loads_of
from loadgen.record import Event, Failure, Kind, Record

MS = 1_000_000


def record(index: int, failure: Failure | None = None, *, tokens: int = 3, **more: Any) -> Record:
    events = [Event((10 + n) * MS, (10 + n) * MS, (10 + n) * MS, Kind.CONTENT) for n in range(tokens)]
    return Record(
        index=index, id=str(index), prompt="p", due_ns=0, sent_ns=MS, end_ns=20 * MS, failure=failure,
        events=events, prompt_tokens=7, completion_tokens=tokens, **more,
    )  # fmt: skip


def loads(*records: Record) -> Loads:
    return loads_of([measure(each) for each in records])


def turn(name: str, number: int, of: int = 2, failure: Failure | None = None) -> Record:
    return record(number, failure, conversation=name, turn=number, turns=of)


def test_a_conversation_ends_in_one_of_four_ways() -> None:
    told = loads(
        *(turn("whole", 1), turn("whole", 2)),
        turn("failed", 1, failure="status"),
        *(turn("left", 1), turn("left", 2, 3, failure="left")),
        turn("cut", 1, 4),
        turn("cut too", 1, failure="cancelled"),
    ).conversations
    assert told is not None
    assert (told.begun, told.completed, told.failed, told.left, told.cut) == (5, 1, 1, 1, 2)
    assert told.not_sent == 0 + 1 + 0 + 3 + 1
    assert {row: (part.requests, part.completed) for row, part in told.turns.items()} == {"1": (5, 3), "2": (2, 1)}
    assert told.turns["1"].input_tokens == 7


def test_turns_beyond_the_twentieth_are_one_row_and_rows_are_in_order() -> None:
    told = loads(*(turn("long", number, 30) for number in range(1, 31))).conversations
    assert told is not None
    assert list(told.turns) == [*map(str, range(1, 21)), "21+"]
    assert told.turns["21+"].requests == 10


def test_a_request_left_after_tokens_has_the_latencies_it_reached() -> None:
    reached = measure(record(0, "left", cancel="tokens"))
    assert reached.ttft is not None
    assert reached.itl is not None
    assert (reached.ttft.value, list(reached.itl.values), reached.e2e, reached.tpot) == (
        9.0,
        [1.0, 1.0],
        None,
        None,
    )
    timed = measure(record(0, "left", cancel="time"))
    assert (timed.ttft, timed.itl, timed.e2e) == (None, None, None)
    assert reached.cancelled
    assert not reached.completed


def test_the_chosen_are_told_apart_by_how_they_ended() -> None:
    told = loads(
        record(0, "left", cancel="tokens"),
        record(1, cancel="tokens"),
        record(2, "status", cancel="tokens", tokens=0),
        record(3),
    ).cancellations
    assert told is not None
    assert (told.chosen, told.left, told.completed, told.failed, told.reached_first_token) == (3, 1, 1, 1, 1)
    assert loads(record(0)).cancellations is None


def test_each_model_has_its_part() -> None:
    told = loads(record(0, model="b"), record(1, model="a"), record(2, "status", model="a")).models
    assert {name: (part.requests, part.completed) for name, part in told.items()} == {"a": (2, 1), "b": (1, 1)}
    assert loads(record(0)).models == {}


def pair(number: int, a: str | None, b: str | None) -> list[Record]:
    return [
        record(2 * number, target="a", pair=number, answer=a),
        record(2 * number + 1, target="b", pair=number, answer=b),
    ]


def test_the_first_difference_is_shown_with_what_is_around_it() -> None:
    told = loads(
        *pair(0, "same", "same"), *pair(1, "x" * 100 + "left", "x" * 100 + "right"), *pair(2, "", None)
    ).answers
    assert told is not None
    assert (told.compared, told.identical, told.differing, told.share) == (2, 1, 1, 0.5)
    assert (told.first_pair, told.at) == (1, 100)
    assert told.a.endswith("left")
    assert told.b.endswith("right")
    assert told.a[:30] == told.b[:30] == "x" * 30


def test_an_answer_that_goes_on_differs_where_the_other_ends() -> None:
    told = loads(*pair(0, "abc", "abcdef")).answers
    assert told is not None
    assert told.at == 3
