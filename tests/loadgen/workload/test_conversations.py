"""Conversations: their turns, think times and histories, from a dataset or from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.draw import Draw
from loadgen.errors import WorkloadError
from loadgen.workload.conversations import conversation_size, parse_think_time, parse_turns
from loadgen.workload.model import Item, Options
from loadgen.workload.workload import describe_sent, open_workload


def items(**more: Any) -> list[Item]:
    return list(open_workload(Options(**{"dataset_name": "random", "random_input_len": 5, **more})).requests())


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**30))
def test_made_conversations_have_as_many_turns_as_asked_and_the_same_ones_again(
    fewest: int, more: int, seed: int
) -> None:
    options = {"turns": f"{fewest}-{fewest + more}", "num_prompts": 6, "seed": seed}
    one, two = items(**options), items(**options)
    assert all(fewest <= 1 + len(item.then) <= fewest + more for item in one)
    for item, again in zip(one, two, strict=True):
        assert item.prompt == again.prompt
        assert [f.prompt() for f in item.then] == [f.prompt() for f in again.then]
        assert [(f.after, f.gap_s) for f in item.then] == [((n,), 0.0) for n in range(len(item.then))]
    texts = [
        prompt.fields["messages"][-1]["content"]
        for item in one
        for prompt in (item.prompt, *(f.prompt() for f in item.then))
    ]
    assert len({*texts}) == len(texts)


def test_a_later_turn_of_the_corpus_is_a_question_alone() -> None:
    found = items(dataset_name="corpus", corpus_set=("shared-system", "multi-turn"), turns="3", num_prompts=20)
    later = [follow_up.prompt().fields["messages"] for item in found for follow_up in item.then]
    assert {len(messages) for messages in later} == {1}
    assert {messages[0]["role"] for messages in later} == {"user"}
    assert any(len(item.prompt.fields["messages"]) > 1 for item in found)


@pytest.mark.parametrize(
    ("text", "mean", "low", "high"),
    [
        ("2", 2.0, 2.0, 2.0),
        ("exponential:2", 2.0, 0.0, 60.0),
        ("uniform:1-3", 2.0, 1.0, 3.0),
        ("lognormal:2,0.5", 2.2663, 0.0, 60.0),
    ],
)
def test_think_times_have_the_distribution_asked(text: str, mean: float, low: float, high: float) -> None:
    think = parse_think_time(text)
    drawn = [think.draw(Draw(1, "think", number)) for number in range(4000)]
    assert think.mean == pytest.approx(mean, rel=1e-3)
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.05)
    assert min(drawn) >= low
    assert max(drawn) <= high


@pytest.mark.parametrize(
    "text", ["", "-1", "nan", "inf", "uniform:1", "exponential:1-2", "gamma:1", "9e9", "lognormal:1,9"]
)
def test_other_think_times_are_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match="give SECONDS, exponential:MEAN"):
        parse_think_time(text)


@pytest.mark.parametrize("text", ["", "x", "0", "2-1", "1-", "1001", "-3", "1-2-3", "٣x"])
def test_other_turns_are_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match="give N, LOW-HIGH or all"):
        parse_turns(text)


def test_the_mean_size_sizes_a_load() -> None:
    assert conversation_size(Options()) == (1.0, 0.0)
    assert conversation_size(Options(turns="2-6", think_time="uniform:1-2")) == (4.0, 1.5)


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


def custom(tmp_path: Path, *lines: dict[str, Any], **more: Any) -> list[Item]:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return items(
        **{"dataset_name": "custom", "dataset_path": str(path), "turns": "all", "disable_shuffle": True, **more}
    )


def histories(item: Item) -> list[list[str]]:
    prompts = [item.prompt, *(follow_up.prompt() for follow_up in item.then)]
    return [[message["content"] for message in prompt.fields["messages"]] for prompt in prompts]


def test_a_line_of_messages_is_cut_where_answers_are(tmp_path: Path) -> None:
    line = {"messages": [{"role": "system", "content": "s"}, *said("a", "b", "c", "d", "e")]}
    (own,) = custom(tmp_path, line)
    assert histories(own) == [["s", "a"], ["c"], ["e"]]
    assert all(follow_up.continues for follow_up in own.then)
    (recorded,) = custom(tmp_path, line, history="file")
    assert histories(recorded) == [["s", "a"], ["s", "a", "b", "c"], ["s", "a", "b", "c", "d", "e"]]
    assert not any(follow_up.continues for follow_up in recorded.then)


def test_questions_without_answers_are_turns(tmp_path: Path) -> None:
    line = {"messages": [{"role": "user", "content": text} for text in "abc"]}
    assert histories(custom(tmp_path, line)[0]) == [["a"], ["b"], ["c"]]
    assert histories(custom(tmp_path, line, history="file")[0]) == [["a"]]


def test_turns_bound_a_files_conversations(tmp_path: Path) -> None:
    short, long = {"messages": said("a")}, {"messages": said(*"abcdefghi")}
    (only,) = custom(tmp_path, short, long, turns="2-3", num_prompts=1)
    assert len(only.then) in (1, 2)
    with pytest.raises(WorkloadError, match="no conversation has 9 turns"):
        custom(tmp_path, short, long, turns="9")


def test_a_lines_own_fields_are_in_each_turn(tmp_path: Path) -> None:
    (item,) = custom(tmp_path, {"messages": said("a", "b", "c"), "temperature": 0.5, "max_tokens": 7})
    for prompt in (item.prompt, item.then[0].prompt()):
        assert (prompt.fields["temperature"], prompt.fields["max_tokens"]) == (0.5, 7)


def test_tool_calls_need_the_files_own_history(tmp_path: Path) -> None:
    line = {"messages": [*said("a", "b"), {"role": "tool", "content": "x", "tool_call_id": "1"}, *said("c")]}
    with pytest.raises(WorkloadError, match="give --history file"):
        custom(tmp_path, line)
    assert len(custom(tmp_path, line, history="file")[0].then) == 1


def test_a_nonce_is_in_front_of_each_history_and_the_same_in_all(tmp_path: Path) -> None:
    line = {"messages": said("a", "b", "c")}
    (item,) = custom(tmp_path, line, history="file", unique=True, salt="s")
    first, second = histories(item)
    assert first[0] == second[0] != "a"
    (item,) = custom(tmp_path, line, unique=True, salt="s")
    first, second = histories(item)
    assert first[0] != "a"
    assert second == ["c"]


def test_what_was_sent_counts_the_later_turns() -> None:
    told = describe_sent(items(turns="3", num_prompts=4))
    assert (told["requests"], told["conversations"], told["later_turns"]) == (4, 4, 8)
