"""Names that users write in settings, headers and files, and that several rooms know."""

from __future__ import annotations

from typing import Final

ROUTING_POLICIES: Final = ("power-of-two", "least-outstanding", "round-robin", "hash", "prefix")
"""`--routing`."""

CONNECT: Final = "connect"  # no connection: nothing was sent
RESET: Final = "reset"  # the connection ended before the answer's head
TRUNCATED: Final = "truncated"  # the answer ended before any of it was passed on
MALFORMED: Final = "malformed"  # the answer is not HTTP, and none of it was passed on
FIRST_TOKEN: Final = "first-token"  # noqa: S105 - the first token timed out
RETRY_STATUSES: Final = (429, 502, 503, 504)
DEFAULT_RETRY_CAUSES: Final = (CONNECT, RESET, TRUNCATED, MALFORMED, *map(str, RETRY_STATUSES))
RETRY_CAUSES: Final = (*DEFAULT_RETRY_CAUSES, FIRST_TOKEN)
"""`--retry-on`."""
STALE: Final = "stale"
"""A reused connection that was dead: retried immediately, whatever `--retry-on`. A value of the same metric
label."""

HIGH, NORMAL, LOW = range(3)
PRIORITIES: Final = ("high", "normal", "low")
"""`x-gateway-priority`, `--top-priority` and the keys file."""
