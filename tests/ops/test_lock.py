"""The lock file of the image: every requirement of setup.cfg, pinned with hashes, and no local path."""

from __future__ import annotations

import configparser
import re

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.ops.dockerfile import DOCKERFILE
from tests.ops.kit import ROOT

LOCK = (ROOT / "ops/requirements.lock").read_text()
PIN = re.compile(
    r"^([a-z0-9._-]+)==([^ ;\\]+)( ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def pins(text: str = LOCK) -> dict[str, Version]:
    return {canonicalize_name(name): Version(version) for name, version, _, _ in PIN.findall(text)}


def wanted() -> list[Requirement]:
    """The requirements of setup.cfg with the image's extra, and the build requirements."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    built = (ROOT / "ops/requirements.in").read_text()
    lines = [config["options"]["install_requires"], config["options.extras_require"]["deny"], built]
    return [Requirement(line) for text in lines for line in text.splitlines() if line and not line.startswith("#")]


def behind(found: dict[str, Version]) -> list[str]:
    return [
        str(one)
        for one in wanted()
        if (version := found.get(canonicalize_name(one.name))) is None or version not in one.specifier
    ]


def test_the_lock_is_in_step_with_setup_cfg() -> None:
    assert len(wanted()) > 8
    assert behind(pins()) == [], "make it again: tox -e lock"
    assert behind(pins() | {"aiohttp": Version("3.0")}) == ["aiohttp<3.15,>=3.14.5"]
    assert behind({name: version for name, version in pins().items() if name != "msgspec"}) == ["msgspec>=0.20"]


def test_every_line_is_a_pin_with_hashes_and_names_no_host() -> None:
    rest = PIN.sub("", LOCK)
    assert [line for line in rest.splitlines() if line and not line.lstrip().startswith("#")] == []
    assert "://" not in LOCK
    assert "--index" not in LOCK
    assert "--find-links" not in LOCK


def test_the_image_installs_nothing_but_the_lock_and_the_gateway() -> None:
    installs = re.findall(r"pip install (.*?)(?: && |\n(?!\s)|$)", DOCKERFILE.replace("\\\n", ""), re.DOTALL)
    assert len(installs) == 3
    for words in installs:
        assert "--require-hashes" in words or ("--no-deps" in words and "--no-build-isolation" in words), words
