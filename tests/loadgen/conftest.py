"""What tests of the load generator share: a kernel that stamps what arrives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from loadgen.drive.capture.sockets import TimestampKeepAlive
from tests.kit.patience import Patience


@pytest.fixture(scope="session")
def stamping() -> Iterator[None]:
    """The kernel stamps what arrives. It begins when a work queue gets the CPU, on a busy machine later than
    `TimestampKeepAlive` waits, and goes on for as long as a socket of the machine asks for it."""
    waiting = Patience(10.0)
    with ExitStack() as stack:
        while not stack.enter_context(closing(TimestampKeepAlive())).stamping:
            assert waiting.step(), "the kernel stamps nothing"
        yield
