"""The command line: flags of all settings, help, version and shell completion."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from proxy import __version__
from proxy.config.redact import mask_url
from proxy.config.settings import Option, options
from proxy.errors import SettingsError

NAME: Final = "streaming-gateway"
"""The console script, whose name shells complete."""
SHELLS: Final = ("bash", "zsh", "tcsh")
_LONG_METAVAR: Final = 16  # characters: a longer one is cut in the short help
_ESSENTIAL: Final = frozenset(
    {
        *("host", "port", "tls_cert", "tls_key", "backends", "backend_api_key_file", "max_inflight"),
        *("queue_timeout", "redis", "share", "cache_ttl_seconds", "api_keys_file", "admin_port", "rate_limit_rps"),
        *("total_timeout", "log_level"),
    }
)
_DESCRIPTION: Final = "An OpenAI-compatible streaming gateway in front of vLLM:\none generation, many readers."
_SOURCES: Final = """\
Every flag is an environment variable and a key of the --config file too:
--queue-timeout 10s, GATEWAY_QUEUE_TIMEOUT=10s, queue_timeout = "10s".
Flags take precedence over the environment, and the environment over the file."""
_SHORT: Final = f"""\
Without --backend, a small embedded engine serves.
--help-all lists all settings.

{_SOURCES}"""
_LONG: Final = f"""\
{_SOURCES}

Durations: 500ms, 10s, 2m, 1h, 7d; a number alone has the unit in capitals (SECONDS, MS).
Sizes: 64KiB, 16MiB, 2GiB (powers of 1024), 64KB, 16MB, 2GB (powers of 1000); a number alone is bytes.
Numbers: 1000000, 1_000_000, 1e6. Lists: separated by commas, or the flag repeated."""


def program_name(argv0: str, module: str) -> str:
    """What usage lines call a program: `python -m MODULE`, or the console script that was started."""
    name = Path(argv0).name
    return f"python -m {module}" if not name or name == "-m" or name.endswith(".py") else name


def version() -> str:
    return f"{NAME} {__version__}"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are SettingsErrors of one line, which name the flag."""

    def error(self, message: str) -> NoReturn:
        # argparse repeats the value of a switch, which may be a key after `--metrics-key`
        words = re.sub(r"ignored explicit argument .*", "takes no value", message, flags=re.DOTALL)
        words = words.replace("expected one argument", "needs a value")
        words = re.sub(r"^argument (?:-h/)?(-[\w-]+)(/\S+)?:", r"flag \1:", words)
        raise SettingsError(mask_url(words.removeprefix("argument ")))


def parser_of_all(prog: str) -> Parser:
    """The parser of all flags. Their values stay text; one that is not given is None."""
    return _parser(prog, options(), short=False)


def _parser(prog: str, shown: Sequence[Option], *, short: bool, completes_files: Any = None) -> Parser:
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--backend URL ...] [--config FILE] [settings]",
        description=_DESCRIPTION,
        epilog=_SHORT if short else _LONG,
        formatter_class=_OneLineEach if short else _Wrapped,
        allow_abbrev=False,
        add_help=False,
    )
    groups: dict[str, Any] = {}
    for option in shown:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        default = "" if option.shown_default in ("none", "0") else f" [{option.shown_default}]"
        help = f"{option.brief}{default}" if short else f"{option.help} [{option.env[0]}, {option.shown_default}]"
        metavar = option.metavar
        if short and len(metavar) > _LONG_METAVAR:
            metavar = metavar.partition("|")[0] + "|..."
        kind: dict[str, Any] = {"action": "append" if option.repeats else "store", "metavar": metavar}
        if completes_files and "|" in metavar:
            kind["choices"] = metavar.split("|")
        if option.is_switch:
            kind = {"action": argparse.BooleanOptionalAction}
        action = groups[option.group].add_argument(
            option.flag, dest=option.name, help=help.replace("%", "%%"), **kind
        )
        if completes_files and option.metavar == "FILE":
            action.complete = completes_files
    config = _add_own(parser)
    if completes_files:
        config.complete = completes_files
    return parser


def _add_own(parser: Parser) -> Any:
    own = parser.add_argument_group("Program")
    config = own.add_argument("--config", metavar="FILE", help="TOML file of settings [GATEWAY_CONFIG]")
    own.add_argument(
        "--check-config", action="store_const", const=True, help="Check and print all settings, and exit"
    )
    own.add_argument("-h", "--help", action=_Help, nargs=0, help="Show the settings that most people need")
    own.add_argument("--help-all", action=_HelpAll, nargs=0, help="Show all settings")
    own.add_argument("--version", action=_Version, nargs=0, help="Show the version")
    own.add_argument(
        "--print-completion",
        action=_Completion,
        choices=SHELLS,
        metavar="SHELL",
        help="Print a completion script: bash, zsh or tcsh",
    )
    return config


class _OneLineEach(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=31, width=1000)


class _Wrapped(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


class _Shown(argparse.Action):
    """Prints a text and ends the program."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> NoReturn:
        self.show(parser.prog, values)
        raise SystemExit(0)

    def show(self, prog: str, value: Any) -> None:
        raise NotImplementedError


class _Help(_Shown):
    def show(self, prog: str, value: Any) -> None:
        _parser(prog, [option for option in options() if option.name in _ESSENTIAL], short=True).print_help()


class _HelpAll(_Shown):
    def show(self, prog: str, value: Any) -> None:
        parser_of_all(prog).print_help()


class _Version(_Shown):
    def show(self, prog: str, value: Any) -> None:
        sys.stdout.write(f"{version()}\n")


class _Completion(_Shown):
    def show(self, prog: str, value: Any) -> None:
        import shtab  # here: a start of the gateway does not need it

        parser = _parser(NAME, options(), short=False, completes_files=shtab.FILE)
        sys.stdout.write(shtab.complete(parser, value) + "\n")
