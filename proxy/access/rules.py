"""The access rules in force: keys, deny list, names of models, the secret of `cache_salt`. A reload replaces them;
readers look at them anew each time."""

from __future__ import annotations

import hmac

from proxy.access.denylist.rules import DenyList
from proxy.access.identity import Authenticator
from proxy.config import ModelNames


class AccessRules:
    """Read afresh at each use, since the files behind them may change."""

    __slots__ = ("deny", "identity", "names", "salt")

    def __init__(
        self, identity: Authenticator, deny: DenyList | None = None, names: ModelNames | None = None
    ) -> None:
        self.identity = identity
        self.deny = deny
        self.names = names or ModelNames()
        self.salt = b""  # the secret; none: engines get no `cache_salt` of ours

    def renew_names(self, names: ModelNames) -> None:
        """These names from now on."""
        self.names = names

    def renew_salt(self, secret: bytes) -> None:
        """This secret from now on."""
        self.salt = secret

    def cache_salt(self, scope: bytes, own: str | None) -> str:
        """The `cache_salt` of a request. `scope`: requests of different scopes share nothing; `own`: the client's
        `cache_salt`, which divides its scope further."""
        parts = [scope] if own is None else [scope, own.encode("utf-8", "surrogatepass")]
        text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
        return hmac.digest(self.salt, text, "sha256").hex()

    def renew_deny_list(self, deny: DenyList) -> None:
        """This list from now on."""
        self.deny = deny
