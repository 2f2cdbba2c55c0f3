"""What operators are shown of Redis, from what its breakers report."""

from __future__ import annotations

from proxy.redis.health import RedisState, Use
from proxy.redis.resp import Lost, ReplyError

USES: tuple[Use, ...] = ("look-ups", "stores", "rate limits", "stores")
FULL = ReplyError("OOM x")
MOVED = ReplyError("MOVED 1 h")


def test_without_redis_and_without_trouble() -> None:
    assert RedisState("off").shown() == {"is": "off", "state": "off", "detail": ""}
    assert RedisState("yours").shown() == {"is": "yours", "state": "in use", "detail": ""}
    assert (RedisState("off").line, RedisState("embedded").line) == ("off", "embedded")


def test_each_trouble_is_shown_with_its_uses_until_it_is_over() -> None:
    state = RedisState("yours")
    state.of("stores")(FULL)
    assert (state.state, state.detail) == ("refuses: OOM", f"stores: {FULL}")
    state.of("rate limits")(FULL)
    assert (state.state, state.detail) == ("refuses: OOM", f"stores and rate limits: {FULL}")
    state.of("look-ups")(MOVED)
    assert (state.state, state.detail) == (
        "refuses: OOM, MOVED",
        f"stores and rate limits: {FULL}; look-ups: {MOVED}",
    )
    assert [state.refuses(reason) for reason in ("OOM", "MOVED", "NOPERM", "")] == [True, True, False, False]
    state.of("look-ups")(Lost("no connection"))
    assert state.state == "away"
    assert state.line == f"away (stores and rate limits: {FULL}; look-ups: no connection)"
    for use in USES:
        state.of(use)(None)
    assert (state.state, state.detail, state.line) == ("in use", "", "yours")
