"""Causes random faults in a fleet of gateways while clients read, and judges every answer. Exits 1 where one is
wrong, where something is left behind, or where too few are exact. About 2 s a fault."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ops.drill.fleet.faults import FAULTS
from ops.drill.fleet.hosts import Host, NoNetworks, network
from ops.drill.fleet.report import Report, markdown, report_of
from ops.drill.fleet.run import drill
from ops.drill.fleet.stage import REDIS, stage

OUT: Final = Path("out/fleet-drill")
READERS: Final = 40
RATED: Final = 50  # faults from which rates mean something


async def measure(options: argparse.Namespace, hosts: list[Host], folder: Path) -> Report:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # what it has started ends with it
    async with stage(folder, hosts, nodes=options.nodes, engines=options.engines, pace=options.pace) as on:
        findings = await drill(
            on,
            options.seed,
            options.faults,
            events=options.events,
            readers=options.readers,
            pause_after=options.pause_after,
        )
        notes = [note for ledger in on.ledgers for note in ledger.notes()]
        tokens = sum(ledger.tokens for ledger in on.ledgers)
        return report_of(findings, on.leader_of, tokens, notes, rates=options.events >= RATED)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.drill.fleet", description=__doc__)
    parser.add_argument("--events", type=int, default=60, metavar="N", help="faults [%(default)s]")
    parser.add_argument("--nodes", type=int, default=4, metavar="N", help="gateways [%(default)s]")
    parser.add_argument("--engines", type=int, default=2, metavar="N", help="engines [%(default)s]")
    parser.add_argument("--readers", type=int, default=READERS, metavar="N", help="clients [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the choices [%(default)s]")
    parser.add_argument("--pace", type=float, default=0.05, metavar="SECONDS", help="of a token [%(default)s]")
    parser.add_argument(
        "--pause-after", type=int, default=30, metavar="N", help="faults until all clients leave [%(default)s]"
    )
    parser.add_argument(
        "--loopback", action="store_true", help="all on loopback, without cut links and partitions"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="folder for logs and report [%(default)s]"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="only faults whose names contain this")
    options = parser.parse_args()
    options.faults = [fault for fault in FAULTS if options.only.lower() in fault.kind.lower()]
    if not options.faults:
        parser.error(f"no fault contains {options.only!r}; there are: {', '.join(fault.kind for fault in FAULTS)}")
    with ExitStack() as stack:
        hosts: list[Host] = []
        if not options.loopback:
            try:
                hosts = stack.enter_context(network(options.nodes + options.engines + REDIS))
            except NoNetworks as e:
                print(f"drill: no networks here, so all is on loopback and no link is cut: {e}", file=sys.stderr)
        folder = (options.out / f"seed-{options.seed}").absolute()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        report = asyncio.run(measure(options, hosts, folder))
    text = markdown(report, "python -m ops.drill.fleet " + " ".join(sys.argv[1:]))
    print(text)
    (options.out / f"seed-{options.seed}.md").write_text(text, "utf-8")
    (options.out / f"seed-{options.seed}.json").write_text(json.dumps(report.plain(), indent=1), "utf-8")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
