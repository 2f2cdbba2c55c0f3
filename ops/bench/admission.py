"""Owns the comparison of ways into a busy engine: direct, through the gateway with a fixed number, with `auto`.
Must not know how any of them works: `loadgen` measures, the engine's own counters say what it did.
Called as `python -m ops.bench.admission`; a program that a person runs, never a test."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from ops.bench import subjects as start
from ops.bench.real import ROOT, START_SECONDS, counted, loadgen
from ops.bench.table import machine

TENANTS: Final = ("heavy", "light")
LIMITS: Final = ("--limit-cpu", "2", "--limit-error-ms", "50", "--limit-late-ms", "2000", "--max-error-rate", "1")
COUNTERS: Final = {"queries": "vllm:prefix_cache_queries_total", "hits": "vllm:prefix_cache_hits_total"}


def page(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:  # noqa: S310 - what was started here
        text: str = answer.read().decode()
    return text


def counters(engine: str) -> dict[str, float]:
    text = page(engine)
    return {name: counted(text, series) for name, series in COUNTERS.items()}


def asked(args: argparse.Namespace) -> list[str]:
    """What every request is: a shared beginning, an end of its own, a few tokens for an answer."""
    return [
        "--backend", "openai-chat", "--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes",
        str(args.prefixes), "--prefix-repetition-prefix-len", str(args.prefix), "--prefix-repetition-suffix-len",
        str(args.suffix), "--prefix-repetition-output-len", str(args.tokens), "--max-tokens", str(args.tokens),
        "--temperature", "1", *args.also, "--goodput", f"ttft:{args.objective_ms:g}", *LIMITS,
    ]  # fmt: skip


def capacity(engine: str, args: argparse.Namespace, folder: Path) -> float:
    """Requests a second of a closed loop that keeps the engine full."""
    result = loadgen(
        "run", "--base-url", engine, *asked(args), "--max-concurrency", str(args.full), "--num-prompts",
        str(args.full * 4), "--num-warmups", str(args.full), "--max-seconds", "90", "--seed", "1", "--label",
        "capacity",
        folder=folder,
    )  # fmt: skip
    if not result["completed"]:
        raise SystemExit(f"{engine} completed none of {result['num_prompts']} requests within 90 s")
    return float(result["request_throughput"])


def summed(lines: Sequence[str], objective_ms: float) -> dict[str, Any]:
    """Of one tenant's requests: how many, how many whole, how many of them good, and times to the first token
    from when each was due, in ms. Percentiles are of the sample as it is (nearest rank)."""
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
        "ttft_ms": {
            f"p{p}": first[max(0, -(-len(first) * p // 100) - 1)] if first else None for p in (50, 90, 99)
        },
    }


def phase(
    url: str, rates: Mapping[str, float], args: argparse.Namespace, seed: int, folder: Path
) -> dict[str, Any]:
    """Both tenants at once, open loop, each at its rate; each one's result."""

    def tenant(name: str) -> dict[str, Any]:
        loadgen(
            "run", "--base-url", url, *asked(args), "--api-key", f"sk-{name}", "--request-rate",
            f"{rates[name]:.3f}", "--num-prompts", str(max(4, round(rates[name] * args.seconds))),
            "--max-concurrency", "2000", "--seed",
            str(seed + len(name)), "--request-timeout", f"{args.timeout:g}", "--header",
            f"x-request-timeout:{args.timeout:g}", "--label", name, folder=folder / name,
        )  # fmt: skip
        (events,) = (folder / name).glob("*/events.jsonl")
        return summed(events.read_text().splitlines(), args.objective_ms)

    with ThreadPoolExecutor(len(TENANTS)) as pool:
        return dict(zip(TENANTS, pool.map(tenant, TENANTS), strict=True))


