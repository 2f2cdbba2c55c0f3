"""What happens to an exception that a callback of several requests contains: it is counted and reported, and
the other requests go on. For the borders where the event loop, a connection or a timer enters the gateway's own
code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.errors import Code, GatewayError

Fault = Callable[[str, BaseException], None]
"""Called with the place where an exception was contained, and the exception. Never raises."""


def internal() -> GatewayError:
    """The error for the readers of a flight whose handling raised."""
    return GatewayError(Code.INTERNAL, "Internal error of the gateway; see its log.")


def raised(where: str, error: BaseException) -> None:
    """The Fault of last resort: the event loop's exception handler."""
    asyncio.get_running_loop().call_exception_handler({"message": where, "exception": error})


def unawaited(where: str, otherwise: Callable[[], object], task: asyncio.Task[None]) -> None:
    """Done-callback of a task that nobody awaits. Where it raised, report that and call `otherwise`."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        raised(where, error)
        otherwise()


class Containment:
    """Counts contained exceptions and reports each; a report that raises is counted too."""

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
    """Run every step, even after one has raised. False: one did."""
    fine = True
    for step in steps:
        try:
            step()
        except Exception as e:  # noqa: BLE001 - the steps release resources: the others must still run
            fault(where, e)
            fine = False
    return fine
