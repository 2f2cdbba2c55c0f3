"""What is known of engines' answers, with scripts for engines: which is asked, when, and what comes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights import shapes
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.phase import Phase
from proxy.flights.shapes import AGAIN, EVERY, IMPATIENT, MOST_BYTES, NAME, REST, TRIES, Shapes
from proxy.flights.spec import FlightSpec, Mode
from proxy.telemetry.metrics import Metrics
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.http.pool import Pool
from proxy.upstream.load import LoadReport
from proxy.upstream.pulse import Pulse
from proxy.wire.fold.folding import Unfoldable
from proxy.wire.fold.known import Odd
from proxy.wire.fold.shape import LLAMA, VLLM, Shape
from proxy.wire.openai import decode
from proxy.wire.sse import chunk
from tests.golden import load
from tests.kit.clock import virtual

STREAM, BODY = load("chat-greedy-stream-usage"), load("chat-greedy")
Asked = tuple[str, str, bytes]


class Script:
    """A pool whose answers are a script's."""

    def __init__(self, answers: Callable[[Asked], tuple[int, bytes]]) -> None:
        self.answers = answers
        self.asked: list[Asked] = []
        self.names: list[str] = []
        self.fresh: set[bool] = set()

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, fresh: bool = False, name: str = ""
    ) -> tuple[int, bytes]:
        self.asked.append((method, path, body))
        self.names.append(name)
        self.fresh.add(fresh)
        await asyncio.sleep(0)
        return self.answers(self.asked[-1])


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def event(self, level: str, msg: str, **more: Any) -> None:
        self.lines.append({"level": level, "msg": msg, **more})


def fine(asked: Asked) -> tuple[int, bytes]:
    method, path, body = asked
    if method == "GET":
        return (200, b'{"version":"1"}') if path == "/version" else (405, b"")
    return 200, STREAM.body if json.loads(body).get("stream") else BODY.body


