"""argparse with errors of one line, suggestions for misspelt names, and a short help beside the complete one."""

from __future__ import annotations

import argparse
import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

from loadgen.cli.vllm.flags import answer
from loadgen.secrets import without_userinfo

LONGEST: Final = 400  # characters of an error
SHORT: Final = frozenset(
    (
        *("help", "help_all", "base_url", "a", "b", "model", "api_key"),
        *("dataset_name", "dataset_path", "prompt", "num_prompts", "corpus_output_len", "duplicates"),
        *("max_tokens", "temperature", "request_rate", "max_concurrency", "rates", "start_rate", "stage_seconds"),
        *("workers", "max_seconds", "request_timeout", "max_error_rate", "label", "result_dir", "goodput"),
        *("attainment", "concurrency", "precision", "max_minutes"),
    )
)
"""The flags of the short help, by `dest`."""

MEANT: Final[Mapping[str, Sequence[str]]] = {
    "--url": ("--base-url",),
    "--target": ("--base-url",),
    "--key": ("--api-key",),
    "--token": ("--api-key",),
    "-n": ("--num-prompts",),
    "--requests": ("--num-prompts",),
    "--num-requests": ("--num-prompts",),
    "-c": ("--max-concurrency",),
    "--users": ("--max-concurrency",),
    "--concurrency": ("--max-concurrency",),
    "--connections": ("--max-concurrency",),
    "--rate": ("--request-rate", "--start-rate"),
    "--rps": ("--request-rate", "--start-rate"),
    "--qps": ("--request-rate", "--start-rate"),
    "--request-rate": ("--start-rate",),
    "--max-rate": ("--top-rate", "--max-rate"),
    "--duration": ("--max-seconds", "--stage-seconds", "--seconds"),
    "--seconds": ("--max-seconds", "--stage-seconds"),
    "--timeout": ("--request-timeout",),
    "--dataset": ("--dataset-name",),
    "--input-len": ("--random-input-len",),
    "--output-len": ("--max-tokens", "--corpus-output-len"),
    "--out": ("--result-dir", "--out"),
    "--output-dir": ("--result-dir", "--out"),
    "--name": ("--label",),
    "--slo": ("--goodput",),
    "--warmup": ("--num-warmups",),
}
"""What other load generators, and other commands here, call a flag."""


class _ShortFormatter(argparse.RawDescriptionHelpFormatter):
    def add_argument(self, action: argparse.Action) -> None:
        if action.dest in SHORT:
            super().add_argument(action)


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        assert isinstance(parser, Parser)
        parser.print_all_help()


class Parser(argparse.ArgumentParser):
    """The parser of the program or of one command. `short`: `--help` shows the flags in SHORT only."""

    def __init__(self, *, short: bool = False, **more: Any) -> None:
        super().__init__(
            formatter_class=_ShortFormatter if short else argparse.RawDescriptionHelpFormatter,
            epilog=f"all flags: {more['prog']} --help-all" if short else None,
            **more,
        )
        if short:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all flags, and exit")

    def format_usage(self) -> str:
        """Required flags and positional arguments; the help has the others."""
        return f"usage: {self.usage}\n"

    def print_all_help(self) -> NoReturn:
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.epilog = None
        self.print_help()
        self.exit()

    def error(self, message: str) -> NoReturn:
        """One line with the command's name; exit code 2."""
        name = self.prog.removeprefix("python -m ")
        line = " ".join(without_userinfo(message.removeprefix("argument ")).split())
        self.exit(2, f"{name}: {line[:LONGEST]}{'…' * (len(line) > LONGEST)}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's, with a suggestion."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            message = f"{value!r} is not one of {', '.join(choices)}"
            raise argparse.ArgumentError(action, message + did_you_mean(closest(str(value), choices)))

    def take(self, other: Parser, flag: str, default: Any = None, text: str | None = None) -> None:
        """Add another parser's flag, with another default and help if they are given."""
        action = copy.copy(next(action for action in other._actions if flag in action.option_strings))
        action.default = action.default if default is None else default
        action.help = text or action.help
        self._add_action(action)

    def refuse_unknown(self, words: Sequence[str], elsewhere: Mapping[str, Iterable[str]]) -> NoReturn:
        """An error about the first word that no flag takes. `elsewhere`: the flags of the other commands."""
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), "")
        if not flag:
            self.error(f"unexpected argument {words[0]!r}; {self.prog} --help lists the flags")
        known = self.flags()
        meant = next((name for name in MEANT.get(flag, ()) if name in known), None)
        others = [f"`{command}`" for command, flags in elsewhere.items() if flag in flags]
        theirs = answer(flag)
        if theirs is not None and meant is None:
            self.error(theirs)
        if others and meant is None:
            self.error(
                f"{flag} is a flag of {' and '.join(others)} only; {self.prog} --help-all lists the flags here"
            )
        suggestion = did_you_mean(meant or closest(flag, known)) or f"; {self.prog} --help lists the flags"
        self.error(f"unknown flag {flag}{suggestion}")

    def command(self, name: str) -> Parser:
        """The parser of one command of the program."""
        (parser,) = (action.choices[name] for action in self._actions if isinstance(action.choices, dict))
        assert isinstance(parser, Parser)
        return parser

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]


def closest(word: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def did_you_mean(name: str | None) -> str:
    return f"; did you mean {name}?" if name else ""
