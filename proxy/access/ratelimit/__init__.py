"""Admission control by rate: requests a second, tokens a minute and requests under way, for each caller and for
all together. `Admission` makes a `Reservation` for each request; `LocalLimits` count in this process,
`RedisLimits` across processes. A refusal is an error with OpenAI's rate-limit headers."""

from proxy.access.ratelimit.admission import Admission, admission_for, limits_any
from proxy.access.ratelimit.buckets import Claim, Limit, Limits, LocalLimits
from proxy.access.ratelimit.limiter import Reservation

__all__ = [
    "Admission",
    "Claim",
    "Limit",
    "Limits",
    "LocalLimits",
    "Reservation",
    "admission_for",
    "limits_any",
]