class Desk:
    """Shapes of one engine, or of more, by virtual time."""

    def __init__(
        self,
        answers: Callable[[Asked], tuple[int, bytes]] = fine,
        *,
        count: int = 1,
        owner: str = "vllm",
        **more: Any,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.pools = [Script(answers) for _ in range(count)]
        self.engines = [Backend(f"e{n}", cast(Pool, pool), 4, up=True) for n, pool in enumerate(self.pools)]
        for engine in self.engines:
            engine.list_models([{"id": "m", "owned_by": owner}])
        self.log, self.metrics, self.probed = Lines(), Metrics(), list[tuple[str, str]]()
        self.metrics.probed = lambda *given: self.probed.append(given)  # type: ignore[method-assign]
        self.unfolded: list[str] = []
        self.metrics.unfolded = self.unfolded.append  # type: ignore[method-assign, assignment]
        self.backends = Backends(self.engines, clock=loop.time)
        self.shapes = Shapes(
            self.backends,
            pulse=Pulse(loop),
            log=cast(Any, self.log),
            metrics=self.metrics,
            **({"clock": loop.time} | more),
        )

    async def run(self, seconds: float) -> None:
        task = asyncio.ensure_future(self.shapes.run())
        await asyncio.wait([task], timeout=seconds)
        task.cancel()
        await asyncio.wait([task])

    def posts(self, engine: int = 0) -> int:
        return sum(method == "POST" for method, _, _ in self.pools[engine].asked)


def api_request(**more: Any) -> Any:
    return decode("chat", json.dumps({"model": "m", "messages": [], "stream": True, **more}).encode())


def flight(engine: str | None = "e0", *, at: Phase = Phase.STREAMING, **more: Any) -> Flight:
    made = Flight(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k", api_request=api_request(**more)))
    for phase in (Phase.CONNECTING, Phase.PREFILL, Phase.STREAMING):
        if made.phase is not at:
            made.enter(phase)
    made.backend = engine
    return made


@virtual
async def test_an_engine_is_asked_one_stream_and_one_body_by_a_name_of_ours() -> None:
    desk = Desk()
    assert (desk.shapes.settled, repr(desk.shapes)) == (False, "<Shapes unknown=0>")
    await desk.run(5.0)
    bodies = [json.loads(body) for method, _, body in desk.pools[0].asked if method == "POST"]
    assert [body.get("stream", False) for body in bodies] == [True, False]
    assert bodies[0]["stream_options"] == {"include_usage": True}
    assert bodies[0]["messages"] == bodies[1]["messages"]
    for body in bodies:
        assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("m", 4, 0, 1)
    assert all(name.startswith(NAME) for name in desk.pools[0].names)
    assert (desk.pools[0].fresh, desk.probed) == ({True}, [("e0", "known")])
    assert (desk.shapes.settled, desk.log.lines) == (True, [])
    assert desk.backends.folds(api_request(), "e0")


@virtual
async def test_each_endpoint_is_asked_in_its_own_words_and_what_one_shows_is_not_taken_for_the_other() -> None:
    def answers(asked: Asked) -> tuple[int, bytes]:
        return (400, b"") if asked[0] == "POST" else fine(asked)

    desk = Desk(answers)
    await desk.run(0.9)
    bodies = {path: json.loads(body) for method, path, body in desk.pools[0].asked if method == "POST"}
    prompts = {path: sorted(body.keys() & {"messages", "prompt"}) for path, body in bodies.items()}
    assert prompts == {"/v1/chat/completions": ["messages"], "/v1/completions": ["prompt"]}
    assert bodies["/v1/chat/completions"]["messages"] == [
        {"role": "user", "content": bodies["/v1/completions"]["prompt"]}
    ]
    assert desk.probed == [("e0", "unknown")] * 2


@virtual
async def test_a_known_engine_delays_no_probe_of_another() -> None:
    desk = Desk(lambda asked: (400, b"") if asked[0] == "POST" else fine(asked), count=2)
    for endpoint in shapes.ENDPOINTS:
        desk.engines[0].abilities.learn(["m"], endpoint, VLLM)
    await desk.run(EVERY / 2)
    assert (desk.posts(0), desk.posts(1)) == (0, 2)


@virtual
async def test_where_two_answers_have_different_texts_a_few_more_are_asked_for() -> None:
    texts = iter(range(100))

    def answers(asked: Asked) -> tuple[int, bytes]:
        status, body = fine(asked)
        if asked[0] == "POST" and not json.loads(asked[2]).get("stream"):
            body = body.replace(b'"content":"', b'"content":"%d' % next(texts))
        return status, body

    desk = Desk(answers)
    await desk.run(EVERY / 2)
    assert desk.probed == [("e0", "again")], "the next one after a pause"
    await desk.run((TRIES - 1) * EVERY)
    assert desk.probed[:TRIES] == [("e0", "again")] * (TRIES - 1) + [("e0", "unknown")]
    assert "own body" in desk.log.lines[0]["detail"]
    assert not any(key[2] == "chat" for key in desk.shapes._tries)


@virtual
async def test_an_answer_may_have_so_many_bytes_and_no_more() -> None:
    size = [MOST_BYTES]
    desk = Desk(lambda asked: (200, b"x" * size[0]))
    engine = desk.engines[0]
    assert len(await desk.shapes._answer(engine, "m", "chat", 0)) == MOST_BYTES
    size[0] += 1
    with pytest.raises(Unfoldable, match="a few tokens take it"):
        await desk.shapes._answer(engine, "m", "chat", 0)


@pytest.mark.parametrize(("seconds", "asked"), [(IMPATIENT - 1.0, False), (IMPATIENT, True)])
@virtual
async def test_patience_ends_to_the_second(seconds: float, asked: bool) -> None:
    now = [100.0]
    desk = Desk(clock=lambda: now[0])
    desk.engines[0].inflight = 2
    assert not await desk.shapes._look_at(desk.engines[0])
    now[0] += seconds
    assert await desk.shapes._look_at(desk.engines[0]) is asked


@pytest.mark.parametrize(("seconds", "more"), [(REST * TRIES - 1.0, 0), (REST * TRIES, 1)])
@virtual
async def test_a_rest_ends_to_the_second(seconds: float, more: int) -> None:
    now = [0.0]
    desk = Desk(lambda asked: (503, b""), clock=lambda: now[0])
    for _ in range(TRIES):
        await desk.shapes._look_at(desk.engines[0])
    now[0] = seconds
    await desk.shapes._look_at(desk.engines[0])
    assert len(desk.probed) == TRIES + more


@virtual
async def test_an_engine_whose_stream_did_not_fold_is_asked_anew_at_once() -> None:
    desk = Desk()
    task = asyncio.ensure_future(desk.shapes.run())
    await asyncio.sleep(EVERY / 2)
    assert desk.posts() == 2
    desk.shapes.unfolded(flight(), Unfoldable("new"))
    await asyncio.sleep(EVERY / 10)
    assert desk.posts() == 4
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(("seconds", "anew"), [(AGAIN, False), (AGAIN + 1.0, True)])
@virtual
async def test_a_changed_engine_is_doubted_again_after_a_while(seconds: float, anew: bool) -> None:
    now = [0.0]
    desk = Desk(clock=lambda: now[0])
    for n in (1, 2):
        desk.engines[0].abilities.learn(["m", None], "chat", VLLM)
        desk.shapes.unfolded(flight(n=n), Unfoldable("new"))
        now[0] = seconds
    assert desk.engines[0].abilities.knows("m", "chat") is not anew


@virtual
async def test_llama_cpp_is_known_without_a_question() -> None:
    desk = Desk(owner="llamacpp")
    await desk.run(0.5)
    assert (desk.pools[0].asked, desk.shapes.settled) == ([], True)
    for name in ("m", "another"):
        assert desk.engines[0].abilities.shape(api_request(model=name)) == LLAMA
    desk.engines[0].abilities.forget()
    desk.engines[0].list_models([{"id": name, "owned_by": "llamacpp"} for name in ("m", "n", "o")])
    await desk.run(EVERY / 2)
    assert desk.shapes.settled, "one model after the other, without a pause"


@pytest.mark.parametrize("busy", ["inflight", "running", "waiting"])
@virtual
async def test_an_engine_at_work_is_asked_at_half_of_its_places_once_it_has_never_been_idle(busy: str) -> None:
    desk = Desk()
    engine = desk.engines[0]
    if busy == "inflight":
        engine.inflight = 2
    else:
        engine.report = LoadReport(1.0 if busy == "running" else 0.0, 1.0 if busy == "waiting" else 0.0, 0.1)
    await desk.run(IMPATIENT - 1.0)
    assert (desk.posts(), repr(desk.shapes)) == (0, "<Shapes unknown=1>")
    await desk.run(3.0)
    assert desk.posts() == (0 if busy == "waiting" else 2)
    engine.inflight, engine.report = 3, None
    engine.abilities.forget()
    await desk.run(IMPATIENT + 5.0)
    assert desk.posts() == (0 if busy == "waiting" else 2), "more than half of its places are taken"


@pytest.mark.parametrize(
    ("running", "waiting", "asked"), [(0.0, 0.0, True), (1.0, 0.0, False), (0.0, 1.0, False), (1.0, 1.0, False)]
)
@virtual
async def test_an_engine_that_reports_no_request_is_idle(running: float, waiting: float, asked: bool) -> None:
    desk = Desk()
    desk.engines[0].report = LoadReport(running, waiting, 0.1)
    assert await desk.shapes._look_at(desk.engines[0]) is asked


@virtual
async def test_what_is_known_of_the_other_endpoint_is_kept() -> None:
    desk, none = Desk(), Shape("none")
    abilities = desk.engines[0].abilities
    abilities.learn(["m"], "completions", none)
    await desk.run(0.5)
    assert abilities.knows("m", "chat")
    whole = decode("completions", b'{"model":"m","prompt":"x"}')
    assert abilities.shape(whole) == none


@virtual
async def test_what_one_body_does_not_prove_is_asked_with_another_text() -> None:
    def answers(asked: Asked) -> tuple[int, bytes]:
        status, body = fine(asked)
        if asked[0] == "POST" and not json.loads(asked[2]).get("stream"):
            body = body.replace(b"{", b'{"site":"x",', 1)
        return status, body

    desk = Desk(answers)
    await desk.run(0.5)
    posts = [json.loads(body) for method, path, body in desk.pools[0].asked if method == "POST" and "chat" in path]
    said = [body["messages"][0]["content"] for body in posts]
    assert (len(said), said[0] == said[1], said[0] == said[2]) == (3, True, False)
    known = desk.engines[0].abilities.shape(api_request())
    assert known is not None
    assert known.dialect == "learned"


@virtual
async def test_an_engine_of_models_of_several_kinds_is_asked_like_an_unknown_one() -> None:
    desk = Desk()
    engine = desk.engines[0]
    engine.list_models([{"id": "m", "owned_by": "llamacpp"}, {"id": "n", "owned_by": "vllm"}])
    await desk.run(0.5)
    assert desk.posts() > 0
    assert engine.abilities.shape(api_request()) == VLLM


@virtual
async def test_an_engine_that_is_down_is_not_asked_and_is_asked_at_once_when_it_is_up() -> None:
    desk = Desk()
    desk.engines[0].up = False
    task = asyncio.ensure_future(desk.shapes.run())
    await asyncio.sleep(0.5)
    assert (desk.posts(), desk.shapes.settled) == (0, True)
    desk.engines[0].up = True
    desk.shapes.wake()
    await asyncio.sleep(0.1)
    assert desk.posts() == 2
    task.cancel()
    await asyncio.wait([task])


@virtual
async def test_one_that_does_not_answer_well_is_tried_some_times_and_rests_for_longer_and_longer() -> None:
    desk = Desk(lambda asked: (503, b""))
    await desk.run(TRIES * EVERY + 0.5)
    assert desk.probed == [("e0", "again")] * TRIES
    assert [line["detail"] for line in desk.log.lines] == ["chat: it answers 503 to a small request"]
    assert desk.shapes.settled, "it rests"
    await desk.run(REST * TRIES - 4.0)
    assert len(desk.probed) == TRIES
    await desk.run(2 * TRIES * EVERY + 4.0)
    assert len(desk.probed) >= 2 * TRIES
    assert len(desk.log.lines) == 2
    desk.engines[0].up = False
    await desk.run(0.5)
    assert desk.shapes._rests == desk.shapes._since == {}


@virtual
async def test_a_model_whose_adapter_is_loaded_meanwhile_has_had_its_tries() -> None:
    desk = Desk(lambda asked: (503, b""))
    engine = desk.engines[0]
    engine.list_models([{"id": "m", "owned_by": "vllm"}, {"id": "other", "owned_by": "vllm"}])
    await desk.run((TRIES - 1) * EVERY - 0.5)
    assert len(desk.probed) == TRIES - 1
    engine.list_models([*engine.models, {"id": "adapter", "owned_by": "vllm", "parent": "m"}])
    await desk.run(3 * EVERY)
    assert (len(desk.probed), len(desk.log.lines)) == (TRIES, 1)


@virtual
async def test_what_is_known_of_an_engine_that_was_removed_is_dropped() -> None:
    desk = Desk(lambda asked: (503, b""), count=2)
    await desk.run(TRIES * EVERY + 0.5)
    desk.shapes._doubted = dict.fromkeys(desk.engines, 1.0)
    del desk.backends.all[0]
    await desk.run(0.5)
    kept = (desk.shapes._since, desk.shapes._rests, desk.shapes._doubted)
    assert [list(one) for one in kept] == [[desk.engines[1]]] * 3
    assert {key[0] for key in desk.shapes._tries} == {desk.engines[1]}


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (400, "chat: it answers 400 to a small request"),
        (404, None),
        (501, None),
        (200, "chat: a few tokens take it"),
    ],
)
@virtual
async def test_what_an_engine_will_never_do_is_known_after_one_question(status: int, why: str | None) -> None:
    desk = Desk(lambda asked: (status, b"x" * (MOST_BYTES + 1)) if asked[0] == "POST" else fine(asked))
    await desk.run(0.9)
    shape = desk.engines[0].abilities.shape(api_request())
    assert shape is not None
    assert (shape.dialect, desk.probed[0]) == ("none", ("e0", "unknown"))
    assert (desk.log.lines[0]["detail"] if desk.log.lines else "").startswith(why or "")
    assert bool(desk.log.lines) is (why is not None)
    if desk.log.lines:
        line = desk.log.lines[0]
        assert (line["level"], line["msg"], line["backend"]) == (
            "info",
            "streamed and whole answers are not shared",
            "e0",
        )


