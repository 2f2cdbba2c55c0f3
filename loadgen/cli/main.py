"""The list of commands, their help, and the message for wrong usage. A command is imported only when it is asked
for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from loadgen.cli.parser import Parser
from loadgen.errors import StoreError, UsageError, WorkloadError
from loadgen.secrets import without_userinfo

USAGE: Final = 2
SHELLS: Final = ("bash", "zsh", "tcsh")
SCRIPT: Final = "gateway-load"


class Command(NamedTuple):
    module: str
    summary: str
    usage: str  # arguments
    short: bool = False  # it has flags enough for a short help


COMMANDS: Final = {
    "run": Command(
        "loadgen.cli.run", "send requests to a server and measure what comes back", "--base-url URL [FLAGS]", True
    ),
    "ab": Command(
        "loadgen.cli.ab",
        "the same requests to two servers, interleaved and paired",
        "--a URL --b URL [FLAGS]",
        True,
    ),
    "sweep": Command(
        "loadgen.cli.sweep", "rising rates up to saturation, and the knee", "--base-url URL [FLAGS]", True
    ),
    "find": Command(
        "loadgen.cli.find",
        "the highest load that meets objectives, with its interval, and what broke first",
        "--base-url URL --goodput ttft:500 tpot:50 [FLAGS]",
        True,
    ),
    "quick": Command(
        "loadgen.cli.quick",
        "a server in three sentences after a minute: what it is, how fast for one, for how many at once",
        "[URL] [FLAGS]",
    ),
    "calibrate": Command(
        "loadgen.cli.calibrate",
        "this generator's error on this machine, and how much load it can drive",
        "[FLAGS]",
    ),
    "report": Command("loadgen.cli.report", "write a run's reports again from its raw events", "FOLDER [FLAGS]"),
    "compare": Command(
        "loadgen.cli.compare",
        "compare runs, also those of other tools: effect, interval, verdict, exit code",
        "A B [C ...] [FLAGS]",
    ),
    "merge": Command(
        "loadgen.cli.runs.merge", "join the shares of a run on several machines", "FOLDER FOLDER [...] [FLAGS]"
    ),
    "export": Command("loadgen.cli.runs.export", "runs or requests as CSV", "RUN [RUN ...] [FLAGS]"),
    "vllm-bench-serve": Command(
        "loadgen.cli.vllm.bench_serve", "as `vllm bench serve`, with its flags and defaults", "[FLAGS OF VLLM]"
    ),
}
DESCRIPTION: Final = """\
Measures an OpenAI-compatible server by the kernel's clock, and reports its own measurement error.

exit codes: 0 a sound measurement; 1 more requests failed than --max-error-rate or --max-errors allows; 2 wrong
usage, or no response to the first requests; 3 the measurement is invalid (its own error exceeded a limit); 130
ended by Ctrl-C, with the report written."""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"loadgen {version('streaming-gateway')}")
        parser.exit()


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: object, __: object = None) -> NoReturn:
        import shtab

        print(shtab.complete(parser_for(prog=SCRIPT), str(shell)))
        parser.exit()


def parser_for(commands: Sequence[str] = tuple(COMMANDS), prog: str = "python -m loadgen") -> Parser:
    """The parser, with the flags of these commands only: the others are not imported."""
    parser = Parser(prog=prog, usage=f"{prog} COMMAND [FLAGS]", description=DESCRIPTION)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and exit")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the completion of {SCRIPT} for bash, zsh or tcsh, and exit",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            prog=f"{prog} {name}",
            usage=f"{prog} {name} {command.usage}",
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            short=command.short,
        )
        if name in commands:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(main=module.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    if words[:1] == ["worker"]:  # not for people: `workers.py` starts it
        from loadgen.drive import worker_main

        return worker_main()
    if words[:1] == ["scrape"]:  # nor is this: `scrape.py` starts it
        from loadgen.scraper import scrape_main

        return scrape_main()
    wrong = next((number for number, word in enumerate(words, 1) if not _is_text(word)), None)
    if wrong is not None:  # not shown: it may be a key
        return _refuse(f"argument {wrong} is no text in UTF-8, so no file of a run can hold it")
    prog = SCRIPT if Path(sys.argv[0]).name == SCRIPT else "python -m loadgen"
    try:
        args = _parsed(words, prog)
        run = args.main
        del args.main
        code: int = run(args, words)
    except (UsageError, StoreError, WorkloadError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("stopped without a report", file=sys.stderr)
        return 130
    return code


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes of the command line that are not in the locale's encoding
        return False
    return True


def _dashed(word: str) -> str:
    """A flag that is spelt with underscores, as vLLM accepts it: `--request_rate=2` is `--request-rate=2`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _parsed(words: Sequence[str], prog: str) -> argparse.Namespace:
    """The arguments. Ends the program with one line for a word that no flag takes."""
    parser = parser_for([word for word in words[:1] if word in COMMANDS], prog)
    args, unknown = parser.parse_known_args(words)
    if args.command is None:
        parser.error(f"a command is missing; give one of {', '.join(COMMANDS)}")
    if unknown:
        others = (name for name in COMMANDS if name != args.command)
        parser.command(args.command).refuse_unknown(unknown, {name: flags_of_command(name) for name in others})
    return args


def flags_of_command(command: str) -> list[str]:
    parser = Parser(prog=command)
    importlib.import_module(COMMANDS[command].module).add_arguments(parser)
    return parser.flags()


def _refuse(message: str) -> int:
    for line in without_userinfo(message).splitlines():
        print(f"loadgen: {line}", file=sys.stderr)
    return USAGE
