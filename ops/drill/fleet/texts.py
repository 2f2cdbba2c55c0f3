"""What an engine of this drill answers: a function of the prompt, so that a client knows its answer beforehand.

Pure: no clock, no I/O."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

_PROMPT: Final = re.compile(r"drill (\w+) (\d{1,6})")


def prompt_of(name: str, tokens: int) -> str:
    """A prompt whose answer has so many tokens."""
    return f"drill {name} {tokens}"


def tokens_of(prompt: str) -> list[str]:
    """The tokens of the answer. No two are equal, so that a lost, doubled or moved one shows. A prompt that is not
    of the drill, as the gateway's probes are not, has two."""
    found = _PROMPT.fullmatch(prompt)
    count = int(found[2]) if found else 2
    seed = blake2b(prompt.encode(), digest_size=4).hexdigest()
    return [f"{seed}-{n} " for n in range(count)]
