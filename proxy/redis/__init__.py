"""One Redis: a client over the gateway's own protocol implementation, the answer cache, and the rule for a Redis
that is unavailable.

A reader meets, in this order:

- `RedisAddress` is where a Redis is and how to log in, read from a URL by `address`.
- `RedisClient` sends commands over one connection and opens a new one after each loss; its connection is a
  `RespConnection` (`resp`). A reply or a `WireError` comes back within the timeout of the command.
- `WireError` stands for a reply that failed: `ReplyError` (Redis answered with an error), `Lost` (no reply
  will come), `TooManyPending` (not sent) or `Unhandled` (the receiver raised).
- `Availability` is the circuit breaker: the first loss opens it, a probe closes it. While it is open no request
  waits for Redis.
- `Cache` looks up and stores answers; a `Stored` is one answer in the bytes that a client gets.

Redis fails open: slow, full, restarting or absent, requests are served without it.
"""

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
