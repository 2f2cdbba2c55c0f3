"""The shapes of engines' streams, learned by probes (one tiny stream and one tiny body) and from clients' streams.

A stream is folded for a client that wants one body only where the engine's own body is known to equal the fold."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Final

import msgspec

from proxy.errors import GatewayError
from proxy.flights.flight import Flight
from proxy.flights.spec import new_id
from proxy.telemetry import Log, Metrics
from proxy.upstream import Backend, Backends, Pulse
from proxy.wire import PATHS, Framer, data_of, unchunks
from proxy.wire.fold import (
    LLAMA,
    Folded,
    Odd,
    Shape,
    Unfoldable,
    Unproven,
    forces_tool,
    look,
    shape_seen,
    shape_told,
)

EVERY: Final = 1.0  # seconds between checks for engines whose shape is not known
ANSWER_SECONDS: Final = 10.0  # one answer of a few tokens
TRIES: Final = 4  # probes of an engine that failed, or whose stream and body had different texts
MOST_MODELS: Final = 8  # models of one engine that are probed: adapters answer as their base model does
REST: Final = 15.0  # seconds, times the tries, before an engine whose probes failed is probed again
MOST_REST: Final = 3600.0
AGAIN: Final = 60.0  # seconds between two probes of an engine whose answers have changed
IMPATIENT: Final = 60.0  # seconds after which an engine that is never idle is probed at half of its limit
MOST_CHECKED: Final = 2048  # frames of a running stream that are checked before a reader waits for its fold
MOST_BYTES: Final = 64 * 1024  # of the answer to a probe
MOST_FRAME: Final = 16 * 1024  # bytes; larger frames of a long log are not checked
TOKENS: Final = 4
LLAMA_CPP: Final = "llamacpp"
ENDPOINTS: Final[tuple[Folded, ...]] = ("chat", "completions")
NAME: Final = "gateway-probe-"
"""The prefix of the probes' request ids, for the engine's log."""
_TEXTS: Final = ("Count on: one, two,", "The colours are red,")
_ENCODE: Final = msgspec.json.Encoder().encode
_REFUSED: Final = frozenset({400, 401, 403, 415, 422})
_ABSENT: Final = frozenset({404, 405, 501})


class _Later(Exception):
    """The probe failed, and is tried again later."""


class _NotOffered(Unfoldable):
    """The engine has no such endpoint."""


class Shapes:
    """The shapes of engines' streams, and whether a reader may wait for a stream's fold."""

    def __init__(
        self,
        backends: Backends,
        *,
        probe: bool = True,
        pulse: Pulse,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._backends = backends
        self._probe = probe
        self._pulse = pulse
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._since: dict[Backend, float] = {}  # when an engine was first seen with an unknown shape
        self._rests: dict[Backend, float] = {}  # when an engine whose probes failed is probed again
        self._doubted: dict[Backend, float] = {}  # when an engine's answers were last seen to have changed
        self._tries: dict[tuple[Backend, str | None, Folded], int] = {}
        self._woken = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Shapes unknown={len(self._since)}>"

    # -- readers that want one body ---------------------------------------------------------------

    def waits(self, flight: Flight) -> bool:
        """Whether a reader that wants one body may wait for this stream, whose frames are checked from now on."""
        api_request = flight.spec.api_request
        if api_request is None or api_request.endpoint == "embeddings":
            return False
        if flight.ended or flight.look is not None:
            return True  # a flight that has ended folds at once, or raises
        if not self._backends.folds(api_request, flight.backend):
            return False
        view = partial(look, endpoint=api_request.endpoint, forced_tool=forces_tool(api_request.fields))
        try:
            if flight.shape is not None:
                for frame in _some(flight.log):
                    view(frame, shape=flight.shape)
        except (Unfoldable, ValueError):
            flight.unfold()
            return False

        def see(frame: bytes) -> None:
            try:
                if flight.shape is not None:
                    view(frame, shape=flight.shape)
            except Unfoldable as e:
                flight.unfold()
                self.unfolded(flight, e)

        flight.watch_frames(see)
        return True

    def unfolded(self, flight: Flight, why: Unfoldable) -> None:
        """A stream turned out not to fold while readers waited for that. Unless it is peculiar to this answer, no
        reader waits for the engine's streams from now on; the engine is probed anew, as it may have changed."""
        api_request = flight.spec.api_request
        engine = next((backend for backend in self._backends.all if backend.name == flight.backend), None)
        if api_request is None or engine is None:  # from the store: its engine is not known
            return
        self._metrics.unfolded(engine.name)
        if isinstance(why, Odd) or not engine.abilities.spoil(api_request, str(why)):
            return
        self._tell(engine, f"{api_request.endpoint}: {why}")
        if self._probe:
            now = self._clock()
            if now - self._doubted.get(engine, -math.inf) > AGAIN:
                self._doubted[engine] = now
                engine.abilities.doubt(api_request)
                self.wake()

    def passed(self, engine: Backend, flight: Flight) -> None:
        """Learn the shape from a complete stream of an engine whose shape is not known."""
        api_request = flight.spec.api_request
        if api_request is None or len(flight.log) < 3:
            return
        try:
            (first, *_), (last, *_) = unchunks(flight.log[0]), unchunks(flight.log[-2])
        except ValueError:
            return
        shape = shape_told(data_of(first) or b"", data_of(last) or b"")
        if shape is not None:
            for endpoint in ENDPOINTS:
                engine.abilities.learn([api_request.model], endpoint, shape)

    # -- probes -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """An engine has come up, or was replaced: check now."""
        self._woken.set()

    async def run(self) -> None:
        """Run for ever: probe each engine whose shape is not known, once it is idle."""
        while True:
            self._woken.clear()
            engines = self._backends.all
            if any(await asyncio.gather(*map(self._look_at, engines))):
                continue  # more may be unknown
            self._since = {engine: at for engine, at in self._since.items() if engine in engines}
            self._rests = {engine: until for engine, until in self._rests.items() if engine in engines}
            self._doubted = {engine: at for engine, at in self._doubted.items() if engine in engines}
            self._tries = {key: count for key, count in self._tries.items() if key[0] in engines}
            try:
                async with asyncio.timeout(EVERY):
                    await self._woken.wait()
            except TimeoutError:
                pass

    @property
    def settled(self) -> bool:
        """Whether no engine that is up is left to probe."""
        return not any(
            engine.up and _unknown(engine) and engine not in self._rests for engine in self._backends.all
        )

    async def _look_at(self, engine: Backend) -> bool:
        """At most one probe of one engine. True: it succeeded."""
        unknown = _unknown(engine)
        if not engine.up or unknown is None:
            self._since.pop(engine, None)
            self._rests.pop(engine, None)
            return False
        if self._clock() < self._rests.get(engine, -math.inf):
            return False
        if all(model.get("owned_by") == LLAMA_CPP for model in engine.models):
            for endpoint in ENDPOINTS:  # llama.cpp's format is known
                engine.abilities.learn([*unknown[0], None], endpoint, LLAMA)
            return True
        patient = self._clock() - self._since.setdefault(engine, self._clock()) < IMPATIENT
        return _idle(engine, patient=patient) and await self._ask(engine, *unknown)

    async def _ask(self, engine: Backend, names: list[str | None], endpoint: Folded) -> bool:
        """One probe. False: it failed and is tried again."""
        key, epoch = (engine, names[0], endpoint), engine.abilities.epoch
        self._tries[key] = tries = self._tries.get(key, 0) + 1
        try:
            shape = await self._seen(engine, names[0] or "", endpoint)
        except _Later as e:
            self._metrics.probed(engine.name, "again")
            if tries >= TRIES and tries & (tries - 1) == 0:  # with growing pauses
                self._rests[engine] = self._clock() + min(REST * tries, MOST_REST)
                self._tell(engine, f"{endpoint}: {e}")
            return False
        except Unfoldable as e:
            if tries < TRIES and "own body" in str(e):  # texts differ between answers where logits tie
                self._metrics.probed(engine.name, "again")
                return False
            shape = Shape("none", why="" if isinstance(e, _NotOffered) else str(e))
        if epoch != engine.abilities.epoch:
            return False  # it has been away meanwhile
        del self._tries[key]
        both = shape.dialect in ("vllm", "llama") and shape.version is None
        for each in ENDPOINTS:
            if each == endpoint or (both and not engine.abilities.knows(names[0], each)):
                engine.abilities.learn(names, each, shape)
        self._metrics.probed(engine.name, "unknown" if shape.dialect == "none" else "known")
        if shape.why:
            self._tell(engine, f"{endpoint}: {shape.why}")
        return True

    async def _seen(self, engine: Backend, model: str, endpoint: Folded) -> Shape:
        if not await self._offered(engine, endpoint):
            raise _NotOffered("it does not generate")
        stream = await self._answer(engine, model, endpoint, 0, stream=True)
        answer = await self._answer(engine, model, endpoint, 0)
        framer = Framer(MOST_BYTES)  # no event can be larger: the answer is not
        frames = framer.feed(stream)
        if framer.pending:
            raise _Later("it ended a stream before it was complete")
        try:
            return shape_seen(frames, answer, endpoint)
        except Unproven:
            second = await self._answer(engine, model, endpoint, 1)
            return shape_seen(frames, answer, endpoint, second)

    async def _answer(
        self, engine: Backend, model: str, endpoint: Folded, which: int, *, stream: bool = False
    ) -> bytes:
        text = _TEXTS[which]
        request: dict[str, object] = {"model": model, "max_tokens": TOKENS, "temperature": 0, "seed": 1}
        request |= {"messages": [{"role": "user", "content": text}]} if endpoint == "chat" else {"prompt": text}
        if stream:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        status, answer = await self._request(engine, "POST", PATHS[endpoint], _ENCODE(request))
        if status in _ABSENT:
            raise _NotOffered(f"it answers {status}")
        if status in _REFUSED:
            raise Unfoldable(f"it answers {status} to a small request")
        if len(answer) > MOST_BYTES:
            raise Unfoldable(f"a few tokens take it {len(answer)} bytes")
        if status != 200:
            raise _Later(f"it answers {status} to a small request")
        return answer

    async def _offered(self, engine: Backend, endpoint: Folded) -> bool:
        """Whether the engine has the endpoint, as far as a GET shows: vLLM answers 405 where the path exists, and
        404 where the engine only embeds."""
        if not any(model.get("owned_by") == "vllm" for model in engine.models):
            return True
        status, version = await self._request(engine, "GET", "/version")
        if status != 200 or b'"version"' not in version:
            return True
        status, _ = await self._request(engine, "GET", PATHS[endpoint])
        return status != 404

    async def _request(self, engine: Backend, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        async def attempt() -> tuple[int, bytes]:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await engine.pool.ask(method, path, body, fresh=True, name=NAME + new_id())

        try:
            return await self._pulse.patiently(attempt)
        except TimeoutError:
            raise _Later(f"it did not answer a small request in {ANSWER_SECONDS:g} s") from None
        except GatewayError as e:
            raise _Later(e.message) from None

    def _tell(self, engine: Backend, what: str) -> None:
        self._log.event("info", "streamed and whole answers are not shared", backend=engine.name, detail=what)


def _some(log: list[bytes]) -> Iterable[bytes]:
    """The frames of a log; of a very long one the first and the last."""
    half = MOST_CHECKED // 2
    some = log if len(log) <= MOST_CHECKED else [*log[:half], *log[-half:]]
    some = [frame for frame in some if len(frame) <= MOST_FRAME]
    return chain.from_iterable(map(unchunks, some))


def _families(engine: Backend) -> list[list[str | None]]:
    """The engine's models, grouped by equal behaviour: the first of each group is probed. Adapters (`parent`)
    answer as their base model does, and all names of one model (`root`) alike."""
    families: dict[str, list[str | None]] = {}
    keys: dict[str, str] = {}
    for model in sorted(engine.models, key=lambda model: isinstance(model.get("parent"), str)):
        name, parent, root = str(model["id"]), model.get("parent"), model.get("root")
        own = root if isinstance(root, str) else name
        keys[name] = key = keys.get(parent, own) if isinstance(parent, str) else own
        families.setdefault(key, []).append(name)
    return list(families.values())[:MOST_MODELS]


def _unknown(engine: Backend) -> tuple[list[str | None], Folded] | None:
    """The models and the endpoint of an unknown shape. None: all are known."""
    families = _families(engine)
    for names in families:
        for endpoint in ENDPOINTS:
            if not engine.abilities.knows(names[0], endpoint):
                return (names if len(families) > 1 else [*names, None]), endpoint
    return None


def _idle(engine: Backend, *, patient: bool) -> bool:
    report = engine.report
    if patient:
        return engine.inflight == 0 and (report is None or report.running + report.waiting == 0)
    return engine.inflight * 2 <= engine.max_inflight and (report is None or report.waiting == 0)
