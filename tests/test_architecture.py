"""The rules of the source tree: which room may import which, what a room may use, how large a folder may be.
`python -m tests.test_architecture` prints the rooms with their sizes and the imports between them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
# From the bottom to the top: a room imports rooms of lower ranks only.
RANKS = {
    "proxy": {"errors": 0, "terminal": 0, "wire": 1, "config": 2, "telemetry": 3, "redis": 4, "upstream": 5}
    | {"flights": 6, "access": 7, "server": 8, "workers": 9, "embedded": 1},
    "loadgen": {"errors": 0, "secrets": 0, "spec": 0, "record": 0, "snapshot": 0, "store": 1, "scraper": 1}
    | {"workload": 2, "analysis": 2, "drive": 3, "report": 3, "cli": 4},
}
TOP = {
    "proxy": {"__main__", "program", "app", "resources", "keys", "probe", "__init__"},
    "loadgen": {"__main__", "__init__"},
}
"""Modules that import everything."""
COMPOSE = ("proxy.app", "proxy.resources", "proxy.program", "loadgen.__main__")
MOST_MODULES = 15
PURE = {"wire": {"asyncio", "aiohttp", "socket"}, "config": {"aiohttp", "socket"}}
# Attributes that a module sets at objects of other modules' classes, and why no method does it.
SET_FROM_OUTSIDE = {
    ("proxy.server.listener.listener", "requests_count"): "aiohttp's own loop counts there too",
    ("proxy.server.listener.tls", "sni_callback"): "of ssl, which has no other way",
    ("proxy.upstream.http.dial", "check_hostname verify_mode"): "of ssl, which has no other way",
    ("proxy.telemetry.otel", "propagate"): "of logging, which has no other way",
    ("proxy.telemetry.faults", "excepthook unraisablehook"): "hooks of the interpreter",
    ("proxy.terminal", "stdout stderr"): "of the interpreter",
    ("proxy.config.flags", "complete"): "of shtab, which reads it of argparse's actions",
    ("proxy.embedded.engine_child", "path poll"): "parameters of llama.cpp",
    ("proxy.telemetry.metrics", "value"): "four counts a request: a method would be a Python call for each",
}
MACHINE = re.compile(r"(?<![\w./-])/(?:" + "|".join(("tmp", "root", "work", "home")) + r")/[\w.-]")


@cache
def sources(package: str) -> dict[str, str]:
    """Dotted name to text; a package by its own name."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path.read_text() for name, path in zip(names, paths, strict=True)}


def imports(name: str, *, running: bool = False) -> Iterator[str]:
    """What a module imports, dotted; `running`: at its import only, not for types or inside functions."""
    tree = ast.parse(sources(name.partition(".")[0])[name])
    for node in tree.body if running else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = sources(node.module.partition(".")[0]) if node.module.split(".")[0] in PACKAGES else {}
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


PACKAGES = ("proxy", "loadgen", "corpus")


def room(name: str) -> str:
    return name.split(".")[1] if name.count(".") else "__init__"


def between_rooms(package: str) -> dict[tuple[str, str], int]:
    """How many modules of one room import another."""
    arrows: Counter[tuple[str, str]] = Counter()
    for name in sources(package):
        targets = {target for target in imports(name) if target.startswith(f"{package}.")}
        arrows.update({(room(name), room(target)) for target in targets})
    return {(a, b): count for (a, b), count in arrows.items() if a != b}


def backwards(package: str, a: str, b: str) -> bool:
    ranks, top = RANKS[package], TOP[package]
    return a not in top and (b in top or ranks[a] <= ranks[b])


def test_imports_between_rooms_run_one_way() -> None:
    back = [f"{p}: {a} -> {b}" for p in RANKS for a, b in between_rooms(p) if backwards(p, a, b)]
    assert back == []


def test_a_room_is_imported_by_its_surface() -> None:
    """Other rooms import a package, not a module inside it."""
    inside = [
        f"{name} -> {target}"
        for package in RANKS
        for name in sources(package)
        for target in imports(name)
        if target in sources(package)
        and target.count(".") > 1
        and not (ROOT / target.replace(".", "/")).is_dir()
        and room(target) not in (room(name), "embedded")
        and name not in COMPOSE
    ]
    assert inside == []


