"""What is sent and in which order: slices that together are the whole, pairs that share drift, bodies as asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from loadgen.drive.conversations import Conversation, DueRequest
from loadgen.drive.requests import (
    RequestBuilder,
    ScheduledRequest,
    schedule_items,
    schedule_pairs,
    schedule_requests,
    slice_schedule,
)
from loadgen.spec import FORMS, Body, Cancel, Endpoint, ModelMix
from loadgen.workload.model import FollowUp, Item, Prompt


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{n}", "chat", {"messages": [{"role": "user", "content": str(n)}]}) for n in range(count)]


def items(count: int) -> list[Item]:
    return [Item(prompt) for prompt in prompts(count)]


@given(st.integers(1, 9), st.integers(0, 60))
def test_workers_fire_each_shot_once_between_them(workers: int, count: int) -> None:
    whole = list(schedule_requests(prompts(count), (n / 10 for n in itertools.count())))
    slices = [list(slice_schedule(whole, worker, workers)) for worker in range(workers)]
    assert sorted(itertools.chain(*slices)) == sorted(whole)
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_a_schedule_ends_with_the_shorter_of_prompts_and_times() -> None:
    assert len(list(schedule_requests(prompts(3), [0.0, 1.0]))) == 2
    assert [request.due_s for request in schedule_requests(prompts(2), None)] == [None, None]


@given(st.integers(0, 50), st.integers())
def test_pairs_go_to_both_targets_back_to_back_in_abba_order(count: int, seed: int) -> None:
    schedule = list(schedule_pairs(items(count), None, seed=seed))
    assert [request.number for request in schedule] == list(range(2 * count))
    letters = ["".join(request.target for request in schedule[n : n + 2]) for n in range(0, 2 * count, 2)]
    assert all(sorted(pair) == ["a", "b"] for pair in letters)
    assert all(first == second[::-1] for first, second in zip(letters[::2], letters[1::2], strict=False))
    assert all(
        a.pair == b.pair and a.prompt is b.prompt for a, b in zip(schedule[::2], schedule[1::2], strict=True)
    )


def test_conversations_of_a_pair_have_numbers_and_pairs_of_their_own() -> None:
    def turn() -> Prompt:
        return Prompt("turn", "chat", {"messages": []})

    then = (FollowUp(prompt=turn, after=(0,)), FollowUp(prompt=turn, after=(1,)))
    first, second = prompts(2)
    schedule = list(schedule_pairs([Item(first, then=then), Item(second)], None))
    assert [(request.number, request.pair) for request in schedule] == [(0, 0), (3, 0), (6, 3), (7, 3)]
    assert [len(request.then) for request in schedule] == [2, 2, 0, 0]
    later = Conversation(schedule[1], lambda exchange: "").request(DueRequest(2, 5_000_000_000, at_once=True))
    assert (later.number, later.pair, later.target) == (5, 2, schedule[1].target)


def test_the_order_of_pairs_is_drawn_and_the_same_for_the_same_seed() -> None:
    orders = {
        "".join(request.target for request in schedule_pairs(items(40), None, seed=seed)) for seed in range(10)
    }
    assert len(orders) == 10
    assert list(schedule_pairs(items(9), None, seed=3)) == list(schedule_pairs(items(9), None, seed=3))


def test_pairs_take_their_times_one_by_one() -> None:
    assert [request.due_s for request in schedule_pairs(items(2), [0.0, 1.0, 2.0, 3.0])] == [0.0, 1.0, 2.0, 3.0]


def fields(body: Body, prompt: dict[str, Any] | None = None, endpoint: Endpoint = "chat") -> dict[str, Any]:
    builder = RequestBuilder({"a": "http://h"}, endpoint, body)
    built = builder.build(ScheduledRequest(0, Prompt("p", FORMS[endpoint], prompt or {"messages": []})))
    decoded: dict[str, Any] = msgspec.json.decode(built.body)
    return decoded


def test_a_stream_asks_for_usage() -> None:
    assert fields(Body(model="m")) == {
        "model": "m",
        "messages": [],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert fields(Body(model="m", continuous_usage=True))["stream_options"]["continuous_usage_stats"] is True
    assert fields(Body(model="m", stream=False)) == {"model": "m", "messages": [], "stream": False}


def test_a_flag_wins_over_the_prompt_and_the_extra_body_over_both() -> None:
    prompt = {"messages": [], "max_tokens": 10, "temperature": 1}
    assert fields(Body(model="m"), prompt)["max_tokens"] == 10
    assert fields(Body(model="m", max_tokens=20), prompt)["max_tokens"] == 20
    body = fields(Body(model="m", max_tokens=20, ignore_eos=True, extra={"max_tokens": 30, "x": 1}), prompt)
    assert (body["max_tokens"], body["x"], body["ignore_eos"], body["temperature"]) == (30, 1, True, 1)


def test_embeddings_are_asked_for_without_what_only_generations_know() -> None:
    body = fields(Body(model="m", max_tokens=5, temperature=0.5), {"input": "x"}, "embeddings")
    assert body == {"model": "m", "input": "x"}


def test_a_twins_prompt_is_not_changed_by_making_its_body() -> None:
    prompt = {"messages": [], "max_tokens": 10}
    fields(Body(model="m", max_tokens=20, extra={"y": 2}), prompt)
    assert prompt == {"messages": [], "max_tokens": 10}


def test_urls_and_ids_tell_targets_apart() -> None:
    builder = RequestBuilder({"a": "http://a/", "b": "http://b"}, "completions", Body(model="m"), run="r")
    a = builder.build(ScheduledRequest(3, prompts(1)[0], 0.5, "a"))
    b = builder.build(ScheduledRequest(3, prompts(1)[0], 0.5, "b"))
    assert (a.url, b.url) == ("http://a/v1/completions", "http://b/v1/completions")
    assert a.record.id != b.record.id
    assert a.record.due_ns == 500_000_000


def models_of(mix: ModelMix, schedule: Iterable[ScheduledRequest]) -> list[str]:
    builder = RequestBuilder({"a": "http://h"}, "chat", Body(model="m"), models=mix)
    built = [builder.build(request) for request in schedule]
    assert [msgspec.json.decode(request.body)["model"] for request in built] == [r.record.model for r in built]
    return [request.record.model for request in built]


def test_models_are_drawn_by_their_shares_and_the_same_in_every_worker() -> None:
    mix = ModelMix(names=("a", "b", "c"), shares=(6.0, 3.0, 1.0))
    schedule = list(schedule_requests(prompts(2000), None))
    models = models_of(mix, schedule)
    assert [round(models.count(name) / 2000, 1) for name in "abc"] == [0.6, 0.3, 0.1]
    assert models_of(mix, slice_schedule(schedule, 1, 3)) == models[1::3]


def test_models_in_turn_and_models_by_prompt() -> None:
    in_turn = ModelMix(names=("a", "b"), shares=(1.0, 1.0), in_turn=True)
    assert models_of(in_turn, schedule_requests(prompts(4), None)) == ["a", "b", "a", "b"]
    by_prompt = ModelMix(names=("a", "b"), shares=(1.0, 1.0), by_prompt=True)
    twice = [prompt for prompt in prompts(20) for _ in range(2)]
    models = models_of(by_prompt, schedule_requests(twice, None))
    assert models[::2] == models[1::2]
    assert {*models} == {"a", "b"}


def test_a_conversation_stays_with_its_model() -> None:
    mix = ModelMix(names=("a", "b"), shares=(1.0, 1.0))
    then = (FollowUp(prompt=lambda: prompts(1)[0], after=(0,)),)
    requests = [
        ScheduledRequest(first + place, prompts(1)[0], then=then, place=place)
        for first in range(0, 40, 2)
        for place in (0, 1)
    ]
    models = models_of(mix, requests)
    assert models[::2] == models[1::2]
    assert {*models} == {"a", "b"}


def test_items_are_numbered_with_room_for_their_conversations_and_speed_shortens_gaps() -> None:
    then = (FollowUp(prompt=lambda: prompts(1)[0], after=(0,), gap_s=3.0),) * 2
    items = [Item(prompts(1)[0], then=then), Item(prompts(1)[0]), Item(prompts(1)[0], then=then)]
    schedule = list(schedule_items(items, [0.0, 1.0, 2.0], speed=2.0))
    assert [request.number for request in schedule] == [0, 3, 4]
    assert [follow_up.gap_s for follow_up in schedule[0].then] == [1.5, 1.5]


def test_the_share_that_is_cancelled_is_the_same_in_every_worker_and_no_warm_up() -> None:
    cancel = Cancel(share=0.25, seconds=1.0)
    builder = RequestBuilder({"a": "http://h"}, "chat", Body(model="m"), cancel=cancel)
    schedule = list(schedule_requests(prompts(2000), None))
    chosen = [builder.build(request).leave_s for request in schedule]
    assert 430 < chosen.count(1.0) < 570
    assert [builder.build(request, worker=1).leave_s for request in schedule] == chosen
    assert {builder.build(request, warmup=True).leave_s for request in schedule} == {None}
