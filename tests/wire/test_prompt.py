"""The texts of a request: all that a model reads, none of what it does not."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest

from proxy.errors import Code, GatewayError
from proxy.wire.openai import Endpoint, decode
from proxy.wire.prompt import Prompt, body_texts, other_texts, prompt_of, strings

Case = tuple[Endpoint, dict[str, Any], Prompt]
PART: dict[Literal["type"], str] = {"type": "text"}
CASES: list[Case] = [
    ("chat", {"messages": []}, Prompt([], 0, 0)),
    ("chat", {"messages": [{"role": "user", "content": "a"}]}, Prompt([["a"]], 1, 0)),
    (
        "chat",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
            ]
        },
        Prompt([["a", "b"]], 1, 0),
    ),
    (
        "chat",
        {
            "messages": [
                {"role": "system", "content": "s", "name": "n"},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]},
                7,
            ]
        },
        Prompt([["s", "n"], [], ["{}"], []], 4, 0),
    ),
    (
        "chat",
        {"messages": [{"content": [{"type": "text", "text": "data:hidden"}]}]},
        Prompt([["data:hidden"]], 1, 0),
    ),
    ("completions", {"prompt": "abc"}, Prompt([["abc"]], 1, 0)),
    ("completions", {"prompt": ["a", "b"]}, Prompt([["a"], ["b"]], 2, 0)),
    ("completions", {"prompt": [1, 2, 3]}, Prompt([], 1, 3)),
    ("completions", {"prompt": [[1, 2], [3]]}, Prompt([[], []], 2, 3)),
    ("completions", {"prompt_embeds": "xx"}, Prompt([], 0, 0)),
    ("embeddings", {"input": ["a", "bc"]}, Prompt([["a"], ["bc"]], 2, 0)),
]


@pytest.mark.parametrize(("endpoint", "body", "prompt"), CASES)
def test_a_prompt_s_texts_items_and_ids(endpoint: Endpoint, body: dict[str, Any], prompt: Prompt) -> None:
    found = prompt_of(decode(endpoint, msgspec.json.encode(body)))
    assert found == prompt
    assert found.chars == sum(len(text) for texts in prompt.parts for text in texts) + prompt.ids


def test_the_other_fields_strings_are_texts_too_but_for_those_no_model_reads() -> None:
    body = {
        "model": "m",
        "user": "u",
        "messages": [{"content": "c"}],
        "tools": [{"function": {"name": "f", "description": "d", "parameters": {"x": {"default": "e"}}}}],
        "suffix": "s",
        "temperature": 0,
    }
    assert sorted(other_texts(decode("chat", msgspec.json.encode(body)))) == ["d", "e", "f", "s"]


def test_a_body_that_is_no_json_is_one_text() -> None:
    assert body_texts(b'{"input": ["a", {"text": "b"}], "url": "http://x"}') == ["a", "b"]
    assert body_texts(b"a=b\xff") == ["a=b\ufffd"]


def test_however_deep_a_value_is_its_strings_are_found() -> None:
    value: Any = "x"
    for _ in range(50_000):
        value = [value]
    assert strings(value) == ["x"]


def test_a_field_that_is_no_json_is_refused() -> None:
    ask = decode("chat", b'{"messages": [], "temperature": 0}')
    ask.fields["messages"] = msgspec.Raw(b"[" * 5000 + b"]" * 5000)
    with pytest.raises(GatewayError) as e:
        prompt_of(ask)
    assert e.value.code is Code.INVALID_JSON
