"""The body of `POST /-/readers`: one chat completion, and the time at which each reader sends it. Pure."""

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
        words = f"The body must be {{request, delays_ms}}: {e}"
        raise GatewayError(Code.INVALID_VALUE, words[:400]) from None
    delays = found.delays_ms
    if not 1 <= len(delays) <= MAX_READERS:
        raise GatewayError(
            Code.INVALID_VALUE,
            f"delays_ms must have 1 to {MAX_READERS} items, not {len(delays)}.",
            param="delays_ms",
        )
    if not all(0 <= delay <= MAX_DELAY for delay in delays):
        raise GatewayError(
            Code.INVALID_VALUE, f"Each delay must be between 0 and {MAX_DELAY:g} milliseconds.", param="delays_ms"
        )
    if not decode("chat", bytes(found.request)).stream:
        raise GatewayError(Code.INVALID_VALUE, 'The request must have "stream": true.', param="request")
    return found
