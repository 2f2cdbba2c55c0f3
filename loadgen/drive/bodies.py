"""A prompt in chat form as the body of another API: OpenAI's Responses, Anthropic's Messages. Pure."""

from __future__ import annotations

from typing import Any, Final

from loadgen.spec import Endpoint

MESSAGES_TOKENS: Final = 1024
"""`max_tokens` of a Messages request whose prompt and flags set none: the API requires one."""


def shaped(fields: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The body's fields as the endpoint names them. `fields` is not changed."""
    if "messages" not in fields:
        return fields
    if endpoint == "responses":
        return _responses(fields)
    return _messages(fields) if endpoint == "messages" else fields


def _responses(fields: dict[str, Any]) -> dict[str, Any]:
    body = {name: value for name, value in fields.items() if name not in ("messages", "max_tokens", "tools")}
    body["input"] = [
        {"role": message["role"], "content": _content(message.get("content"), _RESPONSES, message["role"])}
        for message in fields["messages"]
    ]
    if "max_tokens" in fields:
        body["max_output_tokens"] = fields["max_tokens"]
    if "tools" in fields:
        body["tools"] = [{"type": "function", **tool.get("function", tool)} for tool in fields["tools"]]
    return body


def _messages(fields: dict[str, Any]) -> dict[str, Any]:
    body = {name: value for name, value in fields.items() if name not in ("messages", "stop", "tools")}
    system = [m["content"] for m in fields["messages"] if m["role"] in ("system", "developer")]
    body["messages"] = [
        {"role": message["role"], "content": _content(message.get("content"), _ANTHROPIC, message["role"])}
        for message in fields["messages"]
        if message["role"] not in ("system", "developer")
    ]
    if system:
        body["system"] = "\n\n".join(part if isinstance(part, str) else _texts(part) for part in system)
    body.setdefault("max_tokens", MESSAGES_TOKENS)
    if "stop" in fields:
        stop = fields["stop"]
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if "tools" in fields:
        body["tools"] = [_anthropic_tool(tool.get("function", tool)) for tool in fields["tools"]]
    return body


_RESPONSES: Final = "responses"
_ANTHROPIC: Final = "anthropic"


def _content(content: Any, api: str, role: str) -> Any:
    if not isinstance(content, list):
        return content or ""
    return [_part(part, api, role) for part in content]


def _part(part: dict[str, Any], api: str, role: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        if api == _ANTHROPIC:
            return {"type": "text", "text": part.get("text", "")}
        return {"type": "output_text" if role == "assistant" else "input_text", "text": part.get("text", "")}
    if kind == "image_url":
        url = part["image_url"]["url"] if isinstance(part["image_url"], dict) else part["image_url"]
        if api == _RESPONSES:
            return {"type": "input_image", "image_url": url}
        return {"type": "image", "source": _source(url)}
    return part


def _source(url: str) -> dict[str, str]:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    media, _, data = url.removeprefix("data:").partition(",")
    return {"type": "base64", "media_type": media.partition(";")[0], "data": data}


def _anthropic_tool(function: dict[str, Any]) -> dict[str, Any]:
    tool = {"name": function.get("name", ""), "input_schema": function.get("parameters") or {"type": "object"}}
    return tool | ({"description": function["description"]} if "description" in function else {})


def _texts(parts: Any) -> str:
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
