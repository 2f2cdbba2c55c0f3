"""Owns hosts with addresses of their own, as network namespaces on one bridge, whose links can be cut and slowed.
Must not know what runs there. It needs root and iproute2; where they are missing, the test is skipped."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import CalledProcessError
from typing import Final

from tests.kit.missing import lacking
from tests.kit.patience import run_process

SECONDS: Final = 20.0  # for one command of iproute2
IPROUTE: Final = "apt-get install iproute2"


def _ip(*words: str) -> None:
    run_process(["ip", *words], check=True, capture_output=True, seconds=SECONDS)


class Host:
    """A network namespace. `within` begins a command that runs there."""

    def __init__(self, name: str, link: str, address: str) -> None:
        self.name = name
        self.address = address
        self.within = ("ip", "netns", "exec", name)
        self._link = link

    def cut(self) -> None:
        """Take its link down: what is sent there or from there is lost, without an error."""
        _ip("link", "set", self._link, "down")

    def join(self) -> None:
        _ip("link", "set", self._link, "up")

    def lose(self, address: str) -> None:
        """What it sends to that address is lost; what comes from there arrives."""
        _ip("-n", self.name, "route", "add", "blackhole", f"{address}/32")

    def find(self, address: str) -> None:
        _ip("-n", self.name, "route", "del", "blackhole", f"{address}/32")


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """So many hosts, and this machine among them at the first address of their network."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        lacking("root with iproute2", IPROUTE, in_ci=False)
    tag = secrets.token_hex(3)
    bridge, subnet = f"b{tag}", f"10.{64 + secrets.randbelow(60)}.{secrets.randbelow(250)}"
    hosts = [Host(f"gw{tag}{n}", f"v{tag}{n}", f"{subnet}.{n + 2}") for n in range(count)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
    except CalledProcessError:
        lacking("the right to make networks", IPROUTE, in_ci=False)
    try:
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for n, host in enumerate(hosts):
            _ip("netns", "add", host.name)
            _ip("link", "add", f"v{tag}{n}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", f"v{tag}{n}", "master", bridge, "up")
            for words in (("addr", "add", f"{host.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                _ip("-n", host.name, *words)
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            run_process(["ip", "netns", "del", host.name], capture_output=True, seconds=SECONDS)  # and its link
        run_process(["ip", "link", "del", bridge], capture_output=True, seconds=SECONDS)
