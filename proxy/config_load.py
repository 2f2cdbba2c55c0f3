"""Owns how settings are read: flags before environment before TOML file before defaults; all errors at once.
Must not know who uses the settings; touches nothing but what it is handed.
Called by `__main__`."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from proxy.config import Option, Settings, options
from proxy.errors import SettingsError

_SIZE: Final = re.compile(r"(\d+)\s*(|b|kb|mb|gb|kib|mib|gib)", re.IGNORECASE)
_FACTOR: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_KUBERNETES: Final = re.compile(
    r"GATEWAY(_[A-Z0-9_]+)?_(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP).*)|GATEWAY_SERVICE_.*"
)


class _Parser(argparse.ArgumentParser):
    """argparse that reports like the rest of us."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def load(
    argv: Sequence[str],
    environ: Mapping[str, str],
    read_file: Callable[[str], str] = lambda path: Path(path).read_text("utf-8"),
) -> Settings:
    """Read all settings. Raises SettingsError that names every wrong one, its source, and what is right."""
    known = {option.name: option for option in options()}
    namespace, unknown = _parser(known).parse_known_args(list(argv))
    flags = {name: value for name, value in vars(namespace).items() if value is not None and name != "config"}
    problems = [_unknown_flag(arg, known) for arg in unknown]
    warnings: list[str] = []
    values: dict[str, Any] = {}

    path = namespace.config or environ.get("GATEWAY_CONFIG")
    for name, value in (_file(path, read_file, known, problems) if path else {}).items():
        _take(values, known[name], value, f"file {path}: {name}", problems)
    for name, value, source in _environment(environ, known, warnings):
        _take(values, known[name], value, source, problems)
    for name, value in flags.items():
        _take(values, known[name], value, f"flag {known[name].flag}", problems)

    settings = Settings(**values, warnings=tuple(warnings))
    if settings.max_frame_bytes > settings.max_flight_bytes:
        problems.append("max_frame_bytes must not be over max_flight_bytes: an event is part of its answer")
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _parser(known: Mapping[str, Option]) -> _Parser:
    parser = _Parser(
        prog="python -m proxy",
        description="An OpenAI-compatible streaming gateway in front of vLLM: one generation, many readers.",
        epilog="Every flag has its GATEWAY_ twin in the environment and its key in the --config file.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version="streaming-gateway 0.1.0")
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings. [GATEWAY_CONFIG]")
    for option in known.values():
        shown = f"{option.help} [{option.env[0]}]".replace("%", "%%")
        if option.kind == "bool":
            parser.add_argument(option.flag, dest=option.name, help=shown, action=argparse.BooleanOptionalAction)
        elif option.kind == "urls":
            parser.add_argument(option.flag, dest=option.name, help=shown, action="append", metavar="URL")
        else:
            metavar = "|".join(option.choices) or (option.unit or option.kind).upper()
            parser.add_argument(option.flag, dest=option.name, help=shown, metavar=metavar)
    return parser


def _unknown_flag(arg: str, known: Mapping[str, Option]) -> str:
    name = arg.partition("=")[0]
    return f"unknown flag {mask(name)!r}" + _nearest(name, [option.flag for option in known.values()])


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _file(
    path: str, read_file: Callable[[str], str], known: Mapping[str, Option], problems: list[str]
) -> dict[str, Any]:
    try:
        table = tomllib.loads(read_file(path))
    except OSError as e:
        problems.append(f"file {path}: {e.strerror or e}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        problems.append(f"file {path}: not TOML: {e}")
        return {}
    problems.extend(
        f"file {path}: unknown key {key!r}{_nearest(key, list(known))}" for key in table if key not in known
    )
    return {key: value for key, value in table.items() if key in known}


def _environment(
    environ: Mapping[str, str], known: Mapping[str, Option], warnings: list[str]
) -> list[tuple[str, str, str]]:
    """(setting, value, source). Unknown names only warn: Kubernetes puts its own GATEWAY_… there for a Service
    of that name, GATEWAY_PORT=tcp://… among them."""
    twins = {env: option.name for option in known.values() for env in reversed(option.env)}
    found = []
    for env in sorted(environ, key=lambda name: (name not in twins, name)):
        value = environ[env]
        if env in twins:
            if env == "GATEWAY_PORT" and value.startswith("tcp://"):
                warnings.append("GATEWAY_PORT is a Kubernetes service link here, not a port: ignored")
            else:
                found.append((twins[env], value, f"environment {env}"))
        elif env.startswith("GATEWAY_") and env != "GATEWAY_CONFIG" and not _KUBERNETES.fullmatch(env):
            warnings.append(f"unknown environment variable {env}{_nearest(env, list(twins))}")
    return found


def _take(values: dict[str, Any], option: Option, raw: Any, source: str, problems: list[str]) -> None:
    try:
        values[option.name] = _PARSERS[option.kind](option, raw)
    except ValueError as e:
        problems.append(f"{source} = {mask(str(raw))!r}: {e}")


def _number(option: Option, raw: Any, kind: Callable[[Any], float]) -> float:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(raw, bool) or not isinstance(raw, str | int | float) or (kind is int and isinstance(raw, float)):
        raise ValueError(f"must be {wanted}")
    try:
        value = kind(raw)
    except ValueError:
        raise ValueError(f"must be {wanted}") from None
    if not math.isfinite(value):
        raise ValueError(f"must be {wanted}")
    return _bounded(option, value)


def _bounded(option: Option, value: float) -> float:
    if (option.low is not None and value < option.low) or (option.high is not None and value > option.high):
        high = f" and at most {option.high:g}" if option.high is not None else ""
        raise ValueError(f"must be at least {option.low:g}{high} {option.unit}".rstrip())
    return value


def _bytes(option: Option, raw: Any) -> float:
    match = _SIZE.fullmatch(str(raw).strip()) if not isinstance(raw, bool) else None
    if match is None:
        raise ValueError("must be a number of bytes, such as 65536, 64KiB or 16MiB")
    return _bounded(option, int(match[1]) * _FACTOR[match[2].lower()])


def _bool(option: Option, raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    low = str(raw).strip().lower()
    if low not in _TRUE | _FALSE:
        raise ValueError("must be on or off")
    return low in _TRUE


def _choice(option: Option, raw: Any) -> str:
    if raw not in option.choices:
        raise ValueError(f"must be one of {', '.join(option.choices)}")
    return str(raw)


def _text(option: Option, raw: Any) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError("must not be empty")
    return raw.strip()


def _redis(option: Option, raw: Any) -> str:
    text = _text(option, raw)
    parts = urlsplit(text)
    right = "must be auto, off, or a URL: redis://host:6379/0, rediss://…, unix:///path"
    if text in ("auto", "off"):
        return text
    if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.path.strip("/")):
        raise ValueError(right)
    _port(parts)
    return text


def _urls(option: Option, raw: Any) -> tuple[str, ...]:
    items = raw.replace(",", " ").split() if isinstance(raw, str) else raw
    if not isinstance(items, list) or any(not isinstance(item, str) for item in items):
        raise ValueError("must be a list of URLs")
    urls = tuple(_url(item) for item in items)
    if len(set(urls)) != len(urls):
        raise ValueError("names an engine twice")
    return urls


def _url(text: str) -> str:
    parts = urlsplit(text.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL, such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user or password: it would show in logs and metrics")
    if parts.query or parts.fragment:
        raise ValueError("must be an engine's address alone, without ? or #")
    _port(parts)
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/v1")


def _port(parts: Any) -> None:
    try:
        parts.port  # noqa: B018 - urlsplit checks it when asked
    except ValueError:
        raise ValueError("has a port that is not one") from None


_PARSERS: Final[dict[str, Callable[[Option, Any], Any]]] = {
    "int": lambda option, raw: _number(option, raw, int),
    "float": lambda option, raw: _number(option, raw, float),
    "bytes": _bytes,
    "bool": _bool,
    "choice": _choice,
    "text": _text,
    "redis": _redis,
    "urls": _urls,
}


def mask(text: str) -> str:
    """The text with any password in a URL in it hidden."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)
