"""The command line: install the tools, run them in rounds, print the table of a run or of saved parts."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from ops.bench.generators.beside import BESIDE, measured, side_by_side
from ops.bench.generators.parts import Part, measure
from ops.bench.generators.table import middle, render
from ops.bench.generators.tools import TOOLS, Homes
from ops.bench.generators.workloads import GROUPS, WORKLOADS, chosen
from ops.bench.peers.base import InstallError
from ops.bench.table import machine

CACHE: Final = Path("~/.cache/streaming-gateway")
PROGRAM: Final = "python -m ops.bench.generators"


class Kept(msgspec.Struct):
    """One line of a file of parts: a part, and the versions of all tools of its run."""

    part: Part
    versions: dict[str, str]
    machine: str
    command: str
    load: float = 0.0  # the machine's one-minute load average before the part


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every part is valid, 1 if not, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Compares load generators: the error of the TTFT that each reports against a server of known "
        "times, while its event loop is slowed down; and its CPU time. Needs Linux and 2 CPUs.",
    )
    parser.add_argument(
        "--home", type=Path, default=CACHE / "bench", help="folder of GuideLLM and AIPerf (default: %(default)s)"
    )
    parser.add_argument(
        "--vllm-home", type=Path, default=Path(os.environ.get("VLLM_HOME") or CACHE / "vllm"),
        help="folder of vLLM, as installed by ops/vllm.py (default: $VLLM_HOME, now %(default)s)",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", required=True)
    install = actions.add_parser(
        "install", help="install vLLM for the CPU, GuideLLM and AIPerf, each in its own environment"
    )
    install.add_argument(
        "names", nargs="*", metavar="TOOL", help=f"tools to install (default: all): {', '.join(TOOLS)}"
    )
    run = actions.add_parser("run", help="measure and print the table")
    run.add_argument("--tools", default=",".join(TOOLS), metavar="NAME,…", help=", ".join(TOOLS))
    run.add_argument(
        "--workloads", default=",".join(GROUPS), metavar="NAME,…",
        help=f"groups ({', '.join(GROUPS)}) or single workloads: {', '.join(WORKLOADS)}",
    )  # fmt: skip
    run.add_argument("--rounds", type=int, default=3, help="rounds, each with fresh processes (default 3)")
    run.add_argument(
        "--first-round", type=int, default=1, help="number of the first round, if rounds are run one by one"
    )
    run.add_argument("--out", type=Path, help="append the figures of every part to this file, as JSON lines")
    beside = actions.add_parser(
        "beside", help="the same load by each tool on one server, one after another: what each calls its figures"
    )
    beside.add_argument("--tools", default=",".join(BESIDE), metavar="NAME,…", help=", ".join(BESIDE))
    beside.add_argument("--requests", type=int, default=400, help="requests of each tool (default %(default)s)")
    beside.add_argument(
        "--rate", type=float, default=10.0, help="requests a second, Poisson (default %(default)g)"
    )
    table = actions.add_parser("table", help="print the table of saved parts")
    table.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args(arguments)
    homes = Homes(args.home.expanduser().absolute(), args.vllm_home.expanduser().absolute())
    if args.action == "install":
        return _install(parser, args.names, homes)
    if args.action == "beside":
        return _beside(parser, args, homes)
    if args.action == "run":
        kept = _run(parser, args, homes)
    else:
        lines = [line for file in args.files for line in file.read_bytes().splitlines()]
        kept = [msgspec.json.decode(line, type=Kept) for line in lines]
    if not kept:
        parser.error("no parts found")
    versions = {name: words for one in kept for name, words in one.versions.items()}
    commands = dict.fromkeys(one.command for one in kept)
    loads = [one.load for one in kept]
    where = f"{kept[-1].machine}; load average before the parts {middle(loads, 1)}"
    print(render([one.part for one in kept], versions, where, list(commands)))
    return 1 if any(one.part.wrong for one in kept) else 0


def _install(parser: argparse.ArgumentParser, names: Sequence[str], homes: Homes) -> int:
    if unknown := [name for name in names if name not in TOOLS]:
        parser.error(f"unknown tool {', '.join(unknown)}: choose from {', '.join(TOOLS)}")
    code = 0
    for name in names or TOOLS:
        try:
            TOOLS[name].install(homes)
            print(f"{name}: {TOOLS[name].version(homes)}", flush=True)
        except (InstallError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            code = 1
    return code


def _beside(parser: argparse.ArgumentParser, args: argparse.Namespace, homes: Homes) -> int:
    names = args.tools.split(",")
    if unknown := [name for name in names if name not in BESIDE]:
        parser.error(f"unknown tool {', '.join(unknown)}: choose from {', '.join(BESIDE)}")
    try:
        versions = {name: TOOLS[name].version(homes) for name in names}
    except InstallError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as work:
        columns = measured([TOOLS[name] for name in names], args.rate, args.requests, homes, Path(work))
    print(side_by_side(columns, list(versions.values()), f"{machine()}; load average {os.getloadavg()[0]:.1f}"))
    return int(any(column.wrong for column in columns))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace, homes: Homes) -> list[Kept]:
    tools = args.tools.split(",")
    if unknown := [name for name in tools if name not in TOOLS]:
        parser.error(f"unknown tool {', '.join(unknown)}: choose from {', '.join(TOOLS)}")
    try:
        workloads = chosen(args.workloads)
        versions = {name: TOOLS[name].version(homes) for name in tools}
    except (ValueError, InstallError) as error:
        parser.error(str(error))
    if (os.cpu_count() or 1) < 2:
        parser.error("2 CPUs are required: one is reserved for the server")
    command = f"{PROGRAM} run --tools {args.tools} --workloads {args.workloads} --rounds {args.rounds}"
    kept: list[Kept] = []
    for number in range(args.first_round - 1, args.first_round - 1 + args.rounds):
        turn = number % len(tools)
        for workload in workloads:
            for name in (*tools[turn:], *tools[:turn]):  # rotated, so that no tool is always the first
                load = os.getloadavg()[0]
                with tempfile.TemporaryDirectory() as work:
                    part = measure(TOOLS[name], workload, number, homes, Path(work))
                kept.append(Kept(part, versions, machine(), command, load))
                print(_line(part), file=sys.stderr, flush=True)
                if args.out is not None:
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    with args.out.open("ab") as file:
                        file.write(msgspec.json.encode(kept[-1]) + b"\n")
    return kept


def _line(part: Part) -> str:
    p50, p99, _ = part.error_ms
    said = "; ".join(part.wrong) or f"error {p50:.3f} ms (p50), {p99:.3f} ms (p99)"
    return f"round {part.round + 1}, {part.workload}, {part.tool}: {said}"


if __name__ == "__main__":
    sys.exit(main())
