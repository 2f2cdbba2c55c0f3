"""What is done where a part of shared work raises: it is told, and healed once a moment later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings.faults import AGAIN, EmbedFaults


class Told:
    def __init__(self) -> None:
        self.words: list[str] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.healed = 0
        self.faults = EmbedFaults(
            lambda where, e: self.words.append(f"{where}: {e!r}"),
            lambda seconds, then: self.later.append((seconds, then)),
            self._heal,
        )

    def _heal(self) -> None:
        self.healed += 1


def fails(*given: Any) -> None:
    raise ZeroDivisionError(*given)


def test_many_faults_are_healed_once_and_the_next_one_again() -> None:
    told = Told()
    assert repr(told.faults) == "<EmbedFaults>"
    told.faults.tell("here", ZeroDivisionError())
    told.faults.tell("there", ZeroDivisionError())
    assert told.words == ["here: ZeroDivisionError()", "there: ZeroDivisionError()"]
    assert ([seconds for seconds, _ in told.later], repr(told.faults)) == ([AGAIN], "<EmbedFaults healing>")
    told.later.pop()[1]()
    assert (told.healed, repr(told.faults)) == (1, "<EmbedFaults>")
    told.faults.tell("here", ZeroDivisionError())
    assert len(told.later) == 1


def test_an_error_for_clients_is_that_and_no_fault() -> None:
    told, error = Told(), GatewayError(Code.QUEUE_FULL, "full")
    assert told.faults.error(error, "here") is error
    assert (told.words, told.later) == ([], [])
    assert told.faults.error(ZeroDivisionError(), "here").code is Code.INTERNAL
    assert told.words == ["here: ZeroDivisionError()"]


def test_what_is_called_safely_gets_what_it_is_given_and_its_fault_is_told() -> None:
    told, got = Told(), list[Any]()
    told.faults.safely("here", lambda *given: got.append(given), 1, 2)
    told.faults.safely("here", fails, 3)
    assert (got, told.words) == ([(1, 2)], ["here: ZeroDivisionError(3)"])
