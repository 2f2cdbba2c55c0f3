"""What all folds have in common: the members that are known, and the refusal of all others."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Folded = Literal["chat", "completions"]


class Unfoldable(Exception):
    """These frames hold something that only the engine can put into one body; the text says what."""


class Odd(Unfoldable):
    """The same of this one answer: it says nothing of the engine's others."""


class Known(Struct, forbid_unknown_fields=True):
    """The members that are known: any other is an error. A member typed None must be null."""
