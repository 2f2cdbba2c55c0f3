"""Owns the fuzz command: a target under mutation for so many seconds, by coverage where atheris is installed.
Must not know what a target reads.
Called as `python -m tests.fuzz [TARGET] --seconds 60`; exit 1 where an input fails, which is kept in `--found`."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
_STATS: Final = {
    "executions": re.compile(r"stat::number_of_executed_units:\s*(\d+)"),
    "a second": re.compile(r"stat::average_exec_per_sec:\s*(\d+)"),
    "RSS MB": re.compile(r"stat::peak_rss_mb:\s*(\d+)"),
    "coverage": re.compile(r"cov: (\d+) ft: \d+"),
    "features": re.compile(r"cov: \d+ ft: (\d+)"),
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", help="one of them; without it all, one after the other")
    parser.add_argument("--seconds", type=float, default=60, help="of each target")
    parser.add_argument("--corpus", type=Path, help="folder where inputs that reach new code are kept")
    parser.add_argument("--found", type=Path, default=Path("out/fuzz"), help="folder for inputs that fail")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args(words)


def by_coverage(args: argparse.Namespace) -> None:
    """One target in this process, which atheris ends."""
    import atheris

    with atheris.instrument_imports(include=["proxy"]):
        from tests.fuzz.targets import CORPUS, TARGETS
    target = TARGETS[args.target]
    with tempfile.NamedTemporaryFile("w", suffix=".dict", delete=False) as words:
        for word in target.words:
            words.write('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n')
    args.corpus.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={args.seconds:g}",
        f"-max_len={target.most}",
        f"-dict={words.name}",
        f"-artifact_prefix={args.found}/{args.target}-",
        f"-seed={args.seed}",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(args.corpus), str(CORPUS / args.target)], target.run)
    atheris.Fuzz()


def by_mutation(args: argparse.Namespace) -> None:
    """The same without coverage: mutations by Hypothesis, which also makes a failing input small."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from tests.fuzz.inputs import inputs
    from tests.fuzz.targets import TARGETS

    target = TARGETS[args.target]
    until, count = time.monotonic() + args.seconds, 0
    failing = b""

    def run(data: bytes) -> None:
        nonlocal count, failing
        count += 1
        failing = data
        target.run(data)

    number = args.seed
    try:
        while time.monotonic() < until:
            test = given(inputs(args.target))(run)
            test = settings(
                max_examples=200,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )(test)
            seeded(number)(test)()
            number += 1
    except Exception:
        (args.found / f"{args.target}-crash-{number}").write_bytes(failing)
        raise
    finally:
        print(f"stat::number_of_executed_units: {count}", file=sys.stderr)


def one(args: argparse.Namespace) -> dict[str, Any]:
    """A target in a process of its own: what it told, and whether an input failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        words = [args.target, "--inside", "--seconds", f"{args.seconds:g}", "--seed", str(args.seed)]
        folders = ["--corpus", str(args.corpus or scratch), "--found", str(args.found)]
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *words, *folders],
            capture_output=True,
            cwd=ROOT,
            timeout=args.seconds * 2 + 120,
            check=False,
        )
    said = ran.stderr.decode(errors="replace") + ran.stdout.decode(errors="replace")
    numbers = {name: found[-1] for name, pattern in _STATS.items() if (found := pattern.findall(said))}
    row = {"target": args.target, **{name: int(value) for name, value in numbers.items()}}
    row |= {"seconds": round(time.monotonic() - began), "failed": ran.returncode != 0}
    if ran.returncode:
        print(said[-3000:], file=sys.stderr)
    return row


def table(rows: Sequence[Mapping[str, Any]], oracles: Mapping[str, str]) -> str:
    """In Markdown, as `ops/docs/fuzzing.md` has it."""
    lines = ["| target | oracle | executions | seconds | coverage | failing |", "|---|---|---|---|---|---|"]
    for row in rows:
        numbers = (
            row["target"],
            row.get("executions", 0),
            row["seconds"],
            row.get("coverage", "–"),
            row["failed"],
        )
        name, executions, seconds, coverage, failed = numbers
        found = "**yes**" if failed else "none"
        lines.append(f"| `{name}` | {oracles[name]} | {executions:,} | {seconds} | {coverage} | {found} |")
    return "\n".join(lines)


def main() -> int:
    args = arguments()
    args.found = args.found.resolve()
    args.found.mkdir(parents=True, exist_ok=True)
    if args.inside:
        if find_spec("atheris") is None:
            by_mutation(args)
        else:
            by_coverage(args)
        return 0
    from tests.fuzz.targets import TARGETS

    if args.target is not None and args.target not in TARGETS:
        print(f"tests.fuzz: no target is called {args.target!r}; there are: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    rows = []
    for name in [args.target] if args.target else TARGETS:
        rows.append(one(argparse.Namespace(**{**vars(args), "target": name})))
        print(json.dumps(rows[-1]), flush=True)
    if args.target is None:
        print("\n" + table(rows, {name: target.oracle for name, target in TARGETS.items()}))
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
