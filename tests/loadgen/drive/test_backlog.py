"""What waits to be read is bounded, and comes out in order, each once."""

from __future__ import annotations

from loadgen.drive.backlog import Backlog
from loadgen.drive.capture.exchange import Exchange
from loadgen.record import Record


def exchange(number: int, size: int = 0) -> Exchange:
    made = Exchange(Record(index=number, id="", prompt="", due_ns=0))
    made.size = size
    return made


def test_nothing_is_read_before_the_end_while_there_is_room() -> None:
    out: list[Record] = []
    backlog = Backlog(lambda e: e.record, out.append)
    for number in range(3):
        backlog.add(exchange(number))
    assert out == []
    backlog.flush()
    assert [record.index for record in out] == [0, 1, 2]
    assert (backlog.weight, backlog.early) == (0, 0)


def test_beyond_its_bound_the_oldest_are_read_early() -> None:
    out: list[Record] = []
    backlog = Backlog(lambda e: e.record, out.append, max_held=25_000)
    for number in range(5):
        backlog.add(exchange(number, 10_000))
    assert [record.index for record in out] == [0, 1, 2]
    assert backlog.weight <= 25_000
    backlog.flush()
    assert [record.index for record in out] == [0, 1, 2, 3, 4]
    assert backlog.early == 3
