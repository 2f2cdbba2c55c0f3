"""What a flight reports while it is traced, as a protocol; `server/tracing.py` implements it. Where tracing is
off a flight has none and makes no call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class FlightTrace(Protocol):
    """Receives the events of one flight."""

    def event(self, name: str, **attributes: str | int | bool) -> None:
        """An event, now."""

    def attempt(self, backend: str) -> None:
        """A request goes to the engine with this URL."""

    def headers(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """A request's headers, with trace propagation."""

    def frame(self, frame: bytes) -> None:
        """A frame that does not only continue the text."""

    def retried(self, cause: str) -> None:
        """The current attempt failed and is retried, by cause."""

    def carries(self, merged: Any) -> None:
        """A merged flight takes it over."""

    def ended(self, flight: Any) -> None:
        """The flight has landed, failed or been cancelled. Called once."""
