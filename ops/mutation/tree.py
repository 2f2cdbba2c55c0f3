"""The copy of the tree in which mutants are tried; the checkout is never written to. Child processes of a test run
in the copy too. Compiled modules are checked by a hash of their source, as two mutants may have the same second
and size."""

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
