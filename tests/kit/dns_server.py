"""Owns a DNS server on loopback whose records a test changes; it answers over UDP, by dnspython's messages.
Must not know what a test checks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from dns.asyncresolver import Resolver


class DnsServer(asyncio.DatagramProtocol):
    """`records` by (name, type), as zone-file texts. `silent` answers nothing; `rcode` other than NOERROR fails
    every question, or those of the types in `failing`."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl = 0
        self.silent = False
        self.rcode = dns.rcode.NOERROR
        self.failing: set[str] = set()
        self.asked: Counter[str] = Counter()  # by type
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    @property
    def port(self) -> int:
        assert self._transport is not None
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    def resolver(self) -> Resolver:
        """A resolver that asks this server alone."""
        resolver = Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        return resolver

    def set(self, name: str, kind: str, *texts: str) -> None:
        self.records[name, kind] = list(texts)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked[kind] += 1
        if self.silent or self._transport is None:
            return
        reply = dns.message.make_response(query)
        texts = self.records.get((name, kind))
        if self.rcode or kind in self.failing:
            reply.set_rcode(self.rcode or dns.rcode.SERVFAIL)
        elif texts:
            reply.answer.append(dns.rrset.from_text_list(question.name, self.ttl, "IN", kind, texts))
        elif not any(known == name for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(reply.to_wire(max_size=65535), addr)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@asynccontextmanager
async def dns_server(make: Callable[[], DnsServer] = DnsServer) -> AsyncIterator[DnsServer]:
    loop = asyncio.get_running_loop()
    _, server = await loop.create_datagram_endpoint(make, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        server.close()
