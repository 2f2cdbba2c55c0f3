"""What decides a Flight's turn in the queue: its ticket, its callers, and its twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from typing import Final

from proxy.flights.cost import NO_COST, estimate
from proxy.flights.flight import Flight
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.spec import Mode
from proxy.wire import ApiRequest

BEGINNINGS: Final = (1024, 4096, 16_384, 65_536)
"""Lengths in bytes at which prompts are compared. A shorter prompt, about 256 tokens, is cheap to prefill
again."""

MAX_OWNERS: Final = 1024  # whose answer lengths are remembered
FADE: Final = 0.95  # for each answer: about the last twenty count


class TicketFactory:
    """Makes tickets, only for requests that are queued: a ticket takes a parse of the prompt. `pool` maps a model
    to the pool of its engines; `assumed`: tokens of an answer without a limit.

    A request limits the length of its answer but does not say it, and turns are counted in tokens: so an owner's
    answers are assumed to use the same part of their limits as its last ones did."""

    def __init__(self, pool: Callable[[str | None], str | None], assumed: int) -> None:
        self._pool = pool
        self._assumed = assumed
        self._came: dict[
            Hashable, tuple[float, float]
        ] = {}  # of each owner: tokens that came, tokens that were assumed

    def __repr__(self) -> str:
        return f"<TicketFactory owners={len(self._came)}>"

    def __call__(self, flight: Flight) -> Ticket:
        spec = flight.spec
        if spec.cost is not None:
            prompt, completion = spec.cost
        elif spec.api_request is not None:
            prompt, completion = estimate(spec.api_request, self._assumed)
        else:
            prompt, completion = NO_COST
        state = flight.queue_state
        state.assume(completion)
        owner = state.resolve_owner()  # now: when its answer has landed the client may be gone
        return Ticket(
            owner=owner,
            priority=state.priority,
            cost=max(1, prompt + math.ceil(completion * self.share(owner))),
            deadline=state.deadline,
            pool=spec.engine or self._pool(spec.model),
            latest=state.latest,
            prefixes=_beginnings(spec.api_request) if spec.api_request is not None else (),
        )

    def share(self, owner: Hashable) -> float:
        """The ratio of actual to assumed tokens of an owner's answers; 1 where none is known."""
        came, assumed = self._came.get(owner, (1.0, 1.0))
        return came / assumed

    def landed(self, flight: Flight) -> None:
        """Record the length of a complete answer, if it was queued with a ticket."""
        state = flight.queue_state
        if not state.assumed:
            return
        if flight.usage is not None:
            made = flight.usage.completion_tokens
        elif flight.mode is Mode.STREAM:
            made = flight.content_events
        else:
            return  # not known
        came, assumed = self._came.pop(state.owner, (0.0, 0.0))
        if len(self._came) >= MAX_OWNERS:
            del self._came[next(iter(self._came))]  # the one without an answer for longest
        self._came[state.owner] = (came * FADE + max(1, made), assumed * FADE + state.assumed)


def _beginnings(api_request: ApiRequest) -> tuple[int, ...]:
    """Hashes of a prompt's beginning, valid in this process. Templates put tools before the messages."""
    prompt = api_request.prompt
    if api_request.endpoint == "embeddings" or len(prompt) < BEGINNINGS[0]:
        return ()
    before = (api_request.model, bytes(api_request.fields.get("tools", b"")))
    return tuple(hash((before, prompt[:size])) for size in BEGINNINGS if size <= len(prompt))


def callers_of(flight: Flight) -> Collection[Hashable]:
    """The callers that read a Flight. A reader whose caller is not known counts as a caller by itself."""
    if flight.queue_state.callers is not None:
        return flight.queue_state.callers()
    return {reader.caller if reader.owner is not None else reader for reader in flight.subscribers}


def twin_of(flight: Flight) -> Hashable:
    """A key that sampled twins have in common; None for a Flight without twins. The merger compares further."""
    return (
        flight.spec.api_request.prompt
        if flight.queue_state.merge and flight.spec.api_request is not None
        else None
    )
