"""The list of commands, their help, and the message for wrong usage. A command is imported only when it is asked
for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from loadgen.errors import StoreError, UsageError, WorkloadError

USAGE: Final = 2

COMMANDS: Final = {
    "run": ("loadgen.cli.run", "send requests to a server and measure what comes back"),
    "ab": ("loadgen.cli.ab", "the same requests to two servers, interleaved and paired"),
    "sweep": ("loadgen.cli.sweep", "rates from low to saturation, and where the knee is"),
    "calibrate": (
        "loadgen.cli.calibrate",
        "how wrong this generator is on this machine, and how much it can drive",
    ),
    "report": ("loadgen.cli.report", "make a run's reports again from its raw events"),
    "compare": ("loadgen.cli.compare", "two runs: effect, interval, verdict, exit code"),
}
DESCRIPTION: Final = """\
Measures an OpenAI-compatible server by the kernel's clock, and says how wrong it may be itself.

exit codes: 0 valid; 1 requests failed above --max-error-rate; 2 wrong usage; 3 the measurement is invalid
(its own error was above a stated limit); 130 ended by Ctrl-C, with the report written."""


def parser_for(commands: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser with these commands' flags: a command that is not asked for is not imported."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in commands:
            found = importlib.import_module(module)
            found.add_arguments(sub)
            sub.set_defaults(main=found.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["worker"]:  # not for people: `workers.py` starts these
        from loadgen.drive import worker_main

        return worker_main()
    asked = [word for word in words[:1] if word in COMMANDS]
    try:
        parser = parser_for(asked)
        args = parser.parse_args(words)
        run = args.main
        del args.main
        code: int = run(args, words)
    except (UsageError, StoreError, WorkloadError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("ended at once, without a report", file=sys.stderr)
        return 130
    return code


def _refuse(message: str) -> int:
    for line in message.splitlines():
        print(f"loadgen: {line}", file=sys.stderr)
    return USAGE
