"""Owns how Hypothesis makes inputs of a target: its corpus under mutation, its words, anything.
Must not know what a target reads.
Called by the tests, and by the driver where atheris is not installed."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds


@st.composite
def _mutated(draw: st.DrawFn, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    data = bytearray(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("byte", "word", "cut", "drop", "twice", "other")))
        if kind == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=2))
        elif kind == "word" and words:
            data[at : at + draw(st.sampled_from((0, 0, 1, 8)))] = draw(st.sampled_from(words))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 20))]
        elif kind == "twice":
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
        elif kind == "other":
            data[at:] = draw(st.sampled_from(corpus))[at:]
    return bytes(data)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Inputs of one target."""
    target, corpus = TARGETS[name], seeds(name)
    words = st.lists(st.sampled_from(target.words), max_size=12).map(b"".join)
    return _mutated(corpus, target.words) | words | st.binary(max_size=200)
