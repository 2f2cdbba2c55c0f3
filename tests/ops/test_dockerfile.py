"""The image: linted by hadolint, and its commands run as plain processes, since there is no Docker here."""

from __future__ import annotations

import fnmatch
import json
import re
import sys
from pathlib import Path

import pytest

from tests.kit.engine import Engine
from tests.kit.running import gateway
from tests.ops.dockerfile import DOCKERFILE, copied, environment, health_command, last_stage, only
from tests.ops.kit import ROOT, check_config, grace_is_enough, refusal, run, to_the_end, tool


def ignored(path: str, rules: str) -> bool:
    """Whether .dockerignore excludes a path: the last matching rule decides."""
    verdict = False
    for line in rules.splitlines():
        rule = line.strip()
        if rule and not rule.startswith("#"):
            keep, pattern = rule.startswith("!"), rule.lstrip("!").removeprefix("**/")
            parts = [path, *(str(parent) for parent in Path(path).parents if str(parent) != "."), Path(path).name]
            if any(fnmatch.fnmatch(part, pattern) for part in parts):
                verdict = not keep
    return verdict


def linted(text: str, folder: Path) -> str:
    (folder / "Dockerfile").write_text(text)
    done = run(tool("hadolint"), "--no-color", folder / "Dockerfile")
    assert (done.code == 0) == (done.said == ""), done
    return done.said


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    assert linted(DOCKERFILE, tmp_path) == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("FROM python:${PYTHON}\n", "FROM python:latest\n", "DL3007"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ('ENTRYPOINT ["python", "-m", "proxy"]', "ENTRYPOINT python -m proxy", "DL3025"),
        ("USER 10001", "USER root", "DL3002"),
    ],
)
def test_hadolint_catches(old: str, new: str, rule: str, tmp_path: Path) -> None:
    assert DOCKERFILE.count(old) == 1
    assert rule in linted(DOCKERFILE.replace(old, new), tmp_path)


def test_what_it_copies_is_there_and_goes_to_the_builder_and_nothing_else_does() -> None:
    rules = (ROOT / ".dockerignore").read_text()
    sources = copied(DOCKERFILE)
    assert "proxy" in sources
    assert [name for name in sources if not (ROOT / name).exists() or ignored(name, rules)] == []
    assert not ignored("proxy/app.py", rules)
    for private in (".git", "ops/.env", ".env", "keys.toml", "tests", "proxy/__pycache__"):
        assert ignored(private, rules), private


async def test_its_health_check_follows_the_gateway_it_is_run_beside(engine: Engine) -> None:
    command, env = health_command(), environment()
    assert command[0] == "python"
    async with gateway(engine, host="0.0.0.0") as app:
        env["GATEWAY_PORT"] = str(app.port)
        alive = await to_the_end(sys.executable, *command[1:], env=env)
    dead = await to_the_end(sys.executable, *command[1:], env=env)
    assert (alive.code, dead.code) == (0, 1), (alive, dead)


def test_its_entrypoint_takes_its_environment_and_the_engine_that_is_named() -> None:
    argv = json.loads(only("ENTRYPOINT")) + json.loads(only("CMD"))
    named = environment() | {"GATEWAY_BACKENDS": "http://vllm:8000"}
    done = check_config(argv, named)
    assert done.code == 0, done.err
    assert '\nhost = "0.0.0.0"\nport = 8080\n' in done.out
    assert '\nbackends = ["http://vllm:8000"]\n' in done.out
    assert 'redis = "off"' in done.out
    found = re.search(r"docker stop.*`-t (\d+)`", DOCKERFILE)
    assert found is not None
    assert grace_is_enough(int(found[1]), done.out)
    assert not grace_is_enough(25, done.out)
    assert "GATEWAY_PORT" in refusal(named | {"GATEWAY_PORT": "http"})


def test_it_runs_as_nobody_and_is_told_to_stop_so_that_it_drains() -> None:
    assert only("USER") == "10001"
    assert only("STOPSIGNAL") == "SIGTERM"
    assert [rest for word, rest in last_stage(DOCKERFILE) if word == "EXPOSE"] == [environment()["GATEWAY_PORT"]]
