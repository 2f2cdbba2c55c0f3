"""TODO"""

from proxy.access.ratelimit.admission import Admission, admission_for
from proxy.access.ratelimit.limiter import Hold

__all__ = [
    "Admission",
    "Hold",
    "admission_for",
]
