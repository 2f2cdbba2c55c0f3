"""Owns the access rules in force: whose keys are valid, and which texts are denied.
Must not know files or settings: whoever reads them again says what is in force now.
Called by the access policy and the answers' filter, which look at them as they are at that moment."""

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
