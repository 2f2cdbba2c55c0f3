"""Requests under way of callers with an API key, cancelled when the key is removed or expires. The request
itself tells its client why."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Final

from proxy.access.context import AccessContext
from proxy.access.identity import Authenticator
from proxy.errors import GatewayError
from proxy.telemetry import Audit

EVERY: Final = 1.0  # seconds between two looks for keys that have expired
AT_ONCE: Final = 64  # requests that are ended in one turn of the loop


class KeyedCalls:
    """Requests under way whose caller showed a key."""

    def __init__(
        self,
        identity: Authenticator,
        audit: Audit,
        operating: frozenset[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`operating`: the endpoints for which the key has to be an operator's."""
        self._identity = identity
        self._audit = audit
        self._operating = operating
        self._clock = clock
        self._calls: set[AccessContext] = set()
        self._ending: dict[AccessContext, GatewayError] = {}  # of those, what is still to be cut
        self._next = -math.inf  # when the next key expires: the first look finds out

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, context: AccessContext) -> None:
        """It is under way until `Call.close`."""
        self._calls.add(context)
        context.when_closed(partial(self._calls.discard, context))

    def look(self) -> None:
        """End those whose key has expired; costs a comparison while none has."""
        if self._clock() >= self._next:
            self.end()

    def end(self) -> None:
        """End those whose key is good no more, some in each turn of the loop. Others that read the same answers
        go on."""
        identity = self._identity
        found: dict[str, Counter[str]] = {}
        idle = not self._ending
        for context in self._calls:
            caller = context.caller
            if caller is None or context in self._ending or context.ending is not None:
                continue
            error = identity.ended(caller, operating=context.endpoint in self._operating)
            if error is not None:
                self._ending[context] = error
                found.setdefault(error.code.code, Counter())[caller.name] += 1
        for reason, names in found.items():
            self._audit.ended(names, reason)
        ring = identity.ring
        self._next = ring.expires_after(self._clock()) if ring is not None else math.inf
        if idle and self._ending:
            self._cut()

    def _cut(self) -> None:
        """A few of them: each answers in its own task, in this turn."""
        for context in tuple(islice(self._ending, AT_ONCE)):
            error = self._ending.pop(context)
            if context in self._calls:  # else it has ended by itself
                context.cut(error)
        if self._ending:
            asyncio.get_running_loop().call_soon(self._cut)
