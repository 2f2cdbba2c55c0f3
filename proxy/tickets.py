"""Owns what a Flight's place in the line is decided by: its ticket, and what sampled twins have alike.
Must not know the line itself, nor engines.
Called by the app, which gives them to the batcher."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from proxy.estimate import estimate, passing
from proxy.flight import Flight
from proxy.line import Ticket


def tickets(pool: Callable[[str | None], str | None], assumed: int) -> Callable[[Flight], Ticket]:
    """Makes tickets. `pool`: a model to whose engines it waits for; `assumed`: tokens of an answer that may be of
    any length. Made only for what has to wait: it costs a parse of the prompt."""

    def ticket(flight: Flight) -> Ticket:
        plan = flight.plan
        if plan.ask is not None:
            prompt, completion = estimate(plan.ask, assumed)
        else:
            prompt, completion = passing(plan.path, plan.body, assumed)
        return Ticket(
            owner=plan.owner() if callable(plan.owner) else plan.owner,
            priority=plan.priority,
            cost=max(1, prompt + completion),
            deadline=plan.deadline,
            pool=pool(plan.model),
            latest=plan.latest,
        )

    return ticket


def twin_of(flight: Flight) -> Hashable:
    """What a Flight's sampled twins have alike, at least; None where it has none. The merger looks closer."""
    return flight.plan.ask.prompt if flight.plan.merge and flight.plan.ask is not None else None
