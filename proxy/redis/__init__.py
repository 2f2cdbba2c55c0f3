"""TODO"""

from proxy.redis.cache import AWAY, TAG_BYTES, Availability, Cache, Stored, stream_views, wall_clock
from proxy.redis.client import RedisAddress, RedisClient, address, files_of
from proxy.redis.resp import Lost, ReplyError, TooManyPending, Unhandled, WireError, Word

__all__ = [
    "AWAY",
    "TAG_BYTES",
    "Availability",
    "Cache",
    "Lost",
    "RedisAddress",
    "RedisClient",
    "ReplyError",
    "Stored",
    "TooManyPending",
    "Unhandled",
    "WireError",
    "Word",
    "address",
    "files_of",
    "stream_views",
    "wall_clock",
]
