"""The scripts by which gateways share a flight, and the keys that they use. `flights/fleet/README.md` explains the
protocol.

All keys of one flight have one hash tag, the name of its stored answer, so a Cluster keeps them in one slot. Every
script reads what it needs, decides and writes in one step. Times are Redis' own."""

from __future__ import annotations

import hashlib
import re
from binascii import hexlify
from dataclasses import dataclass, field
from typing import Final

FENCE: Final = re.compile(rb"([0-9a-f]{16})\.[0-9]{1,19}")
"""What names one leadership of one flight: the random name of a process, and its counter."""


@dataclass(frozen=True, slots=True)
class FlightScript:
    text: str = field(repr=False)
    sha: str = ""

    @classmethod
    def of(cls, text: str) -> FlightScript:
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_NOW: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""
# A member of `interest` is a node, its score the time at which its interest lapses.
_TELL: Final = """
local function tell(interest, inbox, message)
  local nodes = redis.call('ZRANGE', interest, 0, -1)
  for i = 1, #nodes do redis.call('PUBLISH', inbox .. nodes[i], message) end
  return #nodes
end
"""

_LAST: Final = """
local function last(key, ms) if redis.call('PTTL', key) < tonumber(ms) then redis.call('PEXPIRE', key, ms) end end
"""

# KEYS: n answers, then two for each claim: the flight's claim and the interest in it.
# ARGV: n, this node, interest in ms, claim in ms, the inboxes' prefix; then five for each claim: the places of two
# answers (0: none) that make it needless, whether it may lead (1 or 0), its fence, and the fence that it replaces.
# A claim of this node is replaced too: its flight cannot be joined any more, or the request had joined it here.
# A claim that cannot be written (Redis is full, or a replica) is none; the answers are returned all the same.
LOOK: Final = FlightScript.of(
    """
local n, node = tonumber(ARGV[1]), ARGV[2]
local out = {}
for i = 1, n do out[i] = redis.call('MGET', KEYS[i])[1] end
local a = 6
for k = n + 1, #KEYS, 2 do
  local result = ''
  if not out[tonumber(ARGV[a])] and not out[tonumber(ARGV[a + 1])] then
    local fence, instead = ARGV[a + 3], ARGV[a + 4]
    local held = redis.call('MGET', KEYS[k])[1]
    local leader = held and string.match(held, '^(%x+)%.%d+$')
    if not held or held == instead or leader == node then
      if ARGV[a + 2] == '1' and redis.pcall('SET', KEYS[k], fence, 'PX', ARGV[4]).ok then result = fence end
    else
      if leader and #leader == 16 and leader ~= node then
        local t = redis.call('TIME')
        local lapses = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[3]))
        if type(redis.pcall('ZADD', KEYS[k + 1], lapses, node)) == 'number' then
          redis.call('PEXPIRE', KEYS[k + 1], ARGV[3])
          redis.call('PUBLISH', ARGV[5] .. leader, 'join ' .. KEYS[k] .. ' ' .. held .. ' ' .. node)
          result = held
        end
      end
    end
  end
  out[#out + 1] = result
  a = a + 5
end
return out
"""
)

# KEYS: the answer, the claim, the interest. ARGV: the answer's value, its seconds, 1 to replace another, fence.
# Any complete answer may be stored, as without a fleet; the claim ends where it is still this one.
STORE: Final = FlightScript.of(
    """
local stored
if ARGV[3] == '1' then stored = redis.pcall('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
else stored = redis.pcall('SET', KEYS[1], ARGV[1], 'EX', ARGV[2], 'NX') end
if redis.call('MGET', KEYS[2])[1] == ARGV[4] then redis.call('DEL', KEYS[2], KEYS[3]) end
return stored
"""
)

# KEYS: the interest, the log, the log's facts. ARGV: offset, digest before, data, digest after, state, head,
# the message's first line, most bytes of a log, ms that it is kept, the inboxes' prefix.
# The log is of one fence, so nobody else writes it. Returns the nodes that were told, -1 where Redis has not what
# comes before.
APPEND: Final = FlightScript.of(
    _NOW
    + _TELL
    + """
local interest, log, facts = KEYS[1], KEYS[2], KEYS[3]
local offset = tonumber(ARGV[1])
if offset == 0 then redis.call('DEL', log, facts)
else
  local had = redis.call('HMGET', facts, 'n', 'd')
  if tonumber(had[1] or -1) ~= offset or had[2] ~= ARGV[2] then return -1 end
end
local size = offset + #ARGV[3]
if size > tonumber(ARGV[8]) then redis.call('DEL', log) else redis.call('APPEND', log, ARGV[3]) end
redis.call('HSET', facts, 'n', string.format('%.0f', size), 'd', ARGV[4], 's', ARGV[5])
if offset == 0 then redis.call('HSET', facts, 'h', ARGV[6]) end
redis.call('PEXPIRE', log, ARGV[9])
redis.call('PEXPIRE', facts, ARGV[9])
redis.call('ZREMRANGEBYSCORE', interest, '-inf', string.format('%.0f', now))
return tell(interest, ARGV[10], ARGV[7] .. '\\n' .. ARGV[3])
"""
)

