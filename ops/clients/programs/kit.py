"""What the programs of clients in Python share: a target, the run of all trials, and an engine that is busy."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import urlopen

TRIAL_SECONDS: Final = 150.0
COLOUR: Final = "Name a colour."
COUNT: Final = "Count from 1 to 1000, one number a line."
"""A prompt with a long answer."""
LONG: Final = 2000
"""Most tokens of that answer."""
SHORT: Final = 8
TYPED: Final = 100
"""Most tokens of an answer in JSON."""
CITY: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Final = "What is the weather in Paris?"
PIXEL: Final = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_RUNNING: Final = re.compile(r"^vllm:num_requests_running(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_LOOK: Final = 0.05


@dataclass(frozen=True)
class Target:
    """`url` and `embeds` serve chat and embeddings; `engine` is the engine itself. None ends in /v1."""

    url: str
    embeds: str
    engine: str
    model: str
    embed_model: str
    silence: float = 1.5
    """Seconds for which `busy` has the engine's slot."""


Trial = Callable[[Target], object]


def main(trials: Mapping[str, Trial]) -> None:
    """Run them against the targets of `sys.argv[1]`, JSON: a line of JSON for each. One that raises has failed."""
    for name, fields in json.loads(sys.argv[1]).items():
        target = Target(**fields)
        for feature, trial in trials.items():
            words = _tried(trial, target)
            print(json.dumps({"target": name, "feature": feature, "words": words}), flush=True)


def _tried(trial: Trial, target: Target) -> str:
    """What went wrong; empty: nothing."""
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, TRIAL_SECONDS)
    try:
        trial(target)
    except Exception as error:  # noqa: BLE001 - a client may raise anything, and that is the result
        return f"{type(error).__name__}: {error}"[:400]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def _late(number: int, frame: object) -> None:
    raise TimeoutError(f"it took more than {TRIAL_SECONDS:.0f} s")


def refused(kind: type[Exception], call: Callable[[], object]) -> Exception:
    """The error of that type that a call raises. Raises AssertionError where it raises none."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def until(fact: Callable[[], bool], words: str, seconds: float = 30.0) -> None:
    """Raises AssertionError with the words where the fact does not come to hold in time."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, words
        time.sleep(_LOOK)


def running(target: Target) -> float:
    """The requests that the engine is generating for, by its metrics."""
    with urlopen(f"{target.engine}/metrics", timeout=30) as answer:  # noqa: S310 - a URL of this stand
        return sum(float(value) for value in _RUNNING.findall(answer.read().decode()))


def stops(target: Target, leave: Callable[[], object]) -> None:
    """To be called while a long answer streams: leave it, and the engine must stop generating."""
    until(lambda: running(target) >= 1, "the answer ended before the client could leave")
    leave()
    until(lambda: running(target) == 0, "the engine goes on generating")


@contextlib.contextmanager
def busy(target: Target) -> Iterator[None]:
    """Another request streams for `target.silence` seconds from here. Where it has the engine's only slot, the
    requests of the block wait as long."""
    at = urlsplit(target.url)
    assert at.hostname is not None
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=TRIAL_SECONDS)
    ask = {"model": target.model, "messages": [{"role": "user", "content": COUNT}], "max_tokens": LONG}
    body = json.dumps({**ask, "stream": True, "ignore_eos": True, "temperature": 0.5})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    held = connection.sock
    answer = connection.getresponse()
    answer.read(1)
    timer = threading.Timer(target.silence, held.shutdown, [socket.SHUT_RDWR])
    timer.start()
    try:
        yield
    finally:
        timer.join()
        answer.close()
        connection.close()


def wav() -> bytes:
    """A tenth of a second of silence: WAV, 16 kHz, mono."""
    return bytes.fromhex(
        "52494646a40c000057415645666d74201000000001000100803e0000007d00000200100064617461800c0000"
    ) + bytes(3200)
