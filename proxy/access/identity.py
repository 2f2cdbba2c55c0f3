"""Authentication: from a request to its Caller, by API key or, without keys, by client address."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence

from proxy.access.api_keys import KeyRing
from proxy.access.caller import Caller
from proxy.access.client_ip import UNIX, TrustedProxies, client_address
from proxy.access.context import ClientRequest
from proxy.errors import Code, GatewayError
from proxy.wire.event_apis import is_messages

MAX_KEY = 512  # characters; no key is longer


class Authenticator:
    """Knows callers. `ring` is another when the keys file is read again; None: no keys are asked for."""

    def __init__(
        self,
        ring: KeyRing | None,
        trusted: TrustedProxies,
        source: Callable[[ClientRequest], str] = lambda request: "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`source`: the client's address in a PROXY protocol header; empty without one."""
        self.ring = ring
        self._source = source
        self._trusted = trusted
        self._clock = clock  # keys expire by the wall's

    def __repr__(self) -> str:
        return f"<Identity by {self.ring!r}>" if self.ring is not None else "<Identity by address>"

    def renew(self, ring: KeyRing) -> None:
        """Replace the keys."""
        self.ring = ring

    def name_of(self, tenant: bytes) -> str:
        """A key's name, by its tenant, for people."""
        return self.ring.name_of(tenant) if self.ring is not None else "a key that was removed"

    def identify(self, request: ClientRequest) -> Caller:
        """The request's caller. Raises GatewayError 401 for a missing or wrong key."""
        if self.ring is None:
            return Caller(id=self.address(request), tenant=tenant(request))
        headers = request.headers
        given: Sequence[str] = headers.getall("authorization", ())
        if "x-api-key" in headers:
            given = _one_key(given, headers.getall("x-api-key"), strict=is_messages(request.path))
        if not given:
            raise GatewayError(
                Code.INVALID_API_KEY,
                "You didn't provide an API key: send it as Authorization: Bearer YOUR_KEY or x-api-key: YOUR_KEY.",
            )
        scheme, _, key = given[0].partition(" ")
        key = key.strip()
        caller = self.ring.find(key) if key and len(key) <= MAX_KEY else None
        if len(given) > 1 or scheme.lower() != "bearer" or caller is None:
            raise GatewayError(Code.INVALID_API_KEY, "Incorrect API key provided.")
        if caller.expires <= self._clock():
            raise expired()
        return caller

    def ended(self, caller: Caller, *, operating: bool = False) -> GatewayError | None:
        """The error where a key that was valid is not any more, else None. `operating`: as an operator's key."""
        now = self.ring.get(caller.id) if self.ring is not None else caller
        if now is None or (operating and not now.operator):
            return GatewayError(Code.KEY_REVOKED, "This API key has been revoked.")
        return expired() if now.expires <= self._clock() else None

    def address(self, request: ClientRequest) -> str:
        """The client's address; `unix` for one through a Unix socket. That of the socket, unless a balancer told
        another by the PROXY protocol; from there on X-Forwarded-For is walked alike."""
        name = self._source(request)
        if not name:
            peer = request.transport.get_extra_info("peername") if request.transport is not None else None
            name = str(peer[0]) if isinstance(peer, tuple) and peer else UNIX
        return client_address(name, request.headers.getall("x-forwarded-for", ()), self._trusted)


def expired() -> GatewayError:
    return GatewayError(Code.KEY_EXPIRED, "This API key has expired.")


def _one_key(bearers: Sequence[str], keys: Sequence[str], *, strict: bool) -> Sequence[str]:
    """The values of Authorization that both headers come to. Authorization wins; with `strict` both must have the
    same key: Anthropic's clients send both where two variables are set. Raises GatewayError 401."""
    shown = {key.strip() for key in keys} - {""}  # some clients send an empty x-api-key
    if strict and bearers and shown - {bearers[0].partition(" ")[2].strip()}:
        raise GatewayError(
            Code.INVALID_API_KEY, "Authorization and x-api-key hold different API keys: send one of the two."
        )
    return bearers or [f"Bearer {key}" for key in shown]


def shows_credential(headers: Mapping[str, str]) -> bool:
    """Whether a request has a header that may hold an API key."""
    return "authorization" in headers or "x-api-key" in headers


def tenant(request: ClientRequest) -> bytes:
    """The tenant, whose answers are shared with no other: without API keys, the hashed credential. Azure's clients
    send `api-key`."""
    headers = request.headers
    credential = headers.get("authorization")
    for name in ("x-api-key", "api-key"):
        if headers.get(name):
            credential = f"{credential or 'Bearer'} {headers[name]}"
    return hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest() if credential else b""
