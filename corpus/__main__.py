"""`python -m corpus`: `list`, `stats`, `compose`, `documents`, `verify`, `calibrate`. Data goes to stdout or a
file; tables and messages go to stdout, or to stderr where data has stdout."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn, TextIO

import msgspec

from corpus.arrivals import Renewal, Slotted
from corpus.calibrate import calibrated, server_count, write
from corpus.compose import Groups, Plan, compose
from corpus.lengths import Fixed, parse_lengths
from corpus.manifest import manifest, verify
from corpus.presets import PRESETS, Preset
from corpus.sources import check_sets, documents
from corpus.table import Watch, table

MAX_REQUESTS = 10_000_000


def say(text: str, stream: TextIO | None = None) -> None:
    (stream or sys.stdout).write(f"{text}\n")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        help = f"; {self.prog} --help lists them" if message.startswith("the following arguments") else ""
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {message.removeprefix('argument ')}{help}\n")

    def refuse(self, word: str) -> NoReturn:
        """A flag that is none, or a word that belongs to none."""
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            self.error(f"unexpected argument {word!r}: values are given as --flag VALUE")
        near = difflib.get_close_matches(flag, self._option_string_actions)
        self.error(f"unknown flag {flag}; " + (f"did you mean {near[0]}?" if near else f"see {self.prog} --help"))

    def command(self, name: str) -> Parser:
        (parsers,) = (action.choices for action in self._actions if isinstance(action.choices, dict))
        found = parsers[name]
        assert isinstance(found, Parser)
        return found


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> NoReturn:
        from importlib.metadata import version  # here: it takes longer than the rest of the start

        say(f"corpus {version('streaming-gateway')}")
        parser.exit()


def parser() -> Parser:
    top = Parser(prog="python -m corpus", description="Prompt sets, and workloads composed of them for `loadgen`.")
    top.add_argument("--version", action=_Version, nargs=0, help="show the version, and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="list the prompt sets and the presets")
    commands.add_parser("stats", help="tokens and bytes of each set, and the error of estimated lengths")
    commands.add_parser("verify", help="check the files against the manifest; exit code 1 if they differ")
    made = commands.add_parser("documents", help="compose the set `documents` again, on stdout")
    made.add_argument("--count", type=int, default=60, metavar="N", help="documents (default 60)")
    made.add_argument("--seed", type=int, default=1, metavar="N", help="another seed, other documents (default 1)")
    measured = commands.add_parser(
        "calibrate", help="count tokens by the /tokenize of a server such as python -m proxy"
    )
    measured.add_argument("--url", required=True, help="the server, such as http://127.0.0.1:8080")
    measured.add_argument("--write", action="store_true", help="write the manifest; otherwise only compare")
    _compose_flags(commands.add_parser("compose", help="compose a workload, and print how close it came"))
    return top


def _compose_flags(add: argparse.ArgumentParser) -> None:
    add.add_argument("--preset", choices=sorted(PRESETS), help="imitate a published trace")
    add.add_argument(
        "--lengths", choices=("quantiles", "lognormal"), default="quantiles", help="how a preset draws lengths"
    )
    add.add_argument(
        "--grid", action="store_true", help="keep a preset's coarse clock; do not spread times within it"
    )
    add.add_argument("--num-prompts", type=int, metavar="N", help="requests (default 1000, or the preset's)")
    add.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other requests (default 0)")
    add.add_argument("--out", metavar="FILE", help="output file (default: - for stdout)")
    add.add_argument("--dry", action="store_true", help="print the table only")
    add.add_argument("--endpoint", choices=("chat", "completions", "embeddings"), default="chat")
    add.add_argument(
        "--corpus-set", metavar="NAME[,NAME]", default="", help="use handwritten prompts, at their own length"
    )
    add.add_argument(
        "--input-len", metavar="LENGTHS", help="512, lognormal:MU,SIGMA or quantiles:P50,P90,P99,MEAN"
    )
    add.add_argument("--output-len", metavar="LENGTHS", help="the same; tokens, sent as max_tokens (default 128)")
    add.add_argument(
        "--request-rate", type=float, metavar="R", help="requests per second (default 1, or the preset's)"
    )
    add.add_argument(
        "--burstiness",
        type=float,
        metavar="B",
        help="gamma shape of gaps: 1 Poisson, inf constant (default 1)",
    )
    add.add_argument(
        "--duplicates", type=float, metavar="SHARE", help="share of requests that repeat an earlier one"
    )
    add.add_argument(
        "--zipf",
        type=float,
        default=1.1,
        metavar="S",
        help="exponent of the popularity of repeats and prefixes (default 1.1)",
    )
    add.add_argument(
        "--prefix-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of prompts that begin with a common prefix",
    )
    add.add_argument(
        "--prefix-groups", type=int, default=8, metavar="N", help="number of common prefixes (default 8)"
    )
    add.add_argument(
        "--prefix-len", type=int, default=512, metavar="N", help="tokens of a common prefix (default 512)"
    )
    add.add_argument("--unique", action="store_true", help="put a nonce in front of every distinct prompt")


def plan_of(args: argparse.Namespace) -> tuple[Plan, Preset | None]:
    """Raises ValueError, naming the flag."""
    preset = PRESETS.get(args.preset or "")
    count = args.num_prompts if args.num_prompts is not None else preset.requests if preset else 1000
    _within("--num-prompts", count, 1, MAX_REQUESTS)
    rate = args.request_rate
    _within("--request-rate", 1.0 if rate is None else rate, 1e-6, 1e6)
    _within("--burstiness", args.burstiness or 1.0, 1e-3, math.inf)
    _within("--zipf", args.zipf, 0, 4)
    _within("--prefix-share", args.prefix_share, 0, 1)
    _within("--prefix-groups", args.prefix_groups, 1, 1_000_000)
    _within("--prefix-len", args.prefix_len, 1, 1_000_000)
    sets = tuple(name.strip() for name in args.corpus_set.split(",") if name.strip())
    check_sets(sets, args.endpoint)
    inputs = parse_lengths(args.input_len) if args.input_len else None
    outputs = parse_lengths(args.output_len) if args.output_len else None
    if inputs is not None and sets:
        raise ValueError("--corpus-set has prompts of their own length; leave out --input-len, or the sets")
    duplicates = args.duplicates
    arrivals = None
    if preset is not None:
        own = preset.lengths(args.lengths)
        inputs = inputs or (None if sets else own[0])
        outputs = outputs or own[1]
        duplicates = preset.duplicates if duplicates is None else duplicates
        arrivals = preset.arrivals if args.burstiness is None else None
        if args.grid and isinstance(arrivals, Slotted):
            arrivals = Slotted(arrivals.inner, arrivals.slot, jitter=False)
        if args.prefix_share and preset.sharing:
            raise ValueError(f"{preset.name} shares prefixes by blocks; leave out --prefix-share")
    published = preset.published["rate /s"] if preset else 1.0
    _within("--duplicates", duplicates or 0.0, 0, 0.999)
    return (
        Plan(
            requests=count,
            seed=args.seed,
            arrivals=arrivals or Renewal(rate or published, args.burstiness or 1.0),
            speed=rate / published if arrivals and rate else 1.0,
            inputs=inputs,
            outputs=outputs or Fixed(128),
            sets=sets,
            endpoint=args.endpoint,
            duplicates=duplicates or 0.0,
            zipf=args.zipf,
            groups=Groups(args.prefix_share, args.prefix_groups, args.prefix_len) if args.prefix_share else None,
            sharing=preset.sharing if preset and inputs and not sets else None,
            unique=args.unique,
        ),
        preset,
    )


def _within(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{flag} must be {low:g} to {high:g}; got {value:g}")


def asked_of(args: argparse.Namespace, plan: Plan) -> dict[str, float]:
    """What the flags asked for, by the names of the table's rows."""
    asked = {"duplicates": plan.duplicates} if args.duplicates is not None else {}
    if args.request_rate is not None:
        asked["rate /s"] = args.request_rate
    if args.burstiness is not None:
        asked["gap CV"] = args.burstiness**-0.5 if math.isfinite(args.burstiness) else 0.0
    for side, text in (("input", args.input_len), ("output", args.output_len)):
        kind, _, rest = (text or "").rpartition(":")
        numbers = [float(part) for part in rest.split(",") if part]
        if kind == "quantiles":
            asked |= dict(zip([f"{side} {row}" for row in ("p50", "p90", "p99", "mean")], numbers, strict=True))
        elif kind == "lognormal":
            mu, sigma = numbers
            asked |= {f"{side} mean": math.exp(mu + sigma**2 / 2), f"{side} p50": math.exp(mu)}
        elif numbers:
            asked |= {f"{side} {row}": numbers[0] for row in ("mean", "p50", "p90", "p99")}
    return asked


