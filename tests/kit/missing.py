"""Skips of tests whose tools are not installed: every reason ends with the command that installs them."""

from __future__ import annotations

import os
import re
from typing import Any, Final, NoReturn

import pytest

CHROMIUM: Final = "apt-get install chromium"
OPENSSL: Final = "apt-get install openssl"
PROMETHEUS: Final = "apt-get install --no-install-recommends prometheus"
REDIS_WITH_TLS: Final = "apt-get install redis-server"
SYSTEMD: Final = "apt-get install --no-install-recommends systemd"
NODE: Final = "apt-get install nodejs"
KUBECTL: Final = "apt-get install kubernetes-client"
CLIENTS_OF_NODE: Final = "python -m ops.clients --install"
TASKSET: Final = "apt-get install util-linux"

COMMAND: Final = re.compile(
    r"(pip install -e '\.\[\w+(,\w+)*\]'|apt-get install [a-z0-9 -]+|python ops/vllm\.py install .+|"
    r"python -m ops\.clients --install|"
    r"([A-Z_]+=\S+ )?python -m pytest .+)"
)


def extra(*names: str) -> str:
    """The command that installs extras of setup.cfg."""
    return f"pip install -e '.[{','.join(names)}]'"


def reason(what: str, command: str) -> str:
    """The reason of a skip. Raises ValueError where `command` is none."""
    if not COMMAND.fullmatch(command):
        raise ValueError(f"{command!r} is not a command")
    return f"{what} is missing: {command}"


def lacking(what: str, command: str, *, in_ci: bool = True) -> NoReturn:
    """Skip the running test. In CI it fails instead, unless `in_ci` is false: CI may be unable to install it."""
    if in_ci and os.environ.get("CI"):
        pytest.fail(reason(what, command))
    pytest.skip(reason(what, command))


def needs(present: object, what: str, command: str) -> pytest.MarkDecorator:
    """A decorator: skip the test where `present` is false, in CI too."""
    return pytest.mark.skipif(not present, reason=reason(what, command))


def module(name: str, of_extra: str) -> Any:
    """The module, imported; where it is missing, the test or the whole file is skipped."""
    return pytest.importorskip(name, reason=reason(name, extra(of_extra)))
