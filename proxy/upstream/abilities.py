"""Owns what one engine was seen to do and not to do: how its answers are made up, and which streams do not fold.
Must not know engines, requests under way or how any of it was seen.
Called by backends (which forget it when the engine has been away), by shapes.py, which learns, and by journeys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from proxy.wire import ApiRequest, Endpoint
from proxy.wire.fold import Shape, features_of, folds_ahead

MOST_MODELS: Final = 256

Kind = tuple[Endpoint, frozenset[str]]
"""An endpoint, and what of a request reaches its answer's shape."""


class Abilities:
    """Of one engine, since it came up."""

    __slots__ = ("_doubted", "_odd", "_shapes", "epoch", "mixes")

    def __init__(self) -> None:
        self.epoch = 0  # how often it has been forgotten: what was asked before is of another engine
        self.mixes = True  # it takes the inputs of several clients in one array
        self._shapes: dict[tuple[str | None, Endpoint], Shape] = {}
        self._odd: dict[Kind, str] = {}
        self._doubted: dict[Endpoint, Shape | None] = {}  # what was known until a stream was otherwise

    def __repr__(self) -> str:
        return f"<Abilities shapes={len(self._shapes)} odd={len(self._odd)}>"

    def forget(self) -> None:
        """It may be another engine, or another version of it."""
        self.epoch += 1
        self.mixes = True
        self._shapes.clear()
        self._odd.clear()
        self._doubted.clear()

    def shape(self, ask: ApiRequest) -> Shape | None:
        """How its streams for such a request are made up; None: not known."""
        known = self._shapes.get((ask.model, ask.endpoint))
        return known or self._shapes.get((None, ask.endpoint))

    def folds(self, ask: ApiRequest) -> bool:
        """Whether a stream for this request will fold for sure: one body may be waited for until its end."""
        shape = self.shape(ask)
        if shape is None:
            return False
        features = features_of(ask.fields)
        return folds_ahead(shape, features) and (ask.endpoint, features) not in self._odd

    def knows(self, model: str | None, endpoint: Endpoint) -> bool:
        """Whether the shape of this model's answers is known."""
        return (model, endpoint) in self._shapes

    def learn(self, models: Iterable[str | None], endpoint: Endpoint, shape: Shape) -> None:
        """The answers of these models on this endpoint are so. None: of any other model too."""
        for model in models:
            if len(self._shapes) < 2 * MOST_MODELS or (model, endpoint) in self._shapes:
                self._shapes[model, endpoint] = shape
        if self._doubted.pop(endpoint, shape) != shape:
            self._odd = {kind: why for kind, why in self._odd.items() if kind[0] != endpoint}

    def spoil(self, ask: ApiRequest, why: str) -> bool:
        """A stream for such a request did not fold: nobody waits for the next one. True: that is new."""
        kind = (ask.endpoint, features_of(ask.fields))
        new = kind not in self._odd
        self._odd[kind] = why
        return new

    def refuses_arrays(self) -> None:
        """It refused an array of several clients' inputs and took all in parts: it is sent no more of them."""
        self.mixes = False

    def doubt(self, ask: ApiRequest) -> None:
        """Its answers may have changed: they are to be looked at anew. Where they have, what was odd is not."""
        self._doubted[ask.endpoint] = self.shape(ask)
        self._shapes = {key: shape for key, shape in self._shapes.items() if key[1] != ask.endpoint}

    @property
    def fold(self) -> bool | None:
        """Whether its streams fold, as far as that is known."""
        if not self._shapes:
            return None
        return not self._odd and all(shape.dialect != "none" or not shape.why for shape in self._shapes.values())

    def told(self) -> list[str]:
        """What does not fold and why, in words."""
        shapes = {(endpoint, shape.why) for (_, endpoint), shape in self._shapes.items() if shape.why}
        odd = [
            (" with ".join((endpoint, *sorted(features))), why) for (endpoint, features), why in self._odd.items()
        ]
        return [f"{what}: {why}" for what, why in [*sorted(shapes), *odd]]
