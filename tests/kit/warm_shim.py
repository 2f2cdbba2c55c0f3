"""The process that stands for a warm start (`tests.kit.warm`): `python -I -S warm_shim.py SOCKET WORDS...`."""

import json
import os
import resource
import signal
import socket
import sys

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


def main(path: str, *words: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until it is known whom they are for
    given = {
        "words": words,
        "env": dict(os.environ),
        "folder": os.getcwd(),
        "mask": os.umask(0),
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"x"], [0, 1, 2])
        server.sendall(json.dumps(given).encode() + b"\n")
        with server.makefile("rb") as lines:
            pid = int(lines.readline())
            for number in FORWARDED:
                signal.signal(number, lambda number, _: os.kill(pid, number))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            for fd in range(3):
                os.close(fd)
            code = int(lines.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
