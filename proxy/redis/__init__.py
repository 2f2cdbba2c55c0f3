"""TODO"""

from proxy.redis.availability import Availability, OnChange, is_away
from proxy.redis.cache import TAG_BYTES, Cache, Stored, stream_views, wall_clock
from proxy.redis.client import RedisAddress, RedisClient, address, files_of
from proxy.redis.resp import Lost, ReplyError, TooManyPending, Unhandled, WireError, Word

__all__ = [
    "TAG_BYTES",
    "Availability",
    "Cache",
    "Lost",
    "OnChange",
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
    "is_away",
    "stream_views",
    "wall_clock",
]
