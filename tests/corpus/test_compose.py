"""Workloads: the same bytes for the same plan, twins and prefixes as asked, lengths as drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.arrivals import Renewal
from corpus.bank import BYTES_PER_TOKEN, block
from corpus.blocks import Sharing, block_bytes, block_prompt
from corpus.compose import Groups, Plan, Request, compose
from corpus.lengths import Fixed, Lognormal
from corpus.measure import Prefixes, Twins, prompt_bytes
from corpus.sources import Endpoint

PLAN = Plan(requests=60, seed=1, arrivals=Renewal(5), inputs=Lognormal(4.5, 0.8), outputs=Lognormal(3, 1))


def bytes_of(requests: Sequence[Request]) -> bytes:
    return b"\n".join(map(msgspec.json.encode, requests))


def twins_of(requests: Sequence[Request]) -> float:
    twins = Twins()
    for request in requests:
        twins.add(request.fields)
    return twins.duplicate_share


@settings(max_examples=20)
@given(
    st.integers(0, 2**40),
    st.sampled_from(["chat", "completions", "embeddings"]),
    st.floats(0, 0.9),
    st.booleans(),
    st.sampled_from([None, Groups(0.5, 3, 40)]),
    st.sampled_from([PLAN.inputs, None]),
)
def test_the_same_plan_makes_the_same_bytes_and_another_seed_others(
    seed: int, endpoint: Endpoint, duplicates: float, unique: bool, groups: Groups | None, inputs: Lognormal | None
) -> None:
    plan = replace(
        PLAN,
        requests=20,
        seed=seed,
        endpoint=endpoint,
        duplicates=duplicates,
        unique=unique,
        groups=groups,
        inputs=inputs,
    )
    once = list(compose(plan))
    assert bytes_of(once) == bytes_of(list(compose(plan)))
    assert bytes_of(once) != bytes_of(list(compose(replace(plan, seed=seed + 1))))
    assert twins_of(once) == pytest.approx(min(round(duplicates * 20), 19) / 20)
    assert once[0].at == 0
    assert [r.at for r in once] == sorted(r.at for r in once)


def test_an_id_stands_for_one_prompt() -> None:
    requests = list(compose(replace(PLAN, duplicates=0.5)))
    fields = {request.id: request.fields for request in requests}
    assert len(fields) == 30
    assert all(fields[request.id] == request.fields for request in requests)


def test_prompts_are_as_long_as_was_drawn() -> None:
    for request in compose(replace(PLAN, inputs=Fixed(200), outputs=Fixed(7))):
        assert request.input_tokens == 200
        assert len(prompt_bytes(request.fields)) == pytest.approx(200 * BYTES_PER_TOKEN, abs=8)
        assert request.output_tokens == request.fields["max_tokens"] == 7


def test_groups_share_their_opening_and_as_many_prompts_as_asked_have_one() -> None:
    plan = replace(PLAN, requests=400, inputs=Fixed(300), groups=Groups(0.5, 4, 128))
    openings = [r.fields["messages"][0]["content"] for r in compose(plan) if len(r.fields["messages"]) == 2]
    assert len(openings) / 400 == pytest.approx(0.5, abs=0.1)
    assert len(set(openings)) == 4
    assert {len(text) for text in openings} == {round(128 * BYTES_PER_TOKEN)}


def test_a_group_opens_the_system_message_that_is_there() -> None:
    plan = replace(PLAN, inputs=None, sets=("shared-system",), groups=Groups(1.0, 1, 64))
    for request in compose(plan):
        assert [m["role"] for m in request.fields["messages"]] == ["system", "user"]


@pytest.mark.parametrize("inputs", [Fixed(150), None])
def test_unique_prompts_share_no_block_however_small(inputs: Fixed | None) -> None:
    cache = Prefixes(16)
    requests = list(compose(replace(PLAN, inputs=inputs, unique=True, groups=Groups(0.9, 2, 64))))
    assert [cache.add(prompt_bytes(request.fields)) for request in requests] == [0] * 60


def test_hand_written_prompts_come_first_and_then_variants_that_all_differ() -> None:
    requests = list(compose(replace(PLAN, requests=500, inputs=None, sets=("short-chat", "code"))))
    assert twins_of(requests) == 0
    assert len([r for r in requests if "+" not in r.id]) == 124


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_chains_reach_the_asked_hit_rate(rate: float, seed: int) -> None:
    lengths = [512 * (1 + (7 * n * n) % 40) for n in range(1500)]
    chains = Sharing(rate, common=0).chains(lengths, seed)
    assert [len(chain) for chain in chains] == [length // 512 for length in lengths]
    known: set[tuple[int, ...]] = set()
    hits = total = 0
    for chain in chains:
        prefixes = [chain[: n + 1] for n in range(len(chain))]
        hits += sum(prefix in known for prefix in prefixes)
        known.update(prefixes)
        total += len(chain)
    assert hits / total == pytest.approx(rate, abs=0.03)


def test_shared_blocks_are_shared_text_and_found_by_their_bytes() -> None:
    size = block_bytes()
    one, two = block_prompt(0, (0, 1, 2), 1300), block_prompt(0, (0, 1, 9), 1536)
    assert one[: 2 * size] == two[: 2 * size]
    assert one[2 * size :] != two[2 * size : len(one)]
    assert len(one) == round(1300 * BYTES_PER_TOKEN)
    cache = Prefixes(size)
    assert [cache.add(one.encode()), cache.add(two.encode())] == [0, 2]


@given(st.integers(), st.integers(), st.integers(0, 3000))
def test_a_block_has_exactly_its_size_and_is_a_function_of_its_name(seed: int, name: int, size: int) -> None:
    assert len(block(seed, name, size).encode()) == size
    assert block(seed, name, size) == block(seed, name, size)


def test_embeddings_carry_no_length_of_an_answer() -> None:
    assert all("max_tokens" not in r.fields for r in compose(replace(PLAN, endpoint="embeddings", inputs=None)))


def test_a_faster_workload_is_the_same_one_in_less_time() -> None:
    slow, fast = list(compose(PLAN)), list(compose(replace(PLAN, speed=4.0)))
    assert [r.fields for r in slow] == [r.fields for r in fast]
    assert fast[-1].at == pytest.approx(slow[-1].at / 4, abs=1e-5)
