"""Finds the engine that keeps a response of OpenAI's Responses API. An engine keeps responses in its own memory,
so a request that refers to one has to go there. Engines know no tenants, so the gateway binds ids to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import quote

from proxy.access import Caller, ClientRequest, tenant_of
from proxy.access.ratelimit import Claim, Limit, Limits, LocalLimits
from proxy.errors import Code, GatewayError
from proxy.flights import Flight
from proxy.redis import ResponseAffinity, WireError
from proxy.server.context import RequestContext
from proxy.upstream import Backend, Backends
from proxy.wire.event_apis import LONGEST_ID, is_responses, response_named

ASK_SECONDS: Final = 2.0  # for an engine's answer to the question whether it has a response
ASKS: Final = Limits(Limit(20, 20), streams=8)
"""Such questions a second and at a time, of all clients."""
OWN_ASKS: Final = Limits(Limit(10, 10), streams=4)
"""Those of one client: half of them, so that no client takes all."""


class ResponseEngines:
    """One for a gateway."""

    def __init__(
        self, response_affinity: ResponseAffinity, backends: Backends, identify: Callable[[ClientRequest], Caller]
    ) -> None:
        """`identify`: the client by its address."""
        self._affinity = response_affinity
        self._backends = backends
        self._identify = identify
        self._limits = LocalLimits(0.0)  # by the loop's clock

    def keeper(self, context: RequestContext) -> Callable[[Flight, str], None]:
        """To be called with a flight of this request and the id of its response."""
        return partial(self._keep, tenant_of(context))

    def _keep(self, tenant: bytes, flight: Flight, id: str) -> None:
        if flight.backend is not None:
            self._affinity.put(tenant, id, flight.backend)

    async def find(self, context: RequestContext) -> str | None:
        """The name of the engine that has to answer; None: any may. Raises GatewayError 400, 404 or 503."""
        path = context.request.path
        if not is_responses(path):
            return None
        if context.raw.names_itself and context.caller is not None:
            # The engine keeps a response under this id, and would overwrite another tenant's.
            raise GatewayError(
                Code.INVALID_VALUE,
                "The engine chooses the id of a response: leave out 'request_id'.",
                param="request_id",
            )
        id = response_named(path) or context.raw.previous
        return None if id is None else await self._engine_of(context, id)

    async def _engine_of(self, context: RequestContext, id: str) -> str | None:
        tenant = tenant_of(context)
        shown = id[:LONGEST_ID]
        name, unsure = None, False
        if len(id) <= LONGEST_ID:
            try:
                name = await self._affinity.get(tenant, id)
            except WireError:
                unsure = True
        if name is None and context.caller is None and len(id) <= LONGEST_ID:
            engines = self._backends.candidates(context.model)
            if len(engines) == 1:
                return engines[0].name  # its own answer says whether it has it
            name = await self._ask(context, engines, id)
            if name is not None:
                self._affinity.put(tenant, id, name)
        elif name is None and unsure:
            raise GatewayError(
                Code.CACHE_UNAVAILABLE,
                f"Redis, which knows the engine of the response {shown!r}, does not answer: try again.",
                retry_after=1,
            )
        if name is None:
            raise GatewayError(
                Code.RESPONSE_NOT_FOUND,
                f"No response {shown!r} is known for you here: it does not exist, has been forgotten, or is "
                "another key's. Send the whole conversation as 'input'.",
                param="previous_response_id" if id == context.raw.previous else None,
            )
        engine = self._backends.named(name)
        if engine is None or (engine.up is False and engine.missed):
            raise GatewayError(
                Code.RESPONSE_NOT_FOUND,
                f"The engine that kept the response {shown!r} is gone, and the response with it. Send the whole "
                "conversation as 'input'.",
            )
        return name

    async def _ask(self, context: RequestContext, engines: list[Backend], id: str) -> str | None:
        """The name of the engine that has a response. Raises GatewayError 429 or 503 for too many questions, 503
        where not all engines could say."""
        clock = asyncio.get_running_loop().time
        claim = Claim("", self._identify(context.request).id, OWN_ASKS, ASKS, tokens=0)
        refused = self._limits.acquire(claim, clock()).over
        if refused is not None:
            own = refused[0] == "caller"
            raise GatewayError(
                Code.RATE_LIMITED if own else Code.QUEUE_FULL,
                f"Too many unknown responses are being looked for{' by you' if own else ''}: try again.",
                retry_after=1,
            )
        try:
            found = await asyncio.gather(*(_has(engine, id) for engine in engines))
        finally:
            self._limits.refund(claim, clock(), stream=True)
        for engine, has in zip(engines, found, strict=True):
            if has:
                return engine.name
        if None in found:
            raise GatewayError(
                Code.NO_BACKEND, f"Not every engine says whether it has the response {id!r}.", retry_after=1
            )
        return None


async def _has(engine: Backend, id: str) -> bool | None:
    """Whether an engine has a response; None: it does not say."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            status, _ = await engine.pool.get(f"/v1/responses/{quote(id, safe='')}")
    except GatewayError as e:
        return True if e.code is Code.UPSTREAM_TOO_LARGE else None
    except TimeoutError:
        return None
    return status == 200 if status < 500 else None