@contextmanager
def stage(args: argparse.Namespace, work: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The engine's URL, and of each way in its name and URL."""
    cpus = set(args.cpus)
    with ExitStack() as stack:
        url = args.engine
        if url is None:
            port = start.free_port()
            serve = [sys.executable, "-m", "ops.bench.toy", "--port", str(port)]
            if not args.toy:
                # float32: this CPU has no instructions for bfloat16, and one request took minutes with it.
                program = str(ROOT / "ops" / "vllm.py")
                serve = [sys.executable, program, "serve", "--port", str(port), "--dtype", "float32"]
            start.READY_SECONDS = START_SECONDS
            stack.enter_context(
                start.started(start.Command(serve, cwd=ROOT), port, cpus,
                              ready=lambda: start.answers(port, "/health", {}), log=work / "engine.log")
            )  # fmt: skip
            url = f"http://127.0.0.1:{port}"
        keys = work / "keys.toml"
        entries = [(name, hashlib.sha256(f"sk-{name}".encode()).hexdigest()) for name in TENANTS]
        keys.write_text("".join(f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\n' for name, digest in entries))
        ways = {"direct": url}
        for most in args.limits:
            port = start.free_port()
            gateway = [
                sys.executable, "-m", "proxy", "--port", str(port), "--backend", url, "--redis", "off",
                "--api-keys-file", str(keys), "--max-inflight", most,
                *(["--pace-ttft-ms", f"{args.pace_ms:g}"] if most == "auto" else []),
            ]  # fmt: skip
            stack.enter_context(
                start.started(start.Command(gateway, cwd=ROOT), port, cpus,
                              ready=lambda port=port: start.answers(port, "/ready", {}),  # type: ignore[misc]
                              log=work / f"gateway-{most}.log")
            )  # fmt: skip
            ways[f"gateway, {most}"] = f"http://127.0.0.1:{port}"
        yield url, ways


def row(times: float, way: str, one: Mapping[str, Any]) -> str:
    heavy, light = one["heavy"], one["light"]
    hits, queries = one["engine"]["hits"], one["engine"]["queries"]

    def tenant(of: Mapping[str, Any]) -> list[str]:
        times_ms = of["ttft_ms"]
        shown = " / ".join("–" if times_ms[p] is None else f"{times_ms[p]:.0f}" for p in ("p50", "p99"))
        return [f"{of['whole']} of {of['requests']}", str(of["good"]), shown]

    cells = [
        f"{times:g}×",
        way,
        f"{(heavy['good'] + light['good']) / one['seconds']:.2f}",
        f"{(heavy['requests'] + light['requests']) / one['seconds']:.2f}",
        *tenant(light),
        *tenant(heavy),
        f"{hits / queries:.0%}" if queries else "–",
        f"{one['limit']:g}" if one["limit"] else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def table(measured: Sequence[tuple[float, str, Mapping[str, Any]]]) -> str:
    head = [
        "| load | way | goodput, req/s | offered, req/s | light: whole | good | TTFT p50 / p99, ms "
        "| heavy: whole | good | TTFT p50 / p99, ms | prefix-cache hits | max_inflight at the end |",
        "|" + "---|" * 12,
    ]
    return "\n".join([*head, *(row(*one) for one in measured)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.admission", description=__doc__)
    parser.add_argument("--engine", metavar="URL", help="a vLLM that runs; none: one for the CPU is started")
    parser.add_argument("--toy", action="store_true", help="a toy engine instead, to try this program")
    parser.add_argument("--loads", type=lambda text: [float(n) for n in text.split(",")], default=[1.0, 2.0, 4.0])
    parser.add_argument("--limits", type=lambda text: text.split(","), default=["256", "auto"],
                        help="max_inflight of each gateway")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=20.0, help="in which requests are sent, of each phase")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds after which a client gives up")
    parser.add_argument("--light", type=float, default=0.1, help="the light tenant's share of the capacity")
    parser.add_argument("--full", type=int, default=32, help="requests under way that fill the engine")
    parser.add_argument("--objective-ms", type=float, default=3000.0, help="TTFT that counts as good")
    parser.add_argument("--pace-ms", type=float, default=0.0, help="--pace-ttft-ms of the gateway with auto")
    parser.add_argument("--tokens", type=int, default=16, help="tokens an answer")
    parser.add_argument("--prefixes", type=int, default=8)
    parser.add_argument("--prefix", type=int, default=96, help="tokens that prompts begin with alike")
    parser.add_argument("--suffix", type=int, default=16, help="tokens of a prompt's own")
    parser.add_argument("--cpus", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1])
    parser.add_argument("--out", type=Path, help="a folder for the table and the raw numbers")
    args = parser.parse_args()
    args.also = [] if args.toy else ["--ignore-eos"]
    measured: list[tuple[float, str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as temporary, stage(args, Path(temporary)) as (engine, ways):
        most = capacity(engine, args, Path(temporary) / "capacity")
        print(f"capacity: {most:.2f} requests/s", file=sys.stderr)
        for n, times in enumerate(args.loads):
            for m, (way, url) in enumerate(ways.items()):
                light = args.light * most
                rates = {"light": light, "heavy": max(light, times * most - light)}
                print(f"{times:g}×, {way}: {rates['heavy']:.2f} and {light:.2f} requests/s", file=sys.stderr)
                before = counters(engine)
                # Another seed for each: the same prompts again would be in the engine's cache as a whole.
                both = phase(url, rates, args, 100 * n + 10 * m + 10, Path(temporary) / f"{n}-{m}")
                after = counters(engine)
                limit = 0.0 if way == "direct" else counted(page(url), "gateway_backend_max_inflight")
                did = {name: after[name] - before[name] for name in COUNTERS}
                measured.append((times, way, both | {"seconds": args.seconds, "engine": did, "limit": limit}))
                print(row(*measured[-1]), file=sys.stderr)
    words = (
        f"{machine()}. Capacity {most:.2f} requests/s ({args.full} at once, direct). Answers of {args.tokens} "
        f"tokens, prompts of {args.prefix} + {args.suffix}; {args.seconds:g} s a phase; clients give up after "
        f"{args.timeout:g} s and say so (`x-request-timeout`); good is a first token within "
        f"{args.objective_ms:g} ms of when the request was due; the light tenant sends {args.light:.0%} of the "
        f"capacity, the heavy one the rest of the load; auto with --pace-ttft-ms {args.pace_ms:g}. p99 of few "
        "requests is the slowest.\n"
    )
    text = f"{words}\n{table(measured)}\n"
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "admission.md").write_text(text)
        raw = [{"load": times, "way": way, **one} for times, way, one in measured]
        (args.out / "admission.json").write_text(json.dumps({"capacity": most, "phases": raw}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
