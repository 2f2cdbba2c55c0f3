"""Parsers of one flag's text for argparse. Their messages say what was wrong and what would be right."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from loadgen.spec import ErrorLimit

VLLM_METRICS: Final = ("ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue")
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


def attainment(text: str) -> float:
    """A share above 0 and below 1: 0.95 or 95%."""
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


def http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL; give http://HOST:PORT/PATH")
    return text


def share(text: str) -> float:
    """A share of 1, or a percentage."""
    percent = text.strip().endswith("%")
    value = number(0, 100 if percent else 1)(text.strip().removesuffix("%"))
    return value / 100 if percent else value


def header(text: str) -> tuple[str, str]:
    """`NAME: VALUE`, or vLLM's `NAME=VALUE`."""
    at = min((i for i in (text.find(":"), text.find("=")) if i > 0), default=0)
    name, value = text[:at].strip(), text[at + 1 :].strip()
    if not at or not value.isprintable() or not name.isascii() or not name.isprintable() or " " in name:
        raise argparse.ArgumentTypeError("a header is NAME:VALUE, on one line and without control characters")
    return name, value


def header_text(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not printable ASCII, which a header's value must be")
    return text


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`; IPv6 in brackets."""
    parts = urlsplit(f"//{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or not port or parts.path or parts.query or "@" in text:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not HOST:PORT, such as lg-0.lg:7766")
    return parts.hostname, port


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def _no_number(text: str) -> None:
    """NaN and Infinity, which Python's json reads."""
    raise ValueError(f"{text} is no number of JSON")


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_number)
        msgspec.json.encode(value)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("give a JSON object, such as '{\"top_k\": 1}'")
    return value


def range_ratio(text: str) -> float | dict[str, float]:
    """A number, or vLLM's JSON object of one for `input` and one for `output`."""
    if not text.lstrip().startswith("{"):
        return number(-math.inf)(text)
    return {name: number(-math.inf)(str(value)) for name, value in json_object(text).items()}


def percentiles(text: str) -> list[float]:
    """vLLM's list of percentiles, each above 0 and below 100, such as `25,50,99.9`."""
    read = number(0, 100)
    chosen = [read(part) for part in text.split(",") if part.strip()]
    if not chosen or not all(0 < value < 100 for value in chosen):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of percentiles; give some, such as 50,90,99")
    return sorted(set(chosen))


def metric_names(text: str) -> list[str]:
    """vLLM's list of metrics, such as `ttft,tpot,e2el`."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in VLLM_METRICS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or repr(text)} is no metric; give some of {', '.join(VLLM_METRICS)}"
        )
    return names


def error_limit(text: str) -> ErrorLimit:
    """A number of failed requests, or a share of those that ended: `10`, `5%` or `0.05`."""
    share = text.endswith("%") or "." in text
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if share and 0 <= number < 1:
            return ErrorLimit(share=number)
        if not share and number >= 1:
            return ErrorLimit(count=int(text))
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r:.40} is no limit; give a number of failed requests such as 10, or a share such as 5% or 0.05"
    )


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
