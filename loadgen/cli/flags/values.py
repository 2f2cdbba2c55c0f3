"""Parsers of one flag's text for argparse. Their messages say what was wrong and what would be right."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

ENDPOINTS: Final = (
    *("/chat/completions", "/completions", "/responses", "/messages"),
    *("/embeddings", "/rerank", "/models"),
)
"""Ends of addresses that are no server's."""


def number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A number of at least `low` (or above it, with `above`) and at most `high`; `inf` only where `high` is."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if math.isnan(value) or value < low or value > high or (above and value <= low):
            bound = f"above {low:g}" if above else f"at least {low:g}"
            top = "" if math.isinf(high) else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; give a number {bound}{top}")
        return value

    return read


def share(text: str) -> float:
    """0.95 or 95%: above 0 and below 1."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; give one such as 0.95 or 95%") from None
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"{text} is out of range; give a share between 0 and 1, such as 0.95 or 95%"
        )
    return value


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = integer(text)
        if value < low or (high is not None and value > high):
            top = "" if high is None else f" and at most {high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; give a whole number of at least {low}{top}")
        return value

    return read


def url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is not a server; give http://HOST:PORT or https://HOST")
    try:
        _ = parts.port
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} has no usable port; give http://HOST:PORT") from None
    if parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} has a query or a fragment; give only http://HOST:PORT")
    base = text.rstrip("/")
    endpoint = next((path for path in ENDPOINTS if parts.path.rstrip("/").endswith(path)), None)
    if endpoint is not None:
        server = base[: -len(endpoint)].removesuffix("/v1")
        raise argparse.ArgumentTypeError(
            f"{text!r} is the address of one endpoint; give the server, {server}, and if need "
            f"be --endpoint {parts.path}"
        )
    return base.removesuffix("/v1")


def header(text: str) -> tuple[str, str]:
    """`NAME: VALUE`, or vLLM's `NAME=VALUE`."""
    at = min((i for i in (text.find(":"), text.find("=")) if i > 0), default=0)
    name, value = text[:at].strip(), text[at + 1 :].strip()
    if not at or not value.isprintable() or not name.isascii() or not name.isprintable() or " " in name:
        raise argparse.ArgumentTypeError("a header is NAME:VALUE, on one line and without control characters")
    return name, value


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("give a JSON object, such as '{\"top_k\": 1}'")
    return value


def users(text: str) -> list[int]:
    """1,2,4,8: ascending, each once."""
    read = whole(1)
    numbers = [read(part) for part in text.split(",") if part.strip()]
    if not numbers:
        raise argparse.ArgumentTypeError("give numbers of users, such as 1,2,4,8")
    return sorted(set(numbers))


def rates(text: str) -> list[float]:
    read = number(0, above=True)
    values = [read(part) for part in text.split(",") if part.strip()]
    if not values:
        raise argparse.ArgumentTypeError("give rates in requests per second, such as 1,2,4,8")
    return sorted(set(values))
