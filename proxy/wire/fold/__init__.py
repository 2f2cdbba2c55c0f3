"""The fold: the frames of a finished stream into the JSON body that the engine would have sent without
streaming. `folding` chooses the dialect by the `Shape` of the engine: `vllm`, `llama`, or one that was
`learned` from a stream and a body of the same request. Whatever has an unknown member is `Unfoldable`."""

from proxy.wire.fold.folding import (
    FOLDABLE_FIELDS,
    features_of,
    fold,
    foldable,
    folds_ahead,
    forces_tool,
    look,
    many_frames,
    may_fold,
    shape_seen,
    shape_told,
)
from proxy.wire.fold.known import Folded, Odd, Unfoldable
from proxy.wire.fold.learned import Unproven
from proxy.wire.fold.shape import LLAMA, VLLM, Shape

__all__ = [
    "FOLDABLE_FIELDS",
    "LLAMA",
    "VLLM",
    "Folded",
    "Odd",
    "Shape",
    "Unfoldable",
    "Unproven",
    "features_of",
    "fold",
    "foldable",
    "folds_ahead",
    "forces_tool",
    "look",
    "many_frames",
    "may_fold",
    "shape_seen",
    "shape_told",
]
