"""Owns what a peer is to the benchmark, and the versions that were verified.
Must not know any one peer, nor how it is measured.
Called by the drivers beside it, by the benchmark's main and by `check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from ops.bench.subjects import Command

__all__ = ["PINS", "Command", "InstallError", "Peer"]

# What the README's table was measured with. Requirements of the requirements float, as in any plain install,
# but for those named here. Debian removes old revisions: where one is gone, what Debian offers is taken, and said.
PINS: Final[Mapping[str, str]] = {
    "nginx": "1.22.1-9+deb12u11",
    "haproxy": "2.6.12-1+deb12u4",
    "vllm-router": "0.1.17",
    "sglang-router": "0.3.2",
    "smg": "1.13.0",
    "litellm": "1.106.2",  # later ones pin a litellm-proxy-extras that the index did not have
    "@portkey-ai/gateway": "1.15.2",
    # The newest of both (hono 4.13.19, node-server 1.19.19) answer every stream with HTTP 500, "TypeError:
    # immutable". These two are the lowest that the gateway's own ranges allow.
    "hono": "4.9.7",
    "@hono/node-server": "1.3.3",
}


class InstallError(Exception):
    """A peer could not be installed, or is not; the message says what would help."""


class Peer(Protocol):
    """One program between client and engine: one worker process, set as a good operator would for speed."""

    @property
    def name(self) -> str: ...

    @property
    def ready(self) -> str:
        """Path polled until it answers 200."""

    @property
    def reserialises(self) -> bool:
        """It writes the JSON anew: the answer's text is compared, not its bytes."""

    def install(self, home: Path) -> None:
        """Into a folder of its own under `home`; at once where that is done. Raises InstallError."""

    def version(self, home: Path) -> str:
        """What is installed, for the table. Raises InstallError where nothing is."""

    def command(self, home: Path, work: Path, port: int, engine: str) -> Command:
        """How to run it on 127.0.0.1:`port` in front of `engine` (`http://127.0.0.1:N`); its configuration is
        written into `work`, an existing folder. Raises InstallError where it is not installed."""

    def headers(self, engine: str) -> dict[str, str]:
        """What its clients must send besides HTTP's own; Portkey is told the engine by each request."""
