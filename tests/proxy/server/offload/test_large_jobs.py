"""What is done elsewhere with a large request, with a pool of the test's own: jobs out, what was found in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, cast

import pytest
from multidict import CIMultiDict

from proxy.access.client_ip import TrustedProxies
from proxy.access.denylist.rules import read_deny_list
from proxy.access.identity import Authenticator
from proxy.access.intake import ApiRequestJob, EmbedsChatJob, FoldJob, Found, PageJob, RawJob, Refusal, TextsJob
from proxy.access.rules import AccessRules
from proxy.config.loader import load
from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.server.context import RequestContext
from proxy.server.listener.request import Request
from proxy.server.offload.large import INLINE, LEAST, LargeRequests
from proxy.telemetry.log import Log
from proxy.wire.fold.folding import MANY_BYTES, Unfoldable
from proxy.wire.http.media_type import Media
from proxy.wire.openai import Endpoint, decode
from tests.kit.clock import virtual
from tests.kit.mocked import mocked_request
from tests.kit.running import lines


class Pool:
    """Answers what the test says, and remembers what it was asked."""

    made: list[Pool]

    def __init__(self, terms: Callable[[], Any], *, on_event: Callable[[str, str], None]) -> None:
        self.terms, self.on_event = terms, on_event
        self.asked: list[tuple[Any, bytes, Hashable]] = []
        self.answer: Any = (Found(model="m"), b"")
        self.closed = False
        Pool.made.append(self)

    async def do(self, job: Any, body: bytes, owner: Hashable) -> Any:
        self.asked.append((job, body, owner))
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def pools(monkeypatch: pytest.MonkeyPatch) -> None:
    Pool.made = []
    monkeypatch.setattr("proxy.server.offload.large.Offload", Pool)


class Desk:
    def __init__(self, folder: Path, *flags: str, deny: str | None = None, owner: Any = "me") -> None:
        self._path = folder / "log"
        self.log = Log(os.open(self._path, os.O_WRONLY | os.O_CREAT))
        self.rules = AccessRules(
            Authenticator(None, TrustedProxies()), None if deny is None else read_deny_list(deny, "d")
        )
        self.large = LargeRequests(
            load(list(flags), {}),
            self.rules,
            None,
            self.log,
            scope=lambda call: b"scope",
            owner=lambda call: owner,
        )
        (self.pool,) = Pool.made

    def lines(self) -> list[dict[str, Any]]:
        self.log.close(30)
        return lines(self._path)


def call(**headers: str) -> RequestContext:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    mocked = mocked_request("POST", "/v1/responses", headers=CIMultiDict(names))
    return RequestContext(cast(Request, mocked), "id")


REFUSED = Found(model="m", refusal=Refusal(Code.INVALID_VALUE.name, "no"))


def test_a_costly_deny_list_leaves_less_to_the_loop(tmp_path: Path) -> None:
    patterns = "\n".join(f"re: p{n}x" for n in range(100))
    assert Desk(tmp_path).large.inline == INLINE
    Pool.made.clear()
    desk = Desk(tmp_path, deny="one")
    assert desk.large.inline == int(5e6 / (400 + 6 * 17.5)) == 9900
    terms = desk.pool.terms()
    desk.large.renew()
    assert desk.pool.terms() is terms
    assert terms.deny == "one"
    desk.rules.renew_deny_list(read_deny_list(patterns, "d"))
    desk.large.renew()
    assert desk.large.inline == LEAST
    assert desk.pool.terms().deny == patterns
    assert not desk.large.heavy(b"{}")


@virtual
async def test_a_request_is_read_elsewhere_and_its_call_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path, owner=lambda: "late")
    asked = call(cache_control="no-cache", x_gateway_share="all", x_session_id="s", authorization="Bearer k")
    desk.pool.answer = Found(model="m", stream=True, cost=(3, 4)), b""
    ask = await desk.large.read(asked, "chat", b"body")
    ((job, body, owner),) = desk.pool.asked
    assert isinstance(job, ApiRequestJob)
    assert (job.endpoint, job.cache_control, job.override, job.tenant, job.session) == (
        "chat", "no-cache", "all", b"scope", "s",
    )  # fmt: skip
    assert "authorization" not in dict(job.headers)
    assert (body, owner) == (b"body", "late")
    assert (asked.model, asked.stream, asked.api_request) == ("m", True, ask)
    assert (ask.body, ask.large is not None and ask.large.cost) == (b"body", (3, 4))
    desk.pool.answer = Found(model="m"), b"sent"
    assert (await desk.large.read(call(), "chat", b"body")).body == b"sent"


@virtual
async def test_a_credential_that_goes_up_is_a_part_of_the_job(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "--forward-authorization")
    await desk.large.read(call(authorization="Bearer k"), "chat", b"{}")
    assert dict(desk.pool.asked[0][0].headers)["authorization"] == "Bearer k"


@virtual
async def test_a_page_s_readers_come_with_their_times(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.pool.answer = Found(model="m", delays=[0.0, 5.0]), b"request"
    ask, delays = await desk.large.page(call(), b"body")
    assert isinstance(desk.pool.asked[0][0], PageJob)
    assert (ask.body, delays) == (b"request", [0.0, 5.0])


@virtual
async def test_a_body_that_passes_through_is_read_elsewhere(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.pool.answer = Found(model="m", cost=(5, 6)), b""
    asked = call()
    assert await desk.large.raw(asked, Media("form", b"x"), b"body") == (b"body", None, False)
    assert desk.pool.asked == [(RawJob("/v1/responses", "form", b"x"), b"body", "me")]
    assert (asked.model, asked.cost) == ("m", (5, 6))
    desk.pool.answer = Found(takes_salt=True, salt="own"), b"sent"
    assert await desk.large.raw(call(), Media("json"), b"body") == (b"sent", "own", True)


@virtual
async def test_a_refusal_that_was_found_is_raised_and_a_fault_of_ours_is_logged(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.pool.answer = REFUSED, b""
    flight = landed()
    for act in (
        desk.large.read(call(), "chat", b"{}"),
        desk.large.raw(call(), Media("json"), b"{}"),
        desk.large.denied(flight, b"{}"),
        desk.large.embeds_chat(call(), b"{}"),
    ):
        with pytest.raises(GatewayError, match="no") as e:
            await act
        assert e.value.code is Code.INVALID_VALUE
    desk.pool.answer = Found(fault="ZeroDivisionError at x"), b""
    await desk.large.raw(call(), Media("json"), b"{}")
    await desk.large.read(call(), "chat", b"{}")
    desk.pool.on_event("failed", "why")
    told = [(line["level"], line["msg"], line.get("fault"), line.get("where")) for line in desk.lines()]
    fault = ("error", "internal error", "ZeroDivisionError at x", "reading")
    assert told == [fault, fault, ("warning", "a reading process failed", None, None)]


@virtual
async def test_the_texts_of_an_answer_are_looked_at_elsewhere(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.pool.answer = Found(denied=7), b""
    flight = landed()
    assert await desk.large.denied(flight, b"body") == 7
    assert desk.pool.asked == [(TextsJob(), b"body", ("answer", id(flight)))]


@virtual
async def test_whether_an_embedding_has_messages_is_looked_up_elsewhere(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for there in (True, False):
        desk.pool.answer = Found(embeds_chat=there), b""
        assert await desk.large.embeds_chat(call(), b"body") is there
    assert desk.pool.asked == [(EmbedsChatJob(), b"body", "me")] * 2


# Folds


def landed(endpoint: Endpoint | None = "chat") -> Flight:
    api_request = None if endpoint is None else decode(endpoint, b'{"messages":[],"input":""}')
    flight = Flight(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k", api_request=api_request))
    for phase in (Phase.CONNECTING, Phase.PREFILL, Phase.STREAMING):
        flight.enter(phase)
    flight.add(b"data: " + b"x" * MANY_BYTES + b"\n\n")
    flight.land()
    return flight


@virtual
async def test_a_long_stream_is_folded_once_for_all_who_want_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.pool.answer = Found(), b"folded"
    flight = landed()
    assert desk.large.folds(flight)
    await asyncio.gather(desk.large.fold(flight), desk.large.fold(flight))
    ((job, body, owner),) = desk.pool.asked
    assert job == FoldJob("chat", False, flight.shape)
    assert (body, owner) == (b"".join(flight.log), ("fold", id(flight)))
    assert (flight.folded, desk.large.folds(flight)) == (b"folded", False)
    await asyncio.sleep(0)
    await desk.large.fold(flight)  # what was done is not kept: it is asked for again
    assert len(desk.pool.asked) == 2
    await desk.large.close()
    assert desk.pool.closed


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((REFUSED, b"folded"), []),
        ((Found(), b""), []),
        ((Found(fault="E at x"), b""), ["internal error"]),
        (GatewayError(Code.QUEUE_FULL, "full"), ["a stream was not folded"]),
    ],
    ids=["refused", "nothing", "fault", "full"],
)
@virtual
async def test_a_stream_that_was_not_folded_is_told_so(tmp_path: Path, answer: Any, told: list[str]) -> None:
    desk = Desk(tmp_path)
    desk.pool.answer = answer
    flight = landed()
    with pytest.raises(Unfoldable, match="it could not be folded"):
        await desk.large.fold(flight)
    assert flight.folded is None
    assert [line["msg"] for line in desk.lines()] == told


@pytest.mark.parametrize("endpoint", [None, "embeddings"])
@virtual
async def test_what_is_no_generated_stream_is_not_folded(tmp_path: Path, endpoint: Endpoint | None) -> None:
    desk = Desk(tmp_path)
    with pytest.raises(Unfoldable):
        await desk.large.fold(landed(endpoint))
    assert desk.pool.asked == []


@virtual
async def test_a_reader_that_leaves_does_not_end_the_fold_of_others(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.pool.answer = Found(), b"folded"
    flight = landed()
    first, second = (asyncio.ensure_future(desk.large.fold(flight)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert (flight.folded, len(desk.pool.asked)) == (b"folded", 1)
