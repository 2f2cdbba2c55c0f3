"""Who sends a request: the name to log, the tenant, and what this caller may do."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Ceilings of one caller; None: the default of the settings applies."""

    rps: float | None = None
    """Requests a second, on average."""
    burst: int | None = None
    """Requests that may come at once."""
    tokens_per_minute: int | None = None
    """Prompt and completion tokens a minute."""
    streams: int | None = None
    """Requests under way at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever sends a request: the owner of an API key or, where no keys are set, a client's address."""

    id: str
    """What limits are counted by: a key's id, or an address. No secret; at most 64 characters."""
    name: str = ""
    """What the log calls the caller: the key's name; empty where no keys are set."""
    tenant: bytes = b""
    """Callers of one tenant may share answers; another tenant's are never theirs."""
    user: Hashable = None
    """Whose turns its requests take within the tenant's; None: the tenant has one user."""
    models: frozenset[str] | None = None
    """The models this caller may name; None: every one."""
    rates: Rates = Rates()
    priority: int = 1
    """The class of its requests that do not say (`line.PRIORITIES`: 0 high, 1 normal, 2 low)."""
    top_priority: int = 1
    """The highest class that it may ask for."""
    expires: float = math.inf
    """Unix time from which on the key is refused."""
    operator: bool = False
    """Whether it may see and do what operators do: state, metrics, the page, flushes."""
