"""The house's laws about the tree: every module has its tests, no machine's paths, loadgen stands apart.

The laws about what the code says are in `test_house.py`; here too each is shown to catch a violation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Rooms are tested as one; a module named here says which tests cover it instead.
UNTESTED_BY_NAME = {
    "carrier.py": "test_merger.py, wire/test_choices.py",
    "children.py": "test_process.py, and every test with a Redis of the gateway's own",
    "site.py": "test_client_tls.py, test_unix_socket.py",
    "traced.py": "a protocol: test_tracing.py",
    "app.py": "every test through tests/kit/running.py runs it",
    "config_values.py": "test_config_load.py has every value through its sources",
    "embed_handler.py": "test_embed.py",
    "embed_item.py": "test_embedder.py",
    "embed_delivery.py": "test_embedder.py, test_embed_contained.py",
    "embed_metrics.py": "test_embed_arrays.py",
    "embed_queue.py": "test_embedder.py, test_embed_fair.py",
    "embedders.py": "test_embed_arrays.py",
    "embedded/engine_child.py": "test_process.py",
    "embedded/launch.py": "test_process.py: killed outright it leaves no child behind",
    "embed_faults.py": "test_embed_contained.py",
    "gateway.py": "test_sharing.py, test_bad_input.py, test_process.py",
    "large.py": "test_worst.py, test_offload.py",
    "offload_child.py": "test_offload.py",
    "page/wanted.py": "test_page.py, test_worst.py",
    "page/handlers.py": "test_page.py, test_page_browser.py",
    "page/readers.py": "test_page.py, test_page_browser.py",
    "page/shell.py": "test_page.py, test_page_browser.py",
    "page/state.py": "test_page.py, test_reading.py",
    "page/stream.py": "test_page.py",
    "kept.py": "test_cache_stored.py, test_sharing.py",
    "lookups.py": "test_batcher.py, test_embed_store.py",
    "spec.py": "plain data",
    "wire/shape.py": "plain data: wire/test_learned.py has it",
    "punctual.py": "test_queueing.py",
    "queue_metrics.py": "test_queueing.py",
    "process_gauges.py": "test_metrics.py",
    "wire/known.py": "wire/test_fold.py",
    "wire/llama.py": "wire/test_fold.py, against recordings",
    "__main__.py": "run as a process by the e2e tests; test_config_load.py has what it parses",
}

LOADGEN_UNTESTED_BY_NAME = {
    "compare_command.py": "loadgen/test_compare.py",
    "headline.py": "loadgen/test_report.py",
    "numbers.py": "loadgen/test_report.py: how figures are written",
    "plot_style.py": "loadgen/test_report.py, loadgen/test_browser.py",
    "plots.py": "loadgen/test_report.py, loadgen/test_browser.py",
    "plots_share.py": "loadgen/test_report.py, loadgen/test_browser.py",
    "plots_time.py": "loadgen/test_report.py, loadgen/test_browser.py",
    "prompts.py": "plain data",
    "report_command.py": "loadgen/test_report.py",
    "report_html.py": "loadgen/test_report.py, loadgen/test_browser.py",
    "report_md.py": "loadgen/test_report.py",
    "report_style.py": "plain text: loadgen/test_browser.py",
    "stages.py": "loadgen/test_report.py",
    "streams.py": "test_streams.py, with the proxy's",
    "timeline.py": "loadgen/test_summary.py",
    "view.py": "loadgen/test_report.py",
    "view_config.py": "loadgen/test_report.py",
    "view_error.py": "loadgen/test_report.py",
    "__main__.py": "run as a process by loadgen/test_cli.py",
    "alone.py": "loadgen/test_cli.py, by run and by ab",
    "ab.py": "loadgen/test_cli.py, and test_shots.py for its order",
    "calibrate_server.py": "loadgen/test_cli.py: calibrate runs against it",
    "calibration.py": "loadgen/test_calibrate.py",
    "exchange.py": "plain data: loadgen/test_reading.py reads it",
    "job.py": "loadgen/test_cli.py, alone and with workers",
    "measure.py": "loadgen/test_cli.py",
    "progress.py": "loadgen/test_live.py",
    "record.py": "plain data",
    "run.py": "loadgen/test_cli.py; test_flags.py has its arrivals",
    "spec.py": "plain data; loadgen/test_lag.py has its limits",
    "stand_in.py": "loadgen/test_shots.py",
    "sweep.py": "loadgen/test_cli.py, and test_knee.py for its rates",
    "values.py": "loadgen/test_flags.py",
    "worker.py": "loadgen/test_cli.py",
    "workers.py": "loadgen/test_cli.py",
}

TEMPORARY, WORK = "/tmp", "/work"  # in two parts wherever they are used: this file keeps its own law
MACHINE_PATH = re.compile(rb"(?<![\w./-])/(?:tmp|root|work|home)/[\w.-]")
TREES = ("proxy", "loadgen", "corpus", "ops", "tests", ".ci")
GENERATED = ("__pycache__", ".egg-info")


def without_tests(modules: Iterable[str], test_files: Iterable[str]) -> list[str]:
    """`wire/sse.py` wants `test_sse.py`, `test_sse_*.py` or `test_wire_sse.py`, anywhere under tests/."""
    stems = {Path(name).stem for name in test_files}
    found = []
    for module in modules:
        *packages, name = Path(module).with_suffix("").parts
        wanted = {f"test_{name}", "_".join(["test", *packages, name])}
        if name != "__init__" and not any(s == w or s.startswith(f"{w}_") for s in stems for w in wanted):
            found.append(module)
    return found


def machine_paths(files: Mapping[str, bytes]) -> list[str]:
    """A path of one person's machine, or of a place that is not private, written into the tree."""
    return [
        f"{name}:{number}: {line.strip().decode(errors='replace')}"
        for name, data in files.items()
        for number, line in enumerate(data.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]


def foreign_imports(source: str, allowed: str = "proxy.wire") -> list[str]:
    """What a file imports of the proxy besides `allowed`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    ours = [name for name in names if name.split(".")[0] == "proxy"]
    return [name for name in ours if name != allowed and not name.startswith(f"{allowed}.")]


def tree() -> dict[str, bytes]:
    roots = [path for path in ROOT.iterdir() if path.suffix in (".md", ".cfg", ".toml", ".ini")]
    inside = [path for name in TREES for path in (ROOT / name).rglob("*")]
    names = {path.relative_to(ROOT).as_posix(): path for path in roots + inside if path.is_file()}
    return {name: p.read_bytes() for name, p in names.items() if not any(g in name for g in GENERATED)}


# The laws, on the house as it stands


@pytest.mark.parametrize(
    ("house", "tests", "excused"),
    [("proxy", "tests", UNTESTED_BY_NAME), ("loadgen", "tests/loadgen", LOADGEN_UNTESTED_BY_NAME)],
)
def test_every_module_has_a_test_file_that_names_it(house: str, tests: str, excused: dict[str, str]) -> None:
    modules = [path.relative_to(ROOT / house).as_posix() for path in (ROOT / house).rglob("*.py")]
    missing = without_tests(sorted(modules), [path.name for path in (ROOT / tests).rglob("test_*.py")])
    assert sorted(set(missing) - excused.keys()) == []
    assert sorted(excused.keys() - set(missing)) == [], "excuses that nobody needs any more"


def test_no_path_of_one_machine_is_written_into_the_tree() -> None:
    assert machine_paths(tree()) == []


def test_loadgen_and_corpus_know_nothing_of_the_proxy_but_its_wire() -> None:
    paths = [path for house in ("loadgen", "corpus") for path in (ROOT / house).rglob("*.py")]
    sources = {path.as_posix(): path.read_text() for path in paths}
    assert {name: found for name, text in sources.items() if (found := foreign_imports(text))} == {}


# The checkers catch what they are for


def test_a_module_without_tests_is_caught() -> None:
    tests = ["test_a.py", "test_wire_sse.py", "test_cache_frozen.py", "test_keys.py"]
    modules = ["a.py", "wire/sse.py", "cache.py", "__init__.py", "wire/__init__.py", "key.py", "wire/b.py"]
    assert without_tests(modules, tests) == ["key.py", "wire/b.py"]


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        (f"open('{TEMPORARY}/x')", True),
        (f"cd {WORK}/main", True),
        (f"a bare {WORK}/ says nothing", False),
        (f"a{WORK}/b", False),
        (f"https://example.org{TEMPORARY}/b", False),
    ],
)
def test_a_path_of_one_machine_is_caught(line: str, caught: bool) -> None:
    assert machine_paths({"a": b"first\n" + line.encode()}) == ([f"a:2: {line}"] if caught else [])


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import proxy.flights.flight", ["proxy.flights.flight"]),
        ("from proxy import app", ["proxy.app"]),
        ("def f():\n    from proxy.flights.key import key_of", ["proxy.flights.key.key_of"]),
        ("from proxy.wired import x", ["proxy.wired.x"]),
        ("from proxy import wire", []),
        ("from proxy.wire.sse import Framer\nimport asyncio\nfrom . import pacer", []),
    ],
)
def test_an_import_of_more_than_the_wire_is_caught(source: str, found: list[str]) -> None:
    assert foreign_imports(source) == found