@contextmanager
def _sink(args: argparse.Namespace) -> Iterator[BinaryIO | None]:
    if args.dry:
        yield None
    elif args.out in (None, "-"):
        yield sys.stdout.buffer
    else:
        with Path(args.out).open("wb") as file:
            yield file


def run_compose(args: argparse.Namespace) -> int:
    plan, preset = plan_of(args)
    watch, encode = Watch(), msgspec.json.Encoder().encode
    with _sink(args) as sink:
        for request in compose(plan):
            watch.add(request)
            if sink is not None:
                sink.write(encode(request) + b"\n")
    words = table(
        watch.seen(), asked_of(args, plan), preset.published if preset else {}, preset.notes if preset else ()
    )
    head = f"{preset.name}: {preset.source}\n\n" if preset else ""
    say(head + words, sys.stdout if args.dry or args.out not in (None, "-") else sys.stderr)
    return 0


def run(args: argparse.Namespace) -> int:
    if args.command == "compose":
        return run_compose(args)
    if args.command == "documents":
        for entry in documents(args.count, args.seed):
            sys.stdout.buffer.write(msgspec.json.encode(entry) + b"\n")
    elif args.command == "verify":
        for wrong in (found := verify()):
            say(f"corpus: {wrong}", sys.stderr)
        return 1 if found else 0
    elif args.command == "calibrate":
        new = calibrated(manifest(), server_count(args.url))
        if args.write:
            write(new)
        elif new != manifest():
            say("corpus: the manifest differs from what was counted; --write would change it", sys.stderr)
            return 1
    else:
        _show(args.command)
    return 0


