"""Containment for the embedder: a fault is reported, its client gets an error, and what it may have left undone is
checked a moment later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from proxy.errors import GatewayError
from proxy.telemetry import Fault, internal

AGAIN: Final = 0.1  # seconds until what a fault may have left is looked for


class EmbedFaults:
    """Contains what is raised. `later` is given the seconds and what is called then."""

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
        """Something raised that should not have."""
        if not self._due:
            self._due = True
            self._later(AGAIN, self._now)
        self._told(where, e)

    def error(self, e: Exception, where: str) -> GatewayError:
        """What the client is told: what it is, where it is an error for clients."""
        if isinstance(e, GatewayError):
            return e
        self.tell(where, e)
        return internal()

    def safely(self, where: str, act: Callable[..., object], *given: Any) -> None:
        """Call something whose fault is nobody else's."""
        try:
            act(*given)
        except Exception as e:  # noqa: BLE001 - the rest is to be done whatever a part of it raises
            self.tell(where, e)

    def _now(self) -> None:
        self._due = False
        self._heal()
