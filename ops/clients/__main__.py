"""Runs clients against an engine, direct and through a gateway in front of it: `tox -e clients`. Results are kept
under out/clients, so clients can be run one by one. Exits 1 if something fails through the gateway only, 2 if it
cannot run."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ops import vllm
from ops.clients import table
from ops.clients.clients import CLIENTS, SUITES, chosen
from ops.clients.install import HOME, Installation, InstallError
from ops.clients.run import Record, run
from ops.clients.stand import standing
from ops.vllm_tests.stand import StartError

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "clients"
PAGE = ROOT / "ops" / "docs" / "clients.md"


def flags() -> argparse.ArgumentParser:
    keys = ", ".join(client.key for client in (*CLIENTS, *SUITES))
    parser = argparse.ArgumentParser(prog="python -m ops.clients", description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"parts of names (default: all): {keys}")
    parser.add_argument("--home", type=Path, default=HOME, help="the clients' folder (default: %(default)s)")
    parser.add_argument("--engine", metavar="URL", help="of an engine (default: a vLLM started by ops/vllm.py)")
    parser.add_argument("--embed-engine", metavar="URL", help="of an engine of embeddings (default: the same)")
    parser.add_argument("--model", default="smollm2", help="of the engine (default: %(default)s)")
    parser.add_argument("--embed-model", default="minilm", help="of the other engine (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1800.0, help="time limit of one client (default: 1800)")
    parser.add_argument("--install", action="store_true", help="install the clients, and run nothing")
    parser.add_argument("--report", action="store_true", help="write the report of past results, and run nothing")
    parser.add_argument("--publish", action="store_true", help="write the tables into ops/docs/clients.md too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = flags().parse_args(arguments)
    clients = chosen(given.clients)
    if not clients:
        flags().error(f"no client has any of {', '.join(given.clients)} in its name")
    place = Installation(given.home)
    try:
        if not given.report:
            place.ensure()
        if not given.report and not given.install:
            models = (given.model, given.embed_model)
            with standing(given.engine, given.embed_engine, models, OUT / "servers") as targets:
                for client in clients:
                    words, trouble = run(client.command(place), targets, given.seconds)
                    record = Record(client.key, client.version(), words, trouble)
                    record.save(OUT / "records")
                    verdicts = [table.judge(each).name.lower() for each in words.values()]
                    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
                    print(f"{client.key}: {counts} {trouble}", flush=True)
    except (InstallError, StartError, vllm.InstallError, OSError) as error:
        print(f"clients: {error}", file=sys.stderr)
        return 2
    if given.install:
        return 0
    records = [one for client in (*CLIENTS, *SUITES) if (one := Record.load(OUT / "records", client.key))]
    text = table.tables(records)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "report.md").write_text(f"{text}\n")
    if given.publish:
        PAGE.write_text(table.page(PAGE.read_text(), text))
    print(f"{OUT / 'report.md'}")
    return int(any(table.bad(record) for record in records))


def _terminated(number: int, frame: object) -> None:
    sys.exit(128 + number)  # through every `finally`: no server stays behind


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
