"""One name in DNS and the engines behind it, looked up by dnspython."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

PREFIX: Final = "dns+"
SECONDS: Final = 5.0  # for one question, its retries included
MAX_ADDRESSES: Final = 256
"""Engines of one name. Each costs a health check every few seconds, and connections."""
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]|\.(?=[A-Za-z0-9_])){0,252}")


class NameFailed(Exception):
    """A name could not be looked up, or what was found is not used. The text says why, for the log."""


class Found(NamedTuple):
    urls: tuple[str, ...]  # of the engines, sorted
    ttl: float  # seconds


def resolver_of_system() -> Resolver:
    """By the name servers and search domains of /etc/resolv.conf. Raises NameFailed."""
    # Imported here: without such an engine it costs no start-up time.
    from dns.asyncresolver import Resolver
    from dns.exception import DNSException

    try:
        return Resolver()
    except (DNSException, OSError) as e:
        raise NameFailed(f"/etc/resolv.conf: {e}") from None


class EngineName:
    """The engines behind a dns+http:// URL: one for each address, at the URL's port; or, where the name begins
    with an underscore, one for each SRV record of the lowest priority value, at the record's host and port."""

    def __init__(self, url: str, resolver: Callable[[], Resolver] = resolver_of_system) -> None:
        self.url = url
        parts = urlsplit(url.removeprefix(PREFIX))
        self._scheme, self._host, self._base = parts.scheme, parts.hostname or "", parts.path
        self._port = f":{parts.port}" if parts.port is not None else ""
        self._resolver = resolver
        self._known: dict[str, Found] = {}  # of each record type

    def __repr__(self) -> str:
        return f"<EngineName {self.url}>"

    async def look_up(self) -> Found:
        """Raises NameFailed; what was found before is still good then."""
        resolver = self._resolver()
        if self._host.startswith("_"):
            found = await self._ask(resolver, "SRV", self._services)
        else:
            found = await self._addresses(resolver)
        if len(found.urls) > MAX_ADDRESSES:
            raise NameFailed(f"{len(found.urls)} addresses, of at most {MAX_ADDRESSES}: not used")
        return found

    async def _addresses(self, resolver: Resolver) -> Found:
        """Of both families. Where one of them fails, its addresses of before are kept: a name server that cannot
        answer for AAAA is common."""
        answers = await asyncio.gather(
            self._ask(resolver, "A", self._hosts), self._ask(resolver, "AAAA", self._hosts), return_exceptions=True
        )
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        for answer in failed:
            if not isinstance(answer, NameFailed):
                raise answer
        if len(failed) == len(answers):
            raise failed[0]
        both = [
            self._known.get(family, Found((), 0.0)) if isinstance(answer, BaseException) else answer
            for family, answer in zip(("A", "AAAA"), answers, strict=True)
        ]
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        return Found(
            tuple(sorted({url for found in both for url in found.urls})), min(answer.ttl for answer in good)
        )

    async def _ask(self, resolver: Resolver, kind: str, urls_of: Callable[[Any], set[str]]) -> Found:
        from dns.exception import DNSException

        try:
            answer = await resolver.resolve(self._host, kind, search=True, lifetime=SECONDS)
            urls = urls_of(answer.rrset or ())
        except (DNSException, OSError, ValueError) as e:
            raise NameFailed(f"{kind}: {_words(e)}") from None
        found = Found(tuple(sorted(urls)), float(answer.chaining_result.minimum_ttl))
        self._known[kind] = found
        return found

    def _hosts(self, records: Any) -> set[str]:
        addresses = (record.address for record in records)
        return {self._engine(f"[{text}]" if ":" in text else text, self._port) for text in addresses}

    def _services(self, records: Any) -> set[str]:
        first = min((record.priority for record in records), default=0)
        targets = [
            (record.target.to_text(omit_final_dot=True), record.port)
            for record in records
            if record.priority == first
        ]
        if any(not _HOST.fullmatch(host) for host, _ in targets):
            raise ValueError("a target that is no host name")  # a name may hold any bytes, and becomes a label
        return {self._engine(host.lower(), f":{port}") for host, port in targets}

    def _engine(self, host: str, port: str) -> str:
        return f"{self._scheme}://{host}{port}{self._base}"


def _words(e: BaseException) -> str:
    """What went wrong, in a line: dnspython's errors begin with it."""
    from dns.exception import Timeout
    from dns.resolver import NXDOMAIN, NoAnswer, NoNameservers

    if isinstance(e, NXDOMAIN):
        return "no such name"
    if isinstance(e, NoAnswer):
        return "no record"
    if isinstance(e, Timeout):
        return "no answer from any name server"
    if isinstance(e, NoNameservers):
        return "every name server failed"
    return str(e)[:200] or type(e).__name__
