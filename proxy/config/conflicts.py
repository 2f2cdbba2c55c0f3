"""Checks of settings against each other: values that bound one another, and settings that exclude or need one
another. What one value may be is checked where it is read (`values.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.config.model_names import alias_conflicts
from proxy.config.settings import Option, Settings

_AT_MOST: Final = (
    ("max_flight_bytes", "memory_budget", "an answer that is held counts in the budget"),
    ("max_frame_bytes", "max_flight_bytes", "an event is part of its answer"),
    ("cache_max_entry_bytes", "cache_max_pending_bytes", "a whole answer is queued for writing"),
    ("first_token_timeout", "total_timeout", "it would have no effect"),
    ("token_timeout", "total_timeout", "it would have no effect"),
    ("connect_timeout", "total_timeout", "it would have no effect"),
    ("queue_patience", "queue_timeout", "it would have no effect"),
    ("breaker_seconds", "breaker_max_seconds", "it is the first open time"),
)
"""(setting, its bound, why): the value of the first is at most that of the second; a bound of 0 is none.
A setting that is both comes as the first before it comes as a bound."""


_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not listened on
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def reconcile(values: dict[str, Any], sources: Mapping[str, str], known: Mapping[str, Option]) -> list[str]:
    """Settings that bound each other. A default above its bound is lowered to it, in `values`; a value from one of
    the `sources` is a problem, which is returned."""
    problems = []
    lowered: dict[str, str] = {}
    for name, outer, why in _AT_MOST:
        bound = values.get(outer, known[outer].default)
        if bound == 0 or values.get(name, known[name].default) <= bound:
            continue
        if name in sources:
            problems.append(
                f"{sources[name]} = {known[name].typed(values[name])}: must not be over {outer}, which is"
                f" {known[outer].typed(bound)}"
                f" ({lowered.get(outer) or sources.get(outer, 'its default')}): {why}"
            )
        else:
            values[name] = bound
            lowered[name] = f"lowered to {outer}"
    return problems


def own_address(settings: Settings) -> str:
    """The first engine's URL that is the address of this gateway itself; empty for none."""
    ours = {settings.host}
    if settings.host in _ANY or settings.host in _LOOPBACK:
        ours |= _LOOPBACK
    for url in settings.backends:
        if settings.listen_unix:
            if url == f"unix://{settings.listen_unix}":
                return url
            continue
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not parts.scheme.startswith("dns+") and parts.hostname in ours and port == settings.port:
            return url
    return ""


def conflicts(settings: Settings) -> list[str]:
    """Settings that cannot be meant together."""
    itself = own_address(settings)
    both = (settings.backend_api_key and settings.backend_api_key_file) != ""
    held = settings.backend_api_key or settings.backend_api_key_file
    found = [
        (itself, f"backends: {itself} is this gateway's own address: name the engine's"),
        (both, "backend_api_key and backend_api_key_file are both given: give one"),
        (
            settings.forward_authorization and held,
            "forward_authorization sends the client's key to engines, backend_api_key the gateway's: give one",
        ),
        (
            settings.forward_authorization and settings.share_scope == "global",
            "forward_authorization lets engines decide by credential, share_scope = global ignores it: give one",
        ),
        (
            settings.resume == "ids" and settings.deny_answers,
            "resume = ids continues streams by tokens that deny_answers has not searched: give one",
        ),
        (
            settings.admin_port and settings.admin_port == settings.port and not settings.listen_unix,
            "admin_port must differ from port",
        ),
        (
            settings.admin_host != Settings().admin_host and not settings.admin_port,
            "admin_host needs admin_port",
        ),
        (settings.deny_answers and not settings.deny_file, "deny_answers needs deny_file"),
        (
            settings.proxy_protocol and not settings.trusted_proxies,
            "proxy_protocol needs trusted_proxies: the load balancers that may send it",
        ),
        (
            settings.proxy_protocol and settings.tls_cert,
            "proxy_protocol is not supported with tls_cert: terminate TLS at the balancer, or omit one",
        ),
        (
            settings.rate_limit_burst and not (settings.rate_limit_rps or settings.api_keys_file),
            "rate_limit_burst needs rate_limit_rps: alone it has no effect",
        ),
        (
            settings.global_limit_burst and not settings.global_limit_rps,
            "global_limit_burst needs global_limit_rps: alone it has no effect",
        ),
        (
            settings.pace_ttft_ms and settings.max_inflight,
            "pace_ttft_ms needs max_inflight = auto: a fixed limit is not adapted",
        ),
        (
            settings.admission == "fleet" and not settings.state_redis and settings.redis in ("auto", "off"),
            "admission = fleet needs redis or state_redis: the URL of the Redis that all gateways have",
        ),
        (
            settings.max_tokens_action == "refuse" and not settings.max_tokens_cap,
            "max_tokens_action = refuse needs max_tokens_cap",
        ),
        (settings.tls_key and not settings.tls_cert, "tls_key needs tls_cert, its certificate"),
        (
            settings.cache_salt and settings.cache_salt_file,
            "cache_salt and cache_salt_file are both given: give one",
        ),
        (
            (settings.cache_salt or settings.cache_salt_file) and settings.share_scope == "global",
            "cache_salt keeps tenants apart, share_scope = global does not: give one",
        ),
    ]
    return [
        *(problem for wrong, problem in found if wrong),
        *alias_conflicts(settings.models, settings.model_fallbacks),
    ]
