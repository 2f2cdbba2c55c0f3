"""The OpenAI client for Python."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

import openai
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from ops.clients.programs.kit import (
    CITY,
    COLOUR,
    COUNT,
    LONG,
    PIXEL,
    SHORT,
    TYPED,
    WEATHER,
    Target,
    busy,
    main,
    refused,
    stops,
    wav,
)

TOOL: Any = {"type": "function", "function": {"name": "weather", "description": WEATHER, "parameters": CITY}}
FORCED: Any = {"type": "function", "function": {"name": "weather"}}


class Colour(BaseModel):
    colour: Literal["red", "blue"]


@cache
def client(target: Target) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{target.url}/v1", api_key="none", max_retries=0, timeout=120)


def says(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def whole(target: Target) -> None:
    answer = client(target).chat.completions.create(
        model=target.model, messages=says(COLOUR), max_tokens=SHORT, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def stream(target: Target) -> None:
    answer = client(target).chat.completions.create(
        model=target.model, messages=says(COLOUR), max_tokens=SHORT, temperature=0, stream=True
    )
    choices = [chunk.choices[0] for chunk in answer if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices)
    assert choices[-1].finish_reason in ("stop", "length")


def usage(target: Target) -> None:
    answer = client(target).chat.completions.create(
        model=target.model,
        messages=says(COLOUR),
        max_tokens=SHORT,
        stream=True,
        stream_options={"include_usage": True},
    )
    *_, last = answer
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    assert last.choices == []


def tools(target: Target) -> None:
    answer = client(target).chat.completions.create(
        model=target.model,
        messages=says(WEATHER),
        tools=[TOOL],
        tool_choice=FORCED,
        max_tokens=TYPED,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert json.loads(calls[0].function.arguments)["city"] in ("Paris", "Rome")


def tools_streamed(target: Target) -> None:
    with client(target).chat.completions.stream(
        model=target.model,
        messages=says(WEATHER),
        tools=[TOOL],
        tool_choice=FORCED,
        max_tokens=TYPED,
        temperature=0,
    ) as answer:
        done = [event for event in answer if event.type == "tool_calls.function.arguments.done"]
    assert [json.loads(event.arguments)["city"] in ("Paris", "Rome") for event in done] == [True]


def structured(target: Target) -> None:
    answer = client(target).chat.completions.parse(
        model=target.model, messages=says(COLOUR), response_format=Colour, max_tokens=TYPED, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Colour)


def responses(target: Target) -> None:
    answer = client(target).responses.create(
        model=target.model, input=COLOUR, max_output_tokens=SHORT, temperature=0, store=False
    )
    assert answer.output_text
    assert answer.usage is not None


def responses_streamed(target: Target) -> None:
    kinds = []
    with client(target).responses.stream(
        model=target.model, input=COLOUR, max_output_tokens=SHORT, temperature=0, store=False
    ) as answer:
        for event in answer:
            kinds.append(event.type)
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert "response.output_text.delta" in kinds


def chained(target: Target) -> None:
    ours = client(target)
    first = ours.responses.create(model=target.model, input=COLOUR, max_output_tokens=SHORT, store=True)
    kept = ours.responses.retrieve(first.id)
    assert kept.output_text == first.output_text
    second = ours.responses.create(
        model=target.model, input="And another?", previous_response_id=first.id, max_output_tokens=SHORT
    )
    assert second.previous_response_id == first.id
    assert second.output_text


def upload(target: Target) -> None:
    answer = client(target).audio.transcriptions.create(model=target.model, file=("a.wav", wav()))
    assert isinstance(answer.text, str)


def image(target: Target) -> None:
    parts: Any = [{"type": "text", "text": COLOUR}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    answer = client(target).chat.completions.create(
        model=target.model, messages=[{"role": "user", "content": parts}], max_tokens=SHORT
    )
    assert answer.choices[0].message.content


def embeddings(target: Target) -> None:
    with openai.OpenAI(base_url=f"{target.embeds}/v1", api_key="none", max_retries=0) as ours:
        answer = ours.embeddings.create(model=target.embed_model, input=["a", "b"])
    assert [datum.index for datum in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) > 1


def abort(target: Target) -> None:
    answer = client(target).chat.completions.create(
        model=target.model, messages=says(COUNT), max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}
    )
    next(answer)
    stops(target, answer.close)


def silence(target: Target) -> None:
    with busy(target):
        stream(target)


def unknown_model(target: Target) -> None:
    refused(
        openai.NotFoundError,
        lambda: client(target).chat.completions.create(model="no-such-model", messages=says(COLOUR)),
    )


def invalid(target: Target) -> None:
    refused(
        openai.BadRequestError,
        lambda: client(target).chat.completions.create(model=target.model, messages=says(COLOUR), temperature=-1),
    )


if __name__ == "__main__":
    main(
        {
            "whole": whole,
            "stream": stream,
            "usage": usage,
            "tools": tools,
            "tools, streamed": tools_streamed,
            "structured": structured,
            "Responses": responses,
            "Responses, streamed": responses_streamed,
            "Responses, chained": chained,
            "upload": upload,
            "image": image,
            "embeddings": embeddings,
            "abort": abort,
            "silence": silence,
            "404": unknown_model,
            "400": invalid,
        }
    )
