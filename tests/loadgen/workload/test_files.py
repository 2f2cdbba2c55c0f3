"""Files of prompts: vLLM's custom and ShareGPT's, and everything that may be wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import WorkloadError
from loadgen.workload.files import MAX_BYTES, prompt_fields, read
from loadgen.workload.model import Options
from loadgen.workload.workload import open_workload


def written(tmp_path: Path, *rows: Any) -> str:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else msgspec.json.encode(row) + b"\n" for row in rows))
    return str(path)


def sent(path: str, name: str = "custom", **more: Any) -> list[dict[str, Any]]:
    options = msgspec.convert({"dataset_name": name, "dataset_path": path, **more}, Options)
    return [item.prompt.fields for item in open_workload(options).requests()]


def test_custom_prompts_are_read_in_order_with_their_lengths(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a", "output_tokens": 3}, b"\n", {"prompt": "b", "output_tokens": 4})
    assert sent(path, disable_shuffle=True, endpoint="completions", custom_output_len=-1) == [
        {"prompt": "a", "max_tokens": 3},
        {"prompt": "b", "max_tokens": 4},
    ]
    assert sent(path, disable_shuffle=True)[0] == {
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 256,
    }


@pytest.mark.parametrize("length", [256, -1])
def test_a_lines_other_fields_are_sent_with_it(tmp_path: Path, length: int) -> None:
    more = {"tools": [{"type": "function", "function": {"name": "f"}}], "temperature": 0.5}
    path = written(
        tmp_path,
        {"prompt": "a", "id": "x", "output_tokens": 3, **more, "max_tokens": 7},
        {"prompt": "b", "max_completion_tokens": 8},
        {"prompt": "c", "output_tokens": 9, "temperature": 0.1},
    )
    assert sent(path, disable_shuffle=True, endpoint="completions", custom_output_len=length) == [
        {"prompt": "a", **more, "max_tokens": 7},
        {"prompt": "b", "max_completion_tokens": 8},
        {"prompt": "c", "temperature": 0.1, "max_tokens": 9 if length == -1 else 256},
    ]


@pytest.mark.parametrize("name", ["custom", "sharegpt"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, name: str) -> None:
    line = {"prompt": "a"} if name == "custom" else [{"conversations": TALK}]
    path = written(tmp_path, b"\xef\xbb\xbf", line)
    assert len(sent(path, name)) == 1


def test_a_shuffle_follows_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path, *({"prompt": str(n)} for n in range(50)))
    assert sent(path, seed=1) == sent(path, seed=1) != sent(path, seed=2)
    assert sorted(map(str, sent(path, seed=1))) == sorted(map(str, sent(path, disable_shuffle=True)))


def test_messages_pass_as_they_are_and_twins_in_the_file_come_once(tmp_path: Path) -> None:
    message = {"role": "user", "content": "x", "name": "n"}
    path = written(tmp_path, {"messages": [message]}, {"messages": [message]}, {"input": "y"})
    assert sent(path, disable_shuffle=True, custom_output_len=7) == [
        {"messages": [message], "max_tokens": 7},
        {"messages": [{"role": "user", "content": "y"}], "max_tokens": 7},
    ]


def test_a_file_is_not_silently_repeated(tmp_path: Path) -> None:
    path = written(tmp_path, *({"prompt": str(n)} for n in range(10)))
    assert len(sent(path, num_prompts=4)) == 4
    with pytest.raises(WorkloadError, match=r"has 10 different prompts, 100 are needed.*--duplicates 0\.9"):
        sent(path, num_prompts=100)
    assert len(sent(path, num_prompts=100, duplicates=0.91)) == 100


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"{not json}\n", ":2: is not JSON"),
        (b"\xff\xfe\n", ":2: is not JSON"),
        (b"[1]\n", ":2: must be a JSON object"),
        ({}, ":2: must have exactly one of prompt, messages or input; has none"),
        ({"prompt": "a", "input": "b"}, ":2: must have exactly one of"),
        ({"prompt": "  "}, ":2: prompt must be non-empty text"),
        ({"prompt": [1, 2]}, ":2: prompt must be non-empty text"),
        ({"messages": []}, ":2: messages must be a list"),
        ({"messages": [{"content": "x"}]}, ":2: messages must be a list"),
        ({"prompt": "a", "id": ["x"]}, ":2: id must be text"),
        ({"prompt": "a", "id": "first"}, "'first' is used for two different prompts"),
    ],
)
def test_a_broken_line_is_named_before_anything_is_sent(tmp_path: Path, row: Any, words: str) -> None:
    path = written(tmp_path, {"prompt": "good", "id": "first"}, row, {"prompt": "good too"})
    with pytest.raises(WorkloadError) as caught:
        sent(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", True, None, 10**9])
def test_a_length_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    path = written(tmp_path, {"prompt": "a", "output_tokens": value})
    with pytest.raises(WorkloadError, match=r":1: output_tokens must be a whole number of tokens"):
        sent(path, custom_output_len=-1)


def test_a_line_without_a_length_is_refused_where_every_line_must_have_one(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=":1: has no output_tokens"):
        sent(written(tmp_path, {"prompt": "a"}), custom_output_len=-1)


@pytest.mark.parametrize("name", ["custom", "sharegpt", "trace"])
def test_empty_missing_and_unreadable_files_are_told_apart(tmp_path: Path, name: str) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n\n")
    with pytest.raises(WorkloadError, match="empty: is empty"):
        sent(str(empty), name)
    with pytest.raises(WorkloadError, match="none: No such file"):
        sent(str(tmp_path / "none"), name)
    with pytest.raises(WorkloadError, match="Is a directory"):
        sent(str(tmp_path), name)


def test_a_file_beyond_all_measure_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(WorkloadError, match="at most"):
        read(str(path))


def test_messages_are_only_for_chat() -> None:
    with pytest.raises(WorkloadError, match="f:1: has messages, which only the chat endpoint accepts"):
        prompt_fields({"messages": [{"role": "user", "content": "x"}]}, "completions", "f:1")


TALK = [
    {"from": "human", "value": "How do tides work, in short?"},
    {"from": "gpt", "value": "The moon pulls. " * 5},
]


def test_sharegpt_takes_the_first_question_and_the_length_of_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    short = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello there, what can I do?"}]
    entries = [{"id": "no conversations"}, {"conversations": TALK}, {"conversations": TALK[:1]}]
    path.write_text(json.dumps([*entries, {"conversations": short}]))
    (fields,) = sent(str(path), "sharegpt", endpoint="completions")
    assert fields == {"prompt": TALK[0]["value"], "max_tokens": round(80 / 3.962)}
    (fields,) = sent(str(path), "sharegpt", sharegpt_output_len=11)
    assert fields["max_tokens"] == 11


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[\n{"a": 1},\n{"b" 2}]', "line 3: is not JSON"),
        ('{"a": 1}', "must be a JSON list"),
        ("[]", "at least one"),
        ("[5]", "conversation 1: must be an object"),
        ('[{"conversations": [{"value": 1}, {"value": "x"}]}]', "conversation 1: its first two turns"),
        ('[{"conversations": []}]', "no conversation has two turns"),
    ],
)
def test_a_broken_sharegpt_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        sent(str(path), "sharegpt")
    assert words in str(caught.value)


@given(data=st.binary(max_size=200), name=st.sampled_from(["custom", "sharegpt", "trace"]))
def test_garbage_raises_nothing_but_a_workload_error(
    data: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage"
    path.write_bytes(data)
    try:
        sent(str(path), name)
    except WorkloadError as e:
        assert str(path) in str(e)


def test_a_file_of_one_prompt_is_one_request(tmp_path: Path) -> None:
    assert len(sent(written(tmp_path, {"prompt": "only"}))) == 1


def test_a_file_with_too_few_prompts_is_repeated_or_sent_once_where_asked(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a"}, {"prompt": "b"})
    whole = sent(path, num_prompts=9, too_few="repeat")
    assert len(whole) == 9
    assert whole[2:] != whole[:2] * 4
    assert {fields["messages"][0]["content"] for fields in whole[:2]} == {"a", "b"}
    assert whole == sent(path, num_prompts=9, too_few="repeat")
    assert len(sent(path, num_prompts=9, too_few="fewer")) == 2
    assert len(sent(path, num_prompts=1, too_few="fewer")) == 1
    with pytest.raises(WorkloadError, match="or --too-few repeat"):
        sent(path, num_prompts=9)
    with pytest.raises(WorkloadError, match="contradict"):
        sent(path, num_prompts=9, too_few="repeat", duplicates=0.5)


@pytest.mark.parametrize("name", ["custom", "sharegpt"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"prompt": %b}' % (b"[" * 200_000 + b"]" * 200_000), "is nested too deep"),
        (b'{"prompt": "half \\ud83d of it"}', r"\\ud83d is half of a pair"),
        (b'{"prompt": "a', "is not JSON"),
        (b'{"prompt": "\\ud83d\\ude00', "is not JSON"),
        ('{"prompt": "a"}'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"\xfe\xff" + '{"prompt": "a"}'.encode("utf-16-be"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_json_is_named_by_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(WorkloadError, match=said):
        sent(written(tmp_path, content), name)


def test_what_is_read_more_than_once_is_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(WorkloadError, match="save it as a file"):
            sent(path)
