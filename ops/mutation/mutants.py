"""The mutants of a tree and the seeded sample of them: at most one a line, every room in proportion. A mutant is
identified by its content: module, definition, the lines before and after."""

from __future__ import annotations

import ast
import difflib
import hashlib
import random
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from ops.mutation import operators
from ops.mutation.reach import Line, lines_of

_STAR: Final = re.compile(r"[*/]\s*,")
LEFT_OUT: Final = ("server/page/",)  # tested by browser tests, and without effect on clients of the API


@dataclass(frozen=True, slots=True)
class Mutant:
    module: str
    definition: str
    was: str  # the removed lines, stripped, joined by newlines
    becomes: str
    lines: tuple[Line, ...]  # the removed lines, as the coverage records identify them
    original: str  # the source of the module
    source: str  # the same with the mutation
    diff: str

    @property
    def id(self) -> str:
        """By content, so that it survives edits elsewhere in the module."""
        text = "\0".join((self.module, self.definition, self.was, self.becomes))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def modules(root: Path) -> dict[str, str]:
    files = sorted((root / "proxy").rglob("*.py"))
    named = {file.relative_to(root / "proxy").as_posix(): file for file in files}
    return {f"proxy/{name}": file.read_text() for name, file in named.items() if not name.startswith(LEFT_OUT)}


def room_of(module: str) -> str:
    """A module's folder in `proxy/`; `top` for one that lies in none."""
    room, folder, _ = module.removeprefix("proxy/").partition("/")
    return room if folder else "top"


# One module's mutants


@dataclass(frozen=True, slots=True)
class Place:
    """A place where one operator applies. Its mutant is made when it is drawn."""

    module: str
    row: int
    family: str
    operator: str
    occurrence: int


def places(module: str, source: str) -> Iterator[Place]:
    tree = ast.parse(source)
    skipped, values = _spans(source, _declared(tree)), _spans(source, _values(tree))
    nodes, lines = list(ast_nodes(get_ast(source))), source.split("\n")
    for family, name in operators.every():
        operator = operators.made(name)
        left_out = skipped + values if name == "core/NumberReplacer" else skipped
        positions = (position for node in nodes for position in operator.mutation_positions(node))
        for occurrence, ((row, column), _) in enumerate(positions):
            if _STAR.match(lines[row - 1], column):
                continue  # not an operator: the marker of keyword-only parameters
            if not any(start <= (row, column) < end for start, end in left_out):
                yield Place(module, row, family, name, occurrence)


Span = tuple[tuple[int, int], tuple[int, int]]


