"""The phases of a Flight as a state machine: TRANSITIONS says which phase leads to which."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Phase(Enum):
    QUEUED = "queued"  # for a look-up, or for an engine
    CONNECTING = "connecting"
    PREFILL = "prefill"  # sent, nothing has come back
    STREAMING = "streaming"
    LANDED = "landed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    leads_to: tuple[Phase, ...]
    """Its row of TRANSITIONS. To hash an Enum member takes a call of Python; to compare two takes none."""


_ENDS: Final = (Phase.LANDED, Phase.FAILED, Phase.CANCELLED)

TRANSITIONS: Final[dict[Phase, tuple[Phase, ...]]] = {
    # PREFILL at once: over a kept-alive connection; STREAMING at once: a cache hit.
    Phase.QUEUED: (Phase.CONNECTING, Phase.PREFILL, Phase.STREAMING, *_ENDS),
    Phase.CONNECTING: (Phase.PREFILL, Phase.CONNECTING, *_ENDS),
    # Back to CONNECTING: a retry, or a kept-alive connection that had died.
    Phase.PREFILL: (Phase.STREAMING, Phase.CONNECTING, *_ENDS),
    Phase.STREAMING: _ENDS,
    Phase.LANDED: (),
    Phase.FAILED: (),
    Phase.CANCELLED: (),
}
for _phase, _next in TRANSITIONS.items():
    _phase.leads_to = _next
