"""What is said again and again: some lines a second of each kind, and every other one is counted and told of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.repeats import MAX_KINDS, OFTEN, SECONDS, LeftOut, Repeats


def test_so_many_lines_a_second_are_written_and_the_next_one_tells_of_the_rest() -> None:
    repeats = Repeats()
    assert [repeats.ask("info", "x", "", 0.0) for _ in range(OFTEN + 3)] == [0] * OFTEN + [None] * 3
    assert repeats.due == 1.0
    assert repeats.ask("info", "x", "", 1.0) == 3
    assert repeats.over(5.0) == []
    assert repeats.due is None


def test_where_none_comes_any_more_the_end_of_the_second_tells_of_the_rest() -> None:
    repeats = Repeats()
    for _ in range(OFTEN + 2):
        repeats.ask("error", "x", "", 0.5)
    assert repeats.over(1.4) == []
    assert repeats.due == 1.5
    assert repeats.over(1.5) == [LeftOut("error", "x", 2)]
    assert repeats.over(9.0) == []


def test_one_kind_takes_no_line_from_another() -> None:
    repeats = Repeats()
    for _ in range(100):
        repeats.ask("info", "x", "a", 0.0)
    assert repeats.ask("info", "x", "b", 0.0) == 0
    assert repeats.ask("info", "y", "a", 0.0) == 0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1000), st.floats(0, 2)), max_size=300))
def test_every_line_is_written_or_told_of_once_and_kinds_are_bounded(
    asked: list[tuple[str, int, float]],
) -> None:
    repeats, now, told, written = Repeats(), 0.0, 0, 0
    for msg, like, pause in asked:
        now += pause * (like % 3 == 0)
        answer = repeats.ask("info", msg, like, now)
        written += answer is not None
        told += (answer or 0) + sum(one.lines for one in repeats.over(now))
        assert len(repeats) <= MAX_KINDS + 2
    told += sum(one.lines for one in repeats.over(now + 1))
    assert written + told == len(asked)
    assert repeats.due is None


def test_kinds_of_a_second_that_is_over_make_room_for_new_ones() -> None:
    repeats = Repeats()
    for n in range(MAX_KINDS):
        repeats.ask("info", "x", n, 0.0)
    for like in "ab":
        assert [repeats.ask("info", "new", like, 5.0) for _ in range(OFTEN)] == [0] * OFTEN
    assert len(repeats) == 2


def test_at_the_end_of_its_second_a_kind_begins_anew_and_what_was_left_out_is_told() -> None:
    repeats = Repeats()
    for now in (0.0, 0.9):
        for _ in range(OFTEN):
            repeats.ask("info", "x", "", now)
    assert repeats.due == SECONDS
    assert repeats.ask("info", "x", "", 0.999) is None
    assert repeats.ask("info", "x", "", SECONDS) == OFTEN + 1
    assert [repeats.ask("info", "x", "", SECONDS) for _ in range(OFTEN)] == [0] * (OFTEN - 1) + [None]
    assert repeats.over(2 * SECONDS - 0.001) == []
    assert repeats.due == 2 * SECONDS
    assert repeats.over(2 * SECONDS) == [LeftOut("info", "x", 1)]
    assert repeats.due is None


def test_the_earliest_end_of_a_second_is_when_there_is_something_to_say() -> None:
    repeats = Repeats()
    for now, msg in ((0.0, "first"), (0.5, "second")):
        for _ in range(OFTEN + 1):
            repeats.ask("info", msg, "", now)
    assert repeats.due == 1.0
    assert [one.msg for one in repeats.over(1.0)] == ["first"]
    assert repeats.due == 1.5
    for _ in range(OFTEN + 1):
        repeats.ask("error", "third", "", 1.2)
    assert repeats.due == 1.5
    assert [(one.level, one.msg, one.lines) for one in repeats.over(9.0)] == [
        ("info", "second", 1),
        ("error", "third", 1),
    ]


def test_over_the_bound_more_of_one_message_are_one_kind_until_there_is_room() -> None:
    repeats = Repeats()
    for n in range(MAX_KINDS):
        assert repeats.ask("info", "x", n, 0.0) == 0
    assert len(repeats) == MAX_KINDS
    answers = [repeats.ask("info", "x", f"more {n}", 0.5) for n in range(OFTEN + 2)]
    assert answers == [0] * OFTEN + [None] * 2, "they are told apart no more"
    assert len(repeats) == MAX_KINDS + 1
    assert repeats.ask("info", "y", "other", 0.5) == 0
    assert repeats.ask("info", "x", "later", 1.2) == 0
    assert len(repeats) <= 3, "what is over makes room, but for what is still to be told"
    assert [one.lines for one in repeats.over(9.0)] == [2]
