"""LangChain's models for OpenAI's API (`langchain-openai`)."""

from __future__ import annotations

from typing import Any, Literal

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

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

KEY = SecretStr("none")


class Colour(BaseModel):
    colour: Literal["red", "blue"]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def model(target: Target, tokens: int = SHORT, **more: Any) -> ChatOpenAI:
    fields: dict[str, Any] = {"model": target.model, "max_tokens": tokens, "temperature": 0, **more}
    return ChatOpenAI(base_url=f"{target.url}/v1", api_key=KEY, max_retries=0, timeout=120, **fields)


def whole(target: Target) -> None:
    answer = model(target).invoke(COLOUR)
    assert answer.text
    assert answer.usage_metadata is not None


def stream(target: Target) -> None:
    parts = list(model(target).stream(COLOUR))
    assert "".join(part.text for part in parts)
    assert len(parts) > 1


def usage(target: Target) -> None:
    parts = list(model(target, stream_usage=True).stream(COLOUR))
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) > 0


def tools(target: Target) -> None:
    answer = model(target, TYPED).bind_tools([weather], tool_choice="weather").invoke(WEATHER)
    assert [call["args"]["city"] in ("Paris", "Rome") for call in answer.tool_calls] == [True]


def tools_streamed(target: Target) -> None:
    parts: Any = list(model(target, TYPED).bind_tools([weather], tool_choice="weather").stream(WEATHER))
    answer = parts[0]
    for part in parts[1:]:
        answer = answer + part
    assert [call["args"]["city"] in ("Paris", "Rome") for call in answer.tool_calls] == [True]


def structured(target: Target) -> None:
    answer = model(target, TYPED).with_structured_output(Colour, method="json_schema").invoke(COLOUR)
    assert isinstance(answer, Colour)


def responses(target: Target) -> None:
    assert model(target, use_responses_api=True).invoke(COLOUR).text


def responses_streamed(target: Target) -> None:
    assert "".join(part.text for part in model(target, use_responses_api=True).stream(COLOUR))


def chained(target: Target) -> None:
    ours = model(target, use_responses_api=True, use_previous_response_id=True, store=True)
    first = ours.invoke(COLOUR)
    assert ours.invoke([("user", COLOUR), first, ("user", "And another?")]).text


def image(target: Target) -> None:
    parts: Any = [{"type": "text", "text": COLOUR}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    assert model(target).invoke([("user", parts)]).text


def embeddings(target: Target) -> None:
    fields: dict[str, Any] = {"model": target.embed_model, "check_embedding_ctx_length": False}
    ours = OpenAIEmbeddings(base_url=f"{target.embeds}/v1", api_key=KEY, max_retries=0, **fields)
    assert len(ours.embed_documents(["a", "b"])) == 2


def abort(target: Target) -> None:
    answer = model(target, LONG, extra_body={"ignore_eos": True}).stream(COUNT)
    next(answer)
    leave: Any = answer
    stops(target, leave.close)


def silence(target: Target) -> None:
    with busy(target):
        stream(target)


def unknown_model(target: Target) -> None:
    refused(openai.NotFoundError, lambda: model(target, model="no-such-model").invoke(COLOUR))


def invalid(target: Target) -> None:
    refused(openai.BadRequestError, lambda: model(target, temperature=-1).invoke(COLOUR))


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
            "image": image,
            "embeddings": embeddings,
            "abort": abort,
            "silence": silence,
            "404": unknown_model,
            "400": invalid,
        }
    )
