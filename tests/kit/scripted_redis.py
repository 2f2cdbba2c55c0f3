"""Owns a Redis in memory that delays, loses, forgets and dies as a test says: the scripts of the fleet, keys that
expire, and channels. Each client gets its replies in order, as over a connection.
Must not know what a test checks. `tests/proxy/flights/fleet/test_scripts.py` compares it with a real one."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from proxy.redis import Deployment, Lost, RedisUrl, ReplyError, Word
from proxy.redis.client import MAX_PENDING, Client, RedisClient
from proxy.redis.flight_scripts import APPEND, FETCH, FLIGHT_SCRIPTS, LEAVE, LOOK, QUIT, RELEASE, STORE
from proxy.redis.resp import Done

Push = Callable[[list[Any]], None]


class ScriptedRedis(Deployment):
    """The server, and the deployment that makes clients of it. `now` in seconds; `delay` gives the seconds that
    one way of a message takes."""

    def __init__(
        self,
        now: Callable[[], float],
        delay: Callable[[], float],
        later: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self.now, self.delay, self.later = now, delay, later
        self.keys: dict[bytes, tuple[Any, float]] = {}  # value and expiry
        self.scripts: set[bytes] = set()
        self.channels: dict[bytes, list[ScriptedClient]] = {}
        self.published: list[tuple[bytes, bytes]] = []
        self.down = False
        self.lossy = 0  # so many of the next messages reach nobody

    # -- keys ---------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Any:
        value, expiry = self.keys.get(key, (None, 0.0))
        if expiry <= self.now():
            self.keys.pop(key, None)
            return None
        return value

    def set(self, key: bytes, value: Any, ms: float = math.inf) -> None:
        self.keys[key] = value, self.now() + ms / 1000

    def expire(self, key: bytes, ms: float) -> None:
        value = self.get(key)
        if value is not None:
            self.set(key, value, ms)

    def interested(self, key: bytes) -> dict[bytes, float]:
        found: dict[bytes, float] = self.get(key) or {}
        return found

    def show_interest(self, key: bytes, node: bytes, ms: float) -> None:
        self.set(key, self.interested(key) | {node: self.now() * 1000 + ms}, ms)

    def lapse(self, key: bytes) -> dict[bytes, float]:
        left = {node: at for node, at in self.interested(key).items() if at > self.now() * 1000}
        if left:
            self.keys[key] = left, self.keys[key][1]
        else:
            self.keys.pop(key, None)
        return left

    def publish(self, channel: bytes, message: bytes) -> int:
        self.published.append((channel, message))
        if self.lossy:
            self.lossy -= 1
            return 0
        for client in self.channels.get(channel, []):
            client.deliver([b"message", channel, message])
        return len(self.channels.get(channel, []))

    def tell(self, interest: bytes, inbox: bytes, message: bytes) -> int:
        nodes = sorted(self.interested(interest), key=lambda node: (self.interested(interest)[node], node))
        for node in nodes:
            self.publish(inbox + node, message)
        return len(nodes)

    def close_log(self, facts: bytes) -> None:
        if (self.get(facts) or {}).get("s") == b"open":
            del self.keys[facts]

    # -- commands -----------------------------------------------------------------------------------

    def execute(self, words: Sequence[bytes]) -> Any:
        match words:
            case [b"SCRIPT", b"LOAD", text]:
                self.scripts.add(text)
                return b"OK"
            case [b"EVALSHA", sha, count, *rest]:
                script = next(script for script in FLIGHT_SCRIPTS if script.sha.encode() == sha)
                if script.text.encode() not in self.scripts:
                    return ReplyError("NOSCRIPT No matching script.")
                return _SCRIPTS[script.sha](self, rest[: int(count)], rest[int(count) :])
            case [b"EVAL", text, count, *rest]:
                self.scripts.add(text)
                script = next(script for script in FLIGHT_SCRIPTS if script.text.encode() == text)
                return _SCRIPTS[script.sha](self, rest[: int(count)], rest[int(count) :])
            case [b"MGET", *keys]:
                return [value if isinstance(value := self.get(key), bytes) else None for key in keys]
            case [b"SET", key, value, b"PX", ms]:
                self.set(key, value, float(ms))
                return b"OK"
            case [b"SET", key, value, b"EX", seconds, *_]:
                self.set(key, value, float(seconds) * 1000)
                return b"OK"
            case [b"DEL", *keys]:
                return sum(self.keys.pop(key, None) is not None for key in keys)
            case [b"PING"]:
                return b"PONG"
        raise AssertionError(f"unknown: {words[0]!r}")

    # -- deployment ---------------------------------------------------------------------------------

    def client(self, *, connect_timeout: float, max_pending: int = MAX_PENDING) -> ScriptedClient:
        return ScriptedClient(self)

    def subscriber(self, on_push: Push, *, connect_timeout: float) -> Any:
        return ScriptedClient(self, on_push)

    def masters(self, *, connect_timeout: float) -> list[RedisClient]:
        return []

    def renew(self, url: RedisUrl) -> None:
        """Nothing."""

    async def start(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


class ScriptedClient(Client):
    """One connection. `gate` holds what comes to it, as while its process is frozen."""

    def __init__(self, server: ScriptedRedis, on_push: Push | None = None) -> None:
        self._server = server
        self._on_push = on_push
        self._up_at = self._down_at = 0.0  # the arrival of the last message there, and here
        self._held: deque[Callable[[], None]] = deque()
        self.gate: Callable[[], bool] = lambda: False
        self.dead = False  # its process was killed

    @property
    def pending(self) -> int:
        return 0

    def send(self, command: Sequence[Word], timeout: float, done: Done, *, now: bool = False) -> None:
        server = self._server
        words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
        self._up_at = max(self._up_at, server.now() + server.delay())
        answered = False

        def arrive() -> None:
            if self.dead and words[0] != b"EVALSHA":
                return
            if server.down:
                server.later(timeout, lost)
                return
            if words[0] == b"SUBSCRIBE":
                clients = server.channels.setdefault(words[1], [])
                if self not in clients:
                    clients.append(self)
                self._back(lambda: answer([b"subscribe", words[1], 1]))
                return
            reply = server.execute(words)
            self._back(lambda: answer(reply))

        def answer(reply: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                done(reply)

        def lost() -> None:
            self._back(lambda: answer(Lost("no answer")))

        server.later(self._up_at - server.now(), arrive)

    def deliver(self, push: list[Any]) -> None:
        assert self._on_push is not None
        self._back(lambda: self._on_push(push) if self._on_push is not None else None)

    def _back(self, step: Callable[[], None]) -> None:
        server = self._server
        self._down_at = max(self._down_at, server.now() + server.delay())
        self._held.append(step)
        server.later(self._down_at - server.now(), self.drain)

    def drain(self) -> None:
        """Take what has come, in order, unless it is held."""
        if not self.gate() and self._held:
            step = self._held.popleft()
            if not self.dead:
                step()

    def drain_all(self) -> None:
        while self._held and not self.gate():
            self.drain()

    async def close(self) -> None:
        for clients in self._server.channels.values():
            if self in clients:
                clients.remove(self)


# -- the scripts, as in `proxy/redis/flight_scripts.py` ---------------------------------------------------

_FENCE = re.compile(rb"([0-9a-fA-F]+)\.[0-9]+")


def _look(r: ScriptedRedis, keys: list[bytes], words: list[bytes]) -> Any:
    count, node, interest, claim, inbox = int(words[0]), words[1], float(words[2]), float(words[3]), words[4]
    out: list[Any] = [r.get(key) for key in keys[:count]]
    stored = [None, *out]
    for at, place in enumerate(range(count, len(keys), 2)):
        one, other, lead, fence, instead = words[5 + 5 * at : 10 + 5 * at]
        result = b""
        if stored[int(one)] is None and stored[int(other)] is None:
            held = r.get(keys[place])
            found = _FENCE.fullmatch(held) if held else None
            if held is None or held == instead or (found and found[1] == node):
                if lead == b"1":
                    r.set(keys[place], fence, claim)
                    result = fence
            elif found and len(found[1]) == 16:
                r.show_interest(keys[place + 1], node, interest)
                r.publish(inbox + found[1], b"join " + keys[place] + b" " + held + b" " + node)
                result = held
        out.append(result)
    return out


def _store(r: ScriptedRedis, keys: list[bytes], words: list[bytes]) -> Any:
    if words[2] == b"1" or r.get(keys[0]) is None:
        r.set(keys[0], words[0], float(words[1]) * 1000)
    if r.get(keys[1]) == words[3]:
        r.keys.pop(keys[1], None)
        r.keys.pop(keys[2], None)
    return b"OK"


def _append(r: ScriptedRedis, keys: list[bytes], words: list[bytes]) -> Any:
    interest, log, facts = keys
    offset, before, data, after, state, head, line, most, kept, inbox = words
    at = int(offset)
    if at == 0:
        r.keys.pop(log, None)
        r.keys.pop(facts, None)
    had = r.get(facts) or {}
    if at and (had.get("n") != at or had.get("d") != before):
        return -1
    size = at + len(data)
    if size > int(most):
        r.keys.pop(log, None)
    else:
        r.set(log, (r.get(log) or b"") + data, float(kept))
    r.set(facts, had | {"n": size, "d": after, "s": state} | ({"h": head} if at == 0 else {}), float(kept))
    r.lapse(interest)
    return r.tell(interest, inbox, line + b"\n" + data)


def _fetch(r: ScriptedRedis, keys: list[bytes], words: list[bytes]) -> Any:
    fence, node, offset, interest, kept, inbox, join = words
    held = r.get(keys[0])
    if held is None or held == fence:
        r.show_interest(keys[1], node, float(interest))
    facts = r.get(keys[3])
    if facts is None:
        if held is None:
            return b"gone"
        if held != fence:
            return b"other"
        r.publish(inbox, join)
        return b"wait"
    data = b""
    if facts["n"] > int(offset):
        data = (r.get(keys[2]) or b"")[int(offset) :]
        if len(data) != facts["n"] - int(offset):
            return b"lost"
    r.expire(keys[2], float(kept))
    r.expire(keys[3], float(kept))
    return [facts["s"], b"%d" % facts["n"], facts["d"], facts.get("h"), data]


def _leave(r: ScriptedRedis, keys: list[bytes], words: list[bytes]) -> Any:
    left = {node: at for node, at in r.interested(keys[0]).items() if node != words[0]}
    if left:
        r.keys[keys[0]] = left, r.keys[keys[0]][1]
    else:
        r.keys.pop(keys[0], None)
    return r.publish(words[1], words[2])


def _quit(r: ScriptedRedis, keys: list[bytes], words: list[bytes]) -> Any:
    if r.lapse(keys[1]):
        return 0
    if r.get(keys[0]) == words[0]:
        r.keys.pop(keys[0], None)
    r.close_log(keys[2])
    for key in keys[2:] if len(keys) > 3 else ():
        r.keys.pop(key, None)
    return 1


def _release(r: ScriptedRedis, keys: list[bytes], words: list[bytes]) -> Any:
    if r.get(keys[0]) == words[0]:
        r.keys.pop(keys[0], None)
    r.close_log(keys[2])
    return r.tell(keys[1], words[1], words[2])


_SCRIPTS = {
    LOOK.sha: _look, STORE.sha: _store, APPEND.sha: _append, FETCH.sha: _fetch,
    LEAVE.sha: _leave, QUIT.sha: _quit, RELEASE.sha: _release,
}  # fmt: skip
