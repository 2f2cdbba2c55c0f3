"""TODO"""

from proxy.redis.cache import AWAY, TAG_BYTES, Breaker, Cache, Stored, stream_views, wall_clock
from proxy.redis.client import Address, Link, address, files_of
from proxy.redis.resp import Lost, Overfull, Refused, Unhandled, WireError, Word

__all__ = [
    "AWAY",
    "TAG_BYTES",
    "Address",
    "Breaker",
    "Cache",
    "Link",
    "Lost",
    "Overfull",
    "Refused",
    "Stored",
    "Unhandled",
    "WireError",
    "Word",
    "address",
    "files_of",
    "stream_views",
    "wall_clock",
]
