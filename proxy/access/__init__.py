"""TODO"""

from proxy.access.api_keys import hash_of, read_keys
from proxy.access.caller import Caller
from proxy.access.caller_address import caller_at
from proxy.access.client_ip import UNIX, Trusted
from proxy.access.hosts import Hosts
from proxy.access.identity import Identity
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
from proxy.access.policy import OPEN, OPERATING, Gate, gate_for, not_found, scope_of, sizes_of
from proxy.access.priority import Urgency, timeout_of
from proxy.access.rules import AccessRules

__all__ = [
    "BUDGET",
    "OPEN",
    "OPERATING",
    "UNIX",
    "AccessRules",
    "AskJob",
    "Caller",
    "FoldJob",
    "Found",
    "Gate",
    "Hosts",
    "Identity",
    "Job",
    "Origins",
    "PageJob",
    "RawJob",
    "Refusal",
    "Terms",
    "TextsJob",
    "Trusted",
    "Urgency",
    "caller_at",
    "gate_for",
    "hash_of",
    "not_found",
    "read_ask",
    "read_keys",
    "read_raw",
    "refusal",
    "scope_of",
    "sizes_of",
    "timeout_of",
    "work",
]
