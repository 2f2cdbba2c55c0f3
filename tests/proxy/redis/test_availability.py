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
        self.changes: list[str | None] = []

    async def probe(self) -> None:
        self.probes.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)

    def changed(self, trouble: WireError | None) -> None:
        self.changes.append(None if trouble is None else str(trouble))


@pytest.mark.parametrize(
    ("error", "away", "opens"),
    [
        (Lost("gone"), True, True),
        (Lost("login", "WRONGPASS"), True, True),
        (ReplyError("LOADING x"), True, True),
        (ReplyError("NOAUTH x"), True, True),
        (ReplyError("BUSY x"), True, True),
        (ReplyError("MASTERDOWN x"), True, True),
        (ReplyError("OOM x"), False, True),
        (ReplyError("READONLY x"), False, True),
        (ReplyError("ERR x"), False, True),
        (ReplyError("WRONGTYPE one key's"), False, False),
        (TooManyPending("full"), False, False),
        (Unhandled("raised"), False, False),
    ],
)
def test_which_errors_are_a_loss_and_which_would_be_those_of_the_next_command(
    error: WireError, away: bool, opens: bool
) -> None:
    redis = Redis()
    availability = Availability(redis.probe, redis.changed)
    assert availability.failed(error)
    assert (is_away(error), availability.open) == (away, opens)
    ours = isinstance(error, TooManyPending | Unhandled)
    assert redis.changes == ([] if ours else [str(error)])


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
    assert redis.changes == ["gone"]
    await asyncio.sleep(1)
    assert not availability.open
    assert redis.changes[1:] == [None]
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
    assert (redis.changes, availability.pause) == (["gone"], 0.25)
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
    assert redis.changes == ["gone", None]
    await availability.stop()


@virtual
async def test_a_refusal_is_over_when_none_has_come_for_a_while_and_is_reported_once_until_then() -> None:
    redis = Redis()
    availability = Availability(redis.probe, redis.changed, settled=30.0)
    availability.start()
    full = str(ReplyError("OOM x"))
    for _ in range(6):  # it accepts the probe, and refuses the next command
        assert availability.failed(ReplyError("OOM x"))
        await asyncio.sleep(10.0)
        assert not availability.open
        assert availability.trouble is not None
    assert (redis.changes, availability.pause) == ([full], 5.0)
    await asyncio.sleep(29.0)
    assert (redis.changes, availability.trouble) == ([full, None], None)
    availability.failed(ReplyError("OOM x"))
    assert (redis.changes, availability.pause) == ([full, None, full], 0.25)
    await availability.stop()


@virtual
async def test_another_kind_of_trouble_is_reported_and_the_same_in_other_words_is_not() -> None:
    redis = Redis(
        ReplyError("LOADING x"), Lost("login", "WRONGPASS"), ReplyError("MOVED 1 h"), ReplyError("CROSSSLOT x")
    )
    availability = Availability(redis.probe, redis.changed)
    availability.start()
    availability.failed(Lost("gone"))
    availability.failed(Lost("no connection"))
    await asyncio.sleep(60.0)
    assert redis.changes == ["gone", "login", str(ReplyError("MOVED 1 h")), None]
    await availability.stop()


@virtual
async def test_what_one_key_caused_is_reported_and_opens_nothing() -> None:
    redis = Redis()
    availability = Availability(redis.probe, redis.changed, settled=30.0)
    availability.start()
    for _ in range(3):
        availability.failed(ReplyError("WRONGTYPE x"))
        await asyncio.sleep(20.0)
        assert not availability.open
    assert redis.changes == [str(ReplyError("WRONGTYPE x"))]
    await asyncio.sleep(11.0)
    assert (redis.changes[1:], redis.probes, availability.trouble) == ([None], [], None)
    await availability.stop()


@virtual
async def test_many_refusals_of_one_moment_do_not_make_the_probe_rarer() -> None:
    redis = Redis()
    availability = Availability(redis.probe, redis.changed)
    for _ in range(50):
        assert availability.failed(ReplyError("OOM x"))
    assert (availability.pause, redis.changes) == (0.25, [str(ReplyError("OOM x"))])
