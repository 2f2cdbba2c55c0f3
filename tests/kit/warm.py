"""Owns starting a program of ours without importing it again, which is half a second of CPU time for each start.
A server, one for this process, imports the program's modules once and forks for each start. The command of a start
is `warm_shim.py`: it hands its descriptors, environment, folder, limit of descriptors and signals to the fork, and
ends as the fork ends. Must not know which programs there are.
Called by helpers that start a program many times; a start that is itself on trial stays `python -m`."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

SHIM: Final = Path(__file__).with_name("warm_shim.py")
AT_START: Final = ("PYTHON", "LC_", "LANG", "AIOHTTP")
"""Variables that an interpreter, or a module at its import, reads: a start with others is a cold one."""


def warm(program: str, *words: str, preload: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
    """The command `python -m PROGRAM WORDS`. `preload`: modules that the program imports late; `without`: modules
    that are not installed for it."""
    path = _server(program, tuple(preload), tuple(without), os.getpid())
    return [sys.executable, "-I", "-S", str(SHIM), path, *words]


@functools.cache
def _server(program: str, preload: tuple[str, ...], without: tuple[str, ...], pid: int) -> str:
    """The socket of a server that ends with this process; a fork of this process has its own."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    path = f"{folder.name}/s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.warm", str(listening.fileno()), program]
            + [f"+{name}" for name in preload]
            + [f"-{name}" for name in without],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )

    def end() -> None:
        if os.getpid() == pid:
            server.communicate()
            folder.cleanup()

    atexit.register(end)
    return path


# The server


def main(fd: str, program: str, *changes: str) -> None:
    """Returns in a fork, which then runs the program; in the server never."""
    for change in changes:
        if change[0] == "-":
            sys.modules[change[1:]] = None  # type: ignore[assignment]
    for change in changes:
        if change[0] == "+":
            importlib.import_module(change[1:])
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(fileno=int(fd)) as listening:
        poll = select.poll()
        poll.register(sys.stdin, select.POLLIN)
        poll.register(listening, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if sys.stdin.fileno() in ready:
                os._exit(0)
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    listening.close()
                    _keep(connection, program)
                    return


def _keep(connection: socket.socket, program: str) -> None:
    """Fork the start, tell its pid and how it ends; returns in the fork. A shim that is gone kills it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, fds, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as lines:
        given = json.loads(lines.readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(given, fds, program)
        return
    for fd in fds:
        os.close(fd)
    connection.sendall(b"%d\n" % pid)
    poll = select.poll()
    ended = os.pidfd_open(pid)
    poll.register(ended, select.POLLIN)
    poll.register(connection, select.POLLIN)
    if ended not in {fd for fd, _ in poll.poll()}:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    try:
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    except OSError:
        pass  # the shim is gone
    os._exit(0)


def _become(given: dict[str, Any], fds: Sequence[int], program: str) -> None:
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, given["descriptors"])
    os.chdir(given["folder"])
    os.umask(given["mask"])
    before, now = ({k: v for k, v in one.items() if k.startswith(AT_START)} for one in (os.environ, given["env"]))
    sys.argv = ["-m", *given["words"]]
    if before != now:
        os.execve(sys.executable, [sys.executable, "-m", program, *given["words"]], given["env"])
    os.environ.clear()
    os.environ.update(given["env"])
    sys.path[0] = given["folder"]


if __name__ == "__main__":
    name = sys.argv[2]
    main(*sys.argv[1:])
    runpy.run_module(name, run_name="__main__", alter_sys=True)
