"""The outcomes of a module's tests, through the gateway and direct, and the report."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

SLOW_START: Final = re.compile(r"the (?:engine|gateway) is not ready after \d+ s")
NO_SERVER: Final = "no server"
SHOWN: Final = 400  # characters of a failure in the report
COLUMNS: Final = (
    "module", "passed", "of which ask a server", "fail through the gateway alone", "fail direct too", "unsteady",
    "skipped",
)  # fmt: skip


@dataclass(frozen=True)
class Test:
    """`outcome`: passed, skipped, direct (fails direct too), alone (fails only through the gateway, twice),
    unsteady (failed through the gateway once, then passed direct and through the gateway)."""

    id: str
    outcome: str
    served: bool = False  # it asks a server; the others are of vLLM's own functions
    words: str = ""  # why it is skipped, or its failure through the gateway
    direct: str = ""  # its failure direct
    seconds: float = 0.0


@dataclass(frozen=True)
class Module:
    path: str
    tests: tuple[Test, ...] = ()
    trouble: str = ""  # why it could not be run to its end
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter, compare=False)

    def __post_init__(self) -> None:
        self.counts.update(test.outcome for test in self.tests)
        self.counts["served"] = sum(test.served for test in self.tests if test.outcome == "passed")

    @property
    def bad(self) -> bool:
        """Whether a test fails that does not fail direct, or the module was cut off."""
        return bool(self.counts["alone"]) or self.cut

    @property
    def cut(self) -> bool:
        """Whether it was not run to its end, by a limit or for lack of a server: the next run tries it again."""
        return self.trouble.startswith(("pytest", NO_SERVER))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = asdict(self)
        del content["counts"]
        record = folder / f"{self.path.replace('/', '.')}.json"
        record.with_suffix(".new").write_text(json.dumps(content, indent=1))
        record.with_suffix(".new").replace(record)

    @classmethod
    def load(cls, folder: Path, path: str) -> Module | None:
        record = folder / f"{path.replace('/', '.')}.json"
        if not record.exists():
            return None
        content = json.loads(record.read_text())
        tests = tuple(Test(**test) for test in content.pop("tests"))
        return cls(**content, tests=tests)


def failing(through: Iterable[Mapping[str, Any]]) -> list[str]:
    return [found["id"] for found in through if found["outcome"] == "failed"]


def judged(
    path: str,
    through: Sequence[Mapping[str, Any]],
    direct: Sequence[Mapping[str, Any]],
    again: Sequence[Mapping[str, Any]],
    *,
    trouble: str,
    seconds: float,
) -> Module:
    """The module's tests by all runs; `direct` has those that failed through the gateway, `again` those of them
    that passed direct."""
    failed = {found["id"]: found for found in direct}
    twice = {found["id"]: found["outcome"] for found in again}
    tests = []
    for found in through:
        if found["outcome"] == "uncollected":
            trouble = trouble or f"not collected: {_last(found['words'])}"
            continue
        outcome, there = found["outcome"], failed.get(found["id"])
        if outcome == "failed":
            words = found["words"] + (there["words"] if there is not None else "")
            lack = SLOW_START.search(words)
            if lack is not None:  # of the machine, which says nothing of the gateway
                trouble = trouble or f"{NO_SERVER}: {lack[0]}"
                continue
            outcome = "unsteady" if twice.get(found["id"]) == "passed" else "alone"
            outcome = "direct" if there is not None and there["outcome"] != "passed" else outcome
        tests.append(
            Test(
                found["id"],
                outcome,
                found["served"],
                found["words"],
                there["words"] if outcome == "direct" and there else "",
                found["seconds"],
            )
        )
    return Module(path, tuple(tests), trouble, seconds)


def report(modules: Sequence[Module], left_out: Mapping[str, str], release: str, unknown: Sequence[str]) -> str:
    """The table, then failures, skips, and modules that are not run."""
    total: Counter[str] = Counter()
    rows = []
    for module in modules:
        total.update(module.counts)
        rows.append(_row(_short(module.path), module.counts, module.trouble))
    lines = [
        f"# vLLM {release}'s own tests through the gateway",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        *rows,
        _row("**all**", total, ""),
    ]
    lines += _listed("Fail through the gateway alone", modules, "alone", lambda test: f": `{_last(test.words)}`")
    words = "Unsteady: failed through the gateway, passed direct, passed through the gateway"
    lines += _listed(words, modules, "unsteady", lambda test: f": `{_last(test.words)}`")
    lines += _listed("Fail direct too", modules, "direct", lambda test: f": direct `{_last(test.direct)}`")
    lines += ["", "## Skipped", ""]
    reasons = Counter((_short(m.path), _last(t.words)) for m in modules for t in m.tests if t.outcome == "skipped")
    lines += [f"- `{path}`: {count} × {why}" for (path, why), count in reasons.items()]
    lines += [f"- `{_short(m.path)}`: {m.trouble}" for m in modules if m.trouble]
    lines += ["", "## Not run", "", *(f"- `{_short(path)}`: {why}" for path, why in left_out.items())]
    lines += [f"- `{_short(path)}`: not named in modules.toml" for path in unknown]
    return "\n".join(lines) + "\n"


def _row(name: str, counts: Mapping[str, int], trouble: str) -> str:
    cells = [counts.get(kind, 0) for kind in ("passed", "served", "alone", "direct", "unsteady", "skipped")]
    return f"| {name}{' (see below)' if trouble else ''} | " + " | ".join(map(str, cells)) + " |"


def _listed(title: str, modules: Sequence[Module], outcome: str, words: Any) -> list[str]:
    found = [test for module in modules for test in module.tests if test.outcome == outcome]
    return ["", f"## {title}", "", *(f"- `{_short(test.id)}`{words(test)}" for test in found)] if found else []


def _short(path: str) -> str:
    return path.removeprefix("tests/entrypoints/")


def _last(words: str) -> str:
    """The message of a failure: pytest's line that begins with E, or the last one."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    said = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (
        " ".join((said[:1] or lines[-1:] or ["no words"])[0].split())[:SHOWN].replace("`", "'").replace("|", "\\|")
    )
