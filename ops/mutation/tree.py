"""Owns the copy of the tree in which mutants live; the checkout is never written to.
Must not know mutants or tests. A child process that a test starts runs in the copy as well. Compiled modules are
known by a hash of their source: a mutant of the same second and size is seen. Called by __main__.py."""

from __future__ import annotations

import compileall
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode
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
        compileall.compile_dir(copy, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        yield copy