@pytest.mark.parametrize("owner", ["vllm", "new", "both"])
@virtual
async def test_an_engine_that_only_embeds_is_asked_for_no_token(owner: str) -> None:
    def embeds(asked: Asked) -> tuple[int, bytes]:
        if asked[0] == "GET" and asked[1] == "/version":
            return fine(asked)
        return 404, b""

    desk = Desk(embeds, owner="new" if owner == "new" else "vllm")
    if owner == "both":
        desk.engines[0].list_models([*desk.engines[0].models, {"id": "n", "owned_by": "new"}])
    await desk.run(3.0)
    assert desk.posts() == (2 if owner == "new" else 0)
    assert (desk.log.lines, desk.shapes.settled) == ([], True)


@pytest.mark.parametrize("version", [(404, b""), (200, b"{}"), (200, b'{"version":1}')])
@virtual
async def test_only_an_engine_that_tells_its_version_may_say_what_it_does_not_offer(
    version: tuple[int, bytes],
) -> None:
    def answers(asked: Asked) -> tuple[int, bytes]:
        if asked[0] == "GET":
            return version if asked[1] == "/version" else (404, b"")
        return fine(asked)

    desk = Desk(answers)
    await desk.run(0.9)
    assert (desk.posts() > 0) is (version != (200, b'{"version":1}'))


