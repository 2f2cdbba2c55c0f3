"""What operators are shown of one Redis: whether it is in use, away or refusing, for each use of it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from proxy.redis.availability import OnChange
from proxy.redis.resp import WireError

Use = Literal["look-ups", "stores", "rate limits"]


class RedisState:
    """The present troubles, as the breakers report them."""

    def __init__(self, backed_by: str) -> None:
        """`backed_by`: embedded, yours or off."""
        self._backed_by = backed_by
        self.troubles: dict[Use, WireError] = {}  # read only

    def of(self, use: Use) -> OnChange:
        """What a breaker calls."""
        return partial(self._changed, use)

    def _changed(self, use: Use, trouble: WireError | None) -> None:
        if trouble is not None:
            self.troubles[use] = trouble
        else:
            self.troubles.pop(use, None)

    def refuses(self, reason: str) -> bool:
        """Whether Redis refuses for this reason now."""
        return any(trouble.reason == reason != "" for trouble in self.troubles.values())

    @property
    def state(self) -> str:
        """`off`, `in use`, `away`, or `refuses` with Redis's error codes."""
        if self._backed_by == "off":
            return "off"
        if not self.troubles:
            return "in use"
        reasons = {trouble.reason: None for trouble in self.troubles.values()}
        return "away" if "" in reasons else f"refuses: {', '.join(reasons)}"

    @property
    def detail(self) -> str:
        """What is wrong with which use, and what to do; empty where nothing is."""
        uses: dict[str, list[str]] = {}
        for use, trouble in self.troubles.items():
            uses.setdefault(str(trouble), []).append(use)
        return "; ".join(f"{' and '.join(of)}: {trouble}" for trouble, of in uses.items())

    def shown(self) -> dict[str, Any]:
        """As JSON for the page and `/-/state`."""
        return {"is": self._backed_by, "state": self.state, "detail": self.detail}

    @property
    def line(self) -> str:
        """For the terminal at the start."""
        return f"{self.state} ({self.detail})" if self.troubles else self._backed_by
