"""Owns how a body that passes through is let in: by its head, read once, checked, charged; what is sent comes out.
Must not know flights, engines or sockets: it is given the step that reads the bytes.
Called by the gateway, once a request to a path that is passed through."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from proxy.access import AccessPolicy
from proxy.config import Settings
from proxy.flights import estimate_raw
from proxy.server.context import RequestContext
from proxy.server.offload.large import LargeRequests
from proxy.wire import NONE, RawBody, read_passed, takes_json_only
from proxy.wire.http import Media, media_of


class Admit(Protocol):
    """Lets requests on, or raises GatewayError 429 or 503."""

    async def __call__(self, call: RequestContext, passed: RawBody = NONE) -> None:
        """Asked once the body is read."""

    async def head(self, call: RequestContext) -> None:
        """Asked before a body is read that is large or slow to come: all but what its tokens cost."""


class ReadBody(Protocol):
    def __call__(self, call: RequestContext, *, json: bool, limit: int = 0) -> Awaitable[bytes]: ...


class PassThrough:
    """One for a gateway."""

    def __init__(
        self,
        settings: Settings,
        body: ReadBody,
        access_policy: AccessPolicy | None,
        admit: Admit | None,
        large: LargeRequests | None,
    ) -> None:
        self._settings = settings
        self._body = body
        self._access_policy = access_policy
        self._admit = admit
        self._large = large

    async def read(self, call: RequestContext) -> bytes:
        """The body as it goes up. Its model and its cost are the call's from now on. Raises GatewayError."""
        request = call.request
        media = None
        if request.body_exists:
            media = media_of(request.headers, json_only=takes_json_only(request.path))
        upload = media is not None and media.kind == "form"
        body = await self._body(call, json=False, limit=self._settings.max_upload_bytes if upload else 0)
        if media is not None and self._elsewhere(media, body):
            assert self._large is not None
            body = await self._large.raw(call, media, body)
            if self._admit is not None:
                await self._admit(call)
            return body
        passed = read_passed(media, body)
        call.model = passed.model
        if self._access_policy is not None:
            passed = self._access_policy.admit_raw(call, passed)
        call.cost = estimate_raw(request.path, passed, self._settings.rate_limit_assumed_tokens)
        if self._admit is not None:
            await self._admit(call, passed)
        return passed.body

    def _elsewhere(self, media: Media, body: bytes) -> bool:
        """Whether it is too large to be read here."""
        large = self._large
        return media.kind != "other" and large is not None and len(body) > large.inline and large.heavy(body)
