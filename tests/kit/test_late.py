"""A late module runs once, at its first use, and is what a later import finds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.kit.late import late


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
