"""One key for one request however much white space it has, a long body's too; and the price of an odd prompt."""

from __future__ import annotations

import json

import msgspec

from proxy.flights.cost import estimate
from proxy.flights.key import LONG, PADDING
from proxy.wire.openai import decode
from tests.proxy.flights.test_key import key

PARTS = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
CHAT = {"model": "m", "messages": [PARTS, PARTS], "temperature": 0}


def test_a_body_that_white_space_makes_long_has_the_key_of_the_short_one() -> None:
    short = json.dumps(CHAT).encode()
    spaced = json.dumps(CHAT, indent=400).encode()
    assert len(short) < LONG < len(spaced) < PADDING
    assert key(short) == key(spaced)
    assert PADDING == 65_536


def test_a_prompt_that_cannot_be_read_is_one() -> None:
    ask = decode("completions", b'{"prompt": "x", "model": "m"}')
    odd = msgspec.structs.replace(ask, fields=ask.fields | {"prompt": msgspec.Raw(b'{"a":1}')})
    for asked in (ask, odd):
        assert estimate(asked, 500).completion == 500