# KEYS: the claim, the interest, the log, the log's facts. ARGV: fence, node, offset, interest in ms, ms that a log
# is kept, the leader's inbox, the message `join`. Renews the interest and returns what this node lacks:
# {state, size, digest, head, data}, or one word: `wait` (nothing is published yet), `gone` (there is no claim),
# `other` (another leads), `lost` (the log is not complete).
FETCH: Final = FlightScript.of(
    _NOW
    + _LAST
    + """
local fence, node, offset = ARGV[1], ARGV[2], tonumber(ARGV[3])
local held = redis.call('MGET', KEYS[1])[1]
if not held or held == fence then
  redis.pcall('ZADD', KEYS[2], string.format('%.0f', now + tonumber(ARGV[4])), node)
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
local facts = redis.call('HMGET', KEYS[4], 'n', 'd', 's', 'h')
local size = tonumber(facts[1] or '')
if not size then
  if not held then return 'gone' end
  if held ~= fence then return 'other' end
  redis.call('PUBLISH', ARGV[6], ARGV[7])
  return 'wait'
end
local data = ''
if size > offset then
  data = redis.call('GETRANGE', KEYS[3], offset, -1)
  if #data ~= size - offset then return 'lost' end
end
last(KEYS[3], ARGV[5])
last(KEYS[4], ARGV[5])
return {facts[3], facts[1], facts[2], facts[4], data}
"""
)

# KEYS: what is to last longer. ARGV: ms from now on. Several gateways keep one stream, so none shortens its time.
EXTEND: Final = FlightScript.of(_LAST + "for i = 1, #KEYS do last(KEYS[i], ARGV[1]) end")

# KEYS: the interest. ARGV: node, the leader's inbox, the message `left`.
LEAVE: Final = FlightScript.of(
    """
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('PUBLISH', ARGV[2], ARGV[3])
"""
)

# A log that does not reach its end is known by its facts no more: a follower that asks is told that it has gone.
_CLOSE: Final = """
local function close(facts)
  if redis.call('HGET', facts, 's') == 'open' then redis.call('DEL', facts) end
end
"""

# KEYS: the claim, the interest, the facts of the log; the log too where it is to be deleted. ARGV: fence, interest
# in ms. Returns 1 where no node is interested any more: the claim has ended. Interest that does not lapse within
# twice its time is of somebody else.
QUIT: Final = FlightScript.of(
    _NOW
    + _CLOSE
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
redis.call('ZREMRANGEBYSCORE', KEYS[2], string.format('%.0f', now + 2 * ARGV[2]), '+inf')
if redis.call('ZCARD', KEYS[2]) > 0 then return 0 end
if redis.call('MGET', KEYS[1])[1] == ARGV[1] then redis.call('DEL', KEYS[1]) end
if KEYS[4] then redis.call('DEL', KEYS[3], KEYS[4]) else close(KEYS[3]) end
return 1
"""
)

# KEYS: the claim, the interest, the log's facts. ARGV: fence, the inboxes' prefix, the message `gone` or `alone`.
RELEASE: Final = FlightScript.of(
    _TELL
    + _CLOSE
    + """
if redis.call('MGET', KEYS[1])[1] == ARGV[1] then redis.call('DEL', KEYS[1]) end
close(KEYS[3])
return tell(KEYS[2], ARGV[2], ARGV[3])
"""
)

# KEYS: the interest. ARGV: the inboxes' prefix, the leader, the message `drop`.
DROP: Final = FlightScript.of(
    _TELL
    + """
redis.call('PUBLISH', ARGV[1] .. ARGV[2], ARGV[3])
return tell(KEYS[1], ARGV[1], ARGV[3])
"""
)

FLIGHT_SCRIPTS: Final = (LOOK, STORE, APPEND, FETCH, EXTEND, LEAVE, QUIT, RELEASE, DROP)


END: Final = b"}"
INTEREST: Final = b":interest"


class FlightKeys:
    """The names of keys and channels. `namespace`: the prefix of all of them."""

    def __init__(self, namespace: str) -> None:
        self._prefix = namespace.encode() + b":"
        self.begin = self._prefix + b"flight:{" + self._prefix  # of a claim: the key and END follow
        self.inbox = self._prefix + b"flight:inbox:"  # of channels: a node's name follows
        self.node = self._prefix + b"flight:node:"  # of heartbeats: a node's name follows
        self.stream = self._prefix + b"flight:stream:"  # of streams that clients may come back to

    def claim(self, key: bytes) -> bytes:
        """Its hash tag is the name of the stored answer, as a key without a tag is hashed whole."""
        return self.begin + hexlify(key) + END

    @staticmethod
    def interest(claim: bytes) -> bytes:
        return claim + INTEREST

    @staticmethod
    def log(claim: bytes, fence: bytes) -> bytes:
        return claim + b":log:" + fence

    @staticmethod
    def facts(claim: bytes, fence: bytes) -> bytes:
        return claim + b":facts:" + fence
