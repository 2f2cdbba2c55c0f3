"""TODO"""

from proxy.upstream.backends import Backend, Backends, Lease
from proxy.upstream.breaker import State
from proxy.upstream.concurrency import MOST
from proxy.upstream.fleet import Fleet
from proxy.upstream.monitor import Task, each, first_look, watch
from proxy.upstream.pulse import Pulse
from proxy.upstream.retry import GONE, STATUSES, Budget, RetryRules, repeatable, retry_after
from proxy.upstream.routing import affinity

__all__ = [
    "GONE",
    "MOST",
    "STATUSES",
    "Backend",
    "Backends",
    "Budget",
    "Fleet",
    "Lease",
    "Pulse",
    "RetryRules",
    "State",
    "Task",
    "affinity",
    "each",
    "first_look",
    "repeatable",
    "retry_after",
    "watch",
]
