"""Searches in virtual time: `python -m ops.bench.find_trial.virtual_trial` runs each seed on each kind of server
and prints what was found, how far off, and how often an interval that was called found did not hold the limit."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from math import inf
from statistics import median
from typing import Final, NamedTuple

from loadgen.analysis import Found, Plan, Search, Stage
from loadgen.cli.find import LEAST_SECONDS, MINUTES, OVERTIME, PRECISION, RESPONSES, most_misses
from ops.bench.find_trial.virtual import KINDS, TOKENS, Done, Kind, Server

LEAD: Final = 0.05
WITHIN: Final = 0.03
SURE: Final = ("found", "no limit", "not met")


class Machine:
    """A server and its clock, which goes on from stage to stage."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind = kind
        rng = random.Random(f"server {seed}")  # noqa: S311 - not for secrets
        self.server: Server = kind.make(rng)
        self.now = 0.0

    def open(
        self, offsets: Sequence[float], *, longest: float = inf, most: float = inf
    ) -> tuple[list[float], list[Done], bool]:
        """Due times, responses, and whether the stage was given up: after so many seconds, or so many misses."""
        server, begin = self.server, self.now + LEAD
        dues = [begin + at for at in offsets]
        done: list[Done] = []
        place, misses, n = 0, 0, len(dues)
        while place < n or server.due < inf:
            if place < n and dues[place] <= server.due:
                self.now = dues[place]
                server.arrive(self.now, place)
                place += 1
                continue
            self.now = server.due
            if self.now - begin > longest:
                break
            for response in server.step():
                done.append(response)
                misses += self._late(dues[response.number], response)
            if misses > most:
                break
        else:
            return dues, done, False
        server.cancel(self.now)
        return dues[:place], done, True

    def closed(self, users: int, seconds: float, most: int) -> tuple[list[float], list[Done]]:
        """Users who each have one request in it, for so many seconds."""
        server, begin = self.server, self.now + LEAD
        self.now = begin
        dues: list[float] = []
        done: list[Done] = []
        for _ in range(users):
            dues.append(begin)
            server.arrive(begin, len(dues) - 1)
        while server.due < inf:
            self.now = server.due
            for response in server.step():
                done.append(response)
                if self.now - begin < seconds and len(dues) < most:
                    dues.append(self.now)
                    server.arrive(self.now, len(dues) - 1)
        return dues, done

    def _late(self, due: float, response: Done) -> bool:
        return max(self.times(due, response).values()) > 1

    def times(self, due: float, response: Done) -> dict[str, float]:
        """Each objective's measured value relative to its limit."""
        if response.first == inf:
            return dict.fromkeys(self.kind.slos, inf)
        known = {
            "ttft": response.first - due,
            "tpot": (response.end - response.first) / (TOKENS - 1),
            "e2el": response.end - due,
        }
        return {name: known[name] / limit for name, limit in self.kind.slos.items()}

    def stage(self, plan: Plan, seed: int, left: float) -> Stage:
        """As `loadgen find` runs one."""
        began = self.now
        cut = False
        if self.kind.users:
            dues, done = self.closed(int(plan.load), min(plan.seconds, left), plan.requests)
        else:
            rng = random.Random(seed)  # noqa: S311 - not for secrets
            offsets = accumulate(rng.expovariate(plan.load) for _ in range(plan.requests))
            within = [at for at in offsets if at < left]
            dues, done, cut = self.open(
                within,
                longest=OVERTIME * plan.requests / plan.load,
                most=most_misses(plan, 1 - self.kind.attainment),
            )
        answered = {response.number: self.times(dues[response.number], response) for response in done}
        ends = {response.number: response.end for response in done if response.first < inf}
        given_up = self.now - min(self.kind.slos.values())
        kept = [number for number, due in enumerate(dues) if number in answered or due < given_up]
        missing = dict.fromkeys(self.kind.slos, inf)
        strains = [answered.get(number, missing) for number in kept]
        first = dues[0]
        seconds = self.now - began
        busy = sum(response.end - dues[response.number] for response in done)
        failed = sum(response.first == inf for response in done)
        return Stage(
            plan.load,
            [dues[number] - first for number in kept],
            [max(each.values()) for each in strains],
            seconds=seconds,
            missed={name: sum(each[name] > 1 for each in strains) for name in self.kind.slos},
            overlap=busy / seconds,
            aborted=cut,
            ends=() if self.kind.users else [ends.get(number, inf) - first for number in kept],
            failures={"status": failed} if failed else {},
        )


def searched(kind: Kind, seed: int, *, minutes: float = MINUTES, precision: float = PRECISION) -> Search:
    """A search that has ended."""
    machine = Machine(kind, seed)
    search = Search(
        attainment=kind.attainment,
        precision=precision,
        start=1.0 if kind.users else kind.start,
        top=4096.0 if kind.users else kind.top,
        seconds=minutes * 60,
        least=max(LEAST_SECONDS, RESPONSES * alone(kind)),
        by="users" if kind.users else "rate",
    )
    while (plan := search.next()) is not None:
        left = max(minutes * 60 - machine.now, LEAST_SECONDS)
        search.add(machine.stage(plan, seed + len(search.stages), left))
    return search


