"""The watchdog: finds turns, look-ups, slots and flights that nothing will end any more, and ends them.

Containment prevents all of this; each thing that it ends is a bug of the gateway, logged and counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Final, Literal, NamedTuple

from proxy.telemetry import Fault
from proxy.upstream import Backends, Lease

EVERY: Final = 1.0  # seconds between checks
PATIENCE: Final = 5.0  # seconds that something must be stray before it is ended

Kind = Literal["turn", "lookup", "place", "flight"]
KINDS: Final[tuple[Kind, ...]] = ("turn", "lookup", "place", "flight")


class Stray(NamedTuple):
    """Something that nothing seems to end any more."""

    kind: Kind
    what: Hashable  # equal for the same thing at the next check
    heal: Callable[[], object]


def stray_places(backends: Backends, leases: Iterable[Lease]) -> Iterator[Stray]:
    """Slots in use at engines that no lease holds. `leases`: all leases."""
    held = Counter(lease.backend for lease in leases if lease.held)
    for backend in backends.all:
        excess = backend.inflight - held[backend]
        if excess > 0:
            yield Stray("place", backend.name, partial(backends.reclaim, backend, excess))


class Watchdog:
    """Checks once a second, and ends what has been stray for `patience` seconds."""

    def __init__(
        self,
        strays: Callable[[], Iterable[Stray]],
        *,
        clock: Callable[[], float],
        on_healed: Callable[[Kind, str], None],
        fault: Fault,
        patience: float = PATIENCE,
    ) -> None:
        """`on_healed` is called with the kind and a description of what was ended."""
        self.healed = 0
        self._strays = strays
        self._clock = clock
        self._on_healed = on_healed
        self._fault = fault
        self._patience = patience
        self._since: dict[tuple[Kind, Hashable], float] = {}

    def __repr__(self) -> str:
        return f"<Watchdog {len(self._since)} suspects, {self.healed} healed>"

    def look(self) -> None:
        now = self._clock()
        since: dict[tuple[Kind, Hashable], float] = {}
        for stray in list(self._strays()):
            name = stray.kind, stray.what
            first = self._since.get(name, now)
            if now - first < self._patience:
                since[name] = first
                continue
            self.healed += 1
            try:
                stray.heal()
            except Exception as e:  # noqa: BLE001 - the other strays are still to be ended
                self._fault(f"the watchdog, healing a {stray.kind}", e)
            self._on_healed(stray.kind, repr(stray.what)[:200])
        self._since = since

    async def run(self) -> None:
        """Run for ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                self.look()
            except Exception as e:  # noqa: BLE001 - the next check may succeed
                self._fault("the watchdog", e)