def _show(command: str) -> None:
    if command == "list":
        for one in manifest().set:
            say(f"{one.name:<14} {one.prompts:>4}  {one.about}")
        say("")
        for preset in PRESETS.values():
            say(f"{preset.name:<22} {preset.requests:>6}  {preset.source}")
        return
    heads = f"{'tokens':>7} {'mean':>6} {'p50':>5} {'max':>5} {'B/token':>8}  error, p50 / p90"
    say(f"{'set':<14} {'prompts':>7} {'bytes':>8} {heads}")
    for one in manifest().set:
        if (t := one.tokens) is not None:
            row = f"{one.name:<14} {one.prompts:>7} {one.bytes:>8} {t.total:>7} {t.mean:>6} {t.p50:>5} {t.max:>5}"
            say(f"{row} {t.bytes_per_token:>8}  {t.error_p50:.1%} / {t.error_p90:.1%}")
    made = manifest().composed
    errors = f"{made.error_p50:.1%} / {made.error_p90:.1%}, of texts of {made.length} tokens"
    say(f"{'composed':<14} {made.bytes_per_token:>52}  {errors}")
    say(f"Tokens by the {manifest().tokenizer} tokenizer, of the texts alone. Error: of bytes / bytes per token.")


def main(argv: list[str] | None = None) -> int:
    top = parser()
    args, unknown = top.parse_known_args(argv)
    if unknown:
        top.command(args.command).refuse(unknown[0])
    try:
        return run(args)
    except ValueError as e:
        say(f"corpus: {e}", sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as e:
        say(f"corpus: {e.filename}: {e.strerror}", sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
