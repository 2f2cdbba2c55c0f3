"""Which build an answer is of: a digest of an engine's version and of the source of a model's weights. Fields
that change with each call (`created`, permissions) are no part of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

from proxy.errors import GatewayError
from proxy.upstream.http.pool import Pool

VERSION_PATHS: Final[Mapping[str, str]] = {"vllm": "/version", "llamacpp": "/props"}
"""The path of an engine's version, by `owned_by` of its models. Other engines have none."""
VERSION_SECONDS: Final = 2.0  # timeout of that request
MAX_VERSION: Final = 1024  # characters of a version
MAX_STARTS: Final = 128  # processes behind one URL whose start time is remembered
_VERSION: Final = ("version", "build_info", "model_path")
_OF_A_MODEL: Final = ("root", "parent", "max_model_len", "owned_by", "meta")
_SIZE: Final = 8  # bytes of a digest
_ENCODE: Final = msgspec.json.Encoder(order="deterministic").encode

Models = Sequence[Mapping[str, Any]]


class Build:
    """The build of one engine, for each of its models."""

    __slots__ = ("_starts", "changed_at", "digests", "version")

    def __init__(self) -> None:
        self.version: str | None = None  # None: not known
        self.digests: dict[str | None, bytes] = {}  # None: for requests with another model, or none
        self.changed_at = -math.inf  # last change of `digests`, by the clock of flights
        self._starts: dict[float, None] = {}

    def __repr__(self) -> str:
        return f"<Build {self.version!r} of {len(self.digests)} models>"

    def of(self, model: str | None, since: float) -> bytes | None:
        """The build of an answer requested at `since`; None where it may have been another one."""
        return None if since < self.changed_at else self.digests.get(model) or self.digests.get(None, b"")

    def began(self, at: float, now: float) -> bool:
        """It reports that its process started at `at` (Unix time). True: that is a new time, so it has restarted.
        Several processes may be behind one URL, each with its own time."""
        if at in self._starts:
            return False
        again = bool(self._starts)
        if len(self._starts) >= MAX_STARTS:
            del self._starts[next(iter(self._starts))]
        self._starts[at] = None
        if again:
            self.version, self.changed_at = None, now
        return again

    async def look(self, pool: Pool, models: Models, *, away: bool, clock: Callable[[], float]) -> bool:
        """Update from its list of models, requesting its version where that is not known. `away`: it was down,
        so it may be another engine, and its next start time is no restart. True: its builds have changed."""
        if away:
            self.version = None
            self._starts.clear()
        version = self.version
        if version is None:
            version = await version_of(pool, models)
            if version is None:
                return False
        self.version, digests = version, digests_of(version, models)
        if digests == self.digests:
            return False
        self.digests, self.changed_at = digests, clock()
        return True


def digests_of(version: str, models: Models) -> dict[str | None, bytes]:
    """The build of each model by name, and by None of all together."""
    digests: dict[str | None, bytes] = {}
    together = blake2b(digest_size=_SIZE)
    for model in models:
        stable = [version, *(model.get(name) for name in _OF_A_MODEL)]
        digests[str(model.get("id"))] = one = blake2b(_ENCODE(stable), digest_size=_SIZE).digest()
        together.update(one)
    digests[None] = together.digest()
    return digests


def in_common(builds: Iterable[Build]) -> dict[str | None, frozenset[bytes]]:
    """The builds that answer for each model, over several engines."""
    merged: dict[str | None, set[bytes]] = {}
    for build in builds:
        for model, digest in build.digests.items():
            merged.setdefault(model, set()).add(digest)
    return {model: frozenset(digests) for model, digests in merged.items()}


async def version_of(pool: Pool, models: Models) -> str | None:
    """An engine's version; empty where it has none, None where the request failed and is to be repeated."""
    owners = (str(model.get("owned_by")) for model in models)
    path = next((VERSION_PATHS[owner] for owner in owners if owner in VERSION_PATHS), None)
    if path is None:
        return ""
    try:
        async with asyncio.timeout(VERSION_SECONDS):
            status, body = await pool.get(path)
    except (GatewayError, TimeoutError):
        return None
    if status >= 500:
        return None
    return version_in(body) if status == 200 else ""


def version_in(body: bytes) -> str:
    """The version in a response body; empty where there is none."""
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    version = " ".join(str(members[name]) for name in _VERSION if members.get(name) is not None)
    return version[:MAX_VERSION].encode(errors="replace").decode()
