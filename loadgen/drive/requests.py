"""The schedule as requests: prompts joined with due times, targets and pairs, and encoded as bodies. Pure: the
same workload, schedule and seed give the same requests in every worker."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from corpus.draw import Draw
from loadgen.drive.bodies import shaped
from loadgen.drive.capture.client import PreparedRequest
from loadgen.drive.capture.leaving import TokenCount
from loadgen.record import Record
from loadgen.spec import GENERATING, PATHS, Body, Cancel, Endpoint, ModelMix
from loadgen.workload import FollowUp, Item, Prompt


class ScheduledRequest(NamedTuple):
    """One request of the schedule, or the first of a conversation. `due_s` counts from the run's start; None in a
    closed loop."""

    number: int
    prompt: Prompt
    due_s: float | None = None
    target: str = "a"
    pair: int | None = None
    stage: str = ""
    then: tuple[FollowUp, ...] = ()  # the rest of its conversation
    place: int = 0  # in the conversation


def schedule_requests(
    prompts: Iterable[Prompt], times: Iterable[float] | None, *, target: str = "a", stage: str = "", first: int = 0
) -> Iterator[ScheduledRequest]:
    """Each prompt at its time, in seconds; without times for a closed loop."""
    dues: Iterable[float | None] = itertools.repeat(None) if times is None else times
    for index, (prompt, due) in enumerate(zip(prompts, dues, strict=False), first):
        yield ScheduledRequest(index, prompt, due, target, stage=stage)


def schedule_items(
    items: Iterable[Item], times: Iterable[float] | None, *, speed: float = 1.0, stage: str = "", first: int = 0
) -> Iterator[ScheduledRequest]:
    """Each item at its time, in seconds; without times for a closed loop. The gaps of conversations are divided by
    `speed`. The numbers that follow an item's are those of the rest of its conversation."""
    dues: Iterable[float | None] = itertools.repeat(None) if times is None else times
    number = first
    for item, due in zip(items, dues, strict=False):
        then = item.then
        if speed != 1.0:
            then = tuple(msgspec.structs.replace(each, gap_s=each.gap_s / speed) for each in then)
        yield ScheduledRequest(number, item.prompt, due, stage=stage, then=then)
        number += 1 + len(item.then)


def slice_schedule(schedule: Iterable[ScheduledRequest], worker: int, workers: int) -> Iterator[ScheduledRequest]:
    """One worker's share. Every worker walks the whole schedule; together they send each request once."""
    return itertools.islice(schedule, worker, None, workers)


def schedule_pairs(
    items: Iterable[Item], times: Iterable[float] | None, *, seed: int = 0
) -> Iterator[ScheduledRequest]:
    """Each item to both targets, back to back, in ABBA or BAAB order, so that drift affects both alike.

    The seed draws the order of each block of two pairs, so that no periodic load of the machine can coincide with
    it. With times, each item of a pair takes the next one. The same turns of two conversations are pairs, too.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    dues: Iterator[float | None] = itertools.repeat(None) if times is None else iter(times)
    order = "ab"
    pair = 0
    for place, item in enumerate(items):
        order = rng.choice(("ab", "ba")) if place % 2 == 0 else order[::-1]
        turns = 1 + len(item.then)
        for side, target in enumerate(order):
            due = next(dues, None)
            if due is None and times is not None:
                return
            yield ScheduledRequest(2 * pair + side * turns, item.prompt, due, target, pair, then=item.then)
        pair += turns


class RequestBuilder:
    """Encodes scheduled requests, once each and before they are due."""

    def __init__(
        self,
        targets: Mapping[str, str],
        endpoint: Endpoint,
        body: Body,
        *,
        path: str | None = None,
        run: str = "",
        id_prefix: str = "",
        cancel: Cancel | None = None,
        models: ModelMix | None = None,
    ) -> None:
        path = path or PATHS[endpoint]
        self._urls = {name: base.rstrip("/") + path for name, base in targets.items()}
        self._endpoint: Endpoint = endpoint
        self._body = body
        self._run = run
        self._id_prefix = id_prefix
        self._cancel = cancel
        self._models = models
        self._sums = list(itertools.accumulate(models.shares)) if models is not None else []

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def build(self, request: ScheduledRequest, *, worker: int = 0, warmup: bool = False) -> PreparedRequest:
        model = self._model(request)
        fields = self.fields(request.prompt, model)
        record = Record(
            index=request.number,
            id=f"{self._id_prefix}{request.number}"
            if self._id_prefix
            else f"{self._run}-{request.number}{request.target}",
            prompt=request.prompt.id,
            target=request.target,
            pair=request.pair,
            worker=worker,
            stage=request.stage,
            conversation=f"{self._run}-{request.number - request.place}" if request.then else "",
            turn=request.place + 1 if request.then else 0,
            turns=len(request.then) + 1 if request.then else 0,
            model=model if self._models is not None else "",
            warmup=warmup,
            stream=bool(fields.get("stream")),
            due_ns=round((request.due_s or 0.0) * 1e9),
        )
        prepared = PreparedRequest(record, self._urls[request.target], msgspec.json.encode(fields))
        return self._cancelled(prepared) if self._cancel is not None and not warmup else prepared

    def _cancelled(self, request: PreparedRequest) -> PreparedRequest:
        """With its client's leaving, if it is drawn to be cancelled: the same ones in every worker."""
        cancel, record = self._cancel, request.record
        assert cancel is not None
        if Draw(cancel.seed, "cancel", record.index, record.target).unit() >= cancel.share:
            return request
        record.cancel = "time" if cancel.tokens is None else "tokens"
        tokens = None if cancel.tokens is None else TokenCount(self._endpoint, cancel.tokens)
        return request._replace(leave_tokens=tokens, leave_s=cancel.seconds)

    def _model(self, request: ScheduledRequest) -> str:
        """The same one for all requests of a conversation, and in every worker."""
        mix, number = self._models, request.number - request.place
        if mix is None:
            return self._body.model
        if mix.in_turn:
            return mix.names[number % len(mix.names)]
        draw = Draw(mix.seed, "model", request.prompt.id if mix.by_prompt and not request.then else number)
        place = bisect.bisect_right(self._sums, draw.unit() * self._sums[-1])
        return mix.names[min(place, len(mix.names) - 1)]

    def fields(self, prompt: Prompt, model: str | None = None) -> dict[str, Any]:
        """The request's JSON. A flag overrides the prompt's own field, `--extra-body` overrides both."""
        body = self._body
        body_fields: dict[str, Any] = {"model": model or body.model, **prompt.fields}
        if self._endpoint in GENERATING:
            body_fields = shaped(body_fields | self._sampling(), self._endpoint)
            body_fields["stream"] = body.stream
        if body_fields.get("stream") and self._endpoint in ("chat", "completions"):
            body_fields["stream_options"] = {"include_usage": True}
            if body.continuous_usage:
                body_fields["stream_options"]["continuous_usage_stats"] = True
        return body_fields | body.extra

    def _sampling(self) -> dict[str, Any]:
        body = self._body
        chosen = {
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "seed": body.seed,
            "ignore_eos": body.ignore_eos or None,
        }
        return {name: value for name, value in chosen.items() if value is not None}
