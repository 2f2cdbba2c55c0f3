"""The place of a label's value is free again once the value is forgotten."""

from __future__ import annotations

from proxy.telemetry.series import OTHER, Label


def test_a_value_that_is_forgotten_has_to_claim_a_place_anew() -> None:
    label = Label("model", ("known",), room=1)
    assert [label.clean(value) for value in ("a", "b", "a")] == ["a", OTHER, "a"]
    label.forget("a")
    assert label.clean("a", claim=False) == OTHER
    assert [label.clean(value) for value in ("b", "a")] == ["b", OTHER]
    label.forget("a")
    label.forget("known")
    assert [label.clean(value) for value in ("a", "known")] == [OTHER, "known"]
