"""Containment for the embedder: a fault is reported, its client gets an error, and a moment later a check
completes what the fault may have interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from proxy.errors import GatewayError
from proxy.telemetry import Fault, internal

AGAIN: Final = 0.1  # seconds until the check after a fault


class EmbedFaults:
    """Contains exceptions. `later` is called with seconds and a callback; `heal` is the check."""

    def __init__(
        self,
        told: Fault,
        later: Callable[[float, Callable[[], None]], object],
        heal: Callable[[], None],
    ) -> None:
        self._told = told
        self._later = later
        self._heal = heal
        self._due = False

    def __repr__(self) -> str:
        return f"<EmbedFaults{' healing' if self._due else ''}>"

    def tell(self, where: str, e: BaseException) -> None:
        """Report an unexpected exception."""
        if not self._due:
            self._due = True
            self._later(AGAIN, self._now)
        self._told(where, e)

    def error(self, e: Exception, where: str) -> GatewayError:
        """The error for the client: itself if it is one, else an internal error, reported."""
        if isinstance(e, GatewayError):
            return e
        self.tell(where, e)
        return internal()

    def safely(self, where: str, act: Callable[..., object], *given: Any) -> None:
        """Call `act`; contain and report its exception."""
        try:
            act(*given)
        except Exception as e:  # noqa: BLE001 - the rest goes on
            self.tell(where, e)

    def _now(self) -> None:
        self._due = False
        self._heal()
