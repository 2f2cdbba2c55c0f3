"""Owns the list of all targets, and where each one's corpus is.
Must not know how inputs are made.
Called by the tests, by the driver and by the program that writes the seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.fuzz import answers, connections, files, redis, requests, streams
from tests.fuzz.kit import Target

CORPUS: Final = Path(__file__).parent / "corpus"
TARGETS: Final[dict[str, Target]] = {
    **streams.TARGETS,
    **answers.TARGETS,
    **requests.TARGETS,
    **connections.TARGETS,
    **redis.TARGETS,
    **files.TARGETS,
}


def seeds(name: str) -> list[bytes]:
    """The corpus of a target: one input a file."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
