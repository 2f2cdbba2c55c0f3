"""The flags that choose a workload, by vLLM's names where vLLM has them. `open_workload` validates what they
say."""

from __future__ import annotations

import argparse
import math
import secrets
from collections.abc import Callable

from loadgen.cli.flags import values
from loadgen.errors import WorkloadError
from loadgen.spec import Endpoint
from loadgen.workload import DATASETS, TOO_FEW, Dataset, Options

_FIELDS = frozenset(Options.__struct_fields__) - {"endpoint", "salt", "corpus_set"}


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """Add the workload group, including `--num-prompts` and `--seed`. Defaults are those of `Options`."""
    group = parser.add_argument_group("workload")
    any_number = values.number(-math.inf)

    def add(flag: str, kind: Callable[[str], object], text: str, metavar: str = "N") -> None:
        default = getattr(_DEFAULTS, flag.removeprefix("--").replace("-", "_"))
        shown = "" if default is None else f" (default {default})"
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=text + shown)

    group.add_argument(
        "--dataset-name",
        choices=DATASETS,
        default=None,
        help="source of prompts; trace: a workload of `corpus compose`, Mooncake JSONL, Azure or BurstGPT CSV, "
        "agents' traces (OpenTelemetry, KV-Cache-Tester); recording: what the gateway's record_file holds, "
        "a pattern such as 'FILE-worker*' for its workers' files "
        "(default corpus; prompt if --prompt is given)",
    )
    add("--dataset-path", str, "file, for custom, sharegpt, trace, burstgpt and recording", "FILE")
    add("--prompt", str, "the same text for every request", "TEXT")
    add(
        "--num-prompts",
        values.integer,
        "number of requests (default: by a probe of the server's pace, or all of a file)",
    )
    add("--seed", values.integer, "seed of all random choices")
    add("--random-input-len", values.integer, "tokens of a random prompt")
    add("--random-output-len", values.integer, "tokens of its response")
    add(
        "--random-range-ratio",
        values.range_ratio,
        'both lengths vary uniformly by up to this share; or {"input": SHARE, "output": SHARE}',
        "SHARE",
    )
    add("--random-prefix-len", values.integer, "tokens of a prefix that all prompts share")
    add("--prefix-repetition-prefix-len", values.integer, "tokens of a shared prefix")
    add("--prefix-repetition-suffix-len", values.integer, "tokens of the distinct rest of each prompt")
    add("--prefix-repetition-num-prefixes", values.integer, "number of prefixes")
    add("--prefix-repetition-output-len", values.integer, "tokens of the response")
    add("--sharegpt-output-len", values.integer, "tokens of the response (default: about as in the file)")
    add(
        "--custom-output-len",
        values.integer,
        "tokens of the response where a line has no max_tokens; -1: each line's output_tokens",
    )
    add(
        "--corpus-output-len",
        values.integer,
        "most tokens of a response (default: by the probe; with --num-prompts no limit)",
    )
    group.add_argument(
        "--corpus-set",
        action="append",
        default=None,
        metavar="NAME[,NAME]",
        help="sets of the corpus, see `python -m corpus list` (default: all of one kind except documents)",
    )
    group.add_argument(
        "--too-few",
        choices=TOO_FEW,
        default=_DEFAULTS.too_few,
        help="if a file has fewer prompts than --num-prompts: refuse (default), repeat some (vLLM), or send fewer",
    )
    add("--turns", str, "make conversations: turns of each, N or LOW-HIGH; all: as in the file", "TURNS")
    add(
        "--think-time",
        str,
        "before each later turn: SECONDS, exponential:MEAN, uniform:LEAST-MOST or lognormal:MEDIAN,SIGMA",
        "S",
    )
    group.add_argument(
        "--history",
        choices=("own", "file"),
        default=_DEFAULTS.history,
        help="answers that later turns carry: the model's own (default), or those of the file",
    )
    add("--images", values.whole(0, 100), "pictures at the end of each prompt, generated")
    add("--image-size", str, "of each picture, in pixels", "WIDTHxHEIGHT")
    add("--rerank-documents", values.whole(1, 10_000), "documents of each rerank request")
    group.add_argument("--disable-shuffle", action="store_true", help="keep the file's order")
    add(
        "--trace-jitter",
        any_number,
        "spread due times by up to this (default: one slot of a coarse clock)",
        "SECONDS",
    )
    add("--duplicates", any_number, "share of requests that are byte-identical to an earlier one", "SHARE")
    add("--zipf", any_number, "exponent of the repeated prompts' popularity", "S")
    group.add_argument(
        "--unique",
        action="store_true",
        help="put a nonce in front of every distinct prompt, new for each run, so that no prefix cache helps",
    )
    group.add_argument(
        "--unique-salt", default=None, metavar="TEXT", help="seed of the nonces, to send the same prompts again"
    )


def workload_options(args: argparse.Namespace, endpoint: Endpoint) -> Options:
    """The workload's options. Raises WorkloadError for flags that contradict each other.

    Without --unique-salt a new salt is written back into `args`, so that the run records it.
    """
    options = {name: getattr(args, name) for name in _FIELDS}
    name: Dataset = options.pop("dataset_name") or ("prompt" if args.prompt is not None else "corpus")
    if args.prompt is not None and name != "prompt":
        raise WorkloadError(f"--prompt applies to --dataset-name prompt, not {name}")
    sets = tuple(part.strip() for value in args.corpus_set or () for part in value.split(",") if part.strip())
    if args.unique_salt is None:
        args.unique_salt = secrets.token_hex(8)
    return Options(**options, dataset_name=name, endpoint=endpoint, corpus_set=sets, salt=args.unique_salt)


_DEFAULTS = Options()
