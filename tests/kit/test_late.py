"""A late module runs once, at its first use, and is what a later import finds."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.kit.late import late

TESTS = Path(__file__).parent.parent
AT_COLLECTION = re.compile(r"^(?:import|from) (?:openai|anthropic)\b", re.MULTILINE)


def test_a_module_runs_at_its_first_use_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from pathlib import Path\nPath(__file__ + '.ran').touch(exist_ok=False)\nX = 3\n"
    (tmp_path / "seldom_used.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    ran = tmp_path / "seldom_used.py.ran"
    try:
        module = late("seldom_used")
        assert late("seldom_used") is module
        assert not ran.exists()
        assert module.X == 3
        assert ran.exists()
        assert importlib.import_module("seldom_used") is module
    finally:
        sys.modules.pop("seldom_used", None)


def test_a_module_that_is_not_installed_is_told_at_once() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        late("no_such_module")


def test_no_test_file_imports_a_client_when_it_is_collected() -> None:
    assert AT_COLLECTION.search("import re\nfrom openai import OpenAI\n")
    assert not AT_COLLECTION.search("if TYPE_CHECKING:\n    import openai\n")
    found = [path for path in TESTS.rglob("*.py") if AT_COLLECTION.search(path.read_text("utf-8"))]
    assert found == []
