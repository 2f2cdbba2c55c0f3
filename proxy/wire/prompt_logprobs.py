"""How large an answer with the log probabilities of its prompt may become, decided before it is requested."""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.wire import loose
from proxy.wire.openai import ApiRequest

BYTES_A_CANDIDATE: Final = 100
"""Bytes of JSON: an id, a log probability of 17 digits, a rank, the token's text."""
BYTES_A_TOKEN: Final = 3  # of a prompt, at least, except for rare scripts
VOCABULARY: Final = 262_144  # tokens of the largest common one (Gemma 3); Qwen 2.5 has 151,936, SmolLM2 49,152


def outgrows(api_request: ApiRequest, bound: int) -> bool:
    """Whether the answer may exceed `bound` bytes: it lists candidates for every token of the prompt. Such an
    answer is passed through without being held, so it is not shared."""
    if api_request.stream:
        return False  # vLLM refuses it
    try:
        candidates = loose.integer(msgspec.json.decode(api_request.fields["prompt_logprobs"]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False  # the engine refuses it
    if candidates is None or candidates < -1:
        return False
    tokens = len(api_request.body) // BYTES_A_TOKEN
    each = VOCABULARY if candidates == -1 else candidates + 1
    return tokens * each * BYTES_A_CANDIDATE > bound
