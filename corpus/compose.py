"""Composes workloads: joins prompts, duplicates, shared prefixes, lengths and arrival times into requests. The
same plan and seed give the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from corpus.arrivals import Arrivals
from corpus.bank import BYTES_PER_TOKEN, block
from corpus.blocks import Sharing, block_prompt
from corpus.draw import Draw
from corpus.lengths import Lengths
from corpus.mix import Zipf, mixed, nonce, with_nonce
from corpus.sources import Endpoint, Made, Sets, as_fields, text_of

_LEAST_OWN = 16  # tokens that a prompt has behind a shared prefix


class Request(msgspec.Struct, frozen=True):
    """One line of a workload. Twins have the same id and the same fields. Tokens of the input are an estimate."""

    id: str
    endpoint: Endpoint
    at: float  # seconds from the start
    input_tokens: int
    output_tokens: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Groups:
    """Prompts that open with a shared text: `share` of them, one of `count` groups (by Zipf), `tokens` long."""

    share: float
    count: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    requests: int
    seed: int
    arrivals: Arrivals
    outputs: Lengths
    inputs: Lengths | None  # None: the prompts of `sets`, at their own length
    sets: tuple[str, ...] = ()
    endpoint: Endpoint = "chat"
    duplicates: float = 0.0
    zipf: float = 1.1
    groups: Groups | None = None
    sharing: Sharing | None = None
    unique: bool = False
    speed: float = 1.0  # arrivals so many times as fast


def compose(plan: Plan) -> Iterator[Request]:
    times = plan.arrivals.times(plan.requests, Draw(plan.seed, "arrivals"))
    order = mixed(plan.requests, plan.duplicates, plan.zipf, Draw(plan.seed, "mix"))
    distinct = _Distinct(plan, max(order) + 1)
    for at, number in zip(times, order, strict=True):
        made, output = distinct.prompt(number)
        fields = made.fields if plan.endpoint == "embeddings" else {**made.fields, "max_tokens": output}
        yield Request(
            made.id, plan.endpoint, round((at - times[0]) / plan.speed, 6), made.estimate, output, fields
        )


class _Distinct:
    """The plan's different prompts and the lengths of their answers, by number."""

    def __init__(self, plan: Plan, count: int) -> None:
        self._plan = plan
        # Another plan's prompts have other ids: ids stay unique where workloads are joined.
        self._name = hashlib.sha256(repr(plan).encode()).hexdigest()[:6]
        self._sets = Sets(plan.sets, plan.endpoint, plan.seed) if plan.inputs is None else None
        asked, answered = Draw(plan.seed, "input"), Draw(plan.seed, "output")
        self._outputs = [plan.outputs.draw(answered) for _ in range(count)]
        self._inputs = [plan.inputs.draw(asked) for _ in range(count)] if plan.inputs else []
        self._chains: list[tuple[int, ...]] = []
        if plan.sharing is not None and plan.inputs is not None:
            # Twins hit whole; what is left of the wanted rate is for the different prompts.
            rate = max(0.0, (plan.sharing.hit_rate - plan.duplicates) / (1 - plan.duplicates))
            sharing = Sharing(rate, plan.sharing.candidates, plan.sharing.popular, plan.sharing.common)
            self._chains = sharing.chains(self._inputs, plan.seed)
        groups = plan.groups
        self._prefixes: list[str] = []
        if groups:
            size = round(groups.tokens * BYTES_PER_TOKEN)
            self._prefixes = [block(plan.seed, f"group {g}", size) for g in range(groups.count)]
        self._popularity = Zipf(groups.count, plan.zipf) if groups else None

    def prompt(self, number: int) -> tuple[Made, int]:
        made = _opened(self._sets.prompt(number), self._prefix(number)) if self._sets else self._composed(number)
        if self._plan.unique:
            front = nonce(self._name, number)
            made = Made(made.id, with_nonce(made.fields, front), made.estimate + round(17 / BYTES_PER_TOKEN))
        return made, self._outputs[number]

    def _composed(self, number: int) -> Made:
        plan, tokens = self._plan, self._inputs[number]
        name = f"composed-{self._name}/{number}"
        if self._chains:
            text = block_prompt(plan.seed, self._chains[number], tokens)
            return Made(name, as_fields(text, plan.endpoint), _estimate(text))
        prefix = self._prefix(number)
        room = tokens - round(len(prefix) / BYTES_PER_TOKEN)
        text = text_of(Draw(plan.seed, "text", number), max(room, _LEAST_OWN) if prefix else tokens)
        return _opened(Made(name, as_fields(text, plan.endpoint), _estimate(text)), prefix)

    def _prefix(self, number: int) -> str:
        """The shared opening of this prompt, or nothing."""
        groups, popularity = self._plan.groups, self._popularity
        if groups is None or popularity is None:
            return ""
        chance = Draw(self._plan.seed, "group", number)
        return self._prefixes[popularity.draw(chance)] if chance.unit() < groups.share else ""


def _opened(made: Made, prefix: str) -> Made:
    """With the shared text in front: a system message of its own where there are messages."""
    if not prefix:
        return made
    fields = made.fields
    if "messages" in fields:
        opened = {**fields, "messages": [{"role": "system", "content": prefix}, *fields["messages"]]}
        if fields["messages"][0]["role"] == "system":  # many templates take one system message only
            first, *rest = fields["messages"]
            opened["messages"] = [{"role": "system", "content": prefix + first["content"]}, *rest]
    else:
        name = "prompt" if "prompt" in fields else "input"
        opened = {**fields, name: prefix + fields[name]}
    return Made(f"{made.id}@group", opened, made.estimate + _estimate(prefix))


def _estimate(text: str) -> int:
    return max(1, round(len(text) / BYTES_PER_TOKEN))
