"""The access rules in force, keys and deny list. A reload replaces them; readers look at them anew each time."""

from __future__ import annotations

from proxy.access.denylist.rules import DenyList
from proxy.access.identity import Authenticator


class AccessRules:
    """Read afresh at each use, since the files behind them may change."""

    __slots__ = ("deny", "identity")

    def __init__(self, identity: Authenticator, deny: DenyList | None = None) -> None:
        self.identity = identity
        self.deny = deny

    def renew_deny_list(self, deny: DenyList) -> None:
        """This list from now on."""
        self.deny = deny
