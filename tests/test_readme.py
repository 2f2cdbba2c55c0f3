"""The README says what the code does: its tables are made from the code, its commands are the ones that exist."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.config.settings import settings_table
from proxy.errors import Code

README = Path(__file__).parent.parent / "README.md"


def between(name: str) -> str:
    found = re.search(rf"<!-- {name}:[^\n]*-->\n(.*?)<!-- /{name} -->", README.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1].strip()


def errors_table() -> str:
    rows = ["| status | `code` | `type` |", "|---|---|---|"]
    rows += [f"| {code.status} | `{code.code}` | `{code.type}` |" for code in Code]
    return "\n".join(rows)


def test_the_table_of_settings_is_the_code_s() -> None:
    assert between("settings") == settings_table().strip()


def test_the_table_of_errors_is_the_code_s() -> None:
    assert between("errors") == errors_table()
