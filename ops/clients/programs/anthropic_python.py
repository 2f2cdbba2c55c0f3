"""Anthropic's client for Python."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import anthropic
from anthropic.types import MessageParam
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
)

TOOL: Any = {"name": "weather", "description": WEATHER, "input_schema": CITY}
FORCED: Any = {"type": "tool", "name": "weather"}


class Colour(BaseModel):
    colour: Literal["red", "blue"]


@cache
def client(target: Target) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=target.url, api_key="none", max_retries=0, timeout=120)


def says(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def whole(target: Target) -> None:
    answer = client(target).messages.create(model=target.model, messages=says(COLOUR), max_tokens=SHORT)
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")


def stream(target: Target) -> None:
    with client(target).messages.stream(model=target.model, messages=says(COLOUR), max_tokens=SHORT) as answer:
        text = "".join(answer.text_stream)
        final = answer.get_final_message()
    assert text
    assert final.stop_reason in ("end_turn", "max_tokens")


def usage(target: Target) -> None:
    with client(target).messages.stream(model=target.model, messages=says(COLOUR), max_tokens=SHORT) as answer:
        final = answer.get_final_message()
    counted = client(target).messages.count_tokens(model=target.model, messages=says(COLOUR))
    assert final.usage.input_tokens == counted.input_tokens
    assert final.usage.output_tokens > 0


def tools(target: Target) -> None:
    answer = client(target).messages.create(
        model=target.model, messages=says(WEATHER), tools=[TOOL], tool_choice=FORCED, max_tokens=TYPED
    )
    assert [block.input["city"] in ("Paris", "Rome") for block in answer.content if block.type == "tool_use"] == [
        True
    ]


def tools_streamed(target: Target) -> None:
    with client(target).messages.stream(
        model=target.model, messages=says(WEATHER), tools=[TOOL], tool_choice=FORCED, max_tokens=TYPED
    ) as answer:
        final = answer.get_final_message()
    given: list[Any] = [block.input for block in final.content if block.type == "tool_use"]
    assert [one["city"] in ("Paris", "Rome") for one in given] == [True]


def structured(target: Target) -> None:
    answer = client(target).messages.parse(
        model=target.model, messages=says(COLOUR), max_tokens=TYPED, output_format=Colour
    )
    assert isinstance(answer.parsed_output, Colour), f"no {Colour.__name__}: {answer.content}"


def image(target: Target) -> None:
    source: Any = {"type": "base64", "media_type": "image/png", "data": PIXEL.partition(",")[2]}
    parts: Any = [{"type": "text", "text": COLOUR}, {"type": "image", "source": source}]
    answer = client(target).messages.create(
        model=target.model, messages=[{"role": "user", "content": parts}], max_tokens=SHORT
    )
    assert answer.content


def abort(target: Target) -> None:
    with client(target).messages.stream(model=target.model, messages=says(COUNT), max_tokens=LONG) as answer:
        next(answer.text_stream)
        stops(target, answer.close)


def silence(target: Target) -> None:
    with busy(target):
        stream(target)


def unknown_model(target: Target) -> None:
    refused(
        anthropic.NotFoundError,
        lambda: client(target).messages.create(model="no-such-model", messages=says(COLOUR), max_tokens=SHORT),
    )


def invalid(target: Target) -> None:
    refused(
        anthropic.BadRequestError,
        lambda: client(target).messages.create(model=target.model, messages=says(COLOUR), max_tokens=-1),
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
            "image": image,
            "abort": abort,
            "silence": silence,
            "404": unknown_model,
            "400": invalid,
        }
    )
