"""Compares ways into an overloaded engine: direct, through the gateway with a fixed `max_inflight`, and with
`auto`. Two tenants send at fixed rates; `loadgen` measures, the engine's counters give its prefix-cache hits."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from ops.bench.table import machine
from ops.bench.vllm.real import counted, loadgen
from ops.bench.vllm.tables import admission_picture, admission_table, phase_line
from ops.bench.vllm.ways import COUNTERS, LIMITS, Gateway, arguments, counters, page, ways

TENANTS: Final = ("heavy", "light")


def request_arguments(args: argparse.Namespace) -> list[str]:
    """Arguments of loadgen: prompts with a common prefix and a unique suffix, short answers."""
    return [
        "--backend", "openai-chat", "--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes",
        str(args.prefixes), "--prefix-repetition-prefix-len", str(args.prefix), "--prefix-repetition-suffix-len",
        str(args.suffix), "--prefix-repetition-output-len", str(args.tokens), "--max-tokens", str(args.tokens),
        "--temperature", "1", *([] if args.toy else ["--ignore-eos"]), "--goodput", f"ttft:{args.objective_ms:g}",
        *LIMITS,
    ]  # fmt: skip


def capacity(engine: str, args: argparse.Namespace, folder: Path) -> float:
    """Requests per second of a closed loop that keeps the engine full."""
    result = loadgen(
        "run", "--base-url", engine, *request_arguments(args), "--max-concurrency", str(args.full),
        "--num-prompts", str(args.full * 4), "--num-warmups", str(args.full), "--max-seconds", "90",
        "--seed", "1", "--label", "capacity",
        folder=folder,
    )  # fmt: skip
    if not result["completed"]:
        raise SystemExit(f"{engine} completed none of {result['num_prompts']} requests within 90 s")
    return float(result["request_throughput"])


def summed(lines: Sequence[str], objective_ms: float) -> dict[str, Any]:
    """One tenant's requests: how many, how many complete, how many good; and the sorted TTFTs of the complete
    ones in ms, counted from when each request was due."""
    found = [json.loads(line) for line in lines]
    whole = [one for one in found if one.get("events") and one["events"][-1][3] == "done"]
    first = sorted(
        (next(event[0] for event in one["events"] if event[3] == "content") - one["due_ns"]) / 1e6
        for one in whole
        if any(event[3] == "content" for event in one["events"])
    )
    statuses: dict[str, int] = {}
    for one in found:
        if one not in whole:
            name = str(one.get("status") or "none")
            statuses[name] = statuses.get(name, 0) + 1
    return {
        "requests": len(found),
        "whole": len(whole),
        "good": sum(ms <= objective_ms for ms in first),
        "not_whole_by_status": statuses,
        "ttfts_ms": [round(ms, 1) for ms in first],
    }


def phase(
    url: str, rates: Mapping[str, float], args: argparse.Namespace, seed: int, folder: Path
) -> dict[str, Any]:
    """Both tenants at once, open loop, each at its rate; the result of each."""

    def tenant(name: str) -> dict[str, Any]:
        loadgen(
            "run", "--base-url", url, *request_arguments(args), "--api-key", f"sk-{name}", "--request-rate",
            f"{rates[name]:.3f}", "--num-prompts", str(max(4, round(rates[name] * args.seconds))),
            "--max-concurrency", "2000", "--seed",
            str(seed + len(name)), "--request-timeout", f"{args.timeout:g}", "--header",
            f"x-request-timeout:{args.timeout:g}", "--label", name, folder=folder / name,
        )  # fmt: skip
        (events,) = (folder / name).glob("*/events.jsonl")
        return summed(events.read_text().splitlines(), args.objective_ms)

    with ThreadPoolExecutor(len(TENANTS)) as pool:
        return dict(zip(TENANTS, pool.map(tenant, TENANTS), strict=True))


def gateways(args: argparse.Namespace, keys: Path) -> dict[str, Gateway]:
    """One gateway for each `--gateway`, named by its flags."""
    entries = [(name, hashlib.sha256(f"sk-{name}".encode()).hexdigest()) for name in TENANTS]
    keys.write_text("".join(f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\n' for name, digest in entries))
    made = {}
    for flags in args.gateway or ["--max-inflight 256", "--max-inflight auto"]:
        made[flags] = Gateway(["--api-keys-file", str(keys), "--no-metrics-key", *shlex.split(flags)])
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.vllm.admission", description=__doc__)
    arguments(parser)
    parser.add_argument("--gateway", action="append", metavar="FLAGS",
                        help="flags of a gateway to compare; repeat for more")  # fmt: skip
    parser.add_argument("--loads", type=lambda text: [float(n) for n in text.split(",")], default=[1.0, 2.0, 4.0],
                        help="offered loads, as multiples of the capacity")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of load in each phase")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds after which clients give up")
    parser.add_argument(
        "--light", type=float, default=0.1, help="the light tenant's rate, as a share of the capacity"
    )
    parser.add_argument("--full", type=int, default=32, help="concurrent requests that fill the engine")
    parser.add_argument("--objective-ms", type=float, default=3000.0, help="the largest TTFT that counts as good")
    parser.add_argument("--tokens", type=int, default=16, help="tokens per answer")
    parser.add_argument("--prefixes", type=int, default=8, help="number of different prefixes")
    parser.add_argument("--prefix", type=int, default=96, help="tokens of the common prefix")
    parser.add_argument("--suffix", type=int, default=16, help="tokens of the unique suffix")
    parser.add_argument("--out", type=Path, help="folder for the table, the plot and the raw numbers")
    args = parser.parse_args()
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with ways(args, work, gateways(args, work / "keys.toml")) as (engine, found):
            most = capacity(engine, args, work / "capacity")
            print(f"capacity: {most:.2f} requests/s", file=sys.stderr)
            for number in range(args.rounds):
                for times in args.loads:
                    # The order rotates. All ways get the same requests at the same times.
                    order = [*found.items()][number % len(found) :] + [*found.items()][: number % len(found)]
                    for way, url in order:
                        rates = {"light": args.light * most, "heavy": max(0.1, times - args.light) * most}
                        before = counters(engine)
                        seed = 100 * number + int(10 * times)
                        both = phase(url, rates, args, seed, work / f"{number}-{times}-{len(measured)}")
                        after = counters(engine)
                        limit = 0.0 if way == "direct" else counted(page(url), "gateway_backend_max_inflight")
                        did = {name: after[name] - before[name] for name in COUNTERS}
                        one = {"load": times, "way": way, "round": number, "seconds": args.seconds}
                        measured.append(one | both | {"engine": did, "limit": limit})
                        print(phase_line(measured[-1]), file=sys.stderr)
    words = (
        f"{machine()}. Engine flags: {' '.join(args.engine_flags) or 'none'}; capacity {most:.2f} requests/s "
        f"({args.full} at once, direct). Answers of {args.tokens} tokens, prompts of {args.prefix} + "
        f"{args.suffix}; {args.rounds} rounds of {args.seconds:g} s for each load and way, with the same requests "
        f"for all; clients give up after {args.timeout:g} s and announce it (`x-request-timeout`). An answer is "
        f"good if its first token comes within {args.objective_ms:g} ms of when the request was due, and the rest "
        f"in time. The light tenant sends {args.light:.0%} of the capacity, the heavy tenant the rest of the load."
    )
    text = f"{words}\n\n{admission_table(measured)}\n"
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "admission.md").write_text(text)
        (args.out / "admission.json").write_text(json.dumps({"capacity": most, "phases": measured}) + "\n")
        picture = admission_picture(measured, most)
        if picture is not None:
            (args.out / "admission.svg").write_bytes(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