def alone(kind: Kind) -> float:
    """Seconds of a response without load."""
    machine = Machine(kind, 0)
    dues, done, _ = machine.open([100.0 * place for place in range(1, 21)])
    return sum(response.end - dues[response.number] for response in done) / len(done)


# What is true


def share_at(kind: Kind, load: float, requests: int, seed: int) -> float:
    """The share of requests that miss an objective at a load, by one long simulation."""
    machine = Machine(kind, seed)
    machine.now = 100.0  # when it is warm, and no longer degraded
    if kind.users:
        dues, done = machine.closed(int(load), inf, requests)
    else:
        rng = random.Random(seed)  # noqa: S311 - not for secrets
        dues, done, _ = machine.open(list(accumulate(rng.expovariate(1.0) / load for _ in range(requests))))
    bad = sum(max(machine.times(dues[each.number], each).values()) > 1 for each in done[requests // 50 :])
    return bad / (len(done) - requests // 50)


class Outcome(NamedTuple):
    """What one search said. `error`: relative; `held`: whether its interval holds the truth, if there is one."""

    kind: str
    seed: int
    truth: float | str
    found: Found

    @property
    def error(self) -> float | None:
        if isinstance(self.truth, str) or self.found.load is None:
            return None
        if self.found.by == "users" and abs(self.found.load - self.truth) <= 1:
            return 0.0
        return self.found.load / self.truth - 1

    @property
    def held(self) -> bool | None:
        low, high = self.found.low, self.found.high
        if isinstance(self.truth, str) or low is None or high is None:
            return None
        return low <= self.truth <= high

    @property
    def right(self) -> bool:
        """Whether the search said what is true and was sure of it."""
        if isinstance(self.truth, str):
            return self.found.state == self.truth
        return self.found.state == "found" and abs(self.error or 0.0) <= WITHIN

    @property
    def false(self) -> bool:
        """Whether it was sure of what is not true."""
        if isinstance(self.truth, str):
            return self.found.state in SURE and self.found.state != self.truth
        return self.found.state in SURE and self.held is not True


def outcome(name: str, seed: int, minutes: float, precision: float) -> Outcome:
    kind = next(kind for kind in KINDS if kind.name == name)
    search = searched(kind, seed, minutes=minutes, precision=precision)
    return Outcome(name, seed, kind.truth, search.found())


def render(outcomes: Sequence[Outcome]) -> str:
    """A row for each kind of server, and all of them together."""
    rows = [
        "| server | limit | right and sure | unsure | false and sure | error, median and largest | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(each.kind for each in outcomes):
        rows.append(_row(name, [each for each in outcomes if each.kind == name]))
    rows.append(_row("all", outcomes))
    return "\n".join(rows)


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    truth = outcomes[0].truth if name != "all" else ""
    errors = sorted(abs(each.error) for each in outcomes if each.error is not None)
    seconds = sorted(each.found.seconds for each in outcomes)
    counts = (
        sum(each.right for each in outcomes),
        sum(each.found.state not in SURE for each in outcomes),
        sum(each.false for each in outcomes),
    )
    right, unsure, false = (f"{count} of {len(outcomes)}" for count in counts)
    wrong = f"{median(errors):.1%}, {errors[-1]:.1%}" if errors else "–"
    limit = truth if isinstance(truth, str) else f"{truth:.4g}"
    return (
        f"| {name} | {limit} | {right} | {unsure} | {false} | {wrong} | "
        f"{median(seconds):.0f} ({seconds[0]:.0f}–{seconds[-1]:.0f}) |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.find_trial.virtual_trial", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first seed (default 0)")
    parser.add_argument("--only", default="", metavar="TEXT", help="servers whose name has this in it")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M")
    parser.add_argument("--precision", type=float, default=PRECISION, metavar="X")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    parser.add_argument("--each", action="store_true", help="print each search")
    args = parser.parse_args(arguments)
    jobs = [
        (kind.name, seed * 1000, args.minutes, args.precision)
        for kind in KINDS
        if args.only in kind.name
        for seed in range(args.first, args.first + args.seeds)
    ]
    with ProcessPoolExecutor(args.jobs) as pool:
        outcomes = list(pool.map(outcome, *zip(*jobs, strict=True)))
    if args.each:
        for each in outcomes:
            found = each.found
            off = "" if each.error is None else f", off by {each.error:+.1%}"
            print(
                f"{each.kind}, seed {each.seed}: {found.state} {found.load} ({found.low} to {found.high}){off}, "
                f"{found.seconds:.0f} s, {found.stages} stages"
            )
    print(render(outcomes))
    return int(any(each.false for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
