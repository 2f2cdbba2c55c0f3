"""The clients: name, version, and the command of each one's program."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.clients.install import Installation, InstallError, pins

PROGRAMS: Final = "ops.clients.programs"


@dataclass(frozen=True)
class Client:
    """`package`: whose version is told, in `pins`, or a version in words. `command`: of its program, without the
    targets."""

    key: str
    name: str
    package: str
    command: Callable[[Installation], Sequence[str]]

    def version(self) -> str:
        return pins().get(self.package, self.package.removeprefix("npm:"))


def _python(module: str, *words: str) -> Callable[[Installation], Sequence[str]]:
    return lambda place: [str(place.python), "-m", f"{PROGRAMS}.{module}", *words]


def _llamaindex(place: Installation) -> Sequence[str]:
    return [str(place.llamaindex), "-m", f"{PROGRAMS}.llamaindex_python"]


def _node(script: str, *words: str) -> Callable[[Installation], Sequence[str]]:
    return lambda place: [str(place.node), str(place.scripts / script), *words]


def _chromium(place: Installation) -> Sequence[str]:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise InstallError("no Chromium: apt-get install chromium")
    return [*_python("chromium_browser")(place), browser]


def _claude(place: Installation) -> Sequence[str]:
    if place.claude is None:
        raise InstallError("npm has no Claude Code for this machine")
    return [*_python("claude_code")(place), str(place.claude)]


def _comply(form: str) -> Callable[[Installation], Sequence[str]]:
    return lambda place: [*_python("compliance")(place), str(place.comply), form]


CLIENTS: Final = (
    Client("openai-python", "OpenAI, Python", "openai", _python("openai_python")),
    Client("openai-javascript", "OpenAI, JavaScript", "npm:openai", _node("openai_javascript.mjs")),
    Client("anthropic-python", "Anthropic, Python", "anthropic", _python("anthropic_python")),
    Client(
        "anthropic-javascript", "Anthropic, JavaScript", "npm:@anthropic-ai/sdk", _node("anthropic_javascript.mjs")
    ),
    Client("claude-code", "Claude Code", "npm:@anthropic-ai/claude-code", _claude),
    Client("langchain", "LangChain (langchain-openai)", "langchain-openai", _python("langchain_python")),
    Client("llamaindex", "LlamaIndex (openai-like)", "llama-index-llms-openai-like", _llamaindex),
    Client(
        "ai-sdk-compatible", "AI SDK, openai-compatible", "npm:@ai-sdk/openai-compatible",
        _node("ai_sdk.mjs", "openai-compatible"),
    ),
    Client("ai-sdk-openai", "AI SDK, openai (Responses)", "npm:@ai-sdk/openai", _node("ai_sdk.mjs", "openai")),
    Client("ai-sdk-anthropic", "AI SDK, anthropic", "npm:@ai-sdk/anthropic", _node("ai_sdk.mjs", "anthropic")),
    Client("open-webui", "Open WebUI (its requests)", "0.12.4", _python("open_webui")),
    Client("curl", "curl", "of the system", _python("curl_shell")),
    Client("chromium", "Chromium, another origin", "of the system", _chromium),
    Client("eventsource-parser", "eventsource-parser", "npm:eventsource-parser", _node("parser_javascript.mjs")),
    Client("httpx-sse", "httpx-sse", "httpx-sse", _python("sse_python", "httpx-sse")),
    Client(
        "aiohttp-sse-client", "aiohttp-sse-client", "aiohttp-sse-client",
        _python("sse_python", "aiohttp-sse-client"),
    ),
)  # fmt: skip
SUITES: Final = tuple(
    Client(f"comply-{form}", f"llm-comply, {name}", "llm-comply", _comply(form))
    for form, name in (
        ("open-responses", "OpenResponses"),
        ("openai-chat", "OpenAI chat"),
        ("anthropic", "Anthropic Messages"),
    )
)


def chosen(parts: Sequence[str]) -> list[Client]:
    """Those whose key has one of the parts in it; all for none."""
    return [one for one in (*CLIENTS, *SUITES) if not parts or any(part in one.key for part in parts)]


SOURCES: Final = Path(__file__).parents[2]
"""The root that the programs in Python are imported from."""
