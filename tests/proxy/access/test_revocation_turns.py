"""Many requests of one key: some end in each turn of the event loop, all of them in the end."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.access.caller import Caller
from proxy.access.revocation import AT_ONCE, KeyedCalls
from proxy.errors import Code, GatewayError
from tests.kit.clock import virtual
from tests.kit.wire_end import turns

ENDED = GatewayError(Code.KEY_REVOKED, "revoked")


class Call:
    """A request under way, as far as the end of its key concerns it."""

    endpoint = "chat"
    ending = None

    def __init__(self) -> None:
        self.caller = Caller(id="k", name="team")
        self.cuts: list[GatewayError] = []

    def when_closed(self, forget: Callable[[], None]) -> None:
        self.close = forget

    def cut(self, error: GatewayError) -> bool:
        self.cuts.append(error)
        return True


@pytest.mark.parametrize("count", [1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE])
@virtual
async def test_all_are_cut_and_no_more_than_a_few_in_one_turn(count: int) -> None:
    told: list[Any] = []
    identity = SimpleNamespace(ended=lambda caller, operating: ENDED, ring=None)
    audit = SimpleNamespace(ended=lambda names, reason: told.append((dict(names), reason)))
    keyed = KeyedCalls(cast(Any, identity), cast(Any, audit), frozenset())
    calls = [Call() for _ in range(count)]
    for call in calls:
        keyed.add(cast(Any, call))
    keyed.end()
    assert sum(len(call.cuts) for call in calls) == min(count, AT_ONCE)
    left = next((call for call in calls if not call.cuts), None)
    if left is not None:
        left.close()  # it has ended by itself
    await turns()
    assert sorted(len(call.cuts) for call in calls) == [0] * (left is not None) + [1] * (
        count - (left is not None)
    )
    assert told == [({"team": count}, "key_revoked")]
    assert keyed._ending == {}
