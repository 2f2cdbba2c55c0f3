"""LlamaIndex's models for servers like OpenAI's (`llama-index-llms-openai-like`)."""

from __future__ import annotations

from typing import Any, Literal

import openai
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from ops.clients.programs.kit import (
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


class Colour(BaseModel):
    colour: Literal["red", "blue"]


class Place(BaseModel):
    city: Literal["Paris", "Rome"]


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def model(target: Target, tokens: int = SHORT, **more: Any) -> Any:
    fields: dict[str, Any] = {
        "model": target.model,
        "api_base": f"{target.url}/v1",
        "api_key": "none",
        "max_tokens": tokens,
        "temperature": 0,
        "max_retries": 0,
        "timeout": 120,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "should_use_structured_outputs": True,
    }
    return OpenAILike(**{**fields, **more})


def says(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def whole(target: Target) -> None:
    assert model(target).chat(says(COLOUR)).message.content


def stream(target: Target) -> None:
    parts = list(model(target).stream_chat(says(COLOUR)))
    assert "".join(part.delta or "" for part in parts)


def usage(target: Target) -> None:
    options = {"stream_options": {"include_usage": True}}
    parts = list(model(target, additional_kwargs=options).stream_chat(says(COLOUR)))
    assert parts[-1].raw.usage.completion_tokens > 0


def tools(target: Target) -> None:
    ours = model(target, TYPED)
    asked = [FunctionTool.from_defaults(weather, fn_schema=Place)]
    answer = ours.chat_with_tools(asked, user_msg=WEATHER, tool_choice="weather")
    calls = ours.get_tool_calls_from_response(answer)
    assert [call.tool_kwargs["city"] in ("Paris", "Rome") for call in calls] == [True]


def tools_streamed(target: Target) -> None:
    ours = model(target, TYPED)
    asked = [FunctionTool.from_defaults(weather, fn_schema=Place)]
    *_, last = ours.stream_chat_with_tools(asked, user_msg=WEATHER, tool_choice="weather")
    calls = ours.get_tool_calls_from_response(last)
    assert [call.tool_kwargs["city"] in ("Paris", "Rome") for call in calls] == [True]


def structured(target: Target) -> None:
    answer = model(target, TYPED).as_structured_llm(Colour).chat(says(COLOUR))
    assert isinstance(answer.raw, Colour)


def image(target: Target) -> None:
    blocks: list[Any] = [TextBlock(text=COLOUR), ImageBlock(url=PIXEL)]
    assert model(target).chat([ChatMessage(role="user", blocks=blocks)]).message.content


def embeddings(target: Target) -> None:
    ours = OpenAILikeEmbedding(
        model_name=target.embed_model, api_base=f"{target.embeds}/v1", api_key="none", max_retries=0
    )
    assert len(ours.get_text_embedding_batch(["a", "b"])) == 2


def abort(target: Target) -> None:
    answer = model(target, LONG, additional_kwargs={"extra_body": {"ignore_eos": True}}).stream_chat(says(COUNT))
    next(answer)
    stops(target, answer.close)


def silence(target: Target) -> None:
    with busy(target):
        stream(target)


def unknown_model(target: Target) -> None:
    refused(openai.NotFoundError, lambda: model(target, model="no-such-model").chat(says(COLOUR)))


def invalid(target: Target) -> None:
    refused(openai.BadRequestError, lambda: model(target, additional_kwargs={"top_p": 5}).chat(says(COLOUR)))


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
            "embeddings": embeddings,
            "abort": abort,
            "silence": silence,
            "404": unknown_model,
            "400": invalid,
        }
    )
