"""Owns what is sent and in which order: prompts joined with due times, targets, pairs, and made into bodies.
Must not know clocks or sockets. Pure: the same workload, schedule and seed give the same shots in every worker.
Called by the plan of `run`, `ab` and `sweep`; the runner fires what comes out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from loadgen.drive.capture.client import Ask
from loadgen.record import Record
from loadgen.spec import PATHS, Body, Endpoint
from loadgen.workload.model import Prompt


class Shot(NamedTuple):
    """One request of the schedule. `due_s` is None where it goes when a place is free (closed loop)."""

    number: int
    prompt: Prompt
    due_s: float | None = None
    target: str = "a"
    pair: int | None = None
    stage: str = ""


def scheduled(
    prompts: Iterable[Prompt], times: Iterable[float] | None, *, target: str = "a", stage: str = "", first: int = 0
) -> Iterator[Shot]:
    """Each prompt at its time; without times, whenever a place is free."""
    dues: Iterable[float | None] = itertools.repeat(None) if times is None else times
    for index, (prompt, due) in enumerate(zip(prompts, dues, strict=False), first):
        yield Shot(index, prompt, due, target, stage=stage)


def slice_of(shots: Iterable[Shot], worker: int, workers: int) -> Iterator[Shot]:
    """Every worker walks the whole schedule and fires its share: together they fire each shot once."""
    return (shot for shot in shots if shot.number % workers == worker)


def paired(prompts: Iterable[Prompt], times: Iterable[float] | None, *, seed: int = 0) -> Iterator[Shot]:
    """Each prompt to both targets, back to back, in ABBA or BAAB order: drift of the machine falls on both alike.

    Which of the two orders a block of two pairs has is drawn by the seed, so that no rhythm of the machine can
    keep step with it. With times, each request of a pair takes the next one.
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
            yield Shot(2 * pair + place, prompt, due, target, pair)


class Asks:
    """Turns shots into requests ready to go: the body encoded once, before it is due."""

    def __init__(
        self, targets: Mapping[str, str], endpoint: Endpoint, body: Body, *, path: str | None = None, run: str = ""
    ) -> None:
        path = path or PATHS[endpoint]
        self._urls = {name: base.rstrip("/") + path for name, base in targets.items()}
        self._endpoint = endpoint
        self._body = body
        self._run = run

    def make(self, shot: Shot, *, worker: int = 0, warmup: bool = False) -> Ask:
        fields = self.fields(shot.prompt)
        record = Record(
            index=shot.number,
            id=f"{self._run}-{shot.number}{shot.target}",
            prompt=shot.prompt.id,
            target=shot.target,
            pair=shot.pair,
            worker=worker,
            stage=shot.stage,
            warmup=warmup,
            stream=bool(fields.get("stream")),
            due_ns=round((shot.due_s or 0.0) * 1e9),
        )
        return Ask(record, self._urls[shot.target], msgspec.json.encode(fields))

    def fields(self, prompt: Prompt) -> dict[str, Any]:
        """The request's JSON. A flag wins over the prompt's own field, `--extra-body` over both."""
        body = self._body
        made: dict[str, Any] = {"model": body.model, **prompt.fields}
        if self._endpoint != "embeddings":
            made |= self._sampling()
            made["stream"] = body.stream
            if body.stream:
                made["stream_options"] = {"include_usage": True}
                if body.continuous_usage:
                    made["stream_options"]["continuous_usage_stats"] = True
        return made | body.extra

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
