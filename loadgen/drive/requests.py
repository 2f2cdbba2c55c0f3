"""The schedule as requests: prompts joined with due times, targets and pairs, and encoded as bodies. Pure: the
same workload, schedule and seed give the same requests in every worker."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from loadgen.drive.capture.client import PreparedRequest
from loadgen.record import Record
from loadgen.spec import PATHS, Body, Endpoint
from loadgen.workload import Prompt


class ScheduledRequest(NamedTuple):
    """One request of the schedule. `due_s` counts from the run's start; None in a closed loop."""

    number: int
    prompt: Prompt
    due_s: float | None = None
    target: str = "a"
    pair: int | None = None
    stage: str = ""


def schedule_requests(
    prompts: Iterable[Prompt], times: Iterable[float] | None, *, target: str = "a", stage: str = "", first: int = 0
) -> Iterator[ScheduledRequest]:
    """Each prompt at its time, in seconds; without times for a closed loop."""
    dues: Iterable[float | None] = itertools.repeat(None) if times is None else times
    for index, (prompt, due) in enumerate(zip(prompts, dues, strict=False), first):
        yield ScheduledRequest(index, prompt, due, target, stage=stage)


def slice_schedule(schedule: Iterable[ScheduledRequest], worker: int, workers: int) -> Iterator[ScheduledRequest]:
    """One worker's share. Every worker walks the whole schedule; together they send each request once."""
    return (request for request in schedule if request.number % workers == worker)


def schedule_pairs(
    prompts: Iterable[Prompt], times: Iterable[float] | None, *, seed: int = 0
) -> Iterator[ScheduledRequest]:
    """Each prompt to both targets, back to back, in ABBA or BAAB order, so that drift affects both alike.

    The seed draws the order of each block of two pairs, so that no periodic load of the machine can coincide with
    it. With times, each request of a pair takes the next one.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    dues: Iterator[float | None] = itertools.repeat(None) if times is None else iter(times)
    order = "ab"
    for pair, prompt in enumerate(prompts):
        order = rng.choice(("ab", "ba")) if pair % 2 == 0 else order[::-1]
        for place, target in enumerate(order):
            due = next(dues, None)
            if due is None and times is not None:
                return
            yield ScheduledRequest(2 * pair + place, prompt, due, target, pair)


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
    ) -> None:
        path = path or PATHS[endpoint]
        self._urls = {name: base.rstrip("/") + path for name, base in targets.items()}
        self._endpoint = endpoint
        self._body = body
        self._run = run
        self._id_prefix = id_prefix

    def build(self, request: ScheduledRequest, *, worker: int = 0, warmup: bool = False) -> PreparedRequest:
        fields = self.fields(request.prompt)
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
            warmup=warmup,
            stream=bool(fields.get("stream")),
            due_ns=round((request.due_s or 0.0) * 1e9),
        )
        return PreparedRequest(record, self._urls[request.target], msgspec.json.encode(fields))

    def fields(self, prompt: Prompt) -> dict[str, Any]:
        """The request's JSON. A flag overrides the prompt's own field, `--extra-body` overrides both."""
        body = self._body
        body_fields: dict[str, Any] = {"model": body.model, **prompt.fields}
        if self._endpoint != "embeddings":
            body_fields |= self._sampling()
            body_fields["stream"] = body.stream
            if body.stream:
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
