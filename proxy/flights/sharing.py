"""The sharing decision: whether requests may have the same answer, and what a request's headers change in that.

Pure functions of a request, a setting and header values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from proxy.errors import Code, GatewayError
from proxy.wire import ApiRequest

Share = Literal["auto", "all", "off"]
SHARES: Final = ("auto", "all", "off")


@dataclass(frozen=True, slots=True)
class Sharing:
    """What may be done with one request.

    `shared`: it may be one of many readers of a generation.
    `fresh`: no stored answer will do (`no-cache`). It may join a generation that is under way; its own replaces
    what is stored.
    `storable`: its answer may be stored; not with `no-store`. A reader of the same generation may still have it
    stored, since the answer is the same.
    `merge`: it samples, so it gets a separate answer; it may be sent to the engine together with its twins.
    """

    shared: bool
    fresh: bool = False
    storable: bool = True
    merge: bool = False


PRIVATE: Final = Sharing(shared=False)
_SAMPLED: Final = Sharing(shared=False, merge=True)
SHARED: Final = Sharing(shared=True)


def sharing_of(api_request: ApiRequest, default: Share, *, cache_control: str = "", override: str = "") -> Sharing:
    """Decide. `cache_control` and `override` are the values of `Cache-Control` and `x-gateway-share`.

    Raises GatewayError 400 for a mode that does not exist. Unknown Cache-Control directives are ignored, as
    RFC 9111 (5.2.3) asks. Clients of the EventSource kind send `no-cache` (aiohttp-sse-client) or `no-store`
    (httpx-sse) by default: to join a generation under way is not caching, so they share.
    """
    # Asking twice gives the same answer: temperature 0 said outright, a seed, or an embedding. A temperature left
    # out is the engine's default, which samples. A negative seed is none: vLLM 0.32 takes -1 so.
    deterministic = (
        api_request.temperature == 0
        or (api_request.seed is not None and api_request.seed >= 0)
        or api_request.endpoint == "embeddings"
    )
    if not override and not cache_control:
        if default == "auto":
            return SHARED if deterministic else _SAMPLED
        return SHARED if default == "all" else PRIVATE
    mode: str = override.strip().lower() or default
    if mode not in SHARES:
        raise GatewayError(
            Code.INVALID_HEADER,
            f"x-gateway-share must be one of {', '.join(SHARES)}; got {override.strip()[:32]!r}.",
            param="x-gateway-share",
        )
    directives = {part.partition("=")[0].strip().lower() for part in cache_control.split(",")}
    if mode == "off":
        return PRIVATE
    if mode == "auto" and not deterministic:
        return _SAMPLED
    return Sharing(shared=True, fresh="no-cache" in directives, storable="no-store" not in directives)
