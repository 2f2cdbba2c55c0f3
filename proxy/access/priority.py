"""A request's priority class, its timeout and its fairness key."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final

from proxy.access.caller import Caller
from proxy.access.caller_address import caller_for_address
from proxy.access.context import ClientRequest
from proxy.config import NORMAL, PRIORITIES
from proxy.errors import Code, GatewayError

MAX_TIMEOUT: Final = 86_400.0  # seconds
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,32})?")


class PriorityPolicy:
    """Reads what requests say of it. `top`: the highest class for callers without a key of ours."""

    def __init__(self, top: int, address: Callable[[ClientRequest], str]) -> None:
        self._stranger = Caller(id="", top_priority=top, priority=max(top, NORMAL))
        self._address = address

    def turn(self, caller: Caller | None, request: ClientRequest) -> tuple[int, Hashable | Callable[[], Hashable]]:
        """What decides a request's turn in the queue: its class (an index of PRIORITIES), and its owner: a key's
        user or, without keys, a function that returns the network of the address. Raises GatewayError 400."""
        given = None if request.plain else request.headers.get("x-gateway-priority")
        known = caller or self._stranger
        priority = known.priority if given is None else _priority(given, known)
        if caller is None:
            return priority, partial(self._network, request)
        return priority, caller.tenant if caller.user is None else caller.user

    def address(self, caller: Caller | None, request: ClientRequest) -> str | None:
        """The client's address, where no key identifies the caller."""
        return None if caller is not None else self._address(request)

    def fairness_key(self, caller: Caller | None, request: ClientRequest) -> Hashable | Callable[[], Hashable]:
        """Whom a request's memory and work count for: a key's tenant or, without keys, a function that returns the
        network of the address."""
        return caller.tenant if caller is not None else partial(self._network, request)

    def current_fairness_key(self, caller: Caller | None, request: ClientRequest) -> Hashable:
        """The same, resolved."""
        return caller.tenant if caller is not None else self._network(request)

    def _network(self, request: ClientRequest) -> str:
        """One owner for all addresses that a host may have."""
        return caller_for_address(self._address(request)).id


def _priority(given: str, caller: Caller) -> int:
    """The class that a request asks for. Raises GatewayError 400."""
    name = given.strip().lower()
    if name not in PRIORITIES:
        raise GatewayError(
            Code.INVALID_HEADER,
            f"x-gateway-priority must be one of {', '.join(PRIORITIES)}, not {given[:64]!r}.",
        )
    asked = PRIORITIES.index(name)
    if asked < caller.top_priority:
        raise GatewayError(
            Code.INVALID_HEADER,
            f"x-gateway-priority: {name} exceeds your highest priority, {PRIORITIES[caller.top_priority]}.",
        )
    return asked


def parse_request_timeout(given: str | None) -> float:
    """Seconds of `x-request-timeout`, from the request's arrival; inf without it. Raises GatewayError 400."""
    if given is None:
        return math.inf
    text = given.strip()
    seconds = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise GatewayError(
            Code.INVALID_HEADER,
            f"x-request-timeout must be a number of seconds above 0, up to {MAX_TIMEOUT:g}, not {given[:64]!r}.",
        )
    return seconds
