"""`--check-config` as a process: 0 with the settings, 2 with what is wrong; nothing is started."""

from __future__ import annotations

import asyncio
import os
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


async def checked(*flags: str, **env: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy", "--check-config", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **env},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_good_settings_are_printed_as_toml_with_secrets_left_out() -> None:
    code, out, err = await checked("--port", "9", GATEWAY_BACKEND_API_KEY="hunter2")
    assert (code, err) == (0, "")
    table = tomllib.loads(out)
    assert (table["port"], table["backends"]) == (9, [])
    assert "hunter2" not in out


async def test_bad_settings_and_files_end_with_2_and_their_lines(tmp_path: Path) -> None:
    (tmp_path / "deny").write_text("ok\nre: (\n")
    (tmp_path / "keys").write_text("[[keys]]\n")
    code, out, err = await checked("--deny-file", f"{tmp_path}/deny", "--api-keys-file", f"{tmp_path}/keys")
    assert (code, out) == (2, "")
    assert "deny:2: " in err
    assert "keys:1: " in err
    assert "Traceback" not in err
    code, out, err = await checked("--max-tokens-cap", "-1")
    assert (code, "--max-tokens-cap" in err) == (2, True)
