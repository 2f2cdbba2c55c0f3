"""The deny list: its file, its rules, and whether a text breaks one. Patterns run on RE2, which is linear in
the text whatever the pattern."""

from __future__ import annotations

import hashlib
import importlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from proxy.access.denylist.normalize import normalize
from proxy.errors import SettingsError

MAX_LITERAL: Final = 1000  # characters
MAX_RULES: Final = 100_000
_FEW: Final = 64
"""Number of texts that are searched one by one; for more, one walk of the automaton is cheaper."""


class Pattern(Protocol):
    def search(self, text: str | bytes, pos: int, endpos: int) -> object | None: ...


class AhoCorasick:
    """All texts in one automaton (Aho and Corasick, 1975): one step a character, however many there are.

    A state is the longest end of what was read that begins one of the texts; `depth` says how long it is.
    """

    __slots__ = ("_fail", "_next", "depth", "hit")

    def __init__(self, texts: Iterable[tuple[str, int]]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self.depth = [0]
        self.hit: list[int] = [0]  # the line of a rule that ends here; 0: none does
        for text, line in texts:
            state = 0
            for char in text:
                following = self._next[state].get(char)
                if following is None:
                    following = self._next[state][char] = len(self._next)
                    self._next.append({})
                    self._fail.append(0)
                    self.depth.append(self.depth[state] + 1)
                    self.hit.append(0)
                state = following
            self.hit[state] = self.hit[state] or line
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for char, following in self._next[state].items():
                waiting.append(following)
                self._fail[following] = self.step(self._fail[state], char)
                self.hit[following] = self.hit[following] or self.hit[self._fail[following]]

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while True:
            following = self._next[state].get(char)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self._fail[state]

    def walk(self, state: int, text: str) -> tuple[int, int]:
        """The state after a text, and the line of the first rule that ends in it, 0 where none does: the steps
        without a call for each. 0.05 µs a character."""
        following, fail, hit = self._next, self._fail, self.hit
        for char in text:
            after = following[state].get(char)
            while after is None and state:
                state = fail[state]
                after = following[state].get(char)
            state = after or 0
            if hit[state]:
                return state, hit[state]
        return state, 0


class DenyList:
    """Rules, each known by its line. Texts are compared in their normal form (`normalize`)."""

    def __init__(
        self, literals: Sequence[tuple[str, int]], patterns: Sequence[tuple[Any, int]], source: str
    ) -> None:
        self._literals = tuple(literals)
        self.patterns: tuple[tuple[Pattern, int], ...] = tuple(patterns)
        self.trie = AhoCorasick(literals)
        self.plain = not patterns and all(text.isascii() for text, _ in literals)
        """Only texts of ASCII: a character that combines with the next can then be in no match."""
        self.source = source
        self.digest = hashlib.sha256(source.encode("utf-8", "replace")).digest()

    def __repr__(self) -> str:
        return f"<DenyList of {len(self._literals)} texts, {len(self.patterns)} patterns>"

    def __len__(self) -> int:
        return len(self._literals) + len(self.patterns)

    @property
    def weight(self) -> float:
        """Nanoseconds that the search of one character takes at most, about."""
        texts = 3.5 * len(self._literals) if len(self._literals) <= _FEW else 120
        return 14 + texts + 60 * len(self.patterns)

    def find(self, text: str) -> int | None:
        """The line of a rule that the text breaks."""
        formed = normalize(text)
        line = self.find_literal(formed)
        if line is None and self.patterns:
            data = formed.encode("utf-8", "replace")  # once, not once for each pattern
            for pattern, number in self.patterns:
                if pattern.search(data, 0, len(data)) is not None:
                    return number
        return line

    def find_literal(self, formed: str) -> int | None:
        """The line of a text of the list that another, in the same form, holds."""
        if len(self._literals) > _FEW:
            return self.trie.walk(0, formed)[1] or None
        for literal, line in self._literals:
            if literal in formed:
                return line
        return None

    def find_in_prompt(self, parts: Sequence[Sequence[str]]) -> int | None:
        """The same for messages in parts: a text is found across the parts of a message, with nothing or with
        space between them, and across messages."""
        joined = "\n".join("".join(texts) for texts in parts)
        line = self.find(joined)
        if line is None and any(len(texts) > 1 for texts in parts):
            line = self.find("\n".join("\n".join(texts) for texts in parts))
        return line


def read_deny_list(text: str, path: str) -> DenyList:
    """One rule a line; blank lines and lines that begin with # say nothing. `re:` begins a pattern of RE2's,
    `text:` a text that would else be read otherwise. Raises SettingsError that names each wrong line."""
    literals: list[tuple[str, int]] = []
    patterns: list[tuple[Any, int]] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        try:
            if rule.startswith("re:"):
                patterns.append((_pattern(rule[3:].strip()), number))
            else:
                literals.append((_literal(rule.removeprefix("text:")), number))
        except ValueError as e:
            problems.append(f"{path}:{number}: {e}")
    if not literals and not patterns and not problems:
        problems.append(f"{path}: holds no rule; leave the setting out to deny nothing")
    if len(literals) + len(patterns) > MAX_RULES:
        problems.append(f"{path}: holds more than {MAX_RULES} rules")
    if problems:
        raise SettingsError("\n".join(problems[:20]))
    return DenyList(literals, patterns, text)


def _literal(text: str) -> str:
    formed = normalize(text).strip()
    if not formed:
        raise ValueError("a text of no characters would deny everything")
    if len(formed) > MAX_LITERAL:
        raise ValueError(f"a text must have at most {MAX_LITERAL} characters")
    return formed


def _pattern(text: str) -> Any:
    """Case is ignored, as the text it is matched with has none."""
    try:
        re2: Any = importlib.import_module("re2")
    except ImportError:
        raise ValueError("patterns need RE2: pip install 'streaming-gateway[deny]' (google-re2)") from None
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = False
    try:
        pattern = re2.compile(text, options)
    except re2.error as e:
        why = e.args[0] if e.args else ""
        raise ValueError(
            f"not a pattern: {why.decode('utf-8', 'replace') if isinstance(why, bytes) else why}"
        ) from None
    if not text or pattern.search("") is not None:
        raise ValueError("a pattern that matches an empty text would deny everything")
    return pattern
