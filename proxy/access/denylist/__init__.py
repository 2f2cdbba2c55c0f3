"""TODO"""

from proxy.access.denylist.filter import denied_in_body, ingest_for
from proxy.access.denylist.rules import DenyList, read_deny_list

__all__ = [
    "DenyList",
    "denied_in_body",
    "ingest_for",
    "read_deny_list",
]
