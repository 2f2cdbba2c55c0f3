"""How many streams are continued at one time, and what their readers get meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from proxy.flights.continuing.continuations import BLAMED_SECONDS, MOST_BLAMED, Continuations
from proxy.flights.flight import Flight
from proxy.flights.spec import FlightSpec, Head, Mode, QueueState, User
from proxy.wire import KEEP_ALIVE
from proxy.wire.openai import decode
from tests.kit.clock import virtual
from tests.proxy.flights.continuing.test_comparison import say
from tests.proxy.flights.continuing.test_replay import Reader


def flight(key: bytes = b"k") -> Flight:
    return Flight(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=key), asyncio.get_running_loop().time)


def continuations(keep_alive: float = 0.0) -> Continuations:
    loop = asyncio.get_running_loop()
    return Continuations(loop.call_later, loop.time, keep_alive=keep_alive)


def noting(names: list[str], name: str) -> Callable[[], None]:
    return lambda: names.append(name)


@virtual
async def test_streams_beyond_their_share_follow_in_their_order() -> None:
    here, went = continuations(), list[str]()
    one, two, three, four = (here.take(flight(), 2, noting(went, name)) for name in "abcd")
    assert [place.granted for place in (one, two, three, four)] == [True, True, False, False]
    here.give_back(three)  # its reader has left
    here.give_back(one)
    here.give_back(one)
    assert not here.take(flight(), 2, noting(went, "e")).granted
    await asyncio.sleep(0.001)
    assert (went, four.granted, len(here)) == (["d"], True, 3)


@virtual
async def test_a_smaller_share_holds_for_those_that_come_later() -> None:
    here, went = continuations(), list[str]()
    wide = [here.take(flight(), 3, noting(went, "-")) for _ in range(3)]
    narrow = here.take(flight(), 1, noting(went, "n"))
    for place in wide[:2]:
        here.give_back(place)
    assert not narrow.granted
    here.give_back(wide[2])
    await asyncio.sleep(0.001)
    assert (went, narrow.granted) == (["n"], True)


@virtual
async def test_readers_of_a_silent_stream_get_keep_alives_until_it_is_not_continued() -> None:
    here = continuations(keep_alive=10.0)
    for take in (lambda one: here.take(one, 1, lambda: None), here.queued):
        one = flight()
        reader = Reader(one)
        one.begins(Head())
        one.frames([say("a")])
        before = reader.data
        place = take(one)
        await asyncio.sleep(25.0)
        assert reader.data.removeprefix(before).count(KEEP_ALIVE) == 2
        one.token(0.0)
        await asyncio.sleep(10.0)  # it was not silent
        assert reader.data.count(KEEP_ALIVE) == 2
        here.give_back(place)
        await asyncio.sleep(100.0)
        assert reader.data.count(KEEP_ALIVE) == 2
    here.close()


def asked(what: str = "x", *, owner: str = "a", path: str = "/v1/chat/completions", **more: object) -> Flight:
    """A request whose answer is not shared."""
    body = {"model": "m", "messages": [{"role": "user", "content": what}], "stream": True, **more}
    api_request = decode("chat", json.dumps(body).encode())
    spec = FlightSpec("POST", path, api_request.body, Mode.STREAM, "r", api_request=api_request, model="m")
    return Flight(spec, asyncio.get_running_loop().time, queue_state=QueueState(owner=User(owner, "key")))


@virtual
async def test_blame_is_a_tenants_prompt_whatever_is_sampled_and_shared() -> None:
    here = continuations()
    here.blame(asked(temperature=1, max_tokens=64))
    assert here.blamed(asked(temperature=1, max_tokens=64))
    assert here.blamed(asked(temperature=0, seed=7))
    assert not here.blamed(asked("y", temperature=1, max_tokens=64))
    assert not here.blamed(asked(owner="b", temperature=1, max_tokens=64))
    assert not here.blamed(asked(path="/v1/completions"))


@virtual
async def test_a_request_without_a_prompt_as_text_is_blamed_as_a_whole() -> None:
    def embedded(name: str) -> Flight:
        body = json.dumps({"model": "m", "prompt_embeds": name, "stream": True}).encode()
        api_request = decode("completions", body)
        return Flight(FlightSpec("POST", "/", body, Mode.STREAM, "r", api_request=api_request, model="m"))

    here = continuations()
    here.blame(embedded("a"))
    assert [here.blamed(embedded(name)) for name in ("a", "b")] == [True, False]


@virtual
async def test_blame_has_an_end_and_a_bound() -> None:
    here = continuations()
    here.blame(flight(b"a"))
    here.blame(Flight(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r")))
    assert here.blamed(flight(b"a"))
    assert not here.blamed(flight(b"b"))
    await asyncio.sleep(BLAMED_SECONDS)
    assert not here.blamed(flight(b"a"))
    for number in range(MOST_BLAMED + 1):
        here.blame(flight(b"%d" % number))
    assert not here.blamed(flight(b"0"))
    assert here.blamed(flight(b"1"))
