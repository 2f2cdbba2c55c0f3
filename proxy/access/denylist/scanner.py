"""Search of a text that arrives in pieces: the same verdict however it is cut, and how much of it is already
safe."""

from __future__ import annotations

from collections import deque

from proxy.access.denylist.normalize import StreamNormalizer, visible_length
from proxy.access.denylist.rules import DenyList


class Scanner:
    """Reads one text. `hit` is the line of a rule that it breaks, once it does; `safe` counts its characters
    (those of no width aside) that can be no part of any match, whatever follows.

    A text of the list is found however long, and only what may begin one waits. A pattern is found where its match
    has at most `window` characters; so much waits.
    """

    __slots__ = (
        "_buffer", "_cut", "_deny", "_former", "_marks", "_state", "_total", "_window",
        "hit", "read", "safe",
    )  # fmt: skip

    def __init__(self, deny: DenyList, window: int) -> None:
        self._deny = deny
        self._window = window
        self._former = StreamNormalizer()
        self._state = 0  # in the list's automaton
        self._buffer = ""  # the end of what was read, for patterns
        self._cut = False  # it is not all
        self._total = 0  # characters of the form so far
        self._marks: deque[tuple[int, int]] = (
            deque()
        )  # characters that have their form, and how many these are in it
        self.hit: int | None = None
        self.read = 0
        self.safe = 0

    def feed(self, text: str) -> None:
        if self.hit is not None or not text:
            return
        self.read += visible_length(text)
        self._take(self._former.feed(text), last=False)
        self._settle()

    def end(self) -> None:
        """Nothing follows."""
        if self.hit is None:
            self._take(self._former.end(), last=True)
            self.safe = self.read

    def _take(self, formed: str, *, last: bool) -> None:
        self._state, line = self._deny.trie.walk(self._state, formed)
        if line:
            self.hit = line
            return
        self._total += len(formed)
        self._marks.append((self.read - len(self._former.pending), self._total))
        if self._deny.patterns:
            self._search(formed, last=last)

    def _search(self, formed: str, *, last: bool) -> None:
        """What ends at the last character waits for the next: it may be no end of a word, or of the text. What
        begins at the first of a cut buffer has been looked at, and is no beginning of the text."""
        buffer = self._buffer + formed
        start = 1 if self._cut else 0
        end = len(buffer) if last else len(buffer) - 1
        if end > start or (last and end >= start):
            for pattern, line in self._deny.patterns:
                if pattern.search(buffer, start, end) is not None:
                    self.hit = line
                    return
        keep = self._window + 2
        if len(buffer) > keep:
            buffer, self._cut = buffer[-keep:], True
        self._buffer = buffer

    def _settle(self) -> None:
        """Where a match that is not there yet may begin at the earliest: before it all is safe."""
        if self.hit is not None:
            return
        deny, marks = self._deny, self._marks
        if not deny.plain:
            waits = deny.trie.depth[self._state]
            sure = self._total - (max(waits, self._window + 1) if deny.patterns else waits)
        else:
            # What waits for a mark to combine with stays as it is, or becomes what is in no text of the list.
            state, at = self._state, self._total
            sure = at - deny.trie.depth[state] if not (rest := self._former.peek()) else at + len(rest)
            for char in rest:
                state, at = deny.trie.step(state, char), at + 1
                sure = min(sure, at - deny.trie.depth[state])
            if marks[-1][0] < self.read:
                marks.append((self.read, at))
        while marks and marks[0][1] <= sure:
            taken = marks.popleft()[0]
            if taken > self.safe:  # what was safe before a mark came that may combine stays so
                self.safe = taken
