"""The record of one sample between runs: its mutants, their verdicts, and which are equivalent. A sample is drawn
once and kept by content, so an edit of the tree loses only the mutants whose lines are gone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ops.mutation.mutants import Mutant, given, named
from ops.mutation.trial import Verdict

EQUIVALENT = Path(__file__).parent / "equivalent.toml"


@dataclass(slots=True)
class Session:
    path: Path
    drawn: list[dict[str, str]] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Session:
        session = cls(path)
        if path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                if "outcome" in entry:
                    session.verdicts[entry["id"]] = Verdict(entry["outcome"], entry["by"], entry["seconds"])
                else:
                    session.drawn.append(entry)
        return session

    def draw(self, mutants: Iterable[Mutant]) -> None:
        self.drawn = [
            {"id": m.id, "module": m.module, "definition": m.definition, "was": m.was, "becomes": m.becomes}
            for m in mutants
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in self.drawn))

    def mutants(self, sources: Mapping[str, str]) -> list[Mutant]:
        """The mutants whose lines are still in the tree."""
        return [found[0] for entry in self.drawn if (found := given(entry, sources))]

    def judged(self, mutant: Mutant, verdict: Verdict) -> None:
        self.verdicts[mutant.id] = verdict
        entry = {"id": mutant.id, "outcome": verdict.outcome, "by": verdict.by, "seconds": verdict.seconds}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def equivalent(sources: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The reviewed equivalent mutants, id to reason; and the entries whose lines no longer exist."""
    reasons: dict[str, str] = {}
    stale = []
    for entry in named(EQUIVALENT, "equivalent"):
        found = given(entry, sources) if entry["module"] in sources else []
        if not found:
            stale.append(f"{entry['module']}: {entry['was']}")
        reasons |= {mutant.id: entry["reason"] for mutant in found}
    return reasons, stale
