"""Where settings come from: flags before environment before TOML file before defaults. All errors are reported
at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from proxy.config.conflicts import reconcile
from proxy.config.files import read_text
from proxy.config.flags import parser_of_all
from proxy.config.hints import hint
from proxy.config.redact import HIDDEN, mask_url, secrets_in, shown_path, shown_url, shown_urls, shown_word
from proxy.config.settings import Option, Settings, options
from proxy.config.toml_errors import read_toml
from proxy.errors import SettingsError

_LINK: Final = re.compile(r"(tcp|udp|sctp)://")
_ENGINE: Final = re.compile(r"https?://", re.IGNORECASE)
_JSON_LIST: Final = re.compile(r"""\s*\[\s*["']""")  # a host in IPv6 begins with a bracket too
_KUBERNETES: Final = re.compile(
    r"GATEWAY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
"""Variables that Kubernetes adds to a pod's environment for a Service named `gateway` or `gateway-…`."""

OWN_FLAGS: Final = ("--config", "--check-config", "--help", "--help-all", "--version", "--print-completion")
_NEVER_EMPTY: Final = ("FILE", "KEY", "SECRET|auto")
"""An empty flag of these is a shell's variable that is not set, which must not switch protection off."""
_LONGEST: Final = 10**100
_SHOWN: Final = 200  # characters of an invalid value that its error shows


class Given(NamedTuple):
    """A value before it is read, and its source."""

    option: Option
    raw: Any
    source: str


def load(
    argv: Sequence[str],
    environ: Mapping[str, str],
    read_file: Callable[[str], str] = read_text,
    *,
    prog: str = "python -m proxy",
) -> Settings:
    """Read all settings. Raises SettingsError with every invalid one, its source, and what is valid.

    `--help`, `--help-all`, `--version` and `--print-completion` print and raise SystemExit(0); `prog` is the
    program's name there.
    """
    known = {option.name: option for option in options()}
    problems: list[str] = []
    warnings: list[str] = []
    flags = _parse(argv, known, problems, prog)
    flags.pop("check_config", None)  # for `__main__`
    path = flags.pop("config", None) or environ.get("GATEWAY_CONFIG")
    given = [
        *(_from_file(path, read_file, known, problems) if path else ()),
        *_from_environment(environ, known, warnings),
        *(Given(known[name], raw, f"flag {known[name].flag}") for name, raw in flags.items()),
    ]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option, raw, source in given:
        if source.startswith("flag ") and option.metavar in _NEVER_EMPTY and not raw.strip():
            problems.append(f"{source} = '': is empty; write none for none")
            continue
        try:
            if option.repeats and _is_json(raw):
                raise ValueError("must be separated by commas, not written as JSON")
            values[option.name] = option.read(raw)
            sources[option.name] = source
        except ValueError as e:
            problems.append(f"{source} = {_given(option, raw)}: {e}")
    problems += reconcile(values, sources, known)
    if problems:
        raise SettingsError("\n".join(problems))
    return Settings(**values, warnings=tuple(warnings), config=str(path or ""))


def _parse(argv: Sequence[str], known: Mapping[str, Option], problems: list[str], prog: str) -> dict[str, Any]:
    """The given flags, as text. Errors of argparse are added to the problems."""
    try:
        namespace, unknown = parser_of_all(prog).parse_known_args(list(argv))
    except SettingsError as e:
        problems.append(str(e))
        return {}
    names = [*OWN_FLAGS, *(option.flag for option in known.values())]
    switches = {option.flag for option in known.values() if option.is_switch}
    after_switch = {word: flag for flag, word in pairwise(argv) if flag in switches}
    after_flag = False
    for arg in unknown:
        name = arg.partition("=")[0]
        if arg.startswith("-"):
            problems.append(f"unknown flag {shown_word(name)}{hint(name, names, lambda name: known[name].flag)}")
        elif arg in after_switch:
            name = after_switch[arg]
            problems.append(f"flag {name}: takes no value; {name.replace('--', '--no-', 1)} switches it off")
        elif not after_flag:  # the word after an unknown flag is its value
            again = "; --backend is repeated for each engine" if _ENGINE.match(arg) else ""
            problems.append(f"unexpected argument {shown_word(arg)}: settings are given as --flag VALUE{again}")
        after_flag = arg.startswith("-") and "=" not in arg
    return {name: value for name, value in vars(namespace).items() if value is not None}


def _from_file(
    path: str, read_file: Callable[[str], str], known: Mapping[str, Option], problems: list[str]
) -> Iterator[Given]:
    try:
        table = read_toml(read_file(path), known)
    except OSError as e:
        problems.append(f"file {path}: {e.strerror or e}")
        return
    except ValueError as e:  # not TOML, not UTF-8, too large, or an invalid path
        problems.append(f"file {path}: not a TOML file: {e}")
        return
    for key, raw in table.items():
        inside = [name for name in raw if name in known] if isinstance(raw, dict) else []
        if key in known and inside:  # after a table's heading every line is the table's
            problems.append(
                f"file {path}: {', '.join(inside)}: inside the table {key}; write settings above the line [{key}]"
            )
        elif key in known:
            yield Given(known[key], raw, f"file {path}: {key}")
        elif isinstance(raw, dict):
            meant = f": write {', '.join(inside)} without this line" if inside else ""
            problems.append(
                f"file {path}: unknown section [{_shown(key)[1:-1]}]{'' if inside else hint(key, known, str)}; "
                f"settings are keys of the file itself, without sections{meant}"
            )
        else:
            problems.append(f"file {path}: unknown key {_shown(key)}{hint(key, known, str)}")


def _from_environment(
    environ: Mapping[str, str], known: Mapping[str, Option], warnings: list[str]
) -> Iterator[Given]:
    """An empty variable counts as unset: compose files omit one that way."""
    variables = {"GATEWAY_CONFIG"}
    for option in known.values():
        variables.update(option.env)
        for env in reversed(option.env):
            value = environ.get(env, "")
            if option.name == "port" and _LINK.match(value):
                warnings.append(f"environment {env}: ignored: a Kubernetes service link, not a port")
            elif value.strip():
                yield Given(option, value, f"environment {env}")
    for env in sorted(environ):
        if not env.startswith("GATEWAY_") or env in variables or _KUBERNETES.fullmatch(env):
            continue
        if not (env.endswith("_PORT") and _LINK.match(environ[env])):
            meant = hint(env, sorted(variables), lambda name: known[name].env[0])
            warnings.append(f"environment {env}: ignored: no such setting{meant}")


def _is_json(raw: Any) -> bool:
    """Whether a text, or one of several, is a list as JSON writes it."""
    texts = raw if isinstance(raw, list) else [raw]
    return any(isinstance(text, str) and _JSON_LIST.match(text) is not None for text in texts)


def _given(option: Option, raw: object) -> str:
    """An invalid value as its error may show it."""
    if option.hidden or (option.is_switch and "key" in option.name):  # a key given for a switch
        return HIDDEN
    if isinstance(raw, str) and option.metavar == "URL":
        return repr(shown_urls(raw)[:_SHOWN] if option.repeats else shown_url(raw)[:_SHOWN])
    if isinstance(raw, list) and option.metavar == "URL":
        urls = ", ".join(repr(shown_urls(str(one))[:_SHOWN]) for one in raw)
        return urls if len(raw) == 1 else f"[{urls}]"
    if isinstance(raw, str) and option.metavar == "FILE":
        return shown_path(raw)
    return _shown(raw)


def exposed(settings: Settings, argv: Sequence[str]) -> list[str]:
    """A warning for each secret that was given as a flag."""
    warnings = []
    for option in options():
        value = getattr(settings, option.name)
        holds = option.metavar == "URL" and isinstance(value, str) and secrets_in(value)
        secret = holds or (option.hidden and value != "auto")
        if secret and any(arg.partition("=")[0] == option.flag for arg in argv):
            warnings.append(
                f"flag {option.flag}: visible to every user of this machine in the process list; "
                f"use {option.env[0]}"
            )
    return warnings


def _shown(raw: object) -> str:
    """A value as an error may show it: without secrets and line breaks, and bounded."""
    if isinstance(raw, list):
        return "[" + ", ".join(map(_shown, raw)) + "]"
    if isinstance(raw, dict):
        return "a table"
    if isinstance(raw, bool | float):
        return str(raw).lower()
    if isinstance(raw, int) and abs(raw) > _LONGEST:  # CPython writes no number of more than 4,300 digits
        return f"a number of {raw.bit_length()} bits"
    if isinstance(raw, int):
        return str(raw)
    text = mask_url(str(raw))
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
