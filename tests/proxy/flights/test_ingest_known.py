"""What streams have in common is known from those before: it changes nothing of what comes of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.flights.flight import Flight
from proxy.flights.spec import FlightSpec
from proxy.wire import frames
from tests.golden import load, names
from tests.kit.clock import virtual
from tests.proxy.flights.test_ingest_answers import ASKED, DONE, SSE, Fed

OPENING = (
    b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":1795386835,"model":"m/x","choices":['
)
ROLE = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
END = b'{"index":0,"delta":{},"finish_reason":"%b"}]}\n\n'


def text(text: bytes, index: int = 0, more: bytes = b"") -> bytes:
    return b'{"index":%d,"delta":{"content":"%b"},"finish_reason":null}]%b}\n\n' % (index, text, more)


RESTS = (
    ROLE,
    ROLE.replace(b'"role"', b'"x"'),
    ROLE.replace(b'"content":""', b'"content":"a"'),
    ROLE.replace(b'"index":0', b'"index":1'),
    ROLE.replace(b"]}", b'],"error":null}'),
    *map(text, (b"a", b" b", b"", b"\\n", b'a\\"b', b"a\\", b"a\nb", b"a\rb", b'","usage":{"prompt_tokens":7}')),
    text(b"a", 1),
    text(b"a", more=b',"usage":null'),
    text(b"a", more=b',"usage":{"prompt_tokens":1,"completion_tokens":2}'),
    text(b"a", more=b',"error":{"message":"no"}'),
    text(b"a", more=b',"object":"error"'),
    text(b"a", more=b',"choices":[{"index":3,"finish_reason":"stop"}]'),
    text(b"a")[:-2] + b",\n\n",
    *(END % reason for reason in (b"stop", b"length", b"abort", b"error", b"")),
    END.replace(b'"delta":{}', b'"delta":{"content":"z"}') % b"stop",
    END.replace(b'"index":0', b'"index":2') % b"stop",
    END.replace(b"]}", b'],"usage":{"prompt_tokens":4}}') % b"stop",
    END.replace(b'"delta":{}', b'"delta":{"finish_reason":"stop"}').replace(b'"%b"}]', b"null}]"),
    b'],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n',
)
FRAMES = st.lists(st.sampled_from((*RESTS, DONE, b": hi\n\n", b"data: {}\n\n")), max_size=7)
STREAMS = st.lists(st.tuples(st.sampled_from([b"a1", b"b2", b'"', b"\xc3\xa4"]), FRAMES), max_size=4)


def events(name: bytes, rests: Sequence[bytes]) -> list[bytes]:
    return [rest if rest[:1] in b"d:" else OPENING % name + rest for rest in rests]


@contextmanager
def nothing_known() -> Iterator[frames._Known]:
    with mock.patch.object(frames, "_KNOWN", frames._Known()) as known:
        yield known


def facts(reads: Sequence[bytes], **more: Any) -> tuple[Any, ...]:
    """All that comes of a stream."""
    seen: list[Any] = []

    def flight(spec: FlightSpec, clock: Callable[[], float]) -> Flight:
        return Flight(spec, clock, on_spoiled=lambda flight: seen.append("spoiled"))

    async def feed() -> None:
        fed = Fed(body=ASKED, flight=flight, on_first=lambda: seen.append("first"), **more)
        fed.ingest.head(200, SSE)
        for now, data in enumerate(reads, 1):
            fed.now = now
            fed.ingest.body(data)
        ingest, answer = fed.ingest, fed.flight
        seen.append((ingest.clean, ingest.surplus, ingest.error_frame, ingest._ended, ingest._lack))
        seen.append((answer.phase, answer.content_events, answer.events, answer.usage, answer.times.first))
        seen.append((answer.log, answer.log_without_usage, answer.tail, [end and end.message for end in fed.ends]))
        ingest.close()

    asyncio.run(feed())
    return tuple(seen)


@given(before=STREAMS, stream=FRAMES, together=st.booleans(), shared=st.booleans())
@example(before=[(b"a1", [text(b"a", 1), text(b'a\\"b')])], stream=[text(b"a", 1)], together=False, shared=False)
def test_nothing_depends_on_the_streams_before(
    before: list[tuple[bytes, list[bytes]]], stream: list[bytes], together: bool, shared: bool
) -> None:
    reads = events(b"c3", stream)
    if together:
        reads = [b"".join(reads)]
    with nothing_known():
        alone = facts(reads, usage_added=shared)
    with nothing_known():
        for name, rests in before:
            facts(events(name, rests), usage_added=shared)
        assert facts(reads, usage_added=shared) == alone


@pytest.mark.parametrize("name", names("chat", "-stream"))
def test_nor_does_anything_of_vllm_s_own(name: str) -> None:
    reads = load(name).frames()
    with nothing_known():
        alone = facts(reads)
        facts([read.replace(b'"id":"', b'"id":"x') for read in reads])
        assert facts(reads) == alone


@virtual
async def test_of_a_usual_stream_nothing_is_looked_at_but_in_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []

    def look(frame: bytes) -> bool:
        looked.append(frame)
        return frames.has_content(frame)

    monkeypatch.setattr("proxy.flights.ingest.has_content", look)
    rests = [ROLE, text(b"a"), text(b"b"), END % b"stop", DONE]
    with nothing_known() as known:
        for name in b"a1", b"b2":
            fed = Fed(body=ASKED)
            fed.ingest.head(200, SSE)
            for data in events(name, rests):
                fed.ingest.body(data)
            assert (fed.ends, fed.flight.content_events) == ([None], 2)
        assert looked == events(b"a1", [ROLE, text(b"a"), END % b"stop"])
        assert known.events == {ROLE: "", END % b"stop": "stop"}
        assert len(known.texts) == 1


def test_what_is_known_is_bounded() -> None:
    with nothing_known() as known:
        for number in range(3 * frames.MAX_KNOWN):
            more = b',"x":%d' % number
            facts(events(b"a", [ROLE.replace(b"]}", b"]" + more + b"}"), text(b"a", more=more)]))
            assert len(known.events) <= frames.MAX_KNOWN
            assert len(known.texts) <= frames.MAX_KNOWN
        assert known.events
        known.events.clear()
        known.texts.clear()
        long = b',"x":"%b"' % (b"x" * frames.KNOWN_BYTES)
        facts(events(b"a", [ROLE.replace(b"]}", b"]" + long + b"}"), text(b"a", more=long)]))
        assert (known.events, known.texts) == ({}, set())
