"""Masking of API keys, passwords and secret headers in everything that is written or printed."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

HIDDEN: Final = "***"
_SECRET_WORDS: Final = ("auth", "key", "token", "cookie", "secret", "password")
_SECRET_PARTS: Final = frozenset(
    {
        *_SECRET_WORDS,
        *("apikey", "authorization", "bearer", "credential", "credentials", "jwt", "passphrase", "passwd"),
        *("session", "signature"),
    }
)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_USERINFO: Final = re.compile(r"(https?://)[^/?#\s]*@", re.IGNORECASE)


def is_secret(header: str) -> bool:
    """Whether a header of this name is masked, by its name alone."""
    return any(word in header.lower() for word in _SECRET_WORDS) or is_secret_field(header)


def is_secret_field(name: str) -> bool:
    """Whether a text under this name, in a body or in metadata, is masked. Whole words only, as a body has
    `max_tokens`; `pass` at the end only, as metadata may have `pass_rate`."""
    parts = re.split(r"[-_.\s]+", _CAMEL.sub("_", name).lower())
    return parts[-1] == "pass" or not _SECRET_PARTS.isdisjoint(parts)


def masked_fields(value: Any, *, secret: bool = False) -> Any:
    """JSON with each text under a secret name masked, at any depth."""
    if isinstance(value, Mapping):
        return {name: masked_fields(each, secret=secret or is_secret_field(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [masked_fields(each, secret=secret) for each in value]
    return HIDDEN if secret and isinstance(value, str) and value else value


def secrets_in(value: Any, *, secret: bool = False) -> Iterator[str]:
    """The texts that `masked_fields` masks, as they are and as JSON writes them."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from secrets_in(each, secret=secret or is_secret_field(name))
    elif isinstance(value, list):
        for each in value:
            yield from secrets_in(each, secret=secret)
    elif secret and isinstance(value, str):
        yield value
        yield from (json.dumps(value, ensure_ascii=ascii)[1:-1] for ascii in (True, False))


def secrets_of_url(url: str) -> list[str]:
    """The password of a URL, or its user where that is all, and both as HTTP sends them."""
    parts = urlsplit(url)
    secret = parts.password or parts.username
    if not secret:
        return []
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return [secret, unquote(secret), b64encode(pair.encode()).decode()]


def without_userinfo(text: str) -> str:
    """A text with the user and the password of each URL in it masked."""
    return _USERINFO.sub(rf"\1{HIDDEN}@", text)


class Hide:
    """Replaces every occurrence of the secrets in a text, the longest first, and the userinfo of URLs."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        text = without_userinfo(text)
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text