@pytest.mark.parametrize("how", ["timeout", "refused", "cut", "away"])
@virtual
async def test_a_question_that_goes_wrong_is_asked_again(how: str) -> None:
    asked_first: list[int] = []
    desk: Desk

    def answers(asked: Asked) -> tuple[int, bytes]:
        if asked[0] == "POST" and not asked_first:
            asked_first.append(1)
            if how == "timeout":
                raise TimeoutError
            if how == "refused":
                raise GatewayError(Code.UPSTREAM_UNREACHABLE, "nobody")
            if how == "away":
                desk.engines[0].abilities.forget()
                return fine(asked)
            return 200, STREAM.body[:-5]
        return fine(asked)

    desk = Desk(answers)
    await desk.run(0.5)
    assert desk.probed == ([] if how == "away" else [("e0", "again")])
    assert desk.engines[0].abilities.shape(api_request()) is None
    await desk.run(2.0)
    assert desk.probed[-1] == ("e0", "known")


@pytest.mark.parametrize("probe", [True, False])
@virtual
async def test_a_stream_that_does_not_fold_is_told_once_and_its_engine_asked_anew_now_and_then(
    probe: bool,
) -> None:
    desk = Desk(probe=probe)
    await desk.run(0.9)
    engine = desk.engines[0]
    for n, wait in ((1, 0.0), (2, AGAIN - 5.0), (3, 10.0)):
        await asyncio.sleep(wait)
        engine.abilities.learn(["m", None], "chat", VLLM)
        desk.shapes.unfolded(flight(n=n, logprobs=n > 2), Unfoldable("new"))
        assert engine.abilities.knows("m", "chat") is not (probe and n != 2)
    assert desk.unfolded == ["e0"] * 3
    assert [line["detail"] for line in desk.log.lines] == ["chat: new"] * len(desk.log.lines)
    assert len(desk.log.lines) >= 2
    desk.shapes.unfolded(flight(n=3, logprobs=True), Unfoldable("new"))
    lines = len(desk.log.lines)
    desk.shapes.unfolded(flight(), Odd("this one alone"))
    desk.shapes.unfolded(flight("another"), Unfoldable("x"))
    desk.shapes.unfolded(flight(None), Unfoldable("x"))
    assert (len(desk.log.lines), len(desk.unfolded)) == (lines, 5)


