"""Lines that wait for a slow reader: bounded, in order, and no client's for another's sake."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.fair_lines import SHARES, FairLines


def test_the_heaviest_loses_its_newest_lines_first() -> None:
    lines = FairLines(100)
    assert [lines.put(b"h%08d\n" % n, 1) for n in range(10)] == [[]] * 10
    assert lines.put(b"h-toomany\n", 1) == [b"h-toomany\n"]
    assert lines.put(b"light 1..\n", 2) == [b"h%08d\n" % 9]
    assert lines.put(b"light 2..\n", 3) == [b"h%08d\n" % 8]
    told = lines.take(1000)
    assert told == [*(b"h%08d\n" % n for n in range(8)), b"light 1..\n", b"light 2..\n"]
    assert lines.size == 0


def test_a_line_that_never_fits_costs_nobody_else() -> None:
    lines = FairLines(100)
    lines.put(b"small\n", 1)
    assert lines.put(b"x" * 101, 2) == [b"x" * 101]
    assert lines.take(1) == [b"small\n"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=80), st.integers(1, 200))
def test_every_line_is_kept_or_told_as_gone_and_order_holds(puts: list[tuple[int, int]], most: int) -> None:
    lines = FairLines(most)
    gone, taken, put = [], [], []
    for n, (owner, size) in enumerate(puts):
        line = b"%06d" % n + b"." * size
        put.append(line)
        gone += lines.put(line, owner)
        assert lines.size <= most
        if n % 7 == 6:
            taken += lines.take(30)
    taken += lines.take(10**6)
    assert taken == sorted(taken)
    assert sorted(taken + gone) == put


@given(st.integers(2, SHARES - 1), st.integers(1, 50))
def test_each_of_several_keeps_an_equal_share_whatever_one_sends(owners: int, flood: int) -> None:
    lines = FairLines(owners * 100)
    for n in range(10 * owners + flood):
        lines.put(b"%09d\n" % n, 0)
    for owner in range(1, owners):
        for _ in range(9):
            assert b"light" not in b"".join(lines.put(b"light %02d.\n" % owner, owner))


def test_a_line_makes_room_only_where_its_owner_stays_lighter_than_the_heaviest() -> None:
    for size, gone in ((9, b"h2......\n"), (18, b"h2......\n"), (27, None)):
        lines = FairLines(30)
        for n in range(3):
            assert lines.put(b"h%d......\n" % n, 1) == []
        line = b"x" * size
        assert lines.put(line, 2)[:1] == [gone or line]
        assert lines.size <= 30


def test_of_equals_the_newest_line_goes() -> None:
    lines = FairLines(20)
    assert [lines.put(b"%09d\n" % n, n) for n in range(2)] == [[], []]
    assert lines.put(b"third....\n", 2) == [b"third....\n"]
    assert lines.put(b"a\n", 2) == [b"%09d\n" % 0]
    assert (lines.size, lines.take(99)) == (12, [b"%09d\n" % 1, b"a\n"])
    assert lines.put(b"x" * 20, 7) == []


def test_lines_are_taken_until_there_are_enough_bytes() -> None:
    for most, count in ((0, 0), (1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (99, 3)):
        lines = FairLines(100)
        for n in range(3):
            lines.put(b"%09d\n" % n, n % 2)
        assert lines.take(most) == [b"%09d\n" % n for n in range(count)]
        assert lines.size == 10 * (3 - count)
        assert sum(lines._sizes) == lines.size
