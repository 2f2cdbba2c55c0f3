"""TODO"""

from proxy.access.api_keys import hash_of, read_keys
from proxy.access.caller import Caller
from proxy.access.caller_address import caller_for_address
from proxy.access.client_ip import UNIX, TrustedProxies
from proxy.access.hosts import Hosts
from proxy.access.identity import Authenticator
from proxy.access.intake import (
    BUDGET,
    AskJob,
    FoldJob,
    Found,
    Job,
    PageJob,
    RawJob,
    Refusal,
    Terms,
    TextsJob,
    read_ask,
    read_raw,
    refusal,
    work,
)
from proxy.access.origins import Origins
from proxy.access.policy import OPEN, OPERATING, AccessPolicy, access_policy_for, not_found, scope_of, sizes_of
from proxy.access.priority import PriorityPolicy, parse_request_timeout
from proxy.access.rules import AccessRules

__all__ = [
    "BUDGET",
    "OPEN",
    "OPERATING",
    "UNIX",
    "AccessPolicy",
    "AccessRules",
    "AskJob",
    "Authenticator",
    "Caller",
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
    "hash_of",
    "not_found",
    "parse_request_timeout",
    "read_ask",
    "read_keys",
    "read_raw",
    "refusal",
    "scope_of",
    "sizes_of",
    "work",
]
