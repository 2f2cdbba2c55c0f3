"""The protocol by which access control reads a request under way and acts on it. The server's RequestContext
has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from multidict import CIMultiDictProxy

from proxy.access.caller import Caller
from proxy.errors import GatewayError
from proxy.wire import ApiRequest

if TYPE_CHECKING:  # the limiter reads a context too
    from proxy.access.ratelimit.limiter import Reservation


class ClientRequest(Protocol):
    """What access control reads of a client's request. The server's Request has it."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """The target's normal form, without the query."""

    @property
    def headers(self) -> CIMultiDictProxy[str]: ...

    @property
    def plain(self) -> bool:
        """None of its headers asks the gateway for anything."""

    @property
    def made(self) -> dict[str, Any] | None:
        """What has been made of its headers, for every request with the same ones; None: of this one alone."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """None: the client has left."""

    @property
    def protocol(self) -> Any:
        """The connection."""


class AccessContext(Protocol):
    """One request, from its head until it is closed."""

    @property
    def request(self) -> ClientRequest: ...

    @property
    def id(self) -> str: ...

    @property
    def endpoint(self) -> str: ...

    @property
    def model(self) -> str | None: ...

    @property
    def api_request(self) -> ApiRequest | None: ...

    @property
    def cost(self) -> tuple[int, int] | None:
        """Tokens of the prompt and of the completion, where they are known."""

    @property
    def caller(self) -> Caller | None:
        """None: no key was required."""

    @property
    def hold(self) -> Reservation | None:
        """Its part of the rate limits."""

    @property
    def ending(self) -> GatewayError | None:
        """Why it is ended early."""

    def identified(self, caller: Caller) -> None:
        """Authentication succeeded."""

    def reserves(self, reserve: Callable[[], Reservation | None]) -> Reservation | None:
        """Holds what `reserve` returns until it is closed."""

    def when_closed(self, forget: Callable[[], None]) -> None:
        """Call this when it is closed."""

    def cut(self, error: GatewayError) -> bool:
        """End it with this error. False: it is being ended already."""

    def whose(self) -> str:
        """The key's id, or the address of the connection's peer."""
