"""Owns how large an answer with the log probabilities of its prompt may become, before it is asked for.
Must not know flights or settings: a request and a bound in, a yes or no out.
Called by the gateway."""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.wire.openai import ApiRequest

BYTES_A_CANDIDATE: Final = 100
"""Of JSON: an id, a log probability of 17 digits, a rank, the token's text."""
BYTES_A_TOKEN: Final = 3  # of a prompt, at least, but for rare scripts


def outgrows(ask: ApiRequest, bound: int) -> bool:
    """Whether the answer may be over `bound` bytes: every token of the prompt has its candidates in it. Such an
    answer is passed through as it comes: it is held by nobody, so it is shared with nobody."""
    if ask.stream:
        return False  # vLLM refuses it
    try:
        candidates = msgspec.json.decode(ask.fields["prompt_logprobs"], type=int | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False  # the engine will say so
    if candidates is None or candidates < -1:
        return False
    tokens = len(ask.body) // BYTES_A_TOKEN
    each = tokens if candidates == -1 else candidates + 1  # -1: the whole vocabulary
    return tokens * each * BYTES_A_CANDIDATE > bound
