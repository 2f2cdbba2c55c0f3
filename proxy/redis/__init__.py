"""One Redis, as one server, behind Sentinels or as a Cluster: clients over the gateway's own protocol
implementation, the answer cache, and the rule for a Redis that is unavailable.

A reader meets, in this order:

- A `RedisUrl` is where a Redis is and how to log in, read by `read_url`; `address` reads that of one server.
- A `Deployment` makes the clients of one Redis: `SingleServer`, `Sentinels` or `Cluster`, by `deployment_of`. The
  last two follow the masters as they change.
- `RedisClient` sends commands over one connection and opens a new one after each loss; its connection is a
  `RespConnection` (`resp`). A reply or a `WireError` comes back within the timeout of the command.
- `ClusterClient` sends each command to the master of its key, and follows redirections.
- `WireError` stands for a reply that failed: `ReplyError` (Redis answered with an error), `Lost` (no reply
  will come), `NodeAway` (one master of a Cluster does not serve), `TooManyPending` (not sent) or `Unhandled` (the
  receiver raised).
- `refusal` says what an error of Redis means: its reason, one of a bounded set, and what to do about it.
- `Availability` is the circuit breaker: the first loss or refusal opens it, a probe that does what requests ask
  closes it. While it is open no request waits for Redis. Look-ups, stores and limits each have one.
- `RedisState` is what operators are shown of them: in use, away, or refusing.
- `Cache` looks up and stores answers; a `Stored` is one answer in the bytes that a client gets.
- `ResponseAffinity` knows which engine keeps a response of the Responses API.
- A `FlightScript` is one step by which gateways share a flight, over `FlightKeys`; with a look-up a `Claim` is
  made, and the fence that is `Held` comes back.

Redis fails open: slow, full, restarting, refusing or absent, requests are served without it.
"""

from proxy.redis.availability import Availability, OnChange, of_one_key
from proxy.redis.cache import TAG_BYTES, Cache, Claim, Held, Stored, stream_views, wall_clock
from proxy.redis.client import Client
from proxy.redis.deployment import Change, Deployment, SingleServer, deployment_of
from proxy.redis.flight_scripts import (
    APPEND,
    DROP,
    EXTEND,
    FENCE,
    FETCH,
    FLIGHT_SCRIPTS,
    LEAVE,
    LOOK,
    QUIT,
    RELEASE,
    FlightKeys,
    FlightScript,
)
from proxy.redis.health import RedisState, Use
from proxy.redis.refusal import REASONS
from proxy.redis.resp import Lost, NodeAway, ReplyError, TooManyPending, Unhandled, WireError, Word
from proxy.redis.response_affinity import ResponseAffinity
from proxy.redis.url import RedisUrl, address, files_of, read_url

__all__ = [
    "APPEND",
    "DROP",
    "EXTEND",
    "FENCE",
    "FETCH",
    "FLIGHT_SCRIPTS",
    "LEAVE",
    "LOOK",
    "QUIT",
    "REASONS",
    "RELEASE",
    "TAG_BYTES",
    "Availability",
    "Cache",
    "Change",
    "Claim",
    "Client",
    "Deployment",
    "FlightKeys",
    "FlightScript",
    "Held",
    "Lost",
    "NodeAway",
    "OnChange",
    "RedisState",
    "RedisUrl",
    "ReplyError",
    "ResponseAffinity",
    "SingleServer",
    "Stored",
    "TooManyPending",
    "Unhandled",
    "Use",
    "WireError",
    "Word",
    "address",
    "deployment_of",
    "files_of",
    "of_one_key",
    "read_url",
    "stream_views",
    "wall_clock",
]
