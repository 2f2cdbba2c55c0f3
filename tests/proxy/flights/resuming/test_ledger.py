"""Which streams are held: never more than the bounds, none that is due, and each one that a client reads.

`RESUME_EXAMPLES=2000 python -m pytest tests/proxy/flights/resuming/test_ledger.py -s` runs more."""

from __future__ import annotations

import math
import os
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from proxy.flights.resuming.ledger import MOST_READERS, Entry, Ledger

EXAMPLES = int(os.environ.get("RESUME_EXAMPLES", "60"))
MOST, EACH = 5, 3
TENANTS = st.sampled_from([b"a", b"b", b"c"])
CALLERS = st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3"])  # each may have any tenant
STEPS: Counter[str] = Counter()


class Held(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(MOST, EACH)
        self.now = 0.0
        self.entries: list[Entry] = []  # the oldest first
        self.count = 0

    def of(self, caller: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.caller == caller]

    @rule(tenant=TENANTS, caller=CALLERS, grace=st.floats(0.1, 10))
    def asks(self, tenant: bytes, caller: str, grace: float) -> None:
        full = len(self.entries) == MOST or len(self.of(caller)) == EACH
        spare = [entry for entry in self.of(caller) if entry.read and not entry.readers]
        fits, oldest = self.ledger.room(caller)
        assert fits is (not full or bool(spare))
        assert oldest is (spare[0] if full and spare else None)
        if oldest is not None:
            self.ledger.remove(oldest)
            self.entries.remove(oldest)
            STEPS["evicted"] += 1
        if fits:
            self.count += 1
            self.entries.append(self.ledger.add(tenant, str(self.count), caller, grace))
        STEPS["held" if fits else "refused"] += 1

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def comes_back(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        assert self.ledger.find(entry.tenant, entry.name) is entry
        assert self.ledger.find(b"x", entry.name) is None  # another tenant's name
        before = entry.readers
        assert self.ledger.joins(entry) is (before < MOST_READERS)
        STEPS["joined"] += 1

    @precondition(lambda self: any(entry.readers for entry in self.entries))
    @rule(data=st.data(), read=st.booleans())
    def leaves(self, data: st.DataObject, read: bool) -> None:
        entry = data.draw(st.sampled_from([entry for entry in self.entries if entry.readers]))
        self.ledger.leaves(entry, self.now, read=read)
        STEPS["left"] += 1

    @rule(seconds=st.floats(0, 12))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for entry in self.ledger.due(self.now):
            assert not entry.readers
            self.ledger.remove(entry)
            self.ledger.remove(entry)  # again, without effect
            self.entries.remove(entry)
            STEPS["lapsed"] += 1
        assert self.ledger.next_due() > self.now

    @invariant()
    def bounds(self) -> None:
        assert len(self.ledger) == len(self.entries) <= MOST
        assert all(count <= EACH for count in Counter(entry.caller for entry in self.entries).values())
        due = [entry.lapses for entry in self.entries if not entry.readers]
        assert self.ledger.next_due() == min(due, default=math.inf)
        assert all(entry.lapses == math.inf for entry in self.entries if entry.readers)


TestHeld = Held.TestCase
TestHeld.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)


def test_the_machine_takes_every_step() -> None:
    """With the same examples each time: of random ones, now and then none takes the rarest step."""
    STEPS.clear()
    run_state_machine_as_test(Held, settings=settings(TestHeld.settings, derandomize=True, database=None))
    assert min(STEPS[step] for step in ("held", "refused", "evicted", "joined", "left", "lapsed")) > 0
    print(dict(STEPS))
