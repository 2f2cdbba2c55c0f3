"""The tables of settings and of errors in the documents are those of the code.
`python -m tests.test_readme` writes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.config.settings import settings_table
from proxy.errors import Code
from proxy.program import SAMPLE

DOCS = Path(__file__).parent.parent / "ops" / "docs"


def errors_table() -> str:
    rows = ["| status | `code` | `type` |", "|---|---|---|"]
    rows += [f"| {code.status} | `{code.code}` | `{code.type}` |" for code in Code]
    return "\n".join(rows)


TABLES = {"settings": settings_table, "errors": errors_table}
PAGES = {"settings": DOCS / "settings.md", "errors": DOCS / "api.md"}


def with_table(page: str, name: str) -> str:
    """The page with the table as the code has it, between its two comments."""
    place = re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(\n*<!-- /{name} -->)", re.DOTALL)
    assert len(place.findall(page)) == 1, f"no place for the table of {name}"
    return place.sub(lambda found: found[1] + TABLES[name]().strip() + found[2], page)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_code_s(name: str) -> None:
    page = PAGES[name].read_text("utf-8")
    assert page == with_table(page, name)


@pytest.mark.parametrize("name", TABLES)
def test_a_row_that_is_not_the_code_s_is_found(name: str) -> None:
    page = PAGES[name].read_text("utf-8")
    without = page.replace(TABLES[name]().splitlines()[-1], "| other |", 1)
    assert without != page == with_table(without, name)


def test_the_readme_shows_the_line_that_the_gateway_prints() -> None:
    line = SAMPLE.format(url="http://127.0.0.1:8080", key="", model="smollm2")
    assert line.startswith("curl -iN ")
    assert f"```sh\n{line}\n```" in (DOCS.parent.parent / "README.md").read_text("utf-8")


if __name__ == "__main__":
    for name, page in PAGES.items():
        page.write_text(with_table(page.read_text("utf-8"), name), "utf-8")
