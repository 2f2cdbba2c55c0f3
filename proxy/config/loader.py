"""Owns where settings come from: flags before environment before TOML file before defaults; all errors at once.
Must not know who uses the settings; touches nothing but what it is handed.
Called by `__main__`."""

from __future__ import annotations

import argparse
import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from proxy.config.redact import HIDDEN, mask_url, secrets_in, shown_path, shown_url, shown_urls, shown_word
from proxy.config.settings import VERSION, Option, Settings, options
from proxy.errors import SettingsError

_LINK: Final = re.compile(r"(tcp|udp|sctp)://")
_KUBERNETES: Final = re.compile(
    r"GATEWAY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
"""What Kubernetes puts into a pod's environment for a Service named `gateway` or `gateway-…`."""

_SHOWN: Final = 200  # characters of a refused value that its error tells, at most

_WITHIN: Final = (
    ("max_frame_bytes", "max_flight_bytes", "an event is part of its answer"),
    ("cache_max_entry_bytes", "cache_max_pending_bytes", "an answer waits whole to be written"),
    ("first_token_timeout", "total_timeout", "it would never act"),
    ("token_timeout", "total_timeout", "it would never act"),
    ("connect_timeout", "total_timeout", "it would never act"),
    ("queue_patience", "queue_timeout", "it would never act"),
    ("breaker_seconds", "breaker_max_seconds", "it is the first of them"),
)
"""The first must not be over the second. A default gives way to what was given; 0 is no limit."""


class Given(NamedTuple):
    """A value before it is read, and where it is from."""

    option: Option
    raw: Any
    source: str


def load(
    argv: Sequence[str],
    environ: Mapping[str, str],
    read_file: Callable[[str], str] = lambda path: Path(path).read_text("utf-8"),
) -> Settings:
    """Read all settings. Raises SettingsError that names every wrong one, its source, and what is right.

    `--help` and `--version` print and raise SystemExit(0).
    """
    known = {option.name: option for option in options()}
    problems: list[str] = []
    warnings: list[str] = []
    flags = _parse(argv, known, problems)
    flags.pop("check_config", None)  # the program's own: it does with the settings what it is told
    path = flags.pop("config", None) or environ.get("GATEWAY_CONFIG")
    given = [
        *(_from_file(path, read_file, known, problems) if path else ()),
        *_from_environment(environ, known, warnings),
        *(Given(known[name], raw, f"flag {known[name].flag}") for name, raw in flags.items()),
    ]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option, raw, source in given:
        try:
            values[option.name] = option.read(raw)
            sources[option.name] = source
        except ValueError as e:
            problems.append(f"{source} = {_given(option, raw)}: {e}")
    _reconcile(values, sources, known, problems)
    if problems:
        raise SettingsError("\n".join(problems))
    return Settings(**values, warnings=tuple(warnings), config=str(path or ""))


def _reconcile(
    values: dict[str, Any], sources: Mapping[str, str], known: Mapping[str, Option], problems: list[str]
) -> None:
    """Settings that bound each other: a default is lowered to its bound, a given value over it is an error."""
    for inner, outer, why in _WITHIN:
        bound = values.get(outer, known[outer].default)
        if bound == 0 or values.get(inner, known[inner].default) <= bound:
            continue
        if inner in sources:
            problems.append(
                f"{sources[inner]} = {values[inner]}: must not be over {outer}, which is {bound}"
                f" ({sources.get(outer, 'its default')}): {why}"
            )
        else:
            values[inner] = bound


class _Parser(argparse.ArgumentParser):
    """argparse that reports like the rest of us."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _parse(argv: Sequence[str], known: Mapping[str, Option], problems: list[str]) -> dict[str, Any]:
    """The flags that were given, as text. What argparse cannot take joins the problems."""
    try:
        namespace, unknown = _parser(known.values()).parse_known_args(list(argv))
    except SettingsError as e:
        # argparse repeats a value that a switch does not take: after `--metrics-key` it may be a key
        words = re.sub(r"ignored explicit argument .*", "takes no value", str(e), flags=re.DOTALL)
        problems.append(f"flags: {mask_url(words)}")
        return {}
    names = ["--config", "--check-config", *(option.flag for option in known.values())]
    after_flag = False
    for arg in unknown:
        name = arg.partition("=")[0]
        if arg.startswith("-"):
            problems.append(f"unknown flag {shown_word(name)}{_nearest(name, names)}")
        elif not after_flag:  # the word after an unknown flag is its value
            problems.append(f"unexpected argument {shown_word(arg)}: settings are given as --flag VALUE")
        after_flag = arg.startswith("-") and "=" not in arg
    return {name: value for name, value in vars(namespace).items() if value is not None}


def _parser(known: Iterable[Option]) -> _Parser:
    parser = _Parser(
        prog="python -m proxy",
        description="An OpenAI-compatible streaming gateway in front of vLLM: one generation, many readers.",
        epilog="A flag wins over its GATEWAY_ twin in the environment, that over the --config file, that over the "
        "default. A file has the flag's name with underscores: max_batch = 64. Sizes take KiB, MiB, GiB, KB, MB.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"streaming-gateway {VERSION}")
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings. [GATEWAY_CONFIG]")
    parser.add_argument(
        "--check-config",
        action="store_const",
        const=True,
        help="Check all settings, print them, and start nothing.",
    )
    for option in known:
        shown = f"{option.help} [{option.env[0]}, {option.shown_default}]".replace("%", "%%")
        if option.is_switch:
            action: Any = argparse.BooleanOptionalAction
            parser.add_argument(option.flag, dest=option.name, help=shown, action=action)
        else:
            action = "append" if option.repeats else "store"
            parser.add_argument(option.flag, dest=option.name, help=shown, action=action, metavar=option.metavar)
    return parser


def _from_file(
    path: str, read_file: Callable[[str], str], known: Mapping[str, Option], problems: list[str]
) -> Iterator[Given]:
    try:
        table = tomllib.loads(read_file(path))
    except OSError as e:
        problems.append(f"file {path}: {e.strerror or e}")
        return
    except (ValueError, RecursionError) as e:  # not TOML, not UTF-8, no path at all, or arrays a thousand deep
        problems.append(f"file {path}: not a TOML file: {e}")
        return
    for key, raw in table.items():
        if key in known:
            yield Given(known[key], raw, f"file {path}: {key}")
        else:
            problems.append(f"file {path}: unknown key {_shown(key)}{_nearest(key, list(known))}")


def _from_environment(
    environ: Mapping[str, str], known: Mapping[str, Option], warnings: list[str]
) -> Iterator[Given]:
    """An empty variable is as good as none: that is how a compose file leaves one out."""
    twins = {"GATEWAY_CONFIG"}
    for option in known.values():
        twins.update(option.env)
        for env in reversed(option.env):
            value = environ.get(env, "")
            if option.name == "port" and _LINK.match(value):
                warnings.append(f"environment {env}: ignored: it is a Kubernetes service link, not a port")
            elif value.strip():
                yield Given(option, value, f"environment {env}")
    for env in sorted(environ):
        if not env.startswith("GATEWAY_") or env in twins or _KUBERNETES.fullmatch(env):
            continue
        if not (env.endswith("_PORT") and _LINK.match(environ[env])):
            warnings.append(f"environment {env}: ignored: no such setting{_nearest(env, sorted(twins))}")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names)
    return f"; did you mean {near[0]}?" if near else ""


def _given(option: Option, raw: object) -> str:
    """A refused value as its error may tell it."""
    if option.hidden or (option.is_switch and "key" in option.name):  # the key in place of whether one is wanted
        return HIDDEN
    if isinstance(raw, str) and option.metavar == "URL":
        return repr(shown_urls(raw)[:_SHOWN] if option.repeats else shown_url(raw)[:_SHOWN])
    if isinstance(raw, list) and option.metavar == "URL":
        return "[" + ", ".join(repr(shown_urls(str(one))[:_SHOWN]) for one in raw) + "]"
    if isinstance(raw, str) and option.metavar == "FILE":
        return shown_path(raw)
    return _shown(raw)


def exposed(settings: Settings, argv: Sequence[str]) -> list[str]:
    """A warning of each secret that was given as a flag."""
    found = []
    for option in options():
        value = getattr(settings, option.name)
        secret = option.hidden or (option.metavar == "URL" and isinstance(value, str) and secrets_in(value))
        if secret and any(arg.partition("=")[0] == option.flag for arg in argv):
            found.append(
                f"flag {option.flag}: every user of this machine can read it in the list of processes; "
                f"give {option.env[0]}"
            )
    return found


def _shown(raw: object) -> str:
    """A value as an error may tell it: no secret, no line break, no end."""
    if isinstance(raw, list):
        return "[" + ", ".join(map(_shown, raw)) + "]"
    if isinstance(raw, dict):
        return "a table"
    text = mask_url(str(raw))
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
