"""Owns hosts with addresses of their own for tests; where they cannot be had, the test is skipped.
Must not know what runs there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from ops.drill.fleet.hosts import Host, NoNetworks
from ops.drill.fleet.hosts import network as hosts
from tests.kit.missing import lacking

__all__ = ["Host", "network"]

IPROUTE: Final = "apt-get install iproute2"


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """So many hosts, and this machine among them at the first address of their network."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(hosts(count))
        except NoNetworks:
            lacking("root with iproute2", IPROUTE, in_ci=False)
        yield found
