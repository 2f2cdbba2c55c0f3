"""Owns the copy of the tree in which mutants live; the checkout is never written to.
Must not know mutants or tests. A child process that a test starts runs in the copy as well: its modules are those
of its working directory. Called by __main__.py."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".tox", ".venv", "venv", "out", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutation-", ignore_cleanup_errors=True) as place:
        copy = Path(place, "tree").resolve()
        shutil.copytree(root, copy, ignore=LEFT_OUT)
        (copy / "out").mkdir()
        yield copy
