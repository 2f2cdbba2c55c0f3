"""TODO"""

from proxy.access.ratelimit.admission import Admission, admission_for
from proxy.access.ratelimit.limiter import Reservation

__all__ = [
    "Admission",
    "Reservation",
    "admission_for",
]
