"""When a Redis is left alone and when it is probed, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from proxy.redis.availability import Availability, is_away
from proxy.redis.resp import Lost, ReplyError, TooManyPending, Unhandled, WireError
from tests.kit.clock import virtual


class Redis:
    """Probes fail as long as the list has errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.probes: list[float] = []
        self.changes: list[tuple[bool, str]] = []

    async def probe(self) -> None:
        self.probes.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)

    def changed(self, away: bool, why: str) -> None:
        self.changes.append((away, why))


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (Lost("gone"), True),
        (ReplyError("LOADING x"), True),
        (ReplyError("NOAUTH x"), True),
        (ReplyError("OOM x"), False),
        (ReplyError("READONLY x"), False),
        (TooManyPending("full"), False),
        (Unhandled("raised"), False),
    ],
)
def test_which_errors_are_a_loss(error: WireError, away: bool) -> None:
    redis = Redis()
    availability = Availability(redis.probe, redis.changed)
    assert availability.failed(error)
    assert (is_away(error), availability.open) == (away, away)
    assert redis.changes == ([(True, str(error))] if away else [])


@virtual
async def test_the_first_loss_opens_it_and_each_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    redis = Redis(*(Lost("still") for _ in range(4)))
    availability = Availability(redis.probe, redis.changed, pause=1, longest=4)
    availability.start()
    await asyncio.sleep(60)
    assert redis.probes == []
    began = asyncio.get_running_loop().time()
    assert availability.failed(Lost("gone"))
    assert (availability.open, availability.pause) == (True, 1)
    await asyncio.sleep(14.5)
    assert [at - began for at in redis.probes] == pytest.approx([1, 3, 7, 11])
    assert redis.changes == [(True, "gone")]
    await asyncio.sleep(1)
    assert not availability.open
    assert redis.changes[1:] == [(False, "it answers again")]
    await asyncio.sleep(60)
    assert len(redis.probes) == 5
    assert availability.failed(Lost("gone again"))
    assert availability.pause == 1, "the next loss begins with the first pause"
    await availability.stop()


@virtual
async def test_one_loss_is_reported_once_however_many_commands_it_failed() -> None:
    redis = Redis()
    availability = Availability(redis.probe, redis.changed)
    assert availability.pause == 0.25
    loss = Lost("gone")
    assert [availability.failed(loss) for _ in range(3)] == [True, False, False]
    assert (redis.changes, availability.pause) == ([(True, "gone")], 0.25)
    assert availability.failed(Lost("another"))
    assert (len(redis.changes), availability.pause) == (1, 0.5)
    assert repr(availability) == "<Availability open pause=0.5>"


@virtual
async def test_after_its_end_it_probes_no_more_and_an_error_is_none() -> None:
    redis = Redis()
    availability = Availability(redis.probe, redis.changed)
    availability.start()
    availability.failed(Lost("gone"))
    await availability.stop()
    await asyncio.sleep(60)
    assert redis.probes == []
    other = Availability(redis.probe, redis.changed)
    await other.stop()
    assert not other.failed(Lost("the gateway is shutting down"))
    assert not other.open


@virtual
async def test_a_fault_in_the_probe_does_not_leave_redis_alone_for_ever() -> None:
    redis = Redis(ValueError("odd"))
    availability = Availability(redis.probe, redis.changed)
    availability.start()
    availability.failed(Lost("gone"))
    await asyncio.sleep(5.0)
    assert len(redis.probes) == 2
    assert not availability.open
    assert [away for away, _ in redis.changes] == [True, False]
    await availability.stop()
