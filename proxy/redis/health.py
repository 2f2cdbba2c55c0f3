"""What operators are shown of one Redis: whether it is in use, away or refusing, for each use of it, and which of
its servers are away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from proxy.redis.availability import Availability
from proxy.redis.deployment import Deployment
from proxy.redis.resp import WireError

Use = Literal["look-ups", "stores", "rate limits"]


class RedisState:
    """The present troubles of the breakers that it watches."""

    def __init__(self, backed_by: str, deployment: Deployment | None = None) -> None:
        """`backed_by`: embedded, yours or off."""
        self._backed_by = backed_by
        self._deployment = deployment
        self._watched: dict[Use, Availability] = {}

    def watch(self, use: Use, availability: Availability) -> None:
        self._watched[use] = availability

    @property
    def _troubles(self) -> dict[Use, WireError]:
        return {use: one.trouble for use, one in self._watched.items() if one.trouble is not None}

    @property
    def _servers_away(self) -> Mapping[str, WireError]:
        return {} if self._deployment is None else self._deployment.troubles

    def refuses(self, reason: str) -> bool:
        """Whether Redis refuses for this reason now."""
        return any(trouble.reason == reason != "" for trouble in self._troubles.values())

    @property
    def state(self) -> str:
        """`off`, `in use`, `in part` (servers of several are away), `away`, or `refuses` with Redis's codes."""
        if self._backed_by == "off":
            return "off"
        reasons = {trouble.reason: None for trouble in self._troubles.values()}
        if not reasons:
            return "in part" if self._servers_away else "in use"
        return "away" if "" in reasons else f"refuses: {', '.join(reasons)}"

    @property
    def detail(self) -> str:
        """What is wrong with which use, and what to do; empty where nothing is."""
        uses: dict[str, list[str]] = {}
        for use, trouble in self._troubles.items():
            uses.setdefault(str(trouble), []).append(use)
        told = [f"{' and '.join(of)}: {trouble}" for trouble, of in uses.items()]
        return "; ".join([*told, *(f"{server}: {trouble}" for server, trouble in self._servers_away.items())])

    def shown(self) -> dict[str, Any]:
        """As JSON for the page and `/-/state`."""
        shown: dict[str, Any] = {"is": self._backed_by, "state": self.state, "detail": self.detail}
        servers = self._deployment.servers if self._deployment is not None else []
        return shown | {"servers": servers} if servers else shown

    @property
    def line(self) -> str:
        """For the terminal at the start."""
        return f"{self.state} ({self.detail})" if self.detail else self._backed_by
