"""Store entries: a Flight's answer as it is stored (`snapshot`), and Flights answered from one (`replay`)."""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.flights.flight import FREE, Flight
from proxy.flights.memory import refused
from proxy.flights.spec import Head, Mode
from proxy.redis import Stored, stream_views, wall_clock
from proxy.wire import ApiRequest, Usage, asked_of, endings, lack_of, read_body, unchunks
from proxy.wire.fold import LLAMA, VLLM, Unfoldable, fold, forces_tool, many_frames, may_fold

WHOLE: Final = b"w"
"""Suffix of a stored body's name: it is stored beside the stream of the same key."""
_STREAM: Final = Mode.STREAM  # a global is cheaper to look up than a member of a class
TOLD: Final = (None, VLLM, LLAMA)
"""Shapes that a stream's own frames show: they are not stored."""
_JSON: Final = (("content-type", "application/json"),)
_SSE: Final = (("content-type", "text/event-stream; charset=utf-8"),)


def replay(flight: Flight, stored: Stored) -> bool:
    """Answer a Flight from an entry; False if the entry does not serve it. Where the memory budget is exhausted
    the Flight fails, as each stored answer that is being read is a separate copy."""
    api_request = flight.spec.api_request
    if (
        api_request is not None
        and (api_request.endpoint == "completions" or "n" in api_request.fields)
        and not _has_all(stored, api_request)
    ):
        flight.replace_stored()
        return False
    if len(stored.body) > FREE and not flight.charge(2 * len(stored.body)):
        flight.fail(refused())
        return True
    if flight.spec.mode is Mode.WHOLE:
        body = stored.body if stored.kind == "whole" else b""
        if stored.kind == "stream" and api_request is not None and many_frames((stored.body,)):
            if not may_fold(stored.body, stored.shape):
                return False
            # It lands as a stream, which readers that want one body fold.
            return _land_stream(flight, stored)
        if stored.kind == "stream" and api_request is not None and api_request.endpoint != "embeddings":
            try:
                body = fold(
                    unchunks(stored.body),
                    api_request.endpoint,
                    forced_tool=forces_tool(api_request.fields),
                    shape=stored.shape,
                )
            except Unfoldable:
                return False
            except ValueError:
                body = b""  # complete chunks, but not ours
        if not body:
            flight.replace_stored()
            return False
        flight.append_body(body)
        head = Head(200, _JSON, len(body))
    elif stored.kind == "stream":
        return _land_stream(flight, stored)
    else:
        flight.unfold()  # readers that want one body need not wait for the stream: it is in the store
        return False
    return _landed(flight, stored, head)


def _land_stream(flight: Flight, stored: Stored) -> bool:
    head = Head(200, _SSE)
    plain = stored.body if stored.cut is None else stored.body[: stored.cut] + stored.tail
    flight.replay_stored(head, stored.body, plain, stored.shape)
    return _landed(flight, stored, head)


def _landed(flight: Flight, stored: Stored, head: Head) -> bool:
    usage = None
    if stored.prompt_tokens is not None or stored.completion_tokens is not None:
        usage = Usage(prompt_tokens=stored.prompt_tokens or 0, completion_tokens=stored.completion_tokens or 0)
    flight.land_stored(head, stored.created, usage)
    return True


def _has_all(stored: Stored, api_request: ApiRequest) -> bool:
    """Whether an entry has every choice that this request asks for."""
    asked = asked_of(api_request)
    if asked < 2:
        return True
    try:
        if stored.kind == "stream":
            return lack_of(endings(unchunks(stored.body)), asked) is None
        return read_body(stored.body, api_request.endpoint, asked)[1] is None
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return False


def snapshot(flight: Flight, build: bytes) -> Stored:
    """The entry of a complete answer by an engine of this build."""
    streamed = flight.mode is _STREAM
    usage = flight.usage
    log = flight.log
    body, cut, tail = log[0] if len(log) == 1 else b"", None, b""
    if streamed:
        body, cut, tail = stream_views(log, flight.log_without_usage)
    elif len(log) != 1:
        body = b"".join(log)
    return Stored(
        kind="stream" if streamed else "whole",
        created=wall_clock(),
        body=body,
        cut=cut,
        tail=tail,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        shape=flight.shape if streamed and flight.shape not in TOLD else None,
        build=build,
    )
