"""Lines of several processes on one descriptor: each whole, none lost."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from proxy.workers.log_relay import LogRelay


def test_lines_are_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as out:
        relay = LogRelay(out.fileno())
        writers = [relay.pipe() for _ in range(3)]

        def write(number: int, fd: int) -> None:
            line = (f"{number}" * 30_000 + "\n").encode()  # more than a pipe takes at once
            for _ in range(20):
                view = memoryview(line)
                while view:
                    view = view[os.write(fd, view) :]
            os.close(fd)

        threads = [threading.Thread(target=write, args=each) for each in enumerate(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        relay.join(60.0)
    lines = path.read_text().splitlines()
    assert len(lines) == 60
    assert all(len(line) == 30_000 and len(set(line)) == 1 for line in lines)


def test_the_last_line_of_a_process_that_died_in_it_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as out:
        relay = LogRelay(out.fileno())
        fd = relay.pipe()
        os.write(fd, b"whole\nhal")
        os.close(fd)
        relay.join(60.0)
    assert path.read_bytes() == b"whole\nhal\n"


def test_where_nobody_reads_the_log_any_more_the_relay_ends() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    relay = LogRelay(writing)
    fd = relay.pipe()
    os.write(fd, b"line\n")
    os.close(fd)
    relay.join(60.0)
    os.close(writing)
    assert not any(thread.is_alive() for thread in relay._threads)
