"""What is settled before the first request: the server answers, its model's name, enough file descriptors."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import aiohttp
import msgspec

from loadgen.drive import Client, failure_of
from loadgen.errors import UsageError
from loadgen.secrets import without_userinfo
from loadgen.spec import Http

PROBE_TIMEOUT: Final = 10.0  # seconds for /v1/models to answer
RETRY: Final = 0.5
SPARE: Final = 64  # descriptors for files, pipes, timers, name resolution


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def model_of(client: Client, base: str, http: Http, *, wait: float, advice: str = "") -> str:
    """The first model that the server lists. Raises UsageError."""
    status, body = await get_models(client, base, http, wait=wait, advice=advice)
    if status in (401, 403):
        raise UsageError(f"{base} answered {status}: it requires a key; set OPENAI_API_KEY or give --api-key")
    if status != 200:
        raise UsageError(
            f"{base}/v1/models answered {status}; is this an OpenAI-compatible server? If so, give --model"
        )
    try:
        models = msgspec.json.decode(body, type=_Models).data
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise UsageError(f"{base}/v1/models did not answer with a list of models; give --model") from None
    if not models:
        raise UsageError(
            f"{base} serves no model yet; give --model, or wait for one with --ready-check-timeout-sec"
        )
    return models[0].id


def models_of(body: bytes) -> list[str]:
    """The models that a /v1/models lists; empty for anything else."""
    try:
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []


async def get_models(client: Client, base: str, http: Http, *, wait: float, advice: str = "") -> tuple[int, bytes]:
    """GET /v1/models, repeated until the status is below 500 or `wait` seconds have passed. Raises UsageError,
    with the advice at the end where there is no response."""
    until = time.monotonic() + wait
    while True:
        try:
            answer = await client.get(f"{base}/v1/models", PROBE_TIMEOUT)
            if answer[0] < 500 or time.monotonic() >= until:
                return answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if time.monotonic() >= until:
                ask = "." if _answers(error) else ". Is the server running?"
                ask = f"{ask} {advice}" if advice else ask.removesuffix(".")
                raise UsageError(f"no response from {base}: {_words(error, http)}{ask}") from None
        await asyncio.sleep(RETRY)


def proxy_note(urls: Iterable[str]) -> str:
    """That a proxy of the environment, which other clients use for one of these, is not used; empty if none is."""
    for url in urls:
        parts = urlsplit(url)
        lower = f"{parts.scheme}_proxy"
        name = next((name for name in (lower, lower.upper()) if os.environ.get(name)), None)
        if name is not None and not proxy_bypass(parts.netloc.rpartition("@")[2]):
            return f"{name} of the environment is not used: requests go to {without_userinfo(url)} directly"
    return ""


def _answers(error: BaseException) -> bool:
    """Whether something answers there, but not as an HTTP server at this address would."""
    return isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientResponseError)


def _words(error: BaseException, http: Http) -> str:
    if type(error) is TimeoutError:
        return f"no response within {PROBE_TIMEOUT:g} s"
    return failure_of(error, http, answering=False)[1]


def connection_limit(wanted: int | None) -> int:
    """How many connections may be open. Raises the soft limit on file descriptors, up to the hard limit.

    Raises UsageError if `wanted` exceeds what the system allows, before the run starts.
    """
    try:
        import resource
    except ImportError:
        return wanted or 1000  # not a Unix: no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    need = (wanted or 10**9) + SPARE
    if soft != resource.RLIM_INFINITY and soft < need:
        target = min(need, 1_048_576) if unlimited else min(need, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            soft = target
        except (ValueError, OSError):
            pass  # the soft limit is checked below
    free = 10**9 if soft == resource.RLIM_INFINITY else soft - SPARE
    if (wanted or 1) > free:
        least = wanted or 1
        raise UsageError(
            f"{least} concurrent request{'s' if least > 1 else ''} need {least + SPARE} file descriptors; this "
            f"system allows {soft}: run `ulimit -n {least + SPARE}` first (as root, or raise the hard limit), "
            "or lower --max-concurrency"
        )
    return wanted or free