def test_no_modules_import_each_other() -> None:
    graph = {name: set(imports(name, running=True)) & set(sources(p)) for p in PACKAGES for name in sources(p)}
    packages = {name for name in graph if (ROOT / name.replace(".", "/")).is_dir()}
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            found.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for target in sorted(graph[name] - packages):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert found == []


def test_the_load_generator_knows_the_wire_alone() -> None:
    for package, allowed in {
        "loadgen": ("loadgen", "corpus", "proxy.wire"),
        "corpus": ("corpus", "proxy.wire"),
    }.items():
        ours = [(name, t) for name in sources(package) for t in imports(name) if t.split(".")[0] in PACKAGES]
        assert [(name, t) for name, t in ours if not f"{t}.".startswith(tuple(f"{a}." for a in allowed))] == []


def test_formats_and_settings_do_no_input_or_output() -> None:
    used = [
        (name, t)
        for name in sources("proxy")
        for t in imports(name)
        if t.split(".")[0] in PURE.get(room(name), ())
    ]
    assert used == []


def test_no_folder_holds_more_than_can_be_looked_over() -> None:
    folders = Counter(
        path.parent.relative_to(ROOT).as_posix()
        for package in (*PACKAGES, "ops")
        for path in (ROOT / package).rglob("*.py")
    )
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}


def written(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Each attribute that is set or deleted, as a whole or in one item."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            target: ast.expr = node
            while isinstance(target, ast.Subscript):
                target = target.value
            if isinstance(target, ast.Attribute):
                yield target


def set_from_outside(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each attribute that is set at an object that is neither `self` nor made in the same
    function, where no class of this module has such an attribute."""
    own: set[str] = set()
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        own |= {node.attr for node in written(cls) if ast.unparse(node.value) == "self"}
        own |= {ast.unparse(node.target) for node in ast.walk(cls) if isinstance(node, ast.AnnAssign)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
        made = {
            ast.unparse(target)
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func).rpartition(".")[2].lstrip("_")[:1].isupper()
            for target in node.targets
        } | {"self", "cls"}  # fmt: skip
        for node in written(function):
            if node.attr not in own and ast.unparse(node.value) not in made:
                yield node.lineno, node.attr


def test_only_its_own_module_sets_an_object_s_attributes() -> None:
    """Others call a method, or pass a value to the constructor."""
    allowed = {(module, name) for module, names in SET_FROM_OUTSIDE for name in names.split()}
    found = {
        (module, name): f"{module}:{line}: {name}"
        for module, text in sources("proxy").items()
        for line, name in set_from_outside(ast.parse(text))
    }
    assert sorted(found[key] for key in found.keys() - allowed) == []
    assert allowed - found.keys() == set(), "an exception that nothing needs"


def test_every_room_teaches_its_nouns() -> None:
    for package, ranks in RANKS.items():
        for name in ranks.keys() - {"embedded"}:
            if (ROOT / package / name).is_dir():
                words = ast.get_docstring(ast.parse(sources(package)[f"{package}.{name}"])) or ""
                assert 10 <= len(words.splitlines()) <= 25, f"{package}/{name}/__init__.py"


def test_no_path_of_one_machine_is_written_into_the_tree() -> None:
    paths = [p for folder in (*PACKAGES, "ops", "tests", ".ci") for p in (ROOT / folder).rglob("*")]
    paths += [p for p in ROOT.iterdir() if p.suffix in (".md", ".cfg", ".toml", ".ini")]
    texts = {p: p.read_text(errors="replace") for p in paths if p.is_file() and "__pycache__" not in p.parts}
    assert [p.as_posix() for p, text in texts.items() if MACHINE.search(text)] == []


if __name__ == "__main__":
    for package, ranks in RANKS.items():
        sizes: dict[str, list[int]] = {}
        for module, text in sources(package).items():
            folder = ROOT / module.replace(".", "/")
            sizes.setdefault(str((folder if folder.is_dir() else folder.parent).relative_to(ROOT)), []).append(
                text.count("\n")
            )
        for path, lines in sorted(sizes.items()):
            print(f"{path:28} {len(lines):3} modules {sum(lines):6} lines")
        for (a, b), count in sorted(
            between_rooms(package).items(), key=lambda arrow: (ranks.get(arrow[0][0], 9), arrow)
        ):
            print(f"{a:10} -> {b:10} {count:3}{'  BACK' if backwards(package, a, b) else ''}")
