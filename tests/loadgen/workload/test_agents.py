"""Traces of agents: which call waits for which, and how long; what a bad trace is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import WorkloadError
from loadgen.workload.model import Item, Options
from loadgen.workload.workload import open_workload


def items(tmp_path: Path, text: str, **more: Any) -> list[Item]:
    path = tmp_path / "trace"
    path.write_text(text)
    return list(open_workload(Options(dataset_name="trace", dataset_path=str(path), **more)).requests())


def waits(item: Item) -> list[tuple[tuple[int, ...], float]]:
    return [(follow_up.after, round(follow_up.gap_s, 6)) for follow_up in item.then]


def span(start: float, end: float, *, trace: str = "t1", **more: Any) -> dict[str, Any]:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 3,
    }
    attributes |= {name.replace("__", "."): value for name, value in more.items()}
    return {
        "traceId": trace,
        "startTimeUnixNano": str(round(start * 1e9)),
        "endTimeUnixNano": str(round(end * 1e9)),
        "attributes": [
            {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
            for key, value in attributes.items()
        ],
    }


def otlp(*spans: dict[str, Any]) -> str:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]})


def test_a_call_waits_for_those_that_had_ended_and_for_each_once(tmp_path: Path) -> None:
    text = otlp(
        span(10, 12),
        span(12.5, 14),  # two in parallel after the first
        span(12.5, 15),
        span(16, 17),  # after both
        span(16.5, 18),  # after both, too: the one before it has not ended
        span(20, 21),  # after the last two
    )
    (item,) = items(tmp_path, text)
    assert waits(item) == [((0,), 0.5), ((0,), 0.5), ((1, 2), 1.0), ((1, 2), 1.5), ((3, 4), 2.0)]
    assert item.at_s == 0.0
    assert item.prompt.fields["max_tokens"] == 3


def test_traces_begin_at_their_times_and_lines_are_as_good_as_one_object(tmp_path: Path) -> None:
    text = otlp(span(105, 106, trace="b")) + "\n" + otlp(span(100, 101, trace="a")) + "\n"
    found = items(tmp_path, text)
    assert [(item.prompt.id, item.at_s) for item in found] == [("a#1", 0.0), ("b#1", 5.0)]


def test_spans_of_tools_and_agents_are_no_calls(tmp_path: Path) -> None:
    text = otlp(
        span(0, 9, gen_ai__operation__name="invoke_agent"),
        span(1, 2),
        span(2, 3, gen_ai__operation__name="execute_tool"),
        span(3, 4),
    )
    (item,) = items(tmp_path, text)
    assert waits(item) == [((0,), 1.0)]


def test_messages_in_a_span_are_sent(tmp_path: Path) -> None:
    messages = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "What is red?"}]}])
    (item,) = items(tmp_path, otlp(span(0, 1, gen_ai__input__messages=messages)))
    assert item.prompt.fields["messages"] == [{"role": "user", "content": "What is red?"}]


def call(at: float, length: int, blocks: list[int], **more: Any) -> dict[str, Any]:
    return {"t": at, "type": "s", "in": length, "out": 5, "hash_ids": blocks, **more}


def weka(*requests: dict[str, Any], **more: Any) -> str:
    return json.dumps({"id": "run", "block_size": 16, "requests": list(requests), **more})


def test_an_agent_waits_for_its_subagents_which_run_in_parallel(tmp_path: Path) -> None:
    text = weka(
        call(0, 32, [1, 2]),
        {"type": "subagent", "t": 1.0, "requests": [call(0, 16, [7]), call(2, 32, [7, 8], think_time=0.25)]},
        {"type": "subagent", "t": 1.0, "requests": [call(0.5, 16, [9])]},
        call(9.0, 48, [1, 2, 3], think_time=0.5),
    )
    (item,) = items(tmp_path, text)
    assert waits(item) == [((0,), 0.0), ((1,), 0.25), ((0,), 0.5), ((2, 3), 0.5)]
    assert item.at_s is None


def test_calls_share_the_text_of_their_blocks(tmp_path: Path) -> None:
    (item,) = items(tmp_path, weka(call(0, 32, [1, 2]), call(1, 50, [1, 2, 3])))
    texts = [item.prompt, *(follow_up.prompt() for follow_up in item.then)]
    first, second = (prompt.fields["messages"][0]["content"] for prompt in texts)
    assert second.startswith(first)
    assert len(second) > len(first)


def test_blocks_of_two_traces_are_two_texts_unless_they_are_global(tmp_path: Path) -> None:
    for scope, equal in (("local", False), ("global", True)):
        text = "\n".join(weka(call(0, 16, [1]), hash_id_scope=scope) for _ in range(2))
        one, two = items(tmp_path, text)
        assert (one.prompt.fields == two.prompt.fields) == equal


def test_the_time_of_an_answer_is_no_gap(tmp_path: Path) -> None:
    (item,) = items(tmp_path, weka(call(0, 16, [1], api_time=3), call(4, 16, [1])))
    assert waits(item) == [((0,), 1.0)]


def test_burstgpt_gives_times_and_lengths_without_the_failures(tmp_path: Path) -> None:
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n"
        "118.5,GPT-4,417,276,693,Conversation log\n"
    )
    found = items(tmp_path, text)
    assert [item.at_s for item in found] == [0.0, 113.5]
    assert [item.prompt.fields["max_tokens"] for item in found] == [18, 276]


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_lines_of_a_session_follow_each_other(tmp_path: Path) -> None:
    row = {"input_length": 600, "output_length": 4}
    text = lines(
        {"session_id": "a", "timestamp": 1000, "hash_ids": [1, 2], **row},
        {"session_id": "b", "timestamp": 3000, **row},
        {"session_id": "a", "delay": 500, "hash_ids": [1, 2], **row},
        {"session_id": "b", "timestamp": 4500, **row},
    )
    a, b = items(tmp_path, text)
    assert (a.at_s, waits(a)) == (0.0, [((0,), 0.5)])
    assert (b.at_s, waits(b)) == (2.0, [((0,), 1.5)])
    assert a.prompt.fields == a.then[0].prompt().fields
    assert b.prompt.fields != b.then[0].prompt().fields


def test_deltas_of_a_session_continue_it(tmp_path: Path) -> None:
    def row(mode: str, *texts: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": text} for text in texts]
        return {"session_id": "a", "message_mode": mode, "messages": messages, "output_length": 4}

    (delta,) = items(tmp_path, lines(row("delta", "x"), row("delta", "y")))
    assert [follow_up.continues for follow_up in delta.then] == [True]
    assert delta.at_s is None
    (history,) = items(tmp_path, lines(row("history", "x"), row("history", "x", "y")))
    assert [follow_up.continues for follow_up in history.then] == [False]
    assert len(history.then[0].prompt().fields["messages"]) == 2


DEEP: dict[str, Any] = call(0, 16, [1])
for _ in range(30):
    DEEP = {"type": "subagent", "t": 0, "requests": [DEEP]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (otlp(), "has no spans of model calls"),
        (json.dumps({"resourceSpans": 3}), "a list resourceSpans"),
        (otlp({**span(0, 1), "startTimeUnixNano": "soon"}), "startTimeUnixNano must be a time in nanoseconds"),
        (otlp(span(2, 1)), "ends before it starts"),
        (weka(), "has no requests of type s or n"),
        (weka(call(0, -3, [])), "in must be a whole number of tokens"),
        (weka(call(-1, 16, [])), "t must be a time in seconds"),
        (weka(call(0, 16, [1.5])), "hash_ids must be a list of whole numbers"),  # type: ignore[list-item]
        (weka(DEEP), "subagents at most 20 deep"),
        (weka(call(0, 16, [1]), block_size=0), "block_size must be 1 to 4,096"),
        (
            json.dumps({"session_id": "a", "messages": [], "output_length": 1}),
            "messages must be a list of objects",
        ),
        (json.dumps({"session_id": "a", "output_length": 1}), "input_length must be a whole number"),
        ("Timestamp,Request tokens,Response tokens\n1,x,2\n", "must have a time and two whole numbers"),
        ("Timestamp,Request tokens,Response tokens\n1,5,0\n", "no request has response tokens"),
    ],
)
def test_a_bad_trace_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        items(tmp_path, text)
    assert told in str(caught.value)


def test_agents_are_no_load_for_embeddings(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="agent traces are for chat"):
        items(tmp_path, otlp(span(0, 1)), endpoint="embeddings")
