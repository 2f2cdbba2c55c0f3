"""Load balancing: five policies, each a pure function of what is known of the engines, and the keys that keep
requests together. Randomness is an argument."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

import msgspec

from proxy.wire import ApiRequest, RawBody

BOUND: Final = 1.25
"""By affinity no engine gets more than this multiple of the mean load: consistent hashing with bounded loads
(Mirrokni, Thorup, Zadimoghaddam 2018)."""

SESSION_HEADERS: Final = ("x-session-id", "x-claude-code-session-id", "session-id", "session_id")
"""The general header, Claude Code's, and the two spellings of Codex."""

PREFIX_BYTES: Final = 4096
"""Bytes of a prompt's beginning that count for affinity: some 60 of vLLM's blocks of 16 tokens."""

_MASK: Final = (1 << 64) - 1
_ENCODE: Final = msgspec.json.Encoder().encode
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Target(Protocol):
    """An engine as a policy sees it."""

    @property
    def seed(self) -> int: ...  # a hash of its name: the same in every process
    @property
    def inflight(self) -> int: ...  # requests in flight from here
    @property
    def max_inflight(self) -> int: ...
    @property
    def reported(self) -> float: ...  # reported load besides ours, in requests


T = TypeVar("T", bound=Target)


class Router(Protocol):
    """Chooses an engine with a free slot; None where none has one. `key`: requests with the same key belong
    together; 0: with none."""

    def choose(self, targets: Sequence[T], key: int) -> T | None: ...


class PowerOfTwo:
    """Of two random engines the less loaded one (Mitzenmacher 2001). Choosing the least loaded of all would send
    every request to the same engine until its next report."""

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
    """The engine with the fewest requests in flight from here; of equals the first."""

    def choose(self, targets: Sequence[T], key: int) -> T | None:
        best: T | None = None
        for target in targets:
            if target.inflight < target.max_inflight and (best is None or target.inflight < best.inflight):
                best = target
        return best


class RoundRobin:
    """One engine after the other, whatever their load; full ones are skipped."""

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
    """Rendezvous hashing: the same key to the same engine (Thaler & Ravishankar 1998). When an engine leaves
    only its keys move; when one joins only the keys that it gets. A full engine is skipped for the key's next
    one. With `bound` so is an engine above that multiple of the mean load, so that a popular key cannot
    overload it."""

    def __init__(self, bound: float | None = None, otherwise: Router | None = None) -> None:
        self._bound = bound
        self._otherwise: Router = otherwise or PowerOfTwo()  # for requests without a key

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
        if best is None and self._bound is not None:  # the engines below the bound are full
            return LeastOutstanding().choose(targets, 0)
        return best


def router(policy: str, rng: Callable[[], float] = random.random) -> Router:
    """The router of a policy's name."""
    two = PowerOfTwo(rng)
    routers: Mapping[str, Router] = {
        "power-of-two": two,
        "least-outstanding": LeastOutstanding(),
        "round-robin": RoundRobin(),
        "hash": Rendezvous(None, two),
        "prefix": Rendezvous(BOUND, two),
    }
    return routers[policy]


def mixed(value: int) -> int:
    """A 64-bit mix whose results differ in about half of their bits where values differ in one (splitmix64's
    finalizer)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key_of(*parts: bytes) -> int:
    """A 64-bit hash of some texts, never 0; the same in every process and on every replica."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little") or 1


def affinity(policy: str) -> Callable[[ApiRequest, Mapping[str, str]], int] | None:
    """The affinity key of a policy, as a function of a request and its headers; None: the policy has none."""
    return {"hash": by_session, "prefix": by_prefix}.get(policy)


def session_of(headers: Mapping[str, str]) -> str:
    """The session that a client's headers name, by the first one in ASCII; empty: none."""
    for name in SESSION_HEADERS:
        session = headers.get(name)
        if session and session.isascii():
            return session
    return ""


def by_session(api_request: ApiRequest, headers: Mapping[str, str]) -> int:
    """The session (`session_of`), else the field `user`, else the prompt."""
    session = session_of(headers)
    if session:
        return key_of(b"session", session.encode())
    user = api_request.fields.get("user")
    if user is not None and bytes(user) not in (b"null", b'""'):
        return key_of(b"user", bytes(user))
    return key_of(b"prompt", (api_request.model or "").encode(), api_request.prompt)


def by_prefix(api_request: ApiRequest, headers: Mapping[str, str]) -> int:
    """The model and the beginning of the prompt. In a chat that is everything up to the first user message,
    which is the same in each turn of a conversation; at most 4 KiB of it, which are the same for all questions
    about one long text."""
    return key_of((api_request.model or "").encode(), beginning(api_request)[:PREFIX_BYTES])


def by_raw_session(passed: RawBody, session: str, prompt: bytes) -> int:
    """`by_session` for a request for Messages, Responses or another path. `session`: of its headers. `prompt`: the
    bytes that decide where neither a session nor a user is named."""
    if session:
        return key_of(b"session", session.encode())
    members = passed.members
    metadata = members.get("metadata")
    # Claude Code's session is in `user_id`
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    user = user or members.get("prompt_cache_key") or members.get("user")
    if isinstance(user, str) and user:
        return key_of(b"user", b'"%s"' % user.encode("utf-8", "surrogatepass"))  # as JSON has it in a chat
    return key_of(b"body", prompt)


def raw_affinity(policy: str, passed: RawBody, session: str) -> int:
    """The affinity key of a request for Messages or Responses, by the same rules. `session`: of its headers."""
    if policy == "hash":
        return by_raw_session(passed, session, passed.body)
    if policy != "prefix":
        return 0
    members = passed.members
    first = []
    turns = members.get("messages", members.get("input"))
    for turn in turns if isinstance(turns, list) else [turns]:
        first.append(turn)
        if not (isinstance(turn, dict) and turn.get("role") in ("system", "developer")):
            break
    text = _ENCODE([members.get("system"), members.get("instructions"), first])
    return key_of((passed.model or "").encode("utf-8", "surrogateescape"), text[:PREFIX_BYTES])


class _Message(msgspec.Struct):
    role: str = ""


_ROLE: Final = msgspec.json.Decoder(_Message)


def beginning(api_request: ApiRequest) -> bytes:
    """The part of a prompt that further turns do not change."""
    prompt = api_request.prompt
    if api_request.endpoint != "chat":
        return prompt
    first = []
    try:
        for raw in _LIST.decode(prompt):
            first.append(bytes(raw))
            if _ROLE.decode(raw).role not in ("system", "developer"):
                break
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return prompt  # the engine reports what is wrong with it
    return b"\n".join(first)
