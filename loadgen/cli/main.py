"""The list of commands, their help, and the message for wrong usage. A command is imported only when it is asked
for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from loadgen.errors import StoreError, UsageError, WorkloadError

USAGE: Final = 2

COMMANDS: Final = {
    "run": ("loadgen.cli.run", "send requests to a server and measure what comes back"),
    "ab": ("loadgen.cli.ab", "the same requests to two servers, interleaved and paired"),
    "sweep": ("loadgen.cli.sweep", "rising rates up to saturation, and the knee"),
    "calibrate": (
        "loadgen.cli.calibrate",
        "this generator's error on this machine, and how much load it can drive",
    ),
    "report": ("loadgen.cli.report", "write a run's reports again from its raw events"),
    "compare": ("loadgen.cli.compare", "compare two runs: effect, interval, verdict, exit code"),
}
DESCRIPTION: Final = """\
Measures an OpenAI-compatible server by the kernel's clock, and reports its own measurement error.

exit codes: 0 valid; 1 more requests failed than --max-error-rate allows; 2 wrong usage; 3 the measurement is
invalid (its own error exceeded a limit); 130 ended by Ctrl-C, with the report written."""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"loadgen {version('streaming-gateway')}")
        parser.exit()


def parser_for(commands: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser, with the flags of these commands only: the others are not imported."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in commands:
            command = importlib.import_module(module)
            command.add_arguments(sub)
            sub.set_defaults(main=command.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["worker"]:  # not for people: `workers.py` starts it
        from loadgen.drive import worker_main

        return worker_main()
    requested = [word for word in words[:1] if word in COMMANDS]
    try:
        parser = parser_for(requested)
        args = parser.parse_args(words)
        run = args.main
        del args.main
        code: int = run(args, words)
    except (UsageError, StoreError, WorkloadError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("stopped without a report", file=sys.stderr)
        return 130
    return code


def _refuse(message: str) -> int:
    for line in message.splitlines():
        print(f"loadgen: {line}", file=sys.stderr)
    return USAGE