def _declared(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes without effect at run time: annotations, imports for types, `slots`, a repr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield node.returns
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield node
        elif isinstance(node, ast.ClassDef):
            calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
            keywords = node.keywords + [keyword for call in calls for keyword in call.keywords]
            yield from (keyword for keyword in keywords if keyword.arg in ("slots", "frozen"))
        elif isinstance(node, ast.FunctionDef) and node.name == "__repr__":
            yield node


def _values(tree: ast.Module) -> Iterator[ast.AST]:
    """Values that are data: constants, defaults of fields. A test of one would only repeat it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            yield from (child for child in node.body if isinstance(child, ast.Assign | ast.AnnAssign))


def _spans(source: str, nodes: Iterable[Any]) -> list[Span]:
    lines = source.encode().split(b"\n")

    def at(row: int, offset: int) -> tuple[int, int]:
        return row, len(lines[row - 1][:offset].decode())

    return [(at(n.lineno, n.col_offset), at(n.end_lineno, n.end_col_offset)) for n in nodes]


def made(place: Place, source: str) -> Mutant | None:
    """None if the result does not compile, or compiles to the same code."""
    changed = mutate_code(source, operators.made(place.operator), place.occurrence)
    if changed is None or changed == source:
        return None
    return of(place.module, source, changed)


@lru_cache(maxsize=64)  # modules; a module has many mutants
def _tree(source: str) -> str:
    return ast.dump(ast.parse(source))


_lines_of = lru_cache(maxsize=64)(lines_of)


def of(module: str, source: str, changed: str) -> Mutant | None:
    try:
        if ast.dump(ast.parse(changed)) == _tree(source):
            return None
        compile(changed, module, "exec")
    except SyntaxError:
        return None
    old, new = source.split("\n"), changed.split("\n")
    known = _lines_of(module, source)
    gone: list[Line] = []
    come: list[str] = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            gone += known[i:j]
            come += [line.strip() for line in new[k:m]]
    diff = "\n".join(difflib.unified_diff(old, new, module, module, lineterm="", n=2))
    was = "\n".join(line.text for line in gone)
    return Mutant(
        module, gone[0].definition if gone else "", was, "\n".join(come), tuple(gone), source, changed, diff
    )


# The sample


def sample(sources: Mapping[str, str], seed: int, size: int) -> list[Mutant]:
    """`size` mutants. Each room has a share in proportion to its mutable lines, at least one; each drawn line has
    one mutant, of a family that is drawn first."""
    rooms: dict[str, dict[tuple[str, int], list[Place]]] = defaultdict(lambda: defaultdict(list))
    for module, source in sources.items():
        for place in places(module, source):
            rooms[room_of(module)][module, place.row].append(place)
    names = sorted(rooms)
    counts = _parts([len(rooms[name]) for name in names], size)
    chance = random.Random(seed)  # noqa: S311 - a draw that can be repeated, not a secret
    found: list[Mutant] = []
    for name, count in zip(names, counts, strict=True):
        lines = sorted(rooms[name].items())
        chance.shuffle(lines)
        drawn = (mutant for _, at in lines if (mutant := _drawn(at, sources, chance)) is not None)
        found += [mutant for mutant, _ in zip(drawn, range(count), strict=False)]
    return found


def _drawn(at: Sequence[Place], sources: Mapping[str, str], chance: random.Random) -> Mutant | None:
    family = chance.choice(sorted({place.family for place in at}))
    place = chance.choice([place for place in at if place.family == family])
    return made(place, sources[place.module])


def _parts(weights: Sequence[int], size: int) -> list[int]:
    """`size` split in proportion to the weights (largest remainder), at least one each."""
    total = sum(weights)
    exact = [weight * size / total for weight in weights]
    parts = [max(1, int(part)) for part in exact]
    order = sorted(range(len(weights)), key=lambda i: exact[i] - int(exact[i]), reverse=True)
    for at in order:
        if sum(parts) < size:
            parts[at] += 1
    return parts


# Mutants by name


def named(path: Path, key: str) -> Iterable[dict[str, Any]]:
    """The entries of a TOML file: `module`, `was`, `becomes`, and other fields."""
    entries: list[dict[str, Any]] = tomllib.loads(path.read_text()).get(key, [])
    return entries


def given(entry: Mapping[str, Any], sources: Mapping[str, str]) -> list[Mutant]:
    """The mutants of an entry: one for each place of `was` in its module (and `definition`)."""
    module, source = str(entry["module"]), sources[str(entry["module"])]
    lines = _lines_of(module, source)
    was, becomes = str(entry["was"]).split("\n"), str(entry["becomes"]).split("\n")
    found = []
    for at in range(len(lines) - len(was) + 1):
        these = lines[at : at + len(was)]
        if [line.text for line in these] != [text.strip() for text in was]:
            continue
        if these[0].definition != entry.get("definition", these[0].definition):
            continue
        old = source.split("\n")
        indent = old[at][: len(old[at]) - len(old[at].lstrip())]
        new = [*old[:at], *(indent + text for text in becomes), *old[at + len(was) :]]
        mutant = of(module, source, "\n".join(new))
        if mutant is not None:
            found.append(mutant)
    return found
