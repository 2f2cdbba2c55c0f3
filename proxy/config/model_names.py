"""Names of models as settings give them: which model a client's name stands for, and which models answer where a
model's engines cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, Final

Shares = tuple[tuple[str, float], ...]
"""Models and their weights."""
Alias = tuple[str, Shares]
"""A client's name, and the models that it stands for."""
Standbys = tuple[str, tuple[str, ...]]
"""A model, and those that answer in its place, in order."""

MOST_NAMES: Final = 1000
MOST_MODELS: Final = 16  # of one name
MOST_STANDBYS: Final = 4  # of one model: each may take as long as the one before
_NAME: Final = re.compile(r"""[^\x00-\x20\x7f-\U0010ffff"',=\\]{1,256}""")
_NAME_WORDS: Final = (
    "must have names of 1 to 256 printable ASCII characters without spaces, quotes, commas, = or \\"
)
_ALIASES: Final = (
    'must be names with their models: chat = "llama", or with weights: chat = {llama = 95, other = 5}'
)
_STANDBYS: Final = 'must be models with those that answer in their place: llama = ["other", "third"]'


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names in effect."""

    aliases: Mapping[str, Shares] = field(default_factory=dict)
    """By name: the engines' models, and where in 0 to 1 the part of each ends."""
    standbys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def model_of(self, name: str, place: float) -> str:
        """The engines' model for a name. `place`: from 0, below 1; decides by the weights."""
        shares = self.aliases[name]
        return next((model for model, end in shares if place < end), shares[-1][0])


def model_names(aliases: tuple[Alias, ...], standbys: tuple[Standbys, ...]) -> ModelNames:
    """The names of settings that were read without an error: an alias of an alias is resolved."""
    given = dict(aliases)
    resolved = {}
    for name in given:
        weights: dict[str, float] = {}
        for model, weight in _models_of(name, given, ()):
            weights[model] = weights.get(model, 0.0) + weight
        ends = accumulate(weights.values())
        resolved[name] = tuple(zip(weights, ends, strict=True))
    return ModelNames(resolved, dict(standbys))


def _models_of(name: str, given: Mapping[str, Shares], above: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """The engines' models for a name, with their parts of 1. Raises ValueError for a cycle."""
    path = (*above, name)
    if name in above or len(path) > MOST_MODELS:
        raise ValueError(f"must lead to models, and this does not end: {' -> '.join(path)}")
    total = sum(weight for _, weight in given[name])
    for model, weight in given[name]:
        below = _models_of(model, given, path) if model in given else ((model, 1.0),)
        yield from ((each, part * weight / total) for each, part in below)


def read_aliases(raw: object) -> tuple[Alias, ...]:
    """A table of names, or texts NAME=MODEL. Raises ValueError."""
    table = raw if isinstance(raw, dict) else dict(_pairs(raw, _ALIASES, once=True))
    if len(table) > MOST_NAMES:
        raise ValueError(f"must have at most {MOST_NAMES} names")
    aliases = {_name(name): _shares(name, value) for name, value in table.items()}
    for name in aliases:
        if sum(1 for _ in islice(_models_of(name, aliases, ()), MOST_MODELS + 1)) > MOST_MODELS:
            raise ValueError(f"must have at most {MOST_MODELS} models for a name: {name!r} has more")
    return tuple(aliases.items())


def read_standbys(raw: object) -> tuple[Standbys, ...]:
    """A table of models, or texts MODEL=OTHER, one for each other model. Raises ValueError."""
    table: dict[Any, Any] = {}
    if isinstance(raw, dict):
        table = raw
    else:
        for model, other in _pairs(raw, _STANDBYS):
            table.setdefault(model, []).append(other)
    if len(table) > MOST_NAMES:
        raise ValueError(f"must have at most {MOST_NAMES} models")
    found = []
    for model, value in table.items():
        others = [value] if isinstance(value, str) else value
        if not isinstance(others, list) or not others or not all(isinstance(other, str) for other in others):
            raise ValueError(_STANDBYS)
        names = tuple(map(_name, others))
        if _name(model) in names or len(set(names)) < len(names) or len(names) > MOST_STANDBYS:
            raise ValueError(
                f"must name one to {MOST_STANDBYS} other models, each once, for a model: see {model!r}"
            )
        found.append((model, names))
    return tuple(found)


def alias_conflicts(aliases: tuple[Alias, ...], standbys: tuple[Standbys, ...]) -> list[str]:
    """Problems between the two settings."""
    names = dict(aliases)
    wrong = dict.fromkeys(name for model, others in standbys for name in (model, *others) if name in names)
    return [
        f"model_fallbacks names {name!r}, which is an alias in models: name the models that it stands for"
        for name in wrong
    ]


def _pairs(raw: object, right: str, *, once: bool = False) -> list[tuple[str, str]]:
    items = [raw] if isinstance(raw, str) else raw
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(right)
    pairs = []
    for text in (text for item in items for text in item.replace(",", " ").split()):
        name, given, model = text.partition("=")
        if not given:
            raise ValueError("must be NAME=MODEL, repeated or comma-separated for several")
        pairs.append((name, model))
    if once and len(dict(pairs)) < len(pairs):
        raise ValueError("must give each name once; weights are given in the settings file")
    return pairs


def _name(raw: object) -> str:
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        raise ValueError(_NAME_WORDS)
    return raw


def _shares(name: str, value: object) -> Shares:
    if isinstance(value, str):
        return ((_name(value), 1.0),)
    if not isinstance(value, dict) or not value:
        raise ValueError(_ALIASES)
    for weight in value.values():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 10**6:
            raise ValueError(f"must have weights from 0 to 1,000,000: see {name!r}")
    shares = tuple((_name(model), float(weight)) for model, weight in value.items() if weight)
    if not shares:
        raise ValueError(f"must have a weight above 0 for a model of {name!r}")
    return shares
