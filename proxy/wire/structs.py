"""Structs whose attributes are set once a request or more often."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", bound=type)


def settable(struct: T) -> T:
    """Let a Struct's attributes be set as those of other objects are, in 15 instructions: msgspec's own way takes
    200, as it shows the object to the garbage collector at the first value that needs that. So this is for Structs
    that are shown to it when they are made, as they have such a value then, or never have one."""
    for name in ("__delattr__", "__setattr__"):  # the two share a slot of the type
        setattr(struct, name, getattr(object, name))
    return struct
