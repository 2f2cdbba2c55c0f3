"""Owns what a Flight and its journey tell of themselves while they are traced, as a protocol.
Must not know how a trace is kept or sent; where tracing is off there is None of it and nothing is called.
Called by flight, feeder, journey and scheduler; made by `tracing.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class FlightTrace(Protocol):
    """What is told of one Flight."""

    def event(self, name: str, **attributes: str | int | bool) -> None:
        """Something happened just now."""

    def attempt(self, backend: str) -> None:
        """A request goes to an engine: its URL."""

    def headers(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """A request's headers, with the trace that it belongs to."""

    def frame(self, frame: bytes) -> None:
        """A frame that is not just more of the same."""

    def retried(self, cause: str) -> None:
        """The attempt under way is over: it is asked again, by why."""

    def carries(self, merged: Any) -> None:
        """A Carrier takes it along with its twins."""

    def ended(self, flight: Any) -> None:
        """The Flight has landed, failed or been cancelled. Once."""
