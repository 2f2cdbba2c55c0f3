"""What all folds have in common: the members that are known, and the refusal of all others."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Folded = Literal["chat", "completions"]


class Unfoldable(Exception):
    """These frames contain something that only the engine can put into a body; the text names it."""


class Odd(Unfoldable):
    """Unfoldable because of this one answer: other answers of the engine may fold."""


class Known(Struct, forbid_unknown_fields=True):
    """The known members: any other is an error. A member typed None must be null."""
