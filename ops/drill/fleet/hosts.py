"""Hosts of their own for a drill's processes: network namespaces on one bridge. A link is taken down, or packets
of one direction are lost without an error. It needs root and iproute2."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

SECONDS: Final = 20.0  # for one command of iproute2


class NoNetworks(Exception):
    """This machine, or its user, makes no networks. The text says why."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=SECONDS)


@dataclass(frozen=True)
class Host:
    """A network namespace. `within` begins a command that runs there. With no name it is this machine, by one of
    its addresses, and nothing can be cut."""

    address: str
    name: str = ""
    link: str = ""

    @property
    def within(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name) if self.name else ()

    def cut(self) -> None:
        """Take its link down: what is sent there or from there is lost, without an error."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        _ip("link", "set", self.link, "up")

    def drop(self, sender: Host) -> None:
        """Lose what `sender` sends here; the other direction is as before."""
        _ip("-n", self.name, "rule", "add", "pref", "100", "from", sender.address, "blackhole")

    def take(self, sender: Host) -> None:
        """End `drop`."""
        _ip("-n", self.name, "rule", "del", "pref", "100", "from", sender.address)


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """So many hosts, and this machine among them at the first address of their network. Raises NoNetworks."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise NoNetworks("it needs root, and iproute2")
    tag = secrets.token_hex(3)
    bridge, subnet = f"b{tag}", f"10.{64 + secrets.randbelow(60)}.{secrets.randbelow(250)}"
    hosts = [Host(f"{subnet}.{n + 2}", f"gw{tag}{n}", f"v{tag}{n}") for n in range(count)]
    try:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            for host in hosts:
                _ip("netns", "add", host.name)
        except subprocess.CalledProcessError as e:
            raise NoNetworks(e.stderr.decode().strip()) from None
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in hosts:
            _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.link, "master", bridge, "up")
            for words in (
                ("addr", "add", f"{host.address}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
                ("rule", "add", "pref", "200", "lookup", "local"),  # behind the rules of `drop`
                ("rule", "del", "pref", "0"),
            ):
                _ip("-n", host.name, *words)
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, timeout=SECONDS)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True, timeout=SECONDS)
