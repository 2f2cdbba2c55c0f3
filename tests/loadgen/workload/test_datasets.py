"""Datasets without files: lengths as vLLM draws them, prefixes as they are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.bank import one_token_words
from loadgen.workload.model import Options
from loadgen.workload.workload import open_workload


def texts(options: Options) -> list[str]:
    return [item.prompt.fields["prompt"] for item in open_workload(options).requests()]


@given(st.integers(1, 60), st.floats(0, 0.9), st.integers(0, 10), st.integers(0, 99))
def test_random_prompts_have_as_many_words_as_were_asked(
    length: int, ratio: float, prefix: int, seed: int
) -> None:
    options = Options(
        dataset_name="random",
        endpoint="completions",
        num_prompts=12,
        seed=seed,
        random_input_len=length,
        random_range_ratio=ratio,
        random_prefix_len=prefix,
    )
    counts = [len(text.split()) - prefix for text in texts(options)]
    assert min(counts) >= max(1, int(length * (1 - ratio)))
    assert max(counts) <= int(length * (1 + ratio))
    assert len({" ".join(text.split()[:prefix]) for text in texts(options)}) == 1
    assert {word for text in texts(options) for word in text.split()} <= set(one_token_words())


def test_input_and_output_may_vary_by_ratios_of_their_own() -> None:
    options = Options(
        dataset_name="random",
        endpoint="completions",
        num_prompts=50,
        random_input_len=100,
        random_output_len=100,
        random_range_ratio={"input": 0.0, "output": 0.5},
    )
    prompts = [item.prompt for item in open_workload(options).requests()]
    assert {prompt.expected_input for prompt in prompts} == {100}
    outputs = [prompt.fields["max_tokens"] for prompt in prompts]
    assert 50 <= min(outputs) < 75 < 125 < max(outputs) <= 150


def test_expected_input_is_the_count_of_words() -> None:
    options = Options(dataset_name="random", endpoint="completions", num_prompts=3, random_prefix_len=5)
    for item in open_workload(options).requests():
        assert item.prompt.expected_input == len(item.prompt.fields["prompt"].split()) == 1029


@pytest.mark.parametrize("prefixes", [1, 3, 7])
def test_prefixes_are_repeated_in_turn(prefixes: int) -> None:
    options = Options(
        dataset_name="prefix_repetition",
        endpoint="completions",
        num_prompts=21,
        prefix_repetition_num_prefixes=prefixes,
        prefix_repetition_prefix_len=30,
        prefix_repetition_suffix_len=10,
        prefix_repetition_output_len=5,
    )
    opened = [" ".join(text.split()[:30]) for text in texts(options)]
    assert len(set(opened)) == prefixes
    assert opened[0] == opened[prefixes]
    assert len({text[len(head) :] for text, head in zip(texts(options), opened, strict=True)}) == 21
    assert all(item.prompt.fields["max_tokens"] == 5 for item in open_workload(options).requests())


def test_corpus_sets_are_only_those_that_were_named() -> None:
    options = Options(corpus_set=("code", "languages"), num_prompts=112)
    sent = [item.prompt.id for item in open_workload(options).requests()]
    assert {name.partition("/")[0] for name in sent} == {"code", "languages"}
    assert len(set(sent)) == 112


def test_the_corpus_goes_on_with_variants_beyond_what_was_written() -> None:
    options = Options(corpus_set=("code",), num_prompts=100)
    prompts = [item.prompt for item in open_workload(options).requests()]
    assert sum("+" in prompt.id for prompt in prompts) == 60
    assert len({repr(prompt.fields) for prompt in prompts}) == 100


def test_a_conversation_is_written_out_for_completions() -> None:
    options = Options(corpus_set=("multi-turn",), endpoint="completions", num_prompts=22)
    assert all(text.endswith("Answer:") for text in texts(options))
