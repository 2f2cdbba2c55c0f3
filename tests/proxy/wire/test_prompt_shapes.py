"""The texts of prompts that are not as the API says: numbers, mixed lists, parts that are no objects."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.wire.openai import Endpoint
from proxy.wire.prompt import Prompt, everything, holds_ids, joined, media_free, prompt_in, refuse_ids, strings


@pytest.mark.parametrize(
    ("endpoint", "value", "prompt"),
    [
        ("chat", None, Prompt([], 0, 0)),
        ("completions", 5, Prompt([], 0, 0)),
        ("completions", {"a": "b"}, Prompt([], 0, 0)),
        ("chat", [1, 2], Prompt([[], []], 2, 0)),
        ("chat", [[1, 2]], Prompt([[]], 1, 0)),
        ("completions", [1, "a"], Prompt([[], ["a"]], 2, 0)),
        ("completions", ["a", [1, 2]], Prompt([["a"], []], 2, 2)),
        ("completions", [], Prompt([], 0, 0)),
    ],
)
def test_a_prompt_of_another_type_has_the_texts_that_it_has(
    endpoint: Endpoint, value: Any, prompt: Prompt
) -> None:
    assert prompt_in(endpoint, value) == prompt


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ([["a"]], False),
        ([["a", 1]], True),
        ([[], ["a"]], False),
        ([{"prompt": "a", "input": [1]}], True),
        ([{"prompt": "a", "input": "b"}], False),
        ([{"other": [1]}], False),
        ([True], True),
        ([None], False),
    ],
)
def test_token_ids_are_found_one_level_deep(value: Any, ids: bool) -> None:
    assert holds_ids(value) is ids
    body = {"prompt": value}
    if ids:
        with pytest.raises(Exception, match="token ids"):
            refuse_ids(body)
    else:
        refuse_ids(body)


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ([5, {"text": "a"}, {"text": "b"}], [["a", "b"]]),
        ([None, True, "x", {"text": "a"}], [["x", "a"]]),
        ([{}, [], {"text": "a"}, {"refusal": "b", "thinking": "c"}], [["a", "b", "c"]]),
        ([{"text": "a", "content": "b"}, {"text": "c"}], []),
        ([{"text": 5}, {"text": "a"}], []),
        (["a", "b"], []),
        ("a", []),
    ],
)
def test_only_texts_of_parts_are_joined(value: Any, texts: list[list[str]]) -> None:
    assert joined(value) == texts
    assert joined({"x": value}) == texts


def test_a_message_of_another_type_and_one_without_content_are_read_too() -> None:
    assert everything({"messages": ["a", {"x": "b"}, 5]}) == ["5", "x", "b", "a"]
    assert sorted(everything({"messages": [{"content": ["a", 5, {"text": "b"}], "output": "c"}]})) == [
        "5", "a", "b", "c",
    ]  # fmt: skip
    assert everything({"messages": "a"}) == ["a"]


def test_the_parts_of_a_tool_s_result_are_parts_and_the_rest_of_it_is_read() -> None:
    result = {"type": "tool_result", "content": [{"type": "image", "source": "x"}, {"text": "a"}], "k": "b"}
    assert sorted(everything({"messages": [{"content": [result]}]})) == ["a", "b", "k"]
    plain = {"type": "tool_result", "content": "c"}
    assert everything({"messages": [{"content": [plain]}]}) == ["c"]


def test_media_that_is_no_string_is_read() -> None:
    part = {"type": "image", "source": {"url": ["a"], "data": 5, "detail": "b"}, "image_url": 7, "x": "c"}
    assert sorted(everything({"messages": [{"content": [part]}]})) == ["5", "7", "a", "b", "c", "x"]


@pytest.mark.parametrize("name", ["role", "type"])
def test_a_word_of_the_api_is_no_text_as_a_role_or_a_type_alone(name: str) -> None:
    assert everything({"x": {name: "user"}}) == ["x"]
    assert everything({"x": {name: "odd"}}) == ["x", "odd"]
    assert everything({"x": {name: ["user"]}}) == ["x", "user"]
    assert everything({"x": {"y": "user"}}) == ["x", "y", "user"]


def test_strings_come_in_their_order_and_some_not_at_all() -> None:
    value = {"a": ["1", {"b": "2", "c": ["3"]}], "type": "4", "role": ["5"]}
    assert strings(value) == ["1", "2", "3", "4", "5"]
    assert strings(value, but={"type", "role"}) == ["1", "2", "3", "5"]
    assert media_free({"url": "x", "text": "data:y", "image_url": {"url": "z", "a": "b"}}) == ["data:y", "b"]


def test_a_string_without_an_escape_is_not_taken_for_json() -> None:
    assert everything({"x": '{"a": "b"}'}) == ["x", '{"a": "b"}']
    assert everything({"x": 'say {"a": "\\n"}'}) == ["x", 'say {"a": "\\n"}']
