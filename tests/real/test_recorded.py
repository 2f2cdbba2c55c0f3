"""The recorded answers (`tests/golden`, `tests/golden/0.33`) beside what a real vLLM of that release says now."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.golden import FOLDER, load, names
from tests.kit.client import get, post_json

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

GENERATED = [name for name in names() if name.startswith(("chat", "completion"))]


@pytest.mark.parametrize("name", GENERATED)
async def test_what_is_recorded_is_what_this_release_answers(engine: str, name: str) -> None:
    """Members, their order and their types; texts and how many tokens there are may differ."""
    release = re.match(r"\d+\.\d+", (await get(engine, "/version")).json()["version"])
    assert release is not None
    if (FOLDER / release[0]).is_dir():
        name = f"{release[0]}/{name}"
    recorded = load(name)
    answer = await post_json(engine, recorded.path, recorded.request())
    assert answer.status == recorded.status
    frames, known = shapes(answer.body), shapes(recorded.body)
    if "-sampled-" in name and "-stream" in name:
        # A sampled choice may end at a token without text; no recorded one did. The JSON schema's does.
        known |= frames & shapes(load(name.replace("-sampled-n4", "-json-schema")).body)
    assert frames == known


def shapes(body: bytes) -> set[str]:
    """Of a body, or of the different frames of a stream."""
    events = body.split(b"\n\n") if body.startswith(b"data: ") else [body]
    parts = (event.removeprefix(b"data: ") for event in events if event.strip())
    return {"[DONE]" if part == b"[DONE]" else json.dumps(shape(json.loads(part))) for part in parts}


def shape(value: Any) -> Any:
    """A list is what its items may be; a number is a number, with a fraction or without."""
    if isinstance(value, dict):
        # Null or absent without --enable-prompt-tokens-details, with which the answers of 0.32 were recorded.
        return {name: shape(member) for name, member in value.items() if name != "prompt_tokens_details"}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item)) for item in value})
    return "number" if type(value) in (int, float) else type(value).__name__
