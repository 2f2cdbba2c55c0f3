"""Owns the choice among engines that could all answer: five policies, each a pure function of what is known.
Must not know connections, requests or clocks; randomness is given.
Called by backends (choose) and by the gateway (what a request is kept together by)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

import msgspec

from proxy.wire import ApiRequest

BOUND: Final = 1.25
"""No engine is given more than this share of the mean load by affinity (Mirrokni, Thorup, Zadimoghaddam 2018)."""

PREFIX_BYTES: Final = 4096
"""Of the prompt's beginning that keeps requests together: some 60 of vLLM's blocks of 16 tokens."""

_MASK: Final = (1 << 64) - 1
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Target(Protocol):
    """What a policy sees of an engine."""

    @property
    def seed(self) -> int: ...  # of its name: the same in every process
    @property
    def inflight(self) -> int: ...  # requests of ours under way there
    @property
    def max_inflight(self) -> int: ...
    @property
    def reported(self) -> float: ...  # load that it tells of besides ours, in requests


T = TypeVar("T", bound=Target)


class Router(Protocol):
    """Chooses one that has room, or None where none has. `key`: what belongs together has the same, 0 none."""

    def choose(self, targets: Sequence[T], key: int) -> T | None: ...


class PowerOfTwo:
    """Of two at random the one with less to do (Mitzenmacher 2001): no herd runs to the one that reported least
    last, as it would to the least of all."""

    def __init__(self, rng: Callable[[], float] = random.random) -> None:
        self._rng = rng

    def choose(self, targets: Sequence[T], key: int) -> T | None:
        count = len(targets)
        if count > 1:
            first = int(self._rng() * count)
            second = int(self._rng() * (count - 1))
            one, other = targets[first], targets[second + (second >= first)]
            if one.inflight < one.max_inflight and other.inflight < other.max_inflight:
                return one if one.inflight + one.reported <= other.inflight + other.reported else other
            return self.choose([t for t in targets if t.inflight < t.max_inflight], key)
        return targets[0] if targets and targets[0].inflight < targets[0].max_inflight else None


class LeastOutstanding:
    """The one with the fewest requests of ours; of equals the first."""

    def choose(self, targets: Sequence[T], key: int) -> T | None:
        best: T | None = None
        for target in targets:
            if target.inflight < target.max_inflight and (best is None or target.inflight < best.inflight):
                best = target
        return best


class RoundRobin:
    """One after the other, whatever they have to do; who is full is passed over."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, targets: Sequence[T], key: int) -> T | None:
        count = len(targets)
        for step in range(count):
            target = targets[(self._next + step) % count]
            if target.inflight < target.max_inflight:
                self._next = (self._next + step + 1) % count
                return target
        return None


class Rendezvous:
    """The same key to the same engine (Thaler & Ravishankar 1998): with an engine gone only its keys move, with
    one more only those that it gets. Who is full is passed over for the key's next. With `bound` so is an engine
    over that share of the mean load, so that no key's popularity heaps up on one."""

    def __init__(self, bound: float | None = None, otherwise: Router | None = None) -> None:
        self._bound = bound
        self._otherwise: Router = otherwise or PowerOfTwo()  # for what belongs to nothing

    def choose(self, targets: Sequence[T], key: int) -> T | None:
        if not key:
            return self._otherwise.choose(targets, 0)
        most = math.inf
        if self._bound is not None and targets:
            total = 1
            for target in targets:
                total += target.inflight
            most = math.ceil(self._bound * total / len(targets))
        best: T | None = None
        highest = -1
        for target in targets:
            inflight = target.inflight
            if inflight < target.max_inflight and inflight < most:
                rank = mixed(key ^ target.seed)
                if rank > highest:
                    best, highest = target, rank
        if best is None and self._bound is not None:  # those below the bound have no room
            return LeastOutstanding().choose(targets, 0)
        return best


def router(policy: str, rng: Callable[[], float] = random.random) -> Router:
    """The router of a policy's name."""
    two = PowerOfTwo(rng)
    made: Mapping[str, Router] = {
        "power-of-two": two,
        "least-outstanding": LeastOutstanding(),
        "round-robin": RoundRobin(),
        "hash": Rendezvous(None, two),
        "prefix": Rendezvous(BOUND, two),
    }
    return made[policy]


def mixed(value: int) -> int:
    """64 bits that have nothing to do with each other for values that differ in one (splitmix64's finalizer)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key_of(*parts: bytes) -> int:
    """64 bits, never 0, of some texts; the same in every process and on every replica."""
    found = blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return int.from_bytes(found.digest(), "little") or 1


def affinity(policy: str) -> Callable[[ApiRequest, Mapping[str, str]], int] | None:
    """What of a request its policy keeps together, as a function of it and its headers; None: nothing."""
    return {"hash": by_session, "prefix": by_prefix}.get(policy)


def by_session(ask: ApiRequest, headers: Mapping[str, str]) -> int:
    """The session (`x-session-id`), else the field `user`, else the prompt."""
    session = headers.get("x-session-id")
    if session:
        return key_of(b"session", session.encode("utf-8", "surrogateescape"))
    user = ask.fields.get("user")
    if user is not None and bytes(user) not in (b"null", b'""'):
        return key_of(b"user", bytes(user))
    return key_of(b"prompt", (ask.model or "").encode(), ask.prompt)


def by_prefix(ask: ApiRequest, headers: Mapping[str, str]) -> int:
    """The model and the beginning of the prompt. Of a chat that is all up to its first message of a user: the
    same in each turn of a conversation; and of it the first 4 KiB: the same for all questions to a long text."""
    return key_of((ask.model or "").encode(), beginning(ask)[:PREFIX_BYTES])


class _Message(msgspec.Struct):
    role: str = ""


_ROLE: Final = msgspec.json.Decoder(_Message)


def beginning(ask: ApiRequest) -> bytes:
    """The part of a prompt that further turns do not change."""
    prompt = ask.prompt
    if ask.endpoint != "chat":
        return prompt
    first = []
    try:
        for raw in _LIST.decode(prompt):
            first.append(bytes(raw))
            if _ROLE.decode(raw).role not in ("system", "developer"):
                break
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return prompt  # the engine will say what is wrong with it
    return b"\n".join(first)
