"""Owns the requests under way of callers with a key, and their end when the key ends: removed, or expired.
Must not know how a request is answered or ended: it cancels the request's task, which says the rest.
Called by the gate as a request comes, once a second, and when the keys file was read again."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from proxy.audit import Audit
from proxy.call import Call
from proxy.identity import Identity

EVERY = 1.0  # seconds between two looks for keys that have expired


class KeyedCalls:
    """Requests under way whose caller showed a key."""

    def __init__(
        self, identity: Identity, audit: Audit, operating: frozenset[str], clock: Callable[[], float] = time.time
    ) -> None:
        """`operating`: the endpoints for which the key has to be an operator's."""
        self._identity = identity
        self._audit = audit
        self._operating = operating
        self._clock = clock
        self._calls: set[Call] = set()
        self._next = -math.inf  # when the next key expires: the first look finds out

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call) -> None:
        """It is under way until `Call.close`."""
        self._calls.add(call)
        call.keyed = self._calls

    def look(self) -> None:
        """End those whose key has expired; costs a comparison while none has."""
        if self._clock() >= self._next:
            self.end()

    def end(self) -> None:
        """End those whose key is good no more. Others that read the same generations go on."""
        identity = self._identity
        ended: Counter[str] = Counter()
        reason = ""
        for call in tuple(self._calls):
            caller = call.caller
            if caller is None:
                continue
            error = identity.ended(caller, operating=call.endpoint in self._operating)
            if error is not None and call.cut(error):
                ended[caller.name] += 1
                reason = error.code.code
        self._audit.ended(ended, reason)
        ring = identity.ring
        self._next = ring.expires_after(self._clock()) if ring is not None else math.inf
