"""The choice among engines: who gets a request under each policy, and what stays where it was as they change."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.settings import Settings, options
from proxy.config.vocabulary import ROUTING_POLICIES
from proxy.upstream.routing import (
    BOUND,
    PREFIX_BYTES,
    LeastOutstanding,
    PowerOfTwo,
    Rendezvous,
    RoundRobin,
    affinity,
    beginning,
    by_prefix,
    by_raw_session,
    by_session,
    key_of,
    mixed,
    raw_affinity,
    router,
    session_of,
)
from proxy.wire.openai import ApiRequest, decode
from proxy.wire.raw_body import RawBody


@dataclass
class Engine:
    name: str
    inflight: int = 0
    max_inflight: int = 10**9
    reported: float = 0.0

    @property
    def seed(self) -> int:
        return key_of(self.name.encode())


def engines(*inflight: int, room: int = 10**9) -> list[Engine]:
    return [Engine(f"http://e{n}", busy, room) for n, busy in enumerate(inflight)]


def names(chosen: list[Engine | None]) -> str:
    return "".join(e.name[-1] if e is not None else "-" for e in chosen)


EACH = pytest.mark.parametrize("policy", ROUTING_POLICIES)


@EACH
def test_with_one_engine_it_is_chosen_and_with_none_free_none(policy: str) -> None:
    made = router(policy)
    assert names([made.choose(engines(0), 7)]) == "0"
    assert made.choose(engines(3, 3, 3, room=3), 7) is None
    assert made.choose([], 7) is None


@EACH
@given(busy=st.lists(st.integers(0, 3), min_size=1, max_size=6), key=st.integers(0, 2**64 - 1))
def test_who_is_full_is_never_chosen_and_who_is_free_is_found(policy: str, busy: list[int], key: int) -> None:
    chosen = router(policy, random.Random(1).random).choose(engines(*busy, room=3), key)
    assert (chosen is None) == (min(busy) == 3)
    assert chosen is None or chosen.inflight < 3


def test_of_two_at_random_the_less_busy_gets_it_counting_what_it_reports() -> None:
    made = PowerOfTwo(random.Random(3).random)
    assert {names([made.choose(engines(5, 1), 0)]) for _ in range(20)} == {"1"}
    reporting = engines(1, 2)
    reporting[0].reported = 5.0
    assert {names([made.choose(reporting, 0)]) for _ in range(20)} == {"1"}
    assert {names([made.choose(engines(2, 2), 0)]) for _ in range(50)} == {"0", "1"}
    assert {names([made.choose(engines(0, 5, 5, 9), 0)]) for _ in range(200)} == {"0", "1", "2"}


def test_two_choices_keep_the_load_even_where_one_at_random_would_not() -> None:
    made, many = PowerOfTwo(random.Random(5).random), engines(*[0] * 20)
    for _ in range(2000):
        chosen = made.choose(many, 0)
        assert chosen is not None
        chosen.inflight += 1
    assert max(e.inflight for e in many) - 100 <= 5  # one random choice: about 20 over


def test_the_least_outstanding_is_chosen_of_equals_the_first() -> None:
    assert names([LeastOutstanding().choose(engines(2, 1, 1), 0)]) == "1"


def test_round_robin_goes_round_and_passes_over_who_is_full() -> None:
    made, three = RoundRobin(), engines(0, 0, 0, room=1)
    assert names([made.choose(three, 0) for _ in range(4)]) == "0120"
    three[1].inflight = 1
    assert names([made.choose(three, 0) for _ in range(4)]) == "2020"


KEYS = [mixed(n) or 1 for n in range(1, 2000)]
NAMES = st.lists(st.integers(0, 10**6), min_size=2, max_size=8, unique=True)


@given(NAMES, st.data())
def test_with_an_engine_gone_only_its_own_keys_move(numbers: list[int], data: Any) -> None:
    before = [Engine(f"http://e{n}") for n in numbers]
    gone = data.draw(st.sampled_from(before))
    after = [e for e in before if e is not gone]
    data.draw(st.randoms()).shuffle(after)  # their order means nothing
    for policy in (Rendezvous(), Rendezvous(1e9)):
        for key in KEYS[:200]:
            was, now = policy.choose(before, key), policy.choose(after, key)
            assert was is gone or now is was


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_keys_are_spread_evenly(count: int) -> None:
    many = engines(*[0] * count)
    where = [Rendezvous().choose(many, key) for key in KEYS]
    mean = len(KEYS) / count
    assert all(0.8 * mean < where.count(e) < 1.2 * mean for e in many)


def test_keys_are_alike_in_every_process() -> None:
    assert key_of(b"a", b"bc") != key_of(b"ab", b"c")
    assert key_of(b"x") == 4949407459521261577


@given(st.lists(st.integers(0, 40), min_size=2, max_size=8), st.integers(1, 2**64 - 1))
def test_affinity_never_brings_an_engine_over_the_bound(busy: list[int], key: int) -> None:
    many = engines(*busy)
    chosen = Rendezvous(BOUND).choose(many, key)
    assert chosen is not None
    assert chosen.inflight + 1 <= math.ceil(BOUND * (sum(busy) + 1) / len(busy))


def test_a_popular_beginning_spills_over_in_its_own_order_and_comes_back() -> None:
    made, four, key = Rendezvous(BOUND), engines(0, 0, 0, 0), KEYS[0]
    order = []
    for _ in range(100):
        chosen = made.choose(four, key)
        assert chosen is not None
        chosen.inflight += 1
        order.append(chosen)
    assert max(e.inflight for e in four) <= math.ceil(BOUND * 100 / 4)
    for engine in four:
        engine.inflight = 0
    assert made.choose(four, key) is order[0]


def test_where_those_below_the_bound_are_full_the_least_busy_with_room_gets_it() -> None:
    one, other = Engine("a", 1, 1), Engine("b", 30, 99)
    assert Rendezvous(BOUND).choose([one, other], 5) is other


def chat(*messages: tuple[str, str], **more: object) -> ApiRequest:
    body = {"model": "m", "messages": [{"role": r, "content": c} for r, c in messages]} | more
    return decode("chat", msgspec.json.encode(body))


SYSTEM, FIRST, REPLY, SECOND = ("system", "be brief"), ("user", "hello"), ("assistant", "hi"), ("user", "and?")


def test_each_turn_of_a_conversation_begins_alike_and_other_conversations_do_not() -> None:
    turns = [chat(SYSTEM, FIRST), chat(SYSTEM, FIRST, REPLY, SECOND)]
    assert len({by_prefix(turn, {}) for turn in turns}) == 1
    assert len({by_prefix(turn, {}) for turn in (chat(FIRST), chat(FIRST, REPLY, SECOND))}) == 1
    assert by_prefix(chat(SYSTEM, SECOND), {}) != by_prefix(turns[0], {})
    assert by_prefix(chat(SYSTEM, FIRST, model="other"), {}) != by_prefix(turns[0], {})


def test_questions_to_one_long_text_begin_alike() -> None:
    long = ("system", "text " * 2000)
    assert by_prefix(chat(long, FIRST), {}) == by_prefix(chat(long, SECOND), {})


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("completions", b'{"prompt": "once upon"}'),
        ("embeddings", b'{"input": ["a"]}'),
        ("chat", b'{"messages": [1]}'),
        ("chat", b'{"messages": [' + b"[" * 900 + b"]" * 900 + b"]}"),
    ],
)
def test_of_other_prompts_the_beginning_is_their_beginning(endpoint: Any, body: bytes) -> None:
    api_request = decode(endpoint, body)
    assert beginning(api_request) == api_request.prompt
    assert by_prefix(api_request, {}) > 0


def test_a_session_is_told_by_its_header_else_by_the_user_else_by_the_prompt() -> None:
    asks = [chat(FIRST), chat(SECOND)]
    assert by_session(asks[0], {"x-session-id": "s"}) == by_session(asks[1], {"x-session-id": "s"})
    assert by_session(chat(FIRST, user="u"), {}) == by_session(chat(SECOND, user="u"), {})
    assert by_session(chat(FIRST, user=None), {}) == by_session(asks[0], {}) != by_session(asks[1], {})


def test_only_policies_that_keep_something_together_look_at_the_prompt() -> None:
    assert [policy for policy in ROUTING_POLICIES if affinity(policy) is not None] == ["hash", "prefix"]
    (option,) = [o for o in options() if o.name == "routing"]
    assert option.metavar == "|".join(ROUTING_POLICIES)
    assert Settings().routing == "power-of-two"


# -- each decision at its bound -----------------------------------------------------------------------


def draws(*numbers: float) -> PowerOfTwo:
    """The choice of two with these random numbers."""
    left = iter(numbers)
    return PowerOfTwo(lambda: next(left))


@pytest.mark.parametrize(
    ("busy", "numbers", "chosen"),
    [
        ((1, 1), (0.0, 0.0), "0"),  # of equals the one that was drawn first
        ((1, 1), (0.99, 0.0), "1"),
        ((1, 1, 1), (0.0, 0.99), "0"),
        ((1, 2, 0), (0.0, 0.0), "0"),  # of 0 and 1
        ((3, 2, 0), (0.0, 0.0), "1"),
        ((3, 2, 0), (0.0, 0.99), "2"),  # of 0 and 2
        ((0, 2, 1), (0.4, 0.0), "0"),  # of 1 and 0
        ((0, 2, 1), (0.4, 0.99), "2"),  # of 1 and 2
        ((9, 3), (0.0, 0.0), "1"),  # one is full
        ((3, 9), (0.0, 0.0), "0"),
        ((9, 9), (0.0, 0.0), "-"),
        ((9, 3, 9), (0.0, 0.0), "1"),
        ((9, 3, 9), (0.0, 0.99), "1"),  # both drawn are full: one is free
        ((9, 9, 3, 4), (0.0, 0.0, 0.0, 0.0), "2"),  # both drawn are full: of the free ones
        ((9, 9, 4, 3), (0.0, 0.0, 0.0, 0.0), "3"),
        ((9, 9, 9), (0.0, 0.0), "-"),
        ((8,), (), "0"),
        ((9,), (), "-"),
    ],
)
def test_which_of_two_gets_it(busy: tuple[int, ...], numbers: tuple[float, ...], chosen: str) -> None:
    assert names([draws(*numbers).choose(engines(*busy, room=9), 0)]) == chosen


def test_one_that_is_full_is_passed_over_though_it_has_less_to_do() -> None:
    small, large = Engine("http://e0", 1, 1), Engine("http://e1", 5, 9)
    for two in ((small, large), (large, small)):
        assert draws(0.0, 0.0).choose(two, 0) is large


def test_what_engines_report_counts_on_both_sides() -> None:
    for reported, chosen in (((2.0, 1.0), "0"), ((3.0, 1.0), "1"), ((1.5, 0.0), "1"), ((0.0, 1.5), "0")):
        two = engines(1, 2)
        for engine, load in zip(two, reported, strict=True):
            engine.reported = load
        assert names([draws(0.0, 0.0).choose(two, 0)]) == chosen


def test_the_least_busy_and_the_next_in_turn_have_room_for_one_more() -> None:
    assert names([LeastOutstanding().choose(engines(3, 2, 2, room=3), 0)]) == "1"
    assert names([LeastOutstanding().choose(engines(3, 3, room=3), 0)]) == "-"
    made = RoundRobin()
    assert (
        names([made.choose(engines(0, 0, 0), 0), made.choose(engines(0, 0), 0), made.choose(engines(0), 0)])
        == "010"
    )


def test_the_bound_is_that_of_the_mean_with_the_new_one_in_it() -> None:
    key = 7
    order = sorted(engines(0, 0, 0, 0), key=lambda engine: -mixed(key ^ engine.seed))
    # 1.25 * (3 + 1) / 4 is 1.25: an engine may have 2.
    for busy, at in (((1, 1, 1, 0), 0), ((2, 1, 0, 0), 1), ((2, 2, 0, 0), 2)):
        for engine, count in zip(order, busy, strict=True):
            engine.inflight = count
        assert Rendezvous(BOUND).choose(order, key) is order[at]
    for engine, count in zip(order, (7, 0, 0, 0), strict=True):
        engine.inflight = count
    assert Rendezvous().choose(order, key) is order[0], "without a bound"
    order[0].max_inflight = 7
    assert Rendezvous().choose(order, key) is order[1]


def test_without_a_key_another_policy_chooses_and_a_full_house_has_nobody() -> None:
    asked: list[int] = []

    class Other:
        def choose(self, targets: Any, key: int) -> Any:
            asked.append(key)
            return targets[1]

    two = engines(0, 0)
    assert Rendezvous(BOUND, Other()).choose(two, 0) is two[1]
    assert Rendezvous(BOUND, Other()).choose(two, 1) is not None
    assert asked == [0]
    full = engines(3, 3, room=3)
    assert Rendezvous().choose(full, 1) is None
    assert Rendezvous(BOUND).choose([], 1) is None


def test_a_key_is_never_0_and_a_hash_is_what_it_is_elsewhere() -> None:
    assert [mixed(1), mixed(2**63), mixed(2**64 - 1)] == [
        6238072747940578789,
        2720858781877447050,
        13029008266876403067,
    ]
    assert key_of() == 13020603013274838756


def test_what_keeps_requests_together_is_each_policy_s_own() -> None:
    hello, other = chat(FIRST), chat(FIRST, model="other")
    assert affinity("hash") is by_session
    assert affinity("prefix") is by_prefix
    sessions = [{"x-session-id": "s"}, {"x-session-id": "t"}, {"x-session-id": ""}, {}]
    assert len({by_session(hello, headers) for headers in sessions}) == 3
    assert by_session(hello, {"x-session-id": "\udcff"}) > 0
    assert by_session(chat(FIRST, user=""), {}) == by_session(hello, {}) != by_session(other, {})
    assert by_session(chat(FIRST, user="u"), {}) != by_session(chat(FIRST, user="v"), {})
    assert by_session(chat(FIRST, user="s"), {}) != by_session(hello, {"x-session-id": '"s"'})


def test_a_beginning_ends_with_the_first_message_that_is_no_rule() -> None:
    developer = ("developer", "be short")
    asks = [chat(SYSTEM, developer, FIRST), chat(SYSTEM, developer, FIRST, REPLY, SECOND)]
    first, second = (beginning(ask) for ask in asks)
    assert first == second
    assert first.count(b"\n") == 2
    assert by_prefix(chat(SYSTEM, developer), {}) != by_prefix(asks[0], {})
    for length, kinds in ((PREFIX_BYTES - 1, 1), (PREFIX_BYTES - 2, 2)):  # a quotation mark stands before them
        prompts = ["a" * length + end for end in ("", "bc", "bd")]
        asks = [decode("completions", msgspec.json.encode({"prompt": prompt})) for prompt in prompts]
        assert len({by_prefix(ask, {}) for ask in asks}) == kinds


@pytest.mark.parametrize("prompt", [b'[{"role": "\xff"}]', b"[" * 5000, b'[{"role":' + b"[" * 5000, b"{"])
def test_a_prompt_that_cannot_be_read_is_its_own_beginning(prompt: bytes) -> None:
    assert beginning(cast(ApiRequest, SimpleNamespace(endpoint="chat", prompt=prompt))) == prompt


def raw(**members: Any) -> RawBody:
    body = json.dumps(members).encode()
    return RawBody("json", body, members)


def test_messages_and_responses_are_kept_by_session_user_or_prompt() -> None:
    turns = [{"role": "user", "content": "a"}]
    claude = {"metadata": {"user_id": "u_session_1"}}
    assert raw_affinity("power-of-two", raw(messages=turns), "s") == 0
    of_session = raw_affinity("hash", raw(messages=turns), "s")
    assert of_session == raw_affinity("hash", raw(input="other", **claude), "s") != 0
    by_user = raw_affinity("hash", raw(messages=turns, **claude), "")
    assert by_user == raw_affinity("hash", raw(messages=[], **claude), "") != of_session
    assert by_user == raw_affinity("hash", raw(input="x", prompt_cache_key="u_session_1"), "")
    assert raw_affinity("hash", raw(input="x"), "") != raw_affinity("hash", raw(input="y"), "")
    assert raw_affinity("hash", raw(metadata=[1], user=7), "") != 0
    assert raw_affinity("hash", raw(user="\ud800"), "") != 0
    in_a_chat = decode("chat", b'{"model": "m", "messages": [], "user": "ann"}')
    assert by_raw_session(raw(user="ann"), "", b"") == by_session(in_a_chat, {})


def test_messages_and_responses_are_kept_by_their_beginning() -> None:
    def key(**members: Any) -> int:
        return raw_affinity("prefix", raw(model="m", **members), "s")

    one, two = {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
    assert key(system="s", messages=[one]) == key(system="s", messages=[one, two]) != key(messages=[one])
    assert key(instructions="i", input="a" * 5000) == key(instructions="i", input="a" * 6000)
    assert key(input=[{"role": "developer", "content": "d"}, one]) != key(
        input=[{"role": "developer", "content": "d"}, two]
    )
    assert key(input=None) == key() != 0


def test_a_session_is_named_by_the_first_header_that_has_one() -> None:
    assert session_of({}) == ""
    assert session_of({"x-session-id": "", "session_id": "c"}) == "c"
    assert session_of({"x-claude-code-session-id": "b", "session-id": "c"}) == "b"
