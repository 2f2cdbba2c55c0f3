"""The shared limits against a Redis of the test's own: what is sent, what an answer means, when it looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from proxy.access.ratelimit.buckets import UNBOUNDED, Claim, Decision, Levels, Limit, Limits
from proxy.access.ratelimit.redis import BATCH, GIVE, RENEW, TAKE, RedisLimits
from proxy.redis.resp import Lost, ReplyError, TooManyPending, Unhandled, WireError
from tests.kit.clock import virtual

BOUNDS = Limits(Limit(2, 10), Limit(5, 300), 3)
YES = [0, b"1.0", b"7.5", 1, b"2.0", b"3.0", 4]


class FakeLink:
    """Remembers what it was sent, and answers what the test says."""

    made: list[FakeLink]

    def __init__(self, where: object, *, connect_timeout: float, max_pending: int) -> None:
        self.where, self.connect_timeout = where, connect_timeout
        self.sent: list[tuple[tuple[Any, ...], float, Callable[[Any], None]]] = []
        self.loads: list[str] = []
        self.tried: list[tuple[Any, ...]] = []
        self.fails: WireError | None = None
        self.closed = False
        FakeLink.made.append(self)

    def send(self, words: Sequence[Any], timeout: float, done: Callable[[Any], None]) -> None:
        self.sent.append((tuple(words), timeout, done))

    async def call(self, *words: Any, timeout: float) -> Any:
        if words[0] == b"SCRIPT":
            self.loads.append(words[2])
        else:
            self.tried.append(words)
        if self.fails is not None:
            raise self.fails
        return YES

    def renew(self, where: object) -> None:
        self.where = where

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def links(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLink.made = []
    monkeypatch.setattr("proxy.redis.deployment.RedisClient", FakeLink)


class Desk:
    def __init__(self, lease: float = 30.0) -> None:
        self.told: list[str | None] = []
        self.shared = RedisLimits("redis://h", timeout=0.5, lease=lease, namespace="n", on_change=self.changed)
        (self.link,) = FakeLink.made
        self.decisions: list[Decision | None] = []

    def changed(self, trouble: WireError | None) -> None:
        self.told.append(None if trouble is None else str(trouble))

    def take(self, permit: str = "p", reply: Any = None, **more: Any) -> Claim:
        """Ask, and answer at once where a reply is given."""
        asked = claim(permit, **more)
        self.shared.acquire(asked, self.decisions.append)
        if reply is not None:
            self.link.sent[-1][2](reply)
        return asked


def claim(permit: str = "p", own: Limits = BOUNDS, everyone: Limits = UNBOUNDED, tokens: int = 7) -> Claim:
    return Claim(permit, "alice", own, everyone, tokens)


KEYS = ("n:limit:m:alice", "n:limit:s:alice", "n:limit:all:m", "n:limit:all:s")


def test_a_question_has_the_permit_its_lease_and_all_bounds() -> None:
    desk = Desk(lease=1.5)
    desk.take(everyone=Limits(streams=9))
    ((words, timeout, _),) = desk.link.sent
    assert words == (
        "EVALSHA", TAKE.sha, 4, *KEYS, "p", 1500, 7, 2, 10, 5, 300, 3, "", "", "", "", 9, 1,
    )  # fmt: skip
    assert timeout == desk.link.connect_timeout == 0.5


@pytest.mark.parametrize(
    ("reply", "decision"),
    [
        (YES, Decision(None, Levels(1.0, 7.5, 1), Levels(2.0, 3.0, 4))),
        ([1, *YES[1:]], Decision(("caller", "requests"), Levels(1.0, 7.5, 1), Levels(2.0, 3.0, 4))),
        ([3, *YES[1:]], Decision(("caller", "streams"), Levels(1.0, 7.5, 1), Levels(2.0, 3.0, 4))),
        ([6, *YES[1:]], Decision(("global", "streams"), Levels(1.0, 7.5, 1), Levels(2.0, 3.0, 4))),
        ([7, *YES[1:]], None),
        ([-1, *YES[1:]], None),
        ([0], None),
        ([*YES, 1], None),
        ([0, b"x", *YES[2:]], None),
        (5, None),
        (None, None),
        (b"OK", None),
    ],
)
def test_what_is_no_decision_is_a_loss(reply: Any, decision: Decision | None) -> None:
    desk = Desk()
    desk.take()
    desk.link.sent[-1][2](reply)
    assert desk.decisions == [decision]
    assert desk.shared.available is (decision is not None)
    assert desk.told == ([] if decision is not None else ["an invalid reply to a limit script"])


def test_while_it_is_away_nothing_is_asked() -> None:
    desk = Desk()
    loss = Lost("gone")
    desk.take(reply=loss)
    desk.take()
    assert desk.decisions == [None, None]
    assert (len(desk.link.sent), desk.shared.available) == (1, False)
    assert desk.told == ["gone"]
    desk.shared.refund(claim(), requests=-1)
    assert len(desk.link.sent) == 1
    assert repr(desk.shared).startswith("<RedisLimits open permits=0 ")


@pytest.mark.parametrize("error", [TooManyPending("full"), Unhandled("raised")])
def test_what_is_a_fault_of_ours_is_no_outage(error: WireError) -> None:
    desk = Desk()
    desk.take(reply=error)
    assert (desk.decisions, desk.told, desk.shared.available) == ([None], [], True)


def test_what_it_refuses_is_told_once_and_not_asked_again_until_a_probe_succeeds() -> None:
    desk = Desk()
    for _ in range(2):
        desk.take()
    for _, _, done in tuple(desk.link.sent):
        done(ReplyError("OOM no"))
    assert (desk.told, desk.shared.available) == ([str(ReplyError("OOM no"))], False)
    desk.take()
    assert (desk.decisions, len(desk.link.sent)) == ([None] * 3, 2)


def test_a_key_of_another_type_is_one_callers_trouble() -> None:
    desk = Desk()
    desk.take(reply=ReplyError("WRONGTYPE no"))
    assert (desk.decisions, desk.shared.available) == ([None], True)
    assert desk.told == [str(ReplyError("WRONGTYPE no"))]


@virtual
async def test_a_start_does_what_requests_do_under_separate_keys() -> None:
    desk = Desk(lease=1.5)
    await desk.shared.start()
    take, renew, give = desk.link.tried
    keys = tuple(f"n:limit:probe:{name}" for name in ("m", "s", "all:m", "all:s"))
    permit = take[7]
    assert take == ("EVALSHA", TAKE.sha, 4, *keys, permit, 1500, 1, *[1e6] * 10, 1)
    assert renew == ("EVALSHA", RENEW.sha, 2, keys[1], keys[3], 1500, 1, permit, 2, permit)
    assert give == ("EVALSHA", GIVE.sha, 4, *keys, permit, -1, -1, *[1e6] * 4)
    await desk.shared.stop()


def test_one_loss_is_told_once_however_much_it_took_along() -> None:
    desk = Desk()
    loss = Lost("gone")
    for _ in range(2):
        desk.shared.acquire(claim(), desk.decisions.append)
    for _, _, done in tuple(desk.link.sent):
        done(loss)
    assert desk.told == ["gone"]
    assert desk.shared.availability.pause == 0.25


def test_a_script_that_is_not_known_is_sent_whole_and_nothing_else_is() -> None:
    desk = Desk()
    desk.take(reply=ReplyError("NOSCRIPT no"))
    assert desk.decisions == []
    words = desk.link.sent[-1][0]
    assert words[:3] == ("EVAL", TAKE.text, 4)
    assert words[3:] == desk.link.sent[0][0][3:]
    desk.link.sent[-1][2](YES)
    assert desk.decisions[0] is not None
    desk.take(reply=ReplyError("ERR no"))
    assert len(desk.link.sent) == 3


# Permits


def test_what_is_given_back_is_sent_with_the_rates_it_leaks_by() -> None:
    desk = Desk()
    held = claim(everyone=Limits(tokens=Limit(4, 8)))
    desk.shared.hold(held)
    desk.shared.refund(held, requests=-1, tokens=-3.5, stream=True)
    words, timeout, done = desk.link.sent[0]
    assert words == ("EVALSHA", GIVE.sha, 4, *KEYS, "p", -1, -3.5, 2, 5, "", 4)
    assert timeout == 0.5
    done(1)
    assert desk.told == []
    desk.shared.refund(held, tokens=2)
    assert desk.link.sent[1][0][7:10] == ("", 0, 2)  # its permit has ended
    desk.link.sent[1][2](Lost("gone"))
    assert desk.told == ["gone"]


def test_nothing_to_give_back_is_not_sent() -> None:
    desk = Desk()
    held = claim()
    desk.shared.refund(held)
    desk.shared.refund(held, stream=True)
    desk.shared.hold(held)
    desk.shared.refund(held)
    assert desk.link.sent == []
    desk.shared.refund(held, stream=True)
    assert desk.link.sent[0][0][7:10] == ("p", 0, 0)


def renewed(desk: Desk) -> list[tuple[Any, ...]]:
    return [words for words, _, _ in desk.link.sent if words[1] == RENEW.sha]


@virtual
async def test_permits_that_live_are_renewed_three_times_in_their_lease() -> None:
    desk = Desk(lease=30.0)
    await desk.shared.start()
    assert desk.link.loads == [TAKE.text, GIVE.text, RENEW.text]
    own, everyone, both = (
        claim("own"),
        claim("all", UNBOUNDED, Limits(streams=5)),
        claim("both", BOUNDS, Limits(streams=5)),
    )
    for held in (own, everyone, both, claim("none", Limits(Limit(1, 1)))):
        desk.shared.hold(held)
    assert "permits=3" in repr(desk.shared)
    await asyncio.sleep(9.9)
    assert renewed(desk) == []
    await asyncio.sleep(0.2)
    assert renewed(desk) == [
        ("EVALSHA", RENEW.sha, 2, KEYS[1], KEYS[3], 30_000, 1, "own", 2, "all", 1, "both", 2, "both")
    ]
    await asyncio.sleep(10)
    assert len(renewed(desk)) == 2
    await desk.shared.stop()
    assert desk.link.closed
    await asyncio.sleep(60)
    assert len(renewed(desk)) == 2


@virtual
async def test_many_permits_are_renewed_in_batches() -> None:
    desk = Desk(lease=3.0)
    await desk.shared.start()
    for number in range(BATCH + 1):
        desk.shared.hold(claim(f"p{number}"))
    await asyncio.sleep(1.5)
    assert [words[6::2] for words in renewed(desk)] == [tuple(f"p{n}" for n in range(BATCH)), (f"p{BATCH}",)]
    desk.link.sent[0][2](Lost("gone"))
    assert desk.told == ["gone"]
    await desk.shared.stop()


@virtual
async def test_while_it_is_away_it_is_looked_for_ever_less_often_and_then_told_of_what_lives() -> None:
    desk = Desk()
    desk.link.fails = Lost("gone")
    await desk.shared.start()
    assert desk.told == ["gone"]
    desk.shared.hold(claim())
    await asyncio.sleep(0.3)
    assert len(desk.link.loads) == 2
    await asyncio.sleep(0.4)
    assert len(desk.link.loads) == 2  # half a second more
    await asyncio.sleep(0.2)
    assert len(desk.link.loads) == 3
    desk.link.fails = None
    await asyncio.sleep(1.5)
    assert desk.told[1:] == [None]
    assert desk.shared.available
    assert len(renewed(desk)) == 1
    await asyncio.sleep(9)
    assert len(renewed(desk)) == 1
    await desk.shared.stop()


@virtual
async def test_a_loss_on_the_way_is_noticed_at_once_and_one_at_the_end_is_none() -> None:
    desk = Desk()
    await desk.shared.start()
    await asyncio.sleep(1)
    desk.take(reply=Lost("gone"))
    await asyncio.sleep(0.3)
    assert desk.told == ["gone", None]
    desk.shared.acquire(claim(), desk.decisions.append)
    await desk.shared.stop()
    desk.link.sent[-1][2](Lost("the gateway is shutting down"))
    assert desk.told == ["gone", None]


@virtual
async def test_one_that_was_never_started_stops() -> None:
    desk = Desk()
    await desk.shared.stop()
    assert desk.link.closed


def test_without_a_hook_a_loss_is_a_loss() -> None:
    shared = RedisLimits("redis://h", timeout=0.5)
    (link,) = FakeLink.made
    decisions: list[Decision | None] = []
    shared.acquire(claim(), decisions.append)
    assert link.sent[0][0][3:5] == ("gateway:limit:m:alice", "gateway:limit:s:alice")
    link.sent[0][2](Lost("gone"))
    assert decisions == [None]
