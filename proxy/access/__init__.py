"""Access control: who sends a request, what it may ask for, how much, and what it may be answered. No HTTP
server.

A `Caller` is the owner of an API key or, without keys, a client address. `Authenticator` finds it: from the key
by `api_keys`, from the address by `client_ip`, which knows trusted proxies. `PriorityPolicy` reads a request's
priority class and deadline, and the fairness key under which the queue schedules it.

`AccessPolicy` authenticates a request, then checks its model, its `RequestLimits` and the deny list. The rules
that it applies, keys and deny list, are `AccessRules` and can be reloaded. `KeyedCalls` end requests whose key
has ended. `Hosts` and `Origins` protect a gateway on loopback or without keys from web pages of other origins.

`ratelimit` is admission control by rate: a `Reservation` holds what one request uses of its caller's limits.
`denylist` searches prompts and answers for denied texts. `intake` applies all of these to a large request in a
child process, as pure functions of bytes and terms.

The room reads a request through the protocols `ClientRequest` and `AccessContext`; the server room implements
them.
"""

from proxy.access.api_keys import read_keys
from proxy.access.caller import Caller
from proxy.access.caller_address import caller_for_address
from proxy.access.client_ip import UNIX, TrustedProxies
from proxy.access.context import ClientRequest
from proxy.access.hosts import Hosts
from proxy.access.identity import Authenticator
from proxy.access.intake import (
    BUDGET,
    ApiRequestJob,
    EmbedsChatJob,
    FoldJob,
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
    resolve,
    resolve_raw,
    work,
)
from proxy.access.origins import PREFLIGHT, CorsHeaders, Origins, is_preflight
from proxy.access.policy import (
    FORMS,
    OPEN,
    OPERATING,
    AccessPolicy,
    access_policy_for,
    not_found,
    scope_of,
    sizes_of,
    tenant_of,
)
from proxy.access.priority import MAX_TIMEOUT, PriorityPolicy, parse_request_timeout
from proxy.access.rules import AccessRules

__all__ = [
    "BUDGET",
    "FORMS",
    "MAX_TIMEOUT",
    "OPEN",
    "OPERATING",
    "PREFLIGHT",
    "UNIX",
    "AccessPolicy",
    "AccessRules",
    "ApiRequestJob",
    "Authenticator",
    "Caller",
    "ClientRequest",
    "CorsHeaders",
    "EmbedsChatJob",
    "FoldJob",
    "Found",
    "Hosts",
    "Job",
    "Origins",
    "PageJob",
    "PriorityPolicy",
    "RawJob",
    "Refusal",
    "Terms",
    "TextsJob",
    "TrustedProxies",
    "access_policy_for",
    "caller_for_address",
    "is_preflight",
    "not_found",
    "parse_request_timeout",
    "read_api_request",
    "read_keys",
    "read_raw",
    "refusal",
    "resolve",
    "resolve_raw",
    "scope_of",
    "sizes_of",
    "tenant_of",
    "work",
]
