"""A Flight's spec and its queue state from one set of keywords."""

from __future__ import annotations

from typing import Any

from proxy.flights.spec import FlightSpec, Mode, QueueState


def planned(
    body: bytes = b"",
    mode: Mode = Mode.STREAM,
    *,
    method: str = "POST",
    path: str = "/",
    request_id: str = "r",
    **more: Any,
) -> tuple[FlightSpec, QueueState]:
    """Each keyword goes to the one of the two that has such a field."""
    queued = {name: more.pop(name) for name in QueueState.__struct_fields__ if name in more}
    return FlightSpec(method, path, body, mode, request_id, **more), QueueState(**queued)
