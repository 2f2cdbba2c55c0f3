"""What one engine was seen to do: the shape of its answers, which streams do not fold into a body, whether it
takes arrays of several clients' inputs. Forgotten when the engine has been away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from proxy.wire import ApiRequest, Endpoint
from proxy.wire.fold import Shape, features_of, folds_ahead

MOST_MODELS: Final = 256

Kind = tuple[Endpoint, frozenset[str]]
"""An endpoint, and the features of a request that change the shape of its answer."""


class Abilities:
    """What one engine was seen to do since it came up."""

    __slots__ = ("_doubted", "_odd", "_shapes", "epoch", "lists_ids", "mixes")

    def __init__(self) -> None:
        self.epoch = 0  # number of `forget`s: results of an earlier epoch are of another engine
        self.mixes = True  # it accepts the inputs of several clients in one array
        self.lists_ids = True  # it accepts requests for the ids of tokens
        self._shapes: dict[tuple[str | None, Endpoint], Shape] = {}
        self._odd: dict[Kind, str] = {}
        self._doubted: dict[Endpoint, Shape | None] = {}  # the shape known before a stream differed

    def __repr__(self) -> str:
        return f"<Abilities shapes={len(self._shapes)} odd={len(self._odd)}>"

    def forget(self) -> None:
        """Forget everything: it may be another engine or version."""
        self.epoch += 1
        self.mixes = self.lists_ids = True
        self._shapes.clear()
        self._odd.clear()
        self._doubted.clear()

    def shape(self, api_request: ApiRequest) -> Shape | None:
        """The shape of its streams for such a request; None: not known."""
        known = self._shapes.get((api_request.model, api_request.endpoint))
        return known or self._shapes.get((None, api_request.endpoint))

    def folds(self, api_request: ApiRequest) -> bool:
        """Whether a stream for this request certainly folds, so that a client can wait for one body."""
        shape = self.shape(api_request)
        if shape is None:
            return False
        features = features_of(api_request.fields)
        return folds_ahead(shape, features) and (api_request.endpoint, features) not in self._odd

    def knows(self, model: str | None, endpoint: Endpoint) -> bool:
        """Whether the shape of this model's answers is known."""
        return (model, endpoint) in self._shapes

    def learn(self, models: Iterable[str | None], endpoint: Endpoint, shape: Shape) -> None:
        """Set the shape of these models' answers on this endpoint. None among them: any other model."""
        for model in models:
            if len(self._shapes) < 2 * MOST_MODELS or (model, endpoint) in self._shapes:
                self._shapes[model, endpoint] = shape
        if self._doubted.pop(endpoint, shape) != shape:
            self._odd = {kind: why for kind, why in self._odd.items() if kind[0] != endpoint}

    def spoil(self, api_request: ApiRequest, why: str) -> bool:
        """A stream for such a request did not fold: do not expect the next one to. True: that is new."""
        kind = (api_request.endpoint, features_of(api_request.fields))
        new = kind not in self._odd
        self._odd[kind] = why
        return new

    def refuses_arrays(self) -> None:
        """It refused an array of several clients' inputs but accepted its parts: send it no more of these."""
        self.mixes = False

    def refuses_ids(self) -> None:
        """It refused a request that asked for the ids of tokens, but not the same without: ask it no more."""
        self.lists_ids = False

    def doubt(self, api_request: ApiRequest) -> None:
        """Its answers may have changed: forget the shapes, until `learn`. A new shape clears the failed folds
        too."""
        self._doubted[api_request.endpoint] = self.shape(api_request)
        self._shapes = {key: shape for key, shape in self._shapes.items() if key[1] != api_request.endpoint}

    @property
    def fold(self) -> bool | None:
        """Whether all its streams fold; None: not known."""
        if not self._shapes:
            return None
        return not self._odd and all(shape.dialect != "none" or not shape.why for shape in self._shapes.values())

    def told(self) -> list[str]:
        """What does not fold and why, as text."""
        shapes = {(endpoint, shape.why) for (_, endpoint), shape in self._shapes.items() if shape.why}
        odd = [
            (" with ".join((endpoint, *sorted(features))), why) for (endpoint, features), why in self._odd.items()
        ]
        return [f"{what}: {why}" for what, why in [*sorted(shapes), *odd]]
