"""How large an answer with the log probabilities of its prompt may become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.wire.openai import decode
from proxy.wire.prompt_logprobs import outgrows

BOUND = 64 * 2**20


def asks(words: int, candidates: Any, **more: Any) -> bool:
    body = {"prompt": "word " * words, "prompt_logprobs": candidates, **more}
    return outgrows(decode("completions", json.dumps(body).encode()), BOUND)


@pytest.mark.parametrize(
    ("words", "candidates", "large"),
    [
        (1_000, 0, False),
        (1_000, 20, False),
        (20_000, 20, True),
        (500_000, 0, True),
        (1_000, -1, True),
        (1, -1, True),
        (20_000, None, False),
        (20_000, -2, False),
        (20_000, "20", True),
        (1_000, "20", False),
        (20_000, 20.0, True),
        (20_000, "20 or so", False),
        (20_000, [20], False),
        (20_000, 2**80, True),
    ],
)
def test_tokens_times_candidates_decide(words: int, candidates: Any, large: bool) -> None:
    assert asks(words, candidates) is large


def test_a_stream_has_none() -> None:
    assert not asks(20_000, 20, stream=True)