@virtual
async def test_who_wants_one_body_waits_for_what_folds_and_for_nothing_else() -> None:
    desk = Desk()
    assert not desk.shapes.waits(flight()), "nothing is known"
    over, watched = flight(), flight()
    over.cancel()
    watched.watch_frames(lambda frame: None)
    assert desk.shapes.waits(over)
    assert desk.shapes.waits(watched)
    desk.engines[0].abilities.learn(["m", None], "chat", VLLM)
    running: Any = flight()
    running.shape = VLLM
    for frame in STREAM.frames()[:2]:
        running.add(frame)
    assert desk.shapes.waits(running)
    assert running.look is not None
    assert desk.shapes.waits(running), "it is looked at already"
    embeds = Flight(
        FlightSpec(
            "POST", "/", b"", Mode.WHOLE, "r", api_request=decode("embeddings", b'{"model":"m","input":"x"}')
        )
    )
    assert not desk.shapes.waits(embeds)
    assert not desk.shapes.waits(Flight(FlightSpec("POST", "/", b"", Mode.RAW, "r")))
    reader = Subscriber(running, whole=True)
    running.subscribers.add(reader)
    woken = reader.changed()
    running.look(b'data: {"id":"i","choices":[{"index":0,"delta":{"odd":1},"finish_reason":null}]}\n\n')
    assert (running.folds, running.look, woken.done(), desk.unfolded) == (False, None, True, ["e0"])
    desk.engines[0].abilities.forget()
    desk.engines[0].abilities.learn(["m", None], "chat", VLLM)
    odd = flight()
    odd.shape = VLLM
    odd.log.append(b"no chunk")
    assert not desk.shapes.waits(odd)
    assert not odd.folds
    begun_oddly = flight()
    begun_oddly.shape = VLLM
    begun_oddly.log.append(
        chunk(b'data: {"id":"i","choices":[{"index":0,"delta":{"odd":1},"finish_reason":null}]}\n\n')
    )
    assert not desk.shapes.waits(begun_oddly)
    assert (begun_oddly.folds, begun_oddly.look) == (False, None)
    unknown = flight()
    unknown.log.append(b"no chunk")
    assert desk.shapes.waits(unknown)
    assert unknown.look is not None
    unknown.look(b"data: {}\n\n")
    assert unknown.folds


