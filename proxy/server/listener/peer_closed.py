"""Whether the client has closed a connection that is not being read: unread bytes hide the end from the loop."""

from __future__ import annotations

import select
import socket
from typing import Final, Literal

_HALF: Final = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere only the end of both directions is seen

Closed = Literal["half", "whole"]
"""The client sends no more; or it does not read either, or has reset the connection."""


def peer_closed(sock: socket.socket | None) -> Closed | None:
    """What the client has closed. Takes no byte from the socket; for TCP and Unix sockets."""
    fd = sock.fileno() if sock is not None else -1
    if fd < 0:
        return None
    poll = select.poll()
    poll.register(fd, _HALF)
    for _, events in poll.poll(0):
        if events & (select.POLLHUP | select.POLLERR):
            return "whole"
        if events & _HALF:
            return "half"
    return None
