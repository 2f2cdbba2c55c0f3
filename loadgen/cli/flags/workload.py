"""The flags that choose a workload, by vLLM's names where vLLM has them. `open_workload` validates what they
say."""

from __future__ import annotations

import argparse
import secrets

from loadgen.errors import WorkloadError
from loadgen.spec import Endpoint
from loadgen.workload import DATASETS, Dataset, Options

_FIELDS = frozenset(Options.__struct_fields__) - {"endpoint", "salt", "corpus_set"}


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """An argument group, `--num-prompts` and `--seed` included. Defaults are those of `Options`."""
    group = parser.add_argument_group("what is asked")

    def add(flag: str, kind: type[int] | type[float] | type[str], text: str, metavar: str = "N") -> None:
        default = getattr(_DEFAULTS, flag.removeprefix("--").replace("-", "_"))
        shown = "" if default is None else f" (default {default})"
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=text + shown)

    group.add_argument(
        "--dataset-name",
        choices=DATASETS,
        default=None,
        help="where prompts are from; trace is a workload of `corpus compose`, Mooncake JSONL or Azure CSV "
        "(default corpus; prompt, where --prompt is given)",
    )
    add("--dataset-path", str, "the file, for custom, sharegpt and trace", "FILE")
    add("--prompt", str, "one text for every request", "TEXT")
    add("--num-prompts", int, "requests; of a file at most all (default 1000, or what the file holds)")
    add("--seed", int, "of every choice")
    add("--random-input-len", int, "tokens of a random prompt")
    add("--random-output-len", int, "tokens of its answer")
    add("--random-range-ratio", float, "both lengths are uniform within this share around them", "SHARE")
    add("--random-prefix-len", int, "tokens before it that all share")
    add("--prefix-repetition-prefix-len", int, "tokens of a shared prefix")
    add("--prefix-repetition-suffix-len", int, "tokens of its own after it")
    add("--prefix-repetition-num-prefixes", int, "prefixes")
    add("--prefix-repetition-output-len", int, "tokens of the answer")
    add("--sharegpt-output-len", int, "tokens of the answer (default: about the file's)")
    add("--custom-output-len", int, "tokens of the answer; -1: each line's output_tokens")
    add("--corpus-output-len", int, "most tokens of an answer (default: none, the engine ends)")
    group.add_argument(
        "--corpus-set",
        action="append",
        default=None,
        metavar="NAME[,NAME]",
        help="sets of the corpus: see `python -m corpus list` (default: all of one kind but documents)",
    )
    group.add_argument("--disable-shuffle", action="store_true", help="keep a file's order")
    add("--trace-jitter", float, "spread due times so far (default: within the slot of a coarse clock)", "SECONDS")
    add("--duplicates", float, "share of requests that repeat an earlier one, byte for byte", "SHARE")
    add("--zipf", float, "exponent of the popularity of what is repeated", "S")
    group.add_argument(
        "--unique",
        action="store_true",
        help="a nonce in front of every different prompt, so that no prefix cache helps; fresh for each run",
    )
    group.add_argument("--unique-salt", default=None, metavar="TEXT", help="of the nonces: to send the same again")


def workload_options(args: argparse.Namespace, endpoint: Endpoint) -> Options:
    """Raises WorkloadError where flags contradict each other.

    Without --unique-salt the salt is a new one, written back into `args`: a run records its flags as in force.
    """
    given = {name: getattr(args, name) for name in _FIELDS}
    name: Dataset = given.pop("dataset_name") or ("prompt" if args.prompt is not None else "corpus")
    if args.prompt is not None and name != "prompt":
        raise WorkloadError(f"--prompt is for --dataset-name prompt, not {name}")
    sets = tuple(part.strip() for value in args.corpus_set or () for part in value.split(",") if part.strip())
    if args.unique_salt is None:
        args.unique_salt = secrets.token_hex(8)
    return Options(**given, dataset_name=name, endpoint=endpoint, corpus_set=sets, salt=args.unique_salt)


_DEFAULTS = Options()
