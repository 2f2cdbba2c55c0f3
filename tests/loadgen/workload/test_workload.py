"""What a run sends: twins, nonces, warm-ups, and the account of it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.measure import Prefixes, prompt_bytes
from loadgen.errors import WorkloadError
from loadgen.workload.model import Item, Options, Prompt
from loadgen.workload.workload import describe_sent, open_workload

MADE = st.sampled_from(["corpus", "random", "prefix_repetition", "prompt"])
ENDPOINTS = st.sampled_from(["chat", "completions", "embeddings"])


def options(name: str, **more: Any) -> Options:
    small = {"random_input_len": 40, "prefix_repetition_prefix_len": 40, "prefix_repetition_suffix_len": 20}
    return msgspec.convert({"dataset_name": name, "prompt": "Name three colours.", **small, **more}, Options)


@settings(max_examples=30)
@given(MADE, ENDPOINTS, st.integers(1, 40), st.floats(0, 0.9), st.booleans(), st.integers(0, 2**40))
def test_the_same_options_send_the_same_bytes_in_every_worker(
    name: str, endpoint: str, count: int, duplicates: float, unique: bool, seed: int
) -> None:
    chosen = options(name, endpoint=endpoint, num_prompts=count, duplicates=duplicates, unique=unique, seed=seed)
    workload = open_workload(chosen)
    sent = list(workload.requests())
    assert len(sent) == count
    assert sent == list(workload.requests()) == list(open_workload(chosen).requests())
    by_id: dict[str, Any] = {}
    for item in sent:
        assert by_id.setdefault(item.prompt.id, item.prompt.fields) == item.prompt.fields
        assert item.prompt.endpoint == endpoint
        assert item.at_s is None
    texts = [msgspec.json.encode(fields) for fields in by_id.values()]
    assert len(set(texts)) == len(texts), "twins have one id"


@settings(max_examples=30)
@given(MADE, ENDPOINTS, st.integers(1, 60), st.floats(0, 0.9))
def test_the_asked_duplicate_share_is_what_describe_finds(
    name: str, endpoint: str, count: int, duplicates: float
) -> None:
    chosen = options(name, endpoint=endpoint, num_prompts=count, duplicates=duplicates, unique=name == "prompt")
    found = describe_sent(open_workload(chosen).requests())
    assert found["requests"] == count
    assert count - found["distinct_prompts"] == min(round(duplicates * count), count - 1)


@settings(max_examples=20)
@given(MADE, ENDPOINTS, st.integers(0, 2**40))
def test_unique_prompts_share_no_block_with_each_other_or_with_warmups(
    name: str, endpoint: str, seed: int
) -> None:
    chosen = options(name, endpoint=endpoint, num_prompts=20, unique=True, seed=seed, salt="s")
    workload = open_workload(chosen)
    cache = Prefixes(16)
    for item in [*workload.requests(), *workload.warmups(25)]:
        assert cache.add(prompt_bytes(item.prompt.fields)) == 0
    assert describe_sent(workload.requests())["unique"]


@settings(max_examples=20)
@given(MADE, ENDPOINTS, st.integers(1, 30))
def test_warmups_are_not_in_the_run_and_share_no_prefix_with_it(name: str, endpoint: str, count: int) -> None:
    workload = open_workload(options(name, endpoint=endpoint, num_prompts=count, salt="s"))
    cache = Prefixes(16)
    for item in workload.requests():
        cache.add(prompt_bytes(item.prompt.fields))
    ids = {item.prompt.id for item in workload.requests()}
    warm = list(workload.warmups(count + 5))
    assert len(warm) == count + 5
    assert [cache.add(prompt_bytes(item.prompt.fields)) for item in warm] == [0] * (count + 5)
    assert ids.isdisjoint(item.prompt.id for item in warm)


def test_another_salt_sends_other_bytes_and_the_same_salt_the_same() -> None:
    def sent(salt: str) -> list[Item]:
        return list(open_workload(options("corpus", num_prompts=5, unique=True, salt=salt)).requests())

    assert sent("a") == sent("a")
    assert all(x.prompt.fields != y.prompt.fields for x, y in zip(sent("a"), sent("b"), strict=True))


def test_a_large_workload_is_lazy() -> None:
    workload = open_workload(options("random", num_prompts=1_000_000, random_input_len=10_000))
    assert len(list(islice(workload.requests(), 3))) == 3


def test_an_output_length_is_sent_but_never_with_embeddings() -> None:
    for endpoint, sent in (("chat", 9), ("completions", 9), ("embeddings", None)):
        chosen = options("corpus", endpoint=endpoint, num_prompts=3, corpus_output_len=9)
        assert [item.prompt.fields.get("max_tokens") for item in open_workload(chosen).requests()] == [sent] * 3


def test_describe_counts_what_two_prompts_have_in_common() -> None:
    shared = "x" * 64
    texts = [shared + "a" * 64, shared + "b" * 64, shared + "a" * 64]
    items = [Item(Prompt(str(n), "completions", {"prompt": text})) for n, text in enumerate(texts)]
    assert describe_sent(items) == {
        "requests": 3,
        "distinct_prompts": 2,
        "duplicate_share": 0.3333,
        "max_repeats": 2,
        "prefix_share": 0.5,
        "prefix_block_bytes": 64,
        "mean_prompt_bytes": 128.0,
        "unique": False,
    }
    assert describe_sent([])["requests"] == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dataset_name": "prompt", "prompt": " "}, "needs --prompt TEXT"),
        ({"dataset_name": "custom"}, "--dataset-path FILE"),
        ({"dataset_name": "sharegpt"}, "--dataset-path FILE"),
        ({"dataset_name": "trace"}, "--dataset-path FILE"),
        ({"dataset_path": "x.jsonl"}, "corpus reads no file"),
        ({"corpus_set": ["poems"]}, "--corpus-set: there is no set 'poems'; there are short-chat"),
        ({"corpus_set": ["embeddings"]}, "is for embeddings, not for chat"),
        ({"dataset_name": "random", "corpus_set": ["code"]}, "--corpus-set applies to"),
        ({"num_prompts": 0}, "--num-prompts must be 1 to"),
        ({"duplicates": 1.0}, "--duplicates must be 0 to 0.999"),
        ({"zipf": -1.0}, "--zipf must be 0 to 4"),
        ({"zipf": float("nan")}, "--zipf must be 0 to 4"),
        ({"random_input_len": 0}, "--random-input-len must be 1 to"),
        ({"random_range_ratio": 1.0}, "--random-range-ratio must be 0 to 0.999"),
        ({"random_range_ratio": {"input": 0.5, "output": 1.0}}, "of the output must be 0 to 0.999"),
        ({"random_range_ratio": {"input": 0.5}}, "must have input and output"),
        ({"custom_output_len": -2}, "--custom-output-len must be"),
        ({"trace_jitter": -1.0}, "--trace-jitter must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        open_workload(msgspec.convert(more, Options))
    assert words in str(caught.value)
