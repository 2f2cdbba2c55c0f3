"""Words on stderr: whole where somebody reads them, and in nobody's way where nobody does."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

from proxy.terminal import hold_standard_files, say, visible


def fill(writer: int) -> None:
    """Until not one byte more fits; what is written next waits for a reader."""
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"x" * 65536):
            pass
    except BlockingIOError:
        pass
    try:
        while os.write(writer, b"x"):
            pass
    except BlockingIOError:
        pass
    os.set_blocking(writer, True)


def test_a_text_is_written_whole(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert say("héllo \udcff\n", wait=10, fd=writer)
    assert os.read(reader, 100) == "héllo \\udcff\n".encode()


def test_a_full_pipe_holds_nobody_up_and_gets_the_text_once_it_is_read(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    fill(writer)
    assert not say("later\n", fd=writer)
    assert not say("later\n", wait=0.01, fd=writer)
    data = b""
    while data.count(b"later\n") < 2:
        data += os.read(reader, 65536)


def test_a_pipe_that_someone_made_non_blocking_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    fill(writer)
    os.set_blocking(writer, False)
    assert not say("later\n", fd=writer)
    data = b""
    while not data.endswith(b"later\n"):
        data += os.read(reader, 65536)
    os.set_blocking(writer, True)


def test_nobody_to_read_it_is_no_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    assert say("x\n", wait=10, fd=writer)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_standard_file_that_is_closed_is_no_number_for_a_socket(closed: tuple[int, ...]) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFD, 0)
    code = (
        "import os, socket\n"
        "from proxy.terminal import hold_standard_files\n"
        "hold_standard_files()\n"
        f"os.write({writer}, b'%d' % (socket.socket().fileno() > 2))\n"
    )
    close = " ".join(f"{fd}>&-" for fd in closed)
    subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -c "$1" {close}', sys.executable, code], pass_fds=(writer,), check=True
    )
    os.close(writer)
    assert os.read(reader, 10) == b"1"
    os.close(reader)


def test_what_a_terminal_may_obey_is_written_out() -> None:
    assert visible("plain\ntext ~") == "plain\ntext ~"
    assert visible("caf\u00e9\ta\n") == "caf\u00e9\ta\n"
    assert visible("\x1b[2Jx\r\x00\x7f\u202e") == "\\x1b[2Jx\\r\\x00\\x7f\\u202e"
    assert visible("a\tb") == "a\tb"


def test_nothing_is_opened_where_the_standard_files_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    looked: list[int] = []

    def closed(fd: int) -> None:
        looked.append(fd)
        if fd != 1:
            raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda path, flags: opened.append(path))
        patch.setattr(os, "fstat", looked.append)
        hold_standard_files()
        patch.setattr(os, "fstat", closed)
        hold_standard_files()
    assert (looked, opened) == ([0, 1, 2] * 2, [os.devnull] * 2)
