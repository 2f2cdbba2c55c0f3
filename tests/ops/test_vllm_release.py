"""A vLLM release without a CPU build: its Python on the kernels of a release that has one, installed once."""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from pathlib import Path

import pytest

from ops import vllm

RELEASE = "0.33.0"


class MadeUp(vllm.Installation):
    """Installed already, and of an index that has one wheel."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.asked: list[tuple[str, ...]] = []
        site = home / "venv" / "lib" / "python3.11" / "site-packages" / "vllm"
        site.mkdir(parents=True)
        (home / "install.lock").touch()
        for name in ("_C.abi3.so", "_C_AVX512.abi3.so", "spinloop.abi3.so"):
            (site / name).write_text("cpu")

    def ensure(self) -> None:
        pass

    def _pip(self, what: str, *arguments: str) -> None:
        self.asked.append(arguments)
        if arguments[0] == "download":
            wheels = self.home / "wheels"
            wheels.mkdir()
            with zipfile.ZipFile(wheels / f"vllm-{RELEASE}-cp38-abi3-linux.whl", "w") as wheel:
                for name in ("vllm/__init__.py", "vllm/_C.abi3.so", "vllm/deep/x.abi3.so", "vllm/deep/y.py"):
                    wheel.writestr(name, "gpu")
                wheel.writestr(f"vllm-{RELEASE}.dist-info/METADATA", "Version: of a GPU")

    def _python(self, what: str, program: str, *arguments: str) -> None:
        self.asked.append((program,))


def test_its_python_lies_over_the_kernels_of_the_cpu_and_is_made_once(tmp_path: Path) -> None:
    made = MadeUp(tmp_path / "home")
    folder = made.ensure_later(RELEASE)
    there = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    stamp = there.pop("stamp")
    metadata = there.pop(f"vllm-{RELEASE}+cpu.dist-info/METADATA")
    assert there == {
        "vllm/__init__.py": "gpu",
        "vllm/deep/y.py": "gpu",
        "vllm/_C.abi3.so": "cpu",
        "vllm/_C_AVX512.abi3.so": "cpu",
    }
    assert f"Version: {RELEASE}+cpu" in metadata
    download, install, check = made.asked
    assert f"vllm=={RELEASE}" in download
    assert install[-2:] == (str(folder), *vllm.LATER[RELEASE])
    assert str(folder) in check[0]
    assert not (made.home / "wheels").exists()

    assert made.ensure_later(RELEASE) == folder
    assert len(made.asked) == 3
    (folder / "stamp").write_text(stamp + "another recipe")
    (folder / "vllm" / "left.py").touch()
    made.ensure_later(RELEASE)
    assert len(made.asked) == 6
    assert not (folder / "vllm" / "left.py").exists()


@pytest.mark.parametrize("release", [vllm.VLLM, RELEASE])
def test_a_served_release_is_found_before_the_environment_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    begun: list[tuple[list[str], dict[str, str]]] = []

    class Begun(Exception):
        pass

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        begun.append((command, environment))
        raise Begun

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    made = MadeUp(tmp_path / "home")
    given = argparse.Namespace(
        host="127.0.0.1", port=1, embed=False, bare=True, die_with_parent=False, release=release
    )
    with pytest.raises(Begun):
        vllm.serve(made, given, ["--x"])
    ((command, environment),) = begun
    assert environment.get("PYTHONPATH") == (str(made.home / f"vllm-{RELEASE}") if release == RELEASE else None)
    assert command[command.index("--model") + 1 :] == [str(made.chat_model), *vllm.COMMON_FLAGS.split(), "--x"]


def test_an_unknown_release_in_the_environment_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_RELEASE", "0.1")
    monkeypatch.setattr(sys, "argv", ["vllm.py", "install"])
    with pytest.raises(SystemExit) as stopped:
        vllm.main()
    assert stopped.value.code == 2
    assert "VLLM_RELEASE is 0.1; choose from 0.32.0, 0.33.0" in capsys.readouterr().err
