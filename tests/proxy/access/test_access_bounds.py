"""Bounds and facts of access: how many rules a list holds, names of classes, the price of a body in a job."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.access.denylist import rules
from proxy.access.denylist.filter import AT_ONCE
from proxy.access.intake import RawJob, read_raw
from proxy.access.ratelimit.buckets import UNBOUNDED, Claim
from proxy.access.ratelimit.limiter import Reservation
from proxy.config.keys_file import _priority
from proxy.config.vocabulary import PRIORITIES
from proxy.errors import SettingsError
from proxy.flights.cost import NO_COST, Cost, estimate_raw
from proxy.wire.http.media_type import Media
from proxy.wire.raw_body import read_passed
from tests.kit.clock import virtual
from tests.proxy.access.denylist.test_filter import LONG, frame
from tests.proxy.access.denylist.test_filter_ends import Guard
from tests.proxy.access.test_intake_parts import TERMS


@pytest.mark.parametrize(("text", "good"), [("a\nb\nre: c", True), ("a\nb\nc\nre: d", False)])
def test_a_list_may_hold_so_many_rules_of_both_kinds(
    monkeypatch: pytest.MonkeyPatch, text: str, good: bool
) -> None:
    monkeypatch.setattr(rules, "MAX_RULES", 3)
    if good:
        assert len(rules.read_deny_list(text, "d")) == 3
        return
    with pytest.raises(SettingsError, match="d: holds more than 3 rules"):
        rules.read_deny_list(text, "d")


def test_a_class_is_named_or_left_to_the_setting() -> None:
    read = _priority("top_priority")
    assert [read(name) for name in (None, *PRIORITIES)] == [None, *range(len(PRIORITIES))]
    for odd in ("urgent", 1, ""):
        with pytest.raises(ValueError, match="top_priority: must be one of"):
            read(odd)


def test_a_body_that_is_read_elsewhere_has_the_price_that_it_has_here() -> None:
    body = b'{"input": "hello", "max_output_tokens": 6}'
    found, _ = read_raw(RawJob("/v1/responses"), body, TERMS, None)
    assert found.cost == estimate_raw("/v1/responses", read_passed(Media("json"), body), TERMS.assumed)
    assert found.cost != NO_COST


def test_what_was_refused_gives_nothing_back() -> None:
    told: list[Any] = []
    store = SimpleNamespace(refund=lambda *given, **more: told.append(more))
    limiter = SimpleNamespace(shared=store, local=store, followers="generation", clock=lambda: 0.0)
    claim = Claim("1", "k", UNBOUNDED, UNBOUNDED, 10)
    hold = Reservation(cast(Any, limiter), claim, Cost(5, 5))
    hold.close()
    hold.answered(cast(Any, SimpleNamespace(over="tokens")))  # the client left before it was known
    assert (claim.permitted, told) == (False, [])


@pytest.mark.parametrize("data", [LONG, frame("x") * (AT_ONCE // len(frame("x")) + 1)])
@virtual
async def test_bytes_that_were_looked_at_wait_no_more(data: bytes) -> None:
    guard = Guard()
    guard.ingest.body(data)
    assert guard.ingest._waiting_bytes >= len(data)
    await guard.turns()
    assert (guard.ingest._waiting_bytes, guard.raised) == (0, [])
    assert len(b"".join(guard.out)) == len(data)


@virtual
async def test_of_an_answer_that_was_closed_nothing_more_is_looked_at() -> None:
    guard = Guard()
    guard.ingest.body(frame("x" * 8 * AT_ONCE + " bad"))
    await asyncio.sleep(0)
    guard.ingest.close()
    await guard.turns()
    assert (guard.raised, guard.ends, guard.hits, guard.out) == ([], [], [], [])
