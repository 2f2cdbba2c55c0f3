"""The documents name what exists (links, commands, paths, tests, metrics); the README is one page; a decision is a
short record, and the index lists it. `python -m tests.test_docs` writes that index."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from proxy.config.settings import options
from proxy.errors import Code

ROOT = Path(__file__).parent.parent
DECISIONS = ROOT / "ops" / "docs" / "decisions"
INDEX = DECISIONS / "README.md"
HISTORY = ROOT / "ops" / "docs" / "changelog.md"  # names paths that are gone
MOST_LINES, MOST_BYTES, MOST_RECORD_LINES = 200, 12_288, 8
MODULES = re.compile(r"\bpython -m ((?:proxy|loadgen|corpus|ops|tests)[\w.]*\w)")
PATHS = re.compile(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|md|toml|yaml|yml|json|env|service))?)`")
LATER = re.compile(r"^(out/|ops/\.env$)")  # written by programs or by the reader
TESTS = re.compile(r"`(?:[\w/]+/)?(test_\w+\.py)(?:::(test_\w+)(…?))?`")
METRICS = re.compile(r"\bgateway_[a-z0-9_]+[a-z0-9]\b")
FLAGS = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+[a-z0-9](?![\w-])")
ERRORS = re.compile(r"\b([45]\d\d)\s`(\w+)`")
OTHER_PROGRAMS = {  # flags of vLLM, Docker, kubectl, curl and Redis
    *("--fingerprint-mode", "--sse-keep-alive-interval", "--build", "--build-arg", "--cacert", "--daemonize"),
    *("--dry-run", "--from-file", "--overwrite"),
}


def pages() -> list[Path]:
    folders = ("proxy", "loadgen", "corpus", "ops", "tests")
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))])


PAGES = pages()
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text("utf-8")), re.MULTILINE)
    return frozenset(anchor(heading) for heading in headings)


def dead_links(text: str, page: Path) -> list[str]:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (fragment and fragment not in anchors(path)):
            dead.append(target)
    return dead


def unknown_commands(text: str) -> list[str]:
    return sorted({name for name in MODULES.findall(text) if not runs(name)})


def runs(name: str) -> bool:
    """Whether `python -m name` starts something."""
    try:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = find_spec(f"{name}.__main__")
    except ModuleNotFoundError:
        return False
    return spec is not None


def unknown_paths(text: str, page: Path) -> list[str]:
    """Of files in backticks with a folder: from the root, from the page, or from a room of the gateway."""
    places = (ROOT, page.parent, ROOT / "proxy")
    named = {name for name in PATHS.findall(without_code(text)) if not LATER.match(name)}
    return sorted(name for name in named if not any((place / name).exists() for place in places))


def unknown_tests(text: str) -> list[str]:
    """Of `file.py` and `file.py::test`, whose end may be left out: `file.py::test_a_…`."""
    unknown = []
    for file, test, cut in TESTS.findall(text):
        sources = [path.read_text("utf-8") for path in (ROOT / "tests").rglob(file)]
        defined = re.compile(rf"^(?:async )?def {test}{'' if cut else chr(92) + '('}", re.MULTILINE)
        if not any(defined.search(source) or not test for source in sources):
            unknown.append(f"{file}::{test}" if test else file)
    return unknown


@cache
def strings_of_the_gateway() -> frozenset[str]:
    return frozenset(
        found for path in (ROOT / "proxy").rglob("*.py") for found in re.findall(r'"([^"\n]+)"', path.read_text())
    )


def unknown_metrics(text: str) -> list[str]:
    named = METRICS.findall(re.sub(r"\bjob:\S+", "", text))  # `job:…` are recording rules
    names = {re.sub(r"^gateway_|_(?:bucket|sum|count)$", "", name) for name in named}
    return sorted(names - strings_of_the_gateway())


@cache
def flags() -> frozenset[str]:
    """Of the settings, and those in the sources."""
    sources = (
        path for folder in ("proxy", "loadgen", "corpus", "ops", "tests") for path in (ROOT / folder).rglob("*.py")
    )
    named = {flag for path in sources if path != Path(__file__) for flag in FLAGS.findall(path.read_text("utf-8"))}
    own = {flag for option in options() for flag in (option.flag, option.flag.replace("--", "--no-", 1))}
    return frozenset(named | own | OTHER_PROGRAMS)


def unknown_flags(text: str) -> list[str]:
    return sorted(set(FLAGS.findall(text)) - flags())


def unknown_errors(text: str) -> list[str]:
    known = {(str(code.status), code.code) for code in Code}
    named = {pair for pair in ERRORS.findall(text) if any(pair[1] == code for _, code in known)}
    return sorted(f"{status} {code}" for status, code in named - known)


def unknown_events(text: str) -> list[str]:
    return sorted(set(re.findall(r'"msg": ?"([^"…]+)"', text)) - strings_of_the_gateway())


def records() -> list[tuple[int, str, Path, list[str]]]:
    """Number, title, page and lines of each decision."""
    found = []
    for page in sorted(DECISIONS.glob("*.md")):
        for record in re.split(r"^### (?=\d+\. )", page.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            title, _, body = record.partition("\n")
            number, _, title = title.partition(". ")
            found.append((int(number), title, page, [line for line in body.splitlines() if line.strip()]))
    return sorted(found)


def index_rows() -> str:
    rows = [f"| {n} | [{title}]({page.name}#{anchor(f'{n}. {title}')}) |\n" for n, title, page, _ in records()]
    return "| | decision |\n|---|---|\n" + "".join(rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_what_exists(name: str) -> None:
    page = ROOT / name
    text = page.read_text("utf-8")
    assert dead_links(text, page) == []
    assert unknown_commands(text) == []
    assert page == HISTORY or unknown_paths(text, page) == []
    assert unknown_tests(text) == []
    assert unknown_metrics(text) == []
    assert unknown_flags(text) == []
    assert unknown_errors(text) == []
    assert unknown_events(text) == []


def test_each_check_finds_what_does_not_exist() -> None:
    page = ROOT / "README.md"
    assert dead_links("[a](no.md) [b](README.md#no) [c](#no) [d](https://a.b/c) [e](LICENSE)", page) == [
        "no.md",
        "README.md#no",
        "#no",
    ]
    assert unknown_commands("python -m ops.no, python -m proxy.wire, python -m no.no, python -m proxy") == [
        "ops.no",
        "proxy.wire",
    ]
    paths = "`proxy/no.py` `wire/sse.py` `ops/no/` `ops/docs/` `out/x.json`"
    assert unknown_paths(paths, page) == ["ops/no/", "proxy/no.py"]
    named = "`test_no.py`, `tests/test_docs.py`, `test_docs.py::test_a_page_…`, `test_docs.py::test_a_page`"
    assert unknown_tests(named) == ["test_no.py", "test_docs.py::test_a_page"]
    assert unknown_metrics("gateway_flights, gateway_no_such_total, job:gateway_x:y") == ["no_such_total"]
    assert unknown_flags("`--backend URL`, `--no-page`, `--beckend`, `--queue-timeouts`") == [
        "--beckend",
        "--queue-timeouts",
    ]
    assert unknown_errors("503 `queue_full`, 429 `queue_full`, 503 `other`") == ["429 queue_full"]
    assert unknown_events('{"msg":"engine up"} {"msg":"engine gone"}') == ["engine gone"]


def test_the_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert text.count(b"\n") <= MOST_LINES
    assert len(text) <= MOST_BYTES


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)\s#]+)", without_code(page.read_text("utf-8")))
        ahead += [(page.parent / target).resolve() for target in targets if not re.match(r"[a-z]+:", target)]
    assert [path.as_posix() for path in PAGES if path not in reached] == []


def test_a_decision_is_a_short_record_with_a_number_of_its_own() -> None:
    found = records()
    numbers = [number for number, *_ in found]
    assert len(numbers) > 150
    assert len(set(numbers)) == len(numbers)
    assert [title for _, title, _, lines in found if not 1 <= len(lines) <= MOST_RECORD_LINES] == []


def test_the_index_lists_every_decision() -> None:
    assert INDEX.read_text("utf-8").endswith("\n\n" + index_rows())


if __name__ == "__main__":
    head = INDEX.read_text("utf-8").partition("| | decision |\n")[0]
    INDEX.write_text(head + index_rows(), "utf-8")
