"""The registry of live Flights, and the map by which identical requests find each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Final

from proxy.flights.flight import Flight, Subscriber
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode, QueueState

_STREAM: Final = Mode.STREAM


class FlightGroup:
    """Every live Flight, and the map by which identical requests find each other."""

    def __init__(
        self,
        memory: Memory | None = None,
        folds: Callable[[Flight], bool] = lambda flight: True,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`folds`: whether a reader that wants one body may wait for the end of a stream. `loop`: the readers'
        event loop; None: the one that runs where they wait."""
        self._loop = loop
        self._folds = folds
        self._memory = memory  # the budget that logs are charged to
        self._streams: dict[bytes, Flight] = {}
        self._wholes: dict[bytes, Flight] = {}
        self.live: set[Flight] = set()

    def __len__(self) -> int:
        return len(self.live)

    def __repr__(self) -> str:
        return f"<FlightGroup live={len(self.live)} joinable={len(self._streams) + len(self._wholes)}>"

    @property
    def subscribers(self) -> int:
        """Readers that are clients' requests."""
        return sum(flight.clients for flight in self.live)

    def find(self, key: bytes, *, stream: bool, fold: bool = True, fresh: bool = False) -> Flight | None:
        """The Flight that a request may join. A client that wants one body may read a stream's fold, if it is
        known to fold; a streaming client never joins a body, whose first token comes with its last. `fresh`: only
        a Flight that an engine answers, not one that the store may still answer."""
        flight = self._streams.get(key) if stream else self._wholes.get(key)
        if flight is None and fold and not stream:
            flight = self._streams.get(key)
            if flight is not None and flight.mode is Mode.STREAM and not (flight.folds and self._folds(flight)):
                return None
        if fresh and flight is not None and flight.phase is Phase.QUEUED and not flight.spec.fresh:
            return None
        return flight

    def attach(
        self,
        flight: Flight,
        *,
        usage: bool,
        whole: bool,
        attached: bool = False,
        owner: Hashable | Callable[[], Hashable] = None,
        storable: bool = True,
        client: bool = True,
    ) -> Subscriber:
        """Add a reader. `storable`: it allows the answer to be stored. `client`: it is a client's request."""
        if storable and not flight.storable:
            flight.allow_storing()
        subscriber = Subscriber(
            flight, usage=usage, whole=whole, attached=attached, owner=owner, client=client, _loop=self._loop
        )
        flight.subscribers.add(subscriber)
        return subscriber

    def launch(self, spec: FlightSpec, queue_state: QueueState | None = None) -> Flight:
        """A new Flight; with a key, it can be joined from now on."""
        on_spoiled = self.unpublish if spec.key is not None else None
        flight = Flight(spec, memory=self._memory, queue_state=queue_state, on_spoiled=on_spoiled)
        if spec.key is not None:
            (self._streams if spec.mode is _STREAM else self._wholes)[spec.key] = flight
        self.live.add(flight)
        return flight

    def unpublish(self, flight: Flight) -> None:
        """No request joins it any more. Removed from the map only if the map still holds *this* flight."""
        spec = flight.spec
        if spec.key is not None:
            joinable = self._streams if spec.mode is _STREAM else self._wholes
            if joinable.get(spec.key) is flight:
                del joinable[spec.key]

    def unpublish_all(self, begin: bytes) -> int:
        """No request joins Flights any more whose keys begin with these bytes. Returns how many there were."""
        found = [
            flight for flight in self.live if flight.spec.key is not None and flight.spec.key.startswith(begin)
        ]
        for flight in found:
            self.unpublish(flight)
        return len(found)

    def remove(self, flight: Flight) -> None:
        """It has ended: `unpublish`, and forget it."""
        spec = flight.spec
        if spec.key is not None:
            joinable = self._streams if spec.mode is _STREAM else self._wholes
            if joinable.get(spec.key) is flight:  # as in `unpublish`, without its call
                del joinable[spec.key]
        self.live.discard(flight)
