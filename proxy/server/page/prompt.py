"""Owns what the playground asks for: one chat completion, and when each of its readers asks for it.
Must not know requests, readers or HTTP: a body in, a checked value out.
Called by the page's handlers and, for what is large, by the child process that reads it."""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.errors import Code, GatewayError
from proxy.wire import decode

MAX_READERS: Final = 50
MAX_DELAY: Final = 60_000.0  # ms


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /-/readers`."""

    request: msgspec.Raw
    """A chat completion, as each reader asks for it. It must stream."""
    delays_ms: list[float]
    """When each reader asks, counted from the request: as many as there are readers."""


def wanted(body: bytes) -> Wanted:
    """Decode and check, the request too. Raises GatewayError 400."""
    try:
        found = msgspec.json.decode(body, type=Wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        words = f"This takes {{request, delays_ms}}: {e}"
        raise GatewayError(Code.INVALID_VALUE, words[:400]) from None
    delays = found.delays_ms
    if not 1 <= len(delays) <= MAX_READERS:
        raise GatewayError(
            Code.INVALID_VALUE, f"1 to {MAX_READERS} readers; got {len(delays)}.", param="delays_ms"
        )
    if not all(0 <= delay <= MAX_DELAY for delay in delays):
        raise GatewayError(
            Code.INVALID_VALUE, f"Each delay is 0 to {MAX_DELAY:g} milliseconds.", param="delays_ms"
        )
    if not decode("chat", bytes(found.request)).stream:
        raise GatewayError(Code.INVALID_VALUE, 'The request must say "stream": true.', param="request")
    return found
