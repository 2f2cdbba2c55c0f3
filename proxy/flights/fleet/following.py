"""What a follower decides: whether to wait, to ask Redis, to generate itself, or to end.

Pure: `now` is an argument, and every decision is returned."""

from __future__ import annotations

from typing import Final, Literal

from proxy.flights.fleet.messages import Message, State
from proxy.flights.fleet.tail import Tail

Step = Literal["wait", "fetch", "look", "alone", "lost"]
"""What to do: nothing; ask Redis for what is missing; look up again, in place of this leader; generate without a
claim; end with an error, or continue the stream otherwise."""

POLL: Final = 1.0
"""Seconds of silence after which a follower asks Redis. The same interval renews its interest."""
INTEREST: Final = 5.0
"""Seconds after which the interest of a node that does not renew it lapses."""
KEPT: Final = 60.0
"""Seconds that a published log stays in Redis after its last append or fetch."""
SILENCE: Final = 6.0
"""Seconds without a sign of life from the leader after which a stream that has begun is lost. While the heartbeat
is there, each reply to a fetch is such a sign: the seconds begin up to 4.25 s (LIFE and two looks) after the
leader's end."""


class Following:
    """One flight of another node, as followed here."""

    __slots__ = (
        "_asked", "_ended_at", "_fetching", "_first_token", "_heard", "_since",
        "claim", "fed", "fence", "kept", "leader", "tail",
    )  # fmt: skip

    def __init__(
        self, claim: bytes, fence: bytes, leader: bytes, now: float, first_token: float, kept: float = KEPT
    ) -> None:
        """`first_token`: seconds that it waits for the stream to begin; `kept`: seconds that the log stays in
        Redis after a fetch."""
        self.claim, self.fence, self.leader, self.kept = claim, fence, leader, kept
        self.tail = Tail(fence)
        self.fed = False  # readers have a part of the stream
        self._since = self._heard = self._asked = now
        self._first_token = first_token
        self._fetching = False
        self._ended_at: float | None = None  # when the leader gave the flight up

    def __repr__(self) -> str:
        return f"<Following {self.fence!r} {self.tail!r}>"

    def takes(self, message: Message, now: float) -> bytes | None:
        """New bytes of the stream, which may be none. None: it does not continue what is here, so it is missing
        something, or the message is not the leader's."""
        if message.offset == 0 == self.tail.size and not message.head:
            return None
        new = self.tail.take(message.offset, message.data, message.digest)
        if new:
            self._heard = now
        return new

    def feeds(self) -> None:
        """Readers get a part of the stream."""
        self.fed = True

    def asks(self, now: float) -> bool:
        """Whether to send a fetch now: one at a time."""
        if self._fetching:
            return False
        self._fetching, self._asked = True, now
        return True

    def answered(self, reply: object, now: float, *, dead: bool) -> Step | None:
        """A fetch has ended. None: its reply holds the stream, which the caller reads."""
        self._fetching = False
        if isinstance(reply, list):
            return None
        if self._over:
            return "lost"
        if reply == b"wait" and not dead:
            self._heard = now
        elif reply in (b"gone", b"other", b"lost") and not self.fed:
            return "alone" if reply == b"lost" else "look"
        return "wait"

    def read(self, state: State, now: float, *, dead: bool) -> Step:
        """A fetch has brought a stream in this state, which continues what is here."""
        if state == "open" and self._over:
            return "lost"
        if state != "failed" and not (self.fed or self.tail.size):
            return self.unreadable()  # a log begins with its first bytes
        if not dead:
            self._heard = now
        return "wait"

    def unreadable(self) -> Step:
        """A fetch has brought what is no stream, or does not continue what is here: another one would not either.
        Readers that have a part wait for the leader's messages until SILENCE."""
        if not self.fed:
            return "alone"
        return "lost" if self._over else "wait"

    def ends(self, now: float) -> Step:
        """The leader has ended the flight. Its last append may have been missed: Redis is asked once more."""
        if not self.fed:
            return "look"
        self._ended_at = now
        return "fetch"

    def fails(self) -> Step:
        """The stream has ended without an answer."""
        return "lost" if self.fed else "look"

    @property
    def _over(self) -> bool:
        """Whether this is the reply to a fetch that was sent after the leader had ended the flight."""
        return self.fed and self._ended_at is not None and self._asked >= self._ended_at

    def tick(self, now: float, *, dead: bool, away: bool) -> Step:
        """`dead`: the leader's heartbeat is missing. `away`: Redis does not serve."""
        if not self.fed:
            if away:
                return "alone"
            if dead:
                return "look"
            if now - self._since > self._first_token:
                return "alone"
        elif now - self._heard > SILENCE:
            return "lost"
        if not away and now - self._asked >= POLL:
            return "fetch"
        return "wait"
