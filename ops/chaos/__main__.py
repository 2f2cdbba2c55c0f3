"""Plays the chaos scenarios, or with --minutes the soak, and reports what clients received. Exits 1 if any answer
was wrong or hung, or if the gateway did not return to rest."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from ops.bench.table import machine
from ops.chaos.report import WANTED, Row, markdown
from ops.chaos.run import LONGEST, SCENARIOS, SOAK, Options, play

EVENTS: Final = 600
EVENTS_A_MINUTE: Final = 60


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        help="run the soak (all faults at once) for so many minutes instead of the scenarios",
    )
    parser.add_argument(
        "--events", type=int, help=f"faults in total (default {EVENTS}, or {EVENTS_A_MINUTE} per minute of a soak)"
    )
    parser.add_argument("--seconds", type=float, default=360, help="seconds of load in total (default 360)")
    parser.add_argument(
        "--least",
        type=int,
        default=0,
        help=f"results of each scenario: its load takes up to {LONGEST} times its seconds until it has them",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of faults and load")
    parser.add_argument("--clients", type=int, default=50, help="concurrent clients")
    parser.add_argument("--engines", type=int, default=3, help="number of engines")
    parser.add_argument("--hung", type=float, default=20, help="seconds after which a request counts as hung")
    parser.add_argument(
        "--only", default="", help="only scenarios whose name contains this; they share the total time"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the numbers, events and logs (default of a soak: out/chaos-soak)",
    )
    args = parser.parse_args(words)
    if args.minutes is not None:
        if args.minutes <= 0 or args.only:
            parser.error("--minutes must be above 0 and cannot be combined with --only")
        args.seconds = args.minutes * 60
        args.out = args.out or Path("out/chaos-soak")
    if args.events is None:
        args.events = EVENTS if args.minutes is None else max(1, round(EVENTS_A_MINUTE * args.minutes))
    return args


def shares(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """The scenarios to play, with their shares of the faults and of the time. Raises ValueError."""
    return chosen(args.only) if args.minutes is None else {SOAK: (1.0, 1.0)}


def chosen(only: str) -> dict[str, tuple[float, float]]:
    """The same for scenarios whose name contains `only`. Raises ValueError if there is none."""
    found = {name: shares for name, (*shares, _) in SCENARIOS.items() if only.lower() in name.lower()}
    if not found:
        raise ValueError(f"no scenario contains {only!r}; choose from: {'; '.join(SCENARIOS)}")
    events, seconds = (sum(shares[at] for shares in found.values()) for at in (0, 1))
    return {name: (shares[0] / events, shares[1] / seconds) for name, shares in found.items()}


async def run(args: argparse.Namespace, logs: Path) -> list[Row]:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    rows = []
    for name, (events, seconds) in shares(args).items():
        options = Options(
            seed=args.seed,
            events=max(1, round(args.events * events)),
            seconds=max(2.0, args.seconds * seconds),
            clients=args.clients,
            engines=args.engines,
            bound=args.hung,
            out=args.out,
            least=args.least,
        )
        print(f"{name} …", file=sys.stderr, flush=True)
        row = await play(name, options, logs)
        print(row.line(), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def main() -> int:
    args = arguments()
    try:
        shares(args)
    except ValueError as e:
        print(f"ops.chaos: {e}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        logs = args.out or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        try:
            rows = asyncio.run(run(args, logs))
        except asyncio.CancelledError:  # SIGTERM; all child processes have ended
            return 128 + signal.SIGTERM
    head = (
        f"{machine()}. Seed {args.seed}, {args.clients} clients, {args.engines} engines, one Redis; "
        f"hung: not finished within {args.hung:g} s. Target for streams without a fault: {WANTED:.1%} exact."
    )
    page = markdown(rows, head)
    print(page)
    if args.out:
        (args.out / "chaos.md").write_text(page)
        numbers = {"arguments": {**vars(args), "out": ""}, "rows": [row.as_numbers() for row in rows]}
        (args.out / "chaos.json").write_text(json.dumps(numbers, indent=1))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
