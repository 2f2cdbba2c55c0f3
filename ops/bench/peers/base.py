"""The interface of a peer, and the versions that were verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from ops.bench.subjects import Command

__all__ = ["PINS", "Command", "InstallError", "Peer"]

# The versions of the published table. Indirect requirements are not pinned, except those named here. If Debian has
# removed a revision, the one it offers is installed, with a message.
PINS: Final[Mapping[str, str]] = {
    "nginx": "1.22.1-9+deb12u11",
    "haproxy": "2.6.12-1+deb12u4",
    "vllm-router": "0.1.17",
    "sglang-router": "0.3.2",
    "smg": "1.13.0",
    "litellm": "1.106.2",  # later ones require a litellm-proxy-extras that the index did not have
    "@portkey-ai/gateway": "1.15.2",
    # With the newest of both (hono 4.13.19, node-server 1.19.19) every stream fails with HTTP 500, "TypeError:
    # immutable". These are the lowest versions that Portkey's ranges allow.
    "hono": "4.9.7",
    "@hono/node-server": "1.3.3",
}


class InstallError(Exception):
    """A peer is not installed or could not be; the message says what to do."""


class Peer(Protocol):
    """A program between client and engine: one worker process, configured for speed."""

    @property
    def name(self) -> str: ...

    @property
    def ready(self) -> str:
        """The path that is polled until it returns 200."""

    @property
    def reserialises(self) -> bool:
        """Whether it re-serialises JSON: then text is compared, not bytes."""

    def install(self, home: Path) -> None:
        """Install into its own folder under `home`; returns at once if that is done. Raises InstallError."""

    def version(self, home: Path) -> str:
        """The installed version, for the table. Raises InstallError if there is none."""

    def command(self, home: Path, work: Path, port: int, engine: str) -> Command:
        """The command that runs it on 127.0.0.1:`port` in front of `engine` (`http://127.0.0.1:N`); its
        configuration is written into the folder `work`. Raises InstallError if it is not installed."""

    def headers(self, engine: str) -> dict[str, str]:
        """Additional headers of every request; Portkey gets the engine's address this way."""
