"""The normal form in which texts are compared with the deny list, whole or piece by piece. Pure."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

# Of no width, or only a choice of glyph: between letters they hide a word from a search and from nobody's eye.
# Unicode's Default_Ignorable_Code_Point, annotations, and controls that are no white space.
_UNSEEN: Final[dict[int, str | None]] = dict.fromkeys(
    [*range(0x09), *range(0x0E, 0x1C), *range(0x7F, 0x85), *range(0x86, 0xA0),
     0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010),
     *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0,
     *range(0xFFF0, 0xFFFC), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)]
) | {0x2800: " "}  # fmt: skip
_ASCII_SPACES: Final = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"
_SPACES: Final = (
    _ASCII_SPACES + "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
)
"""White space but the space itself."""
_GROWN: Final = tuple((char, unicodedata.normalize("NFKC", char)) for char in "\ufdfa\ufdfb")
"""The two characters that become more than six. Put in their place beforehand: a copy, and 100 times as fast."""
_MARK: Final = re.compile(r"[^\w\s\x00-\x7f]|[\uff9e\uff9f]")
_MANY_MARKS: Final = re.compile(rf"(?:{_MARK.pattern}){{65,}}")
"""A run that may be of marks only: of one, normalisation takes time with the square of its length."""
MAX_PENDING: Final = 64
"""Characters that may wait for what they combine with; a longer run of marks is no text and is not waited for."""


def normalize(text: str) -> str:
    """Without characters of no width, in Unicode's NFKC, case folded, every run of white space one space. In time
    linear in the text, whatever it is."""
    text = _seen(text)
    if text.isascii():
        return _spaced(text.lower(), _ASCII_SPACES)
    return _spaced(_normal(text).casefold(), _SPACES)


def _seen(text: str) -> str:
    """Without what is not seen. Most pieces of an answer are printable ASCII: nothing is copied of them."""
    return text if text.isascii() and text.isprintable() else text.translate(_UNSEEN)


def _normal(text: str) -> str:
    """NFKC; a run of marks that is longer than any text has is taken in pieces."""
    for char, grown in _GROWN:
        if char in text:
            text = text.replace(char, grown)
    pieces: list[str] = []
    done = 0
    runs = _MARK.search(text[::MAX_PENDING]) is not None  # so long a run has a mark at one of these places
    for run in _MANY_MARKS.finditer(text) if runs else ():
        for end in range(run.start() + MAX_PENDING, run.end(), MAX_PENDING):
            pieces.append(unicodedata.normalize("NFKC", text[done:end]))
            done = end
    return "".join(pieces) + unicodedata.normalize("NFKC", text[done:])


def _spaced(text: str, spaces: str) -> str:
    """By searches in C: a regular expression makes an object for each run."""
    for space in spaces:
        if space in text:
            text = text.replace(space, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text


class StreamNormalizer:
    """The same, of a text that comes in pieces: what `feed` and `end` return, joined, is `normalize` of the whole.

    A piece's last character may combine with the next piece's first, so it waits for it.
    """

    __slots__ = ("_spaced", "pending")

    def __init__(self) -> None:
        self.pending = ""  # seen characters that wait
        self._spaced = False

    def feed(self, text: str) -> str:
        text = self.pending + _seen(text)
        cut = len(text) - 1
        while cut > 0 and not _begins(text[cut]):
            cut -= 1
        if cut < 0:
            return ""
        if len(text) - cut > MAX_PENDING:
            cut = len(text)
        self.pending = text[cut:]
        return self._spaces(normalize(text[:cut]))

    def end(self) -> str:
        text, self.pending = self.pending, ""
        return self._spaces(normalize(text))

    def peek(self) -> str:
        """The pending characters, normalised as if nothing combined with them."""
        text = normalize(self.pending)
        return text[1:] if self._spaced and text.startswith(" ") else text

    def _spaces(self, text: str) -> str:
        if text:
            if self._spaced and text[0] == " ":
                text = text[1:]
            if text:
                self._spaced = text[-1] == " "
        return text


def visible_length(text: str) -> int:
    """Number of characters, without those of no width."""
    return len(_seen(text))


@lru_cache(maxsize=4096)
def _begins(char: str) -> bool:
    """Whether nothing before the character can change what it becomes, nor it what is before (a boundary of
    normalisation, UAX 15): its decomposition begins with no mark and no vowel or final of Hangul."""
    if char < "\u0300":
        return True
    first = unicodedata.normalize("NFKD", char)[0]
    return (
        unicodedata.combining(first) == 0
        and unicodedata.category(first)[0] != "M"
        and not "\u1160" <= first <= "\u11ff"
        and not "\U00016d40" <= first <= "\U00016d7f"
    )
