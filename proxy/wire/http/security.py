"""Headers of every answer, also of those that an engine gives."""

from __future__ import annotations

from typing import Final

SECURITY_HEADERS: Final = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
"""Browsers load an answer neither as a script or picture, nor for a page of another origin."""
SECURITY_LINES: Final = "".join(f"{name}: {value}\r\n" for name, value in SECURITY_HEADERS.items())
