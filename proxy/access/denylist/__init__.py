"""The deny list: rules (`DenyList`), the normal form in which texts are compared (`normalize`), the search of a
text that arrives in pieces (`scanner`), and a stream that is held back until no rule can match (`filter`)."""

from proxy.access.denylist.filter import denied_in_body, ingest_for
from proxy.access.denylist.rules import DenyList, read_deny_list

__all__ = [
    "DenyList",
    "denied_in_body",
    "ingest_for",
    "read_deny_list",
]
