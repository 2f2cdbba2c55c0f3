"""Engines: which there are, whether they are healthy, which one a request goes to, and how many it may have at
once.

A reader meets, in this order:

- A `Backend` is one engine: its connection pool (`http`), its models, its health, its `Breaker` and its limit.
- `Backends` holds them all. `acquire` chooses an engine by a `Router` and gives a `Lease`, which takes up one
  slot there until it is released. Outcomes come back by `record_success`, `record_failure` and
  `record_unreachable`.
- A `Breaker` is a circuit breaker with the usual three `State`s; the failures of one caller alone do not open
  it, but start a `Checkup` by requests of the gateway's own.
- `RetryRules` say what is retried, a `Budget` how often; `retry_after` reads an engine's wish.
- `AdaptiveLimit` finds an engine's concurrency limit, from its `LoadReport`s or, with an objective, from TTFT;
  `LimitTicker` and `LoadPoller` run it.
- `Build` and `Abilities` are what an engine is and what it was seen to do.
- `HealthChecks` ask each engine every few seconds whether it is up and what it serves.
- `Fleet` makes the engines from settings and changes them; `watch` runs the tasks that observe them. A `Discovery`
  (`dns`) changes them as DNS does.
- `Pulse` notices pauses of this process, so that no engine is blamed for them.

Nothing here knows a flight: an exchange with an engine gets a lease and a connection.
"""

from proxy.upstream.backends import Backend, Backends, Lease, News
from proxy.upstream.breaker import State
from proxy.upstream.concurrency import MOST
from proxy.upstream.dns import Discovery
from proxy.upstream.fleet import Fleet
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.monitor import Task, each, first_look, watch
from proxy.upstream.pulse import Pulse
from proxy.upstream.retry import GONE, STATUSES, Budget, RetryRules, repeatable, retry_after
from proxy.upstream.routing import affinity, by_raw_session, by_session, key_of, mixed, raw_affinity, session_of

__all__ = [
    "GONE",
    "MOST",
    "STATUSES",
    "Backend",
    "Backends",
    "Budget",
    "Discovery",
    "Fleet",
    "HealthChecks",
    "Lease",
    "News",
    "Pulse",
    "RetryRules",
    "State",
    "Task",
    "affinity",
    "by_raw_session",
    "by_session",
    "each",
    "first_look",
    "key_of",
    "mixed",
    "raw_affinity",
    "repeatable",
    "retry_after",
    "session_of",
    "watch",
]