@pytest.mark.parametrize(
    ("entries", "known"),
    [
        ([0, 13, 14], True),
        (list(range(15)), True),
        ([0, 14], False),
        ([13, 14], False),
        ([1, 2, 3], False),
        ([], False),
    ],
)
@virtual
async def test_a_stream_that_passes_shows_the_shape_of_its_engine(entries: list[int], known: bool) -> None:
    desk, passed = Desk(probe=False), flight()
    frames = STREAM.frames()
    passed.log += [chunk(frames[n]) for n in entries]
    desk.shapes.passed(desk.engines[0], passed)
    abilities = desk.engines[0].abilities
    assert [abilities.knows("m", endpoint) for endpoint in shapes.ENDPOINTS] == [known] * 2
    assert not abilities.knows("another", "chat")
    if known:
        assert abilities.shape(api_request()) == VLLM


@virtual
async def test_a_stream_that_passes_shows_nothing_where_it_is_unreadable_or_nobody_asked_for_it() -> None:
    desk, unreadable = Desk(probe=False), flight()
    unreadable.log += [b"no chunk"] * 3
    comments = flight()
    comments.log += [chunk(b": hi\n\n")] * 3
    raw = Flight(FlightSpec("POST", "/", b"", Mode.RAW, "r"))
    raw.log += [chunk(frame) for frame in STREAM.frames()]
    for one in (unreadable, comments, raw):
        desk.shapes.passed(desk.engines[0], one)
    assert repr(desk.engines[0].abilities) == "<Abilities shapes=0 odd=0>"
    llama = flight()
    llama.log += [chunk(b'data: {"system_fingerprint":"b1"}\n\n'), chunk(b'data: {"timings":{}}\n\n'), b""]
    desk.shapes.passed(desk.engines[0], llama)
    assert desk.engines[0].abilities.shape(api_request()) == LLAMA


