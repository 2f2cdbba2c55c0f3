"""The child process that parses large requests: jobs in over a socket, results out, one after the other. It
keeps nothing between two jobs but its terms. Run as `python -m proxy.server.offload.child PARENT_PID`, the
socket as its stdin."""

from __future__ import annotations

import gc
import resource
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from proxy.access import (
    ApiRequestJob,
    EmbedsChatJob,
    Found,
    Job,
    PageJob,
    RawJob,
    Refusal,
    Terms,
    TextsJob,
    read_api_request,
    read_raw,
    refusal,
)
from proxy.access.denylist import DenyList, denied_in_body, read_deny_list
from proxy.embedded.launch import tie
from proxy.errors import Code, GatewayError, place_of
from proxy.flights import Keyer, available, hash_of_cpu
from proxy.server.page.prompt import wanted
from proxy.wire import embeds_chat, unchunks
from proxy.wire.fold import Unfoldable, fold

LEAST: Final = 512 << 20
MOST: Final = 3 << 30
"""Bytes of memory that it may take: a quarter of what there is, between these. A body of 16 MiB of text takes some
200 MiB, one of nothing but brackets 1 GiB as objects."""
HEADER: Final = struct.Struct("<II")  # bytes of the head, and of the body that follows it
_JOB: Final = msgspec.msgpack.Decoder(Terms | Job)
_ENCODE: Final = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Reader:
    """Does the jobs."""

    keyer: Keyer = field(default_factory=lambda: Keyer(hash_of_cpu()))
    terms: Terms | None = None
    deny: DenyList | None = None

    def take(self, terms: Terms) -> None:
        """Terms for all that follows."""
        self.terms = terms
        self.deny = None if terms.deny is None else read_deny_list(terms.deny, "the deny list")

    def do(self, job: Job, body: bytes) -> tuple[Found, bytes]:
        """One job. An error that its client may see is data; any other is a fault of ours, told as such."""
        assert self.terms is not None
        try:
            if isinstance(job, ApiRequestJob):
                return read_api_request(job, body, self.terms, self.deny, self.keyer)
            if isinstance(job, RawJob):
                return read_raw(job, body, self.terms, self.deny)
            if isinstance(job, PageJob):
                return self._page(job, body, self.terms)
            if isinstance(job, TextsJob):
                return Found(denied=(self.deny and denied_in_body(self.deny, body)) or 0), b""
            if isinstance(job, EmbedsChatJob):
                return Found(embeds_chat=embeds_chat(body)), b""
            return Found(), fold(unchunks(body), job.endpoint, forced_tool=job.forced_tool, shape=job.shape)
        except GatewayError as e:
            return Found(refusal=refusal(e)), b""
        except Unfoldable as e:
            return Found(refusal=Refusal(Code.INTERNAL.name, str(e)[:200])), b""
        except MemoryError:
            words = "This request needs more memory to parse than is available; send fewer parts."
            return Found(refusal=Refusal(Code.LOCAL_RESOURCES.name, words)), b""
        except Exception as e:  # noqa: BLE001 - one request's fault is told to the parent, the next is served
            words = "Internal error of the gateway; see its log."
            return Found(
                refusal=Refusal(Code.INTERNAL.name, words), fault=f"{type(e).__name__} at {place_of(e)}"
            ), b""

    def _page(self, job: PageJob, body: bytes, terms: Terms) -> tuple[Found, bytes]:
        asked = wanted(body)
        request = bytes(asked.request)
        found, sent = read_api_request(job.api_request, request, terms, self.deny, self.keyer)
        return msgspec.structs.replace(found, delays=asked.delays_ms), sent or request


def serve(sock: socket.socket, reader: Reader) -> None:
    """Until the other side is gone."""
    while header := _exactly(sock, HEADER.size):
        head, body = (_exactly(sock, size) for size in HEADER.unpack(header))
        job = _JOB.decode(head)
        if isinstance(job, Terms):
            reader.take(job)
            continue
        found, sent = reader.do(job, body)
        answer = _ENCODE(found)
        sock.sendall(HEADER.pack(len(answer), len(sent)) + answer)
        sock.sendall(sent)
        del job, body, found, sent, answer
        gc.collect()  # it is off while a job is done: it would look at every object again and again


def _exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; none where the other side is gone."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        got = sock.recv_into(view[at:])
        if not got:
            return b""
        at += got
    view.release()
    return bytes(data)


def main() -> None:
    tie(int(sys.argv[1]))
    memory = max(LEAST, min(MOST, available() // 4))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this goes before the gateway
    gc.disable()
    with socket.socket(fileno=0) as sock:
        serve(sock, Reader())


if __name__ == "__main__":
    main()
