"""The texts of a request: all that a model reads, none of what it does not."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import pytest

from proxy.errors import Code, GatewayError
from proxy.wire.openai import Endpoint, decode
from proxy.wire.prompt import (
    NO_TEXT_FIELDS,
    Prompt,
    everything,
    holds_ids,
    joined,
    prompt_of,
    refuse_ids,
    refuse_template,
    strings,
)

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


def test_every_string_and_name_is_a_text_but_for_words_of_the_api_and_what_no_model_reads() -> None:
    body = {
        "model": "m",
        "user": "u",
        "messages": [{"role": "user", "content": "c", "name": "n"}, {"role": "odd", "content": [{"type": "o2"}]}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": {"default": "e"}}}}],
        "documents": [{"k": ["d", {"role": "system"}]}],
        "temperature": 0,
    }
    found = sorted(everything(body, but=NO_TEXT_FIELDS))
    assert found == ["c", "d", "e", "f", "k", "n", "o2", "odd", "x"]


IMAGE = {"type": "image_url", "image_url": {"url": "data:secret"}}


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({"messages": [{"content": [IMAGE]}]}, False),
        ({"messages": [{"content": [{"type": "image_url", "image_url": "secret"}]}]}, False),
        ({"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": "secret"}}]}]}, False),
        ({"messages": [{"content": [{"type": "image", "source": {"type": "base64", "data": "secret"}}]}]}, False),
        ({"messages": [{"content": [{"type": "tool_result", "content": [IMAGE]}]}]}, False),
        ({"input": [{"content": [{"type": "input_image", "image_url": "secret"}]}]}, False),
        ({"input": [{"output": [{"type": "input_image", "image_url": "secret"}]}]}, False),
        ({"messages": [{"content": [IMAGE | {"text": "secret"}]}]}, True),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"detail": "secret"}}]}]}, True),
        ({"messages": [{"content": [{"type": "image_url", "image_url": ["secret"]}]}]}, True),
        ({"messages": [{"content": [{"type": "text", "image_url": {"url": "secret"}}]}]}, True),
        ({"messages": [{"content": [{"image_url": {"url": "secret"}}]}]}, True),
        ({"messages": [{"content": [{"type": ["image_url"], "image_url": "secret"}]}]}, True),
        ({"messages": [{"url": "secret"}]}, True),
        ({"messages": [{"data": "secret", "content": "x"}]}, True),
        ({"messages": [{"role": "secret", "content": "x"}]}, True),
        ({"messages": [{"content": {"secret": 1}}]}, True),
        ({"messages": [{"tool_calls": [{"function": {"arguments": {"content": [IMAGE]}}}]}]}, True),
        ({"messages": [{"content": "x", "tool_calls": [{"content": [IMAGE]}]}]}, True),
        ({"documents": [{"content": [IMAGE]}]}, True),
        ({"documents": [{"url": "secret"}]}, True),
        ({"documents": [{"secret": 1}]}, True),
        ({"chat_template_kwargs": {"secret": True}}, True),
        ({"chat_template_kwargs": {"data": "secret"}}, True),
        ({"secret": 1}, True),
        (["secret"], True),
        ("secret", True),
        ({"messages": [{"content": '{"q": "s\\u0065cret"}'}]}, True),
        ({"messages": [{"tool_calls": [{"function": {"arguments": ' [{"\\u0073ecret": "a", "a": 1}]'}}]}]}, True),
        ({"messages": [{"content": '{"q": "s\\u0065cret", "q": "x"}'}]}, True),
    ],
)
def test_media_is_no_text_where_the_api_has_it_and_everything_else_is(body: Any, seen: bool) -> None:
    assert any("secret" in text for text in everything(body)) == seen


def test_json_in_json_in_json_is_read_to_its_end() -> None:
    text = "s\u00e9cret"
    for _ in range(6):
        text = json.dumps({"a": text})
    assert "s\u00e9cret" in everything({"x": text})


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 50_000 + "\\", "[\\", '"\\ud800"', "{\\n", "\\"])
def test_a_string_that_only_looks_like_json_is_a_text(text: str) -> None:
    assert text in everything({"x": text})


@pytest.mark.parametrize("body", [{"chat_template": "x"}, {"chat_template_kwargs": {"chat_template": "x"}}])
def test_a_template_is_refused(body: Any) -> None:
    with pytest.raises(GatewayError) as e:
        refuse_template(body)
    assert (e.value.status, e.value.param) == (400, "chat_template")
    refuse_template({"chat_template": None, "chat_template_kwargs": {"x": 1}})


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ([1], True),
        ([1.0], True),
        ([[1], ["a"]], True),
        (["a", 1], True),
        (["a"], False),
        ("1", False),
        ([], False),
    ],
)
def test_a_prompt_with_numbers_has_token_ids(value: Any, ids: bool) -> None:
    assert holds_ids(value) == ids


def test_a_file_in_a_message_is_refused() -> None:
    with pytest.raises(GatewayError):
        everything({"messages": [{"content": [{"type": "file", "file": {"file_data": "x"}}]}]})


def test_however_deep_a_value_is_its_strings_are_found() -> None:
    value: Any = "x"
    for _ in range(50_000):
        value = [value]
    assert strings(value) == ["x"]


def test_a_field_that_is_no_json_is_refused() -> None:
    api_request = decode("chat", b'{"messages": [], "temperature": 0}')
    api_request.fields["messages"] = msgspec.Raw(b"[" * 5000 + b"]" * 5000)
    with pytest.raises(GatewayError) as e:
        prompt_of(api_request)
    assert e.value.code is Code.INVALID_JSON


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


@pytest.mark.parametrize(
    "parts",
    [
        [text("a", x="y"), text("b")],
        [text("a"), {"type": "image_url", "image_url": {"url": "http://x", "detail": "low"}}, text("b")],
        [text("a", cache_control={"type": "ephemeral", "ttl": "5m"}), "b"],
        [text("a"), {"type": "refusal", "x": "y", "refusal": "b"}],
    ],
)
@pytest.mark.parametrize("name", ["system", "messages", "input"])
def test_parts_are_joined_without_what_else_they_hold(parts: list[Any], name: str) -> None:
    value = parts if name == "system" else [{"role": "user", "content": parts}]
    assert joined({name: value}) == [["a", "b"]]


def test_messages_prompts_and_single_parts_are_not_joined() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": [text("b")]}]
    assert joined({"messages": messages, "prompt": ["a", "b"]}) == []


def test_a_number_inside_a_member_is_a_text_as_a_template_writes_it() -> None:
    body = {"max_tokens": 7, "seed": 8, "tools": [{"enum": [41, 4.5, True]}], "x": '{"n": 4.50, "a": "\\n"}'}
    found = everything(body)
    assert {"41", "4.5", "4.50"} <= set(found)
    assert not {"7", "8", "True", "1"} & set(found)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [1]},
        {"prompt": [{"prompt_token_ids": [1]}]},
        {"prompt": "a", "prompt_token_ids": [1]},
        {"messages": [], "input_ids": [[1]]},
        {"query": [1], "items": ["a"]},
        {"query": "a", "items": [[1]]},
        {"prompt_embeds": "x"},
    ],
)
def test_a_prompt_that_is_no_text_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(GatewayError, match="token ids"):
        refuse_ids(body)
    refuse_ids(dict.fromkeys(body) | {"prompt_embeds": None, "stop_token_ids": [1]})
