"""Measures prompts with common prefixes on an engine whose cache cannot hold all prefixes: throughput, TTFT, and
the prefix-cache hits that the engine reports."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ops.bench.table import machine
from ops.bench.vllm.real import loadgen
from ops.bench.vllm.tables import percentile, spread
from ops.bench.vllm.ways import LIMITS, Gateway, arguments, counters, ways

ENGINE = ("--max-num-seqs", "8", "--max-model-len", "2048", "--num-gpu-blocks-override", "32")
"""32 blocks of 128 tokens: half of what twelve prefixes of 512 tokens need."""


def measure(url: str, engine: str, args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """A closed loop of clients; each request has one of the prefixes."""
    before = counters(engine)
    result = loadgen(
        "run", "--base-url", url, "--backend", "openai-chat", "--dataset-name", "prefix_repetition",
        "--prefix-repetition-num-prefixes", str(args.prefixes), "--prefix-repetition-prefix-len", str(args.prefix),
        "--prefix-repetition-suffix-len", str(args.suffix), "--prefix-repetition-output-len", str(args.tokens),
        "--max-tokens", str(args.tokens), "--temperature", "1", *([] if args.toy else ["--ignore-eos"]),
        "--max-concurrency", str(args.clients), "--num-prompts", str(args.requests), "--seed", str(seed),
        "--label", f"prefixes-{seed}", *LIMITS, folder=folder,
    )  # fmt: skip
    after = counters(engine)
    (events,) = folder.glob("*/events.jsonl")
    first = [
        (next(event[0] for event in one["events"] if event[3] == "content") - one["due_ns"]) / 1e6
        for one in map(json.loads, events.read_text().splitlines())
        if any(event[3] == "content" for event in one.get("events") or ())
    ]
    return {
        "completed": result["completed"],
        "per_second": result["request_throughput"],
        "ttft_p50_ms": percentile(first, 50),
        "ttft_p99_ms": percentile(first, 99),
        "queries": after["queries"] - before["queries"],
        "hits": after["hits"] - before["hits"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each way: medians of the rounds, with the smallest and largest."""
    lines = ["| way | answers/s | TTFT p50, s | TTFT p99, s | prefix-cache hits |", "|---|---|---|---|---|"]
    for way in dict.fromkeys(row["way"] for row in sorted(rows, key=lambda row: int(row["round"]))):
        of = [row for row in rows if row["way"] == way]
        cells = [
            spread([row["per_second"] for row in of], 2),
            *(spread([row[name] / 1000 for row in of], 1) for name in ("ttft_p50_ms", "ttft_p99_ms")),
            spread([100 * row["hits"] / max(1.0, row["queries"]) for row in of], 0) + " %",
        ]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.vllm.prefixes", description=__doc__)
    arguments(parser)
    parser.add_argument("--before", type=Path, help="another checkout whose gateway is measured too")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument(
        "--clients", type=int, default=48, help="clients; each sends its next request when it has its answer"
    )
    parser.add_argument("--requests", type=int, default=96, help="requests per round and way")
    parser.add_argument("--prefixes", type=int, default=12, help="number of different prefixes")
    parser.add_argument("--prefix", type=int, default=512, help="tokens of each prefix")
    parser.add_argument("--suffix", type=int, default=16, help="tokens of the unique suffix")
    parser.add_argument("--tokens", type=int, default=8, help="tokens per answer")
    parser.add_argument("--out", type=Path, help="folder for the table and the raw numbers")
    args = parser.parse_args()
    if not args.engine_flags and not args.toy:
        args.engine_flags = list(ENGINE)
    flags = ["--max-inflight", "auto", "--queue-timeout", "0"]
    gateways = {"gateway": Gateway(flags)}
    if args.before is not None:
        gateways = {"gateway before": Gateway(flags[:2], args.before.absolute()), **gateways}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with ways(args, work, gateways) as (engine, found):
            for number in range(args.rounds):
                order = [*found.items()][number % len(found) :] + [*found.items()][: number % len(found)]
                for way, url in order:
                    seed = 10 * number + len(rows) + 1  # new texts each time, so that none is cached
                    row = measure(url, engine, args, seed, work / f"{len(rows)}")
                    rows.append({"way": way, "round": number} | row)
                    print(f"{rows[-1]}", file=sys.stderr)
    text = (
        f"{machine()}. Engine flags: {' '.join(args.engine_flags) or 'none'}. {args.rounds} rounds of "
        f"{args.requests} requests from {args.clients} clients, each with one of {args.prefixes} prefixes of "
        f"{args.prefix} tokens, a unique suffix of {args.suffix} and an answer of {args.tokens}; gateway with "
        f"`{' '.join(flags)}`.\n\n{table(rows)}\n"
    )
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "prefixes.md").write_text(text)
        (args.out / "prefixes.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
