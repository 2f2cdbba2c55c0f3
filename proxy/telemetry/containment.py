"""What happens to an exception that a callback of several requests contains: it is counted and reported, and
the other requests go on. For the borders where the event loop, a connection or a timer enters the gateway's own
code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.errors import Code, GatewayError

Fault = Callable[[str, BaseException], None]
"""Told where an exception was contained, and the exception. Never raises."""


def internal() -> GatewayError:
    """What the readers of a flight get whose handling raised."""
    return GatewayError(Code.INTERNAL, "The gateway failed; its log has the reason.")


def raised(where: str, error: BaseException) -> None:
    """The Fault of last resort: the loop's own exception handler."""
    asyncio.get_running_loop().call_exception_handler({"message": where, "exception": error})


def unawaited(where: str, otherwise: Callable[[], object], task: asyncio.Task[None]) -> None:
    """A task that nobody awaits is over. Where it raised, that is reported, and `otherwise` is called."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        raised(where, error)
        otherwise()


class Containment:
    """Counts contained exceptions and has each reported; a report that raises is counted too."""

    def __init__(self, report: Fault) -> None:
        self.count = 0
        self._report = report

    def __repr__(self) -> str:
        return f"<Containment of {self.count} exceptions>"

    def __call__(self, where: str, error: BaseException) -> None:
        self.count += 1
        try:
            self._report(where, error)
        except Exception:  # noqa: BLE001 - a log that fails must not undo the containment
            self.count += 1


def contained(fault: Fault, where: str, *steps: Callable[[], object]) -> bool:
    """Run every step, whatever the ones before it raised. False: one of them did."""
    fine = True
    for step in steps:
        try:
            step()
        except Exception as e:  # noqa: BLE001 - the steps give things back: the rest must still be given back
            fault(where, e)
            fine = False
    return fine
