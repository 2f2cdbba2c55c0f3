"""Whose answer may be shared, as a table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.policy import Share, Sharing, sharing
from proxy.wire.openai import decode

YES, NO, FRESH = Sharing(shared=True), Sharing(shared=False), Sharing(shared=True, fresh=True)


@pytest.mark.parametrize(
    ("default", "fields", "cache_control", "override", "expected"),
    [
        ("auto", {"temperature": 0}, "", "", YES),
        ("auto", {"seed": 7}, "", "", YES),
        ("auto", {"seed": -1}, "", "", NO),
        ("auto", {"temperature": 0.1}, "", "", NO),
        ("auto", {}, "", "", NO),  # a temperature left out is the engine's default, which samples
        ("auto", {"temperature": None}, "", "", NO),
        ("all", {}, "", "", YES),
        ("off", {"temperature": 0}, "", "", NO),
        ("off", {"temperature": 0}, "", "auto", YES),
        ("auto", {}, "", " ALL ", YES),
        ("all", {}, "", "off", NO),
        ("auto", {"temperature": 0}, "no-store", "", NO),
        ("auto", {"temperature": 0}, "max-age=0, No-Cache", "", FRESH),
        ("all", {}, "no-store, no-cache", "", NO),
        ("auto", {"temperature": 0}, "no-cached, private=x", "", YES),
    ],
)
def test_sharing(
    default: Share, fields: dict[str, Any], cache_control: str, override: str, expected: Sharing
) -> None:
    ask = decode("chat", json.dumps({"messages": []} | fields).encode())
    assert sharing(ask, default, cache_control=cache_control, override=override) == expected


def test_an_embedding_is_always_the_same() -> None:
    assert sharing(decode("embeddings", b'{"input": "x"}'), "auto") == YES


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(GatewayError) as refused:
        sharing(decode("chat", b'{"messages": []}'), "auto", override="some")
    assert refused.value.code is Code.INVALID_HEADER
    assert "auto, all, off" in refused.value.message
