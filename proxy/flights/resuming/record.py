"""What Redis holds of a stream that clients may come back to: where it is published, and its request where another
gateway may continue it. What others wrote is data: anything but a record is none."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final

import msgspec

from proxy.flights.resuming.position import Seam
from proxy.wire import Endpoint

MOST_REQUEST: Final = 64 * 1024
"""Bytes of a request's body that goes to Redis; a stream of a larger one is not continued at another gateway."""


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A generation: its model (and the client's name for it), and its body where the answer would be the same
    again."""

    endpoint: Endpoint
    model: str | None
    asked_model: str | None
    body: bytes = b""  # empty: it cannot be continued


class Record(msgspec.Struct, frozen=True, array_like=True):
    claim: bytes
    fence: bytes
    request: Request
    usage: bool  # its client sees the usage
    usage_added: bool  # the gateway asked for it
    numbered: bool  # its client gets `id:` lines
    grace: Annotated[float, msgspec.Meta(ge=0)]  # seconds
    seams: tuple[Seam, ...] = ()

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)


def read_record(data: bytes | None) -> Record | None:
    """The record; None for anything that is none."""
    try:
        return None if data is None else msgspec.msgpack.decode(data, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError):
        return None


def hashed(tenant: bytes, name: str) -> bytes:
    """The name of a stream in Redis: it tells neither, and another tenant finds nothing by it."""
    digest = blake2b(b"%d:%b" % (len(tenant), tenant), digest_size=16)
    digest.update(name.encode("utf-8", "surrogateescape"))
    return digest.hexdigest().encode()
