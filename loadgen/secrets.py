"""Masking of API keys and secret headers in everything that is written or printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

HIDDEN: Final = "***"
_SECRET_WORDS: Final = ("auth", "key", "token", "cookie", "secret", "password")


def is_secret(header: str) -> bool:
    """Whether a header of this name is masked, by its name alone."""
    return any(word in header.lower() for word in _SECRET_WORDS)


class Hide:
    """Replaces every occurrence of the secrets in a text, the longest first."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text