def test_names_of_one_model_and_its_adapters_are_one_family() -> None:
    engine = Backend("e0", cast(Pool, None), 1)
    engine.list_models(
        [
            {"id": "lora", "parent": "base"},
            {"id": "base", "root": "/m"},
            {"id": "alias", "root": "/m"},
            {"id": "own"},
            {"id": "orphan", "parent": "gone"},
            {"id": "odd", "parent": ["base"], "root": ["/m"]},
        ]
    )
    assert shapes._families(engine) == [["base", "alias", "lora"], ["own"], ["odd"], ["orphan"]]
    engine.list_models([{"id": f"{n}"} for n in range(20)])
    assert len(shapes._families(engine)) == shapes.MOST_MODELS
    assert shapes._unknown(engine) == (["0"], "chat")
    engine.list_models([{"id": "base", "root": "/m"}, {"id": "alias", "root": "/m"}, {"id": "own"}])
    assert shapes._unknown(engine) == (["base", "alias"], "chat")
    for endpoint in shapes.ENDPOINTS:
        engine.abilities.learn(["base"], endpoint, Shape("none"))
    assert shapes._unknown(engine) == (["own"], "chat")
    engine.list_models([{"id": "one"}])
    assert shapes._unknown(engine) == (["one", None], "chat")
    engine.abilities.learn(["one"], "chat", Shape("none"))
    assert shapes._unknown(engine) == (["one", None], "completions")
    engine.abilities.learn(["one"], "completions", Shape("none"))
    assert shapes._unknown(engine) is None


def test_of_a_long_log_the_first_and_the_last_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MOST_CHECKED", 4)
    monkeypatch.setattr(shapes, "MOST_FRAME", 20)
    log = [chunk(b"%d" % n) for n in range(5)]
    assert list(shapes._some(log[:3])) == [b"0", b"1", b"2"]
    assert list(shapes._some(log[:4])) == [b"0", b"1", b"2", b"3"]
    assert list(shapes._some(log)) == [b"0", b"1", b"3", b"4"]
    sized = [chunk(b"x" * n) for n in (10, 14, 15, 16)]
    assert [len(one) for one in sized] == [15, 19, 20, 22]
    assert list(shapes._some(sized)) == [b"x" * n for n in (10, 14, 15)]


@virtual
async def test_it_is_settled_where_no_engine_that_is_up_is_unknown() -> None:
    desk = Desk(count=2)
    desk.engines[0].abilities.learn(["m", None], "chat", VLLM)
    desk.engines[0].abilities.learn(["m", None], "completions", VLLM)
    assert not desk.shapes.settled, "the other is unknown"
    desk.engines[1].up = False
    assert desk.shapes.settled
