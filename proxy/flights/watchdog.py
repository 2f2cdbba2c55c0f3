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

EVERY: Final = 1.0  # seconds between two looks
PATIENCE: Final = 5.0  # seconds that something must be stray before it is mended

Kind = Literal["turn", "lookup", "place", "flight"]
KINDS: Final[tuple[Kind, ...]] = ("turn", "lookup", "place", "flight")


class Stray(NamedTuple):
    """Something that looks as if nobody would ever end it."""

    kind: Kind
    what: Hashable  # the same thing has the same at the next look
    heal: Callable[[], object]


def stray_places(backends: Backends, leases: Iterable[Lease]) -> Iterator[Stray]:
    """Places that engines count and no lease holds. `leases`: all that there are."""
    held = Counter(lease.backend for lease in leases if lease.held)
    for backend in backends.all:
        excess = backend.inflight - held[backend]
        if excess > 0:
            yield Stray("place", backend.name, partial(backends.reclaim, backend, excess))


class Watchdog:
    """Looks once a second and mends what has been stray for `patience` seconds."""

    def __init__(
        self,
        strays: Callable[[], Iterable[Stray]],
        *,
        clock: Callable[[], float],
        on_healed: Callable[[Kind, str], None],
        fault: Fault,
        patience: float = PATIENCE,
    ) -> None:
        """`on_healed` is told the kind and a description of what was mended."""
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
            except Exception as e:  # noqa: BLE001 - the other strays are still to be mended
                self._fault(f"the watchdog, healing a {stray.kind}", e)
            self._on_healed(stray.kind, repr(stray.what)[:200])
        self._since = since

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                self.look()
            except Exception as e:  # noqa: BLE001 - the next look may succeed
                self._fault("the watchdog", e)
