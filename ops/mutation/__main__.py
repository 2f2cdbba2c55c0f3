"""Runs the tests against a seeded sample of mutants: `tox -e mutation -- --seed 7 --sample 250`. Records are kept
under out/mutation, so a run continues where it was stopped. Exits 1 if fewer than --least % of the mutants that
are not equivalent are killed."""

from __future__ import annotations

import argparse
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ops.mutation import mutants, reach
from ops.mutation.mutants import Mutant
from ops.mutation.server import Pytests
from ops.mutation.session import Session, equivalent
from ops.mutation.tree import copy_of
from ops.mutation.trial import Ground, trial
from ops.mutation.warm import Warm

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "out" / "mutation"
SLOW: Final = 1.0  # seconds; a quick run omits tests that take longer


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ops.mutation", description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="seed of the sample")
    parser.add_argument("--sample", type=int, default=250, help="number of mutants")
    parser.add_argument("--module", action="append", help="sample only this module (repeat for more)")
    parser.add_argument(
        "--mutants", type=Path, help="a TOML file with [[mutant]] entries to try instead of a sample"
    )
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds of tests per mutant, besides the closest tests"
    )
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after so many minutes; a later run continues"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="ask only the tests in the modules' folders and in the folder of their room, in a process that has "
        "collected them; without tests of 1 s and more",
    )
    parser.add_argument("--again", action="store_true", help="try the survivors again")
    parser.add_argument("--report", action="store_true", help="print the results so far, and try nothing")
    parser.add_argument("--least", type=float, default=95.0, help="percentage that must be killed")
    return parser


def recorded(copy: Path, until: float) -> reach.Index | None:
    """What each test reaches; changed test files are run again. None if time is up before."""
    known: reach.Reach = {}
    for test_file in reach.test_files(ROOT):
        kept, sha = reach.kept(OUT / "reach", test_file), reach.digest(ROOT / test_file)
        had = reach.load(kept) if kept.exists() else ("", {})
        if had[0] != sha:
            if time.monotonic() > until:
                return None
            print(f"recording what {test_file} reaches", flush=True)
            had = sha, reach.record(copy, test_file, 300.0) or {}
            reach.save(had[1], sha, kept)
        known |= had[1]
    return reach.Index(known)


def recorded_by(warm: Warm, files: Sequence[str], sources: Mapping[str, str]) -> reach.Index:
    """The same of `files`, without child processes. A file reaches what its modules run when they are imported."""
    known: reach.Reach = {}
    for test_file in files:
        kept, sha = reach.kept(OUT / "reach-quick", test_file), reach.digest(ROOT / test_file)
        had = reach.load(kept) if kept.exists() else ("", {})
        if had[0] != sha:
            print(f"recording what {test_file} reaches", flush=True)
            functions = [name for name in sorted(warm.functions) if name.startswith(f"{test_file}::")]
            had = sha, warm.record(functions, 300.0)
            reach.save(had[1], sha, kept)
        known |= {name: function for name, function in had[1].items() if function.seconds < SLOW}
        seconds = sum(function.seconds for function in had[1].values())
        imported = {line.module for function in had[1].values() for line in function.lines}
        lines = [reach.at_import(module, sources[module]) for module in imported & sources.keys()]
        known[f"{test_file}::"] = reach.Function(seconds, set().union(*lines))
    return reach.Index(known)


def report(tried: Sequence[Mutant], session: Session, reasons: dict[str, str]) -> float:
    """Print the survivors and the counts; the percentage killed of those that are not equivalent."""
    judged = [(mutant, session.verdicts[mutant.id]) for mutant in tried if mutant.id in session.verdicts]
    for mutant, verdict in judged:
        if verdict.outcome == "survived" and mutant.id not in reasons:
            print(f"\n{mutant.id} survived {verdict.by}, in {mutant.definition or 'the module'}\n{mutant.diff}")
    counts = Counter("equivalent" if m.id in reasons and v.outcome == "survived" else v.outcome for m, v in judged)
    noticed = counts["killed"] + counts["timeout"]
    rate = 100 * noticed / max(1, noticed + counts["survived"])
    print(
        f"\n{counts['killed']} killed, {counts['survived']} survived, {counts['timeout']} timeout, "
        f"{counts['equivalent']} equivalent, of {len(judged)} tried; {len(tried) - len(judged)} not tried yet, "
        f"{len(session.drawn) - len(tried)} no longer in the tree. "
        f"Killed, not counting equivalent ones: {noticed} of {noticed + counts['survived']}, {rate:.1f} %"
    )
    return rate


def main(arguments: Sequence[str] | None = None) -> int:
    given = flags().parse_args(arguments)
    sources = mutants.modules(ROOT)
    if unknown := sorted(set(given.module or ()) - sources.keys()):
        flags().error(
            f"--module {unknown[0]} is not a module of the gateway: name it like proxy/flights/flight.py"
        )
    reasons, stale = equivalent(sources)
    for entry in stale:
        print(f"equivalent.toml has an entry whose line no longer exists: {entry}")
    if given.mutants is not None:
        session = Session(OUT / f"{given.mutants.stem}.jsonl")
        tried = [m for entry in mutants.named(given.mutants, "mutant") for m in mutants.given(entry, sources)]
        session.draw(tried)
    else:
        session = Session.open(OUT / f"{_name(given)}.jsonl")
        if not session.drawn:
            drawn_from = {name: sources[name] for name in given.module or sources}
            session.draw(mutants.sample(drawn_from, given.seed, given.sample))
        tried = session.mutants(sources)
    if not given.report:
        _try(tried, session, reasons, given)
    return 0 if report(tried, session, reasons) >= given.least else 1


def _name(given: argparse.Namespace) -> str:
    """Name of the record: one for each seed, size and choice of modules."""
    name = f"seed-{given.seed}-{given.sample}" + ("-quick" if given.quick else "")
    if given.module:
        name += f"-{zlib.crc32(' '.join(sorted(given.module)).encode()):08x}"
    return name


def _try(tried: Sequence[Mutant], session: Session, reasons: dict[str, str], given: argparse.Namespace) -> None:
    until = time.monotonic() + 60 * given.minutes
    with copy_of(ROOT) as copy, Pytests(copy) as tests, ExitStack() as stack:
        warm = None
        if given.quick:
            files = reach.near(ROOT, sorted({mutant.module for mutant in tried}))
            warm = stack.enter_context(Warm(copy, files))
            index: reach.Index | None = recorded_by(warm, files, mutants.modules(ROOT))
        else:
            index = recorded(copy, until)
        for mutant in tried:
            had = session.verdicts.get(mutant.id)
            if had is not None and not (given.again and had.outcome == "survived" and mutant.id not in reasons):
                continue
            if index is None or time.monotonic() > until:
                return
            verdict = trial(Ground(copy, tests, index, warm), mutant, given.budget)
            session.judged(mutant, verdict)
            print(
                f"{mutant.id} {verdict.outcome} in {verdict.seconds:g} s, {mutant.module}: {verdict.by}",
                flush=True,
            )


if __name__ == "__main__":
    raise SystemExit(main())
