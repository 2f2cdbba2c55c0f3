"""Owns finding the programs that these tests need and a laptop may lack.
Must not know what they are for.
Called by the tests of ops/. In CI a missing one is a failure: there a skipped test would be believed."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {"prometheus": "prometheus", "promtool": "prometheus"}


def binary(name: str) -> str:
    """Its path. Skips the test where it is missing, with what to install; in CI it fails."""
    found = shutil.which(name)
    if found is not None:
        return found
    why = f"{name} is missing: apt-get install --no-install-recommends {PACKAGES[name]}"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
