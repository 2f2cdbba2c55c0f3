"""The command: vLLM's flags and defaults as arguments of `run`, which carries them out."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any, Final

from loadgen.cli import run
from loadgen.cli.flags import common, values
from loadgen.cli.parser import Parser
from loadgen.cli.vllm.flags import BACKENDS, DATASETS, FLAGS, Flag
from loadgen.errors import UsageError

OUTPUT_LENGTHS: Final = (
    "random_output_len",
    "sharegpt_output_len",
    "custom_output_len",
    "prefix_repetition_output_len",
)
FILES: Final = ("sharegpt", "custom", "burstgpt")


def add_arguments(parser: Parser) -> None:
    theirs = _run_parser()
    for flag in FLAGS:
        if flag.fate == "same":
            parser.take(theirs, flag.name, flag.default, flag.here)
        elif flag.fate == "own":
            _OWN[flag.name](parser, flag)
        else:
            parser.add_argument(flag.name, action=_ACTIONS[flag.fate], nargs=flag.values, help=flag.here)
    for name in ("--api-key", "--max-seconds", "--max-error-rate", "--workers"):
        parser.take(theirs, name)


def main(args: argparse.Namespace, words: list[str]) -> int:
    return run.main(run_arguments(args), words)


def run_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of `run` that do what vLLM does with these. Raises UsageError."""
    for flag, name, known in (
        ("--dataset-name", args.dataset_name, DATASETS),
        ("--backend", args.backend, BACKENDS),
    ):
        if known[name]:
            raise UsageError(f"{flag} {name} is not measured here: {known[name]}")
    if args.random_batch_size != 1:
        raise UsageError("--random-batch-size: a request of embeddings has one text here; leave it at 1")
    arguments = _run_parser().parse_args([])
    for name in vars(arguments):
        if getattr(args, name, None) is not None:
            setattr(arguments, name, getattr(args, name))
    if args.input_len is not None:
        arguments.random_input_len = args.input_len
    if args.output_len is not None:
        for name in OUTPUT_LENGTHS:
            setattr(arguments, name, args.output_len)
    if args.dataset_name == "random" and common.BACKENDS[args.backend] != "embeddings":
        arguments.ignore_eos = True
    arguments.too_few = "fewer" if args.no_oversample else "repeat"
    if args.num_prompts <= 0:
        if args.dataset_name not in FILES:
            raise UsageError(
                f"--num-prompts {args.num_prompts}: give at least 1; only a file has an end of its own"
            )
        arguments.num_prompts = None
    if args.ramp_up_strategy and args.request_rate == math.inf:
        arguments.request_rate = None
    if args.max_concurrency and args.request_rate == math.inf and args.dataset_name != "burstgpt":
        arguments.request_rate = None  # all due at once, few in flight: a closed loop, but for a file with times
    arguments.quiet = args.disable_tqdm
    arguments.vllm_dir = args.result_dir or "."
    arguments.result_dir = args.result_dir or arguments.result_dir
    return arguments


def _run_parser() -> Parser:
    parser = Parser(prog="run")
    run.add_arguments(parser)
    return parser


# Flags that are not `run`'s


class _Nothing(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: object, __: object, option: str | None = None) -> None:
        print(f"loadgen: {option} has no effect here: {self.help}", file=sys.stderr)


class _Answered(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: object, __: object, option: str | None = None) -> None:
        parser.error(f"{option} is not taken here: {self.help}")


_ACTIONS: Final = {"nothing": _Nothing, "answered": _Answered}


def _chosen(parser: Parser, flag: Flag) -> None:
    choices = DATASETS if flag.name == "--dataset-name" else BACKENDS
    parser.add_argument(flag.name, choices=list(choices), default=flag.default, help=flag.here)


def _length(parser: Parser, flag: Flag) -> None:
    parser.add_argument(flag.name, type=values.whole(1), metavar="N", help=flag.here, default=flag.default)


def _count(parser: Parser, flag: Flag) -> None:
    parser.add_argument(flag.name, type=values.integer, metavar="N", help=flag.here, default=flag.default)


def _switch(parser: Parser, flag: Flag) -> None:
    parser.add_argument(flag.name, action="store_true", help=flag.here)


def _text(parser: Parser, flag: Flag) -> None:
    parser.add_argument(flag.name, metavar="DIR", help=flag.here)


_OWN: Final[dict[str, Any]] = {
    "--dataset-name": _chosen,
    "--backend": _chosen,
    "--num-prompts": _count,
    "--random-batch-size": _length,
    "--input-len": _length,
    "--output-len": _length,
    "--no-oversample": _switch,
    "--disable-tqdm": _switch,
    "--result-dir": _text,
}
