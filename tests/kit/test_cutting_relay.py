"""The relay cuts one stream at one event, and passes all others."""

from __future__ import annotations

import pytest

from tests.kit.client import IncompleteBody, post_json, split_events
from tests.kit.cutting_relay import CuttingRelay, Shears
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script

CHAT = "/v1/chat/completions"
ASK = {"model": "m1", "messages": [], "stream": True}


async def test_a_stream_is_cut_after_as_many_events_as_told_and_the_next_passes() -> None:
    shears = Shears()
    async with Engine(echo_script()) as engine, CuttingRelay(engine.url, shears) as relay:
        whole = (await post_json(engine.url, CHAT, ASK)).events()
        for events in (1, 4, len(whole)):
            shears.cut_after(events)
            with pytest.raises(IncompleteBody) as cut:
                await post_json(relay.url, CHAT, ASK)
            assert len(split_events(cut.value.received)[0]) in (
                events,
                events - 1,
            )  # the last may lack its chunk's end
            assert len((await post_json(relay.url, CHAT, ASK)).events()) == len(whole)
        assert shears.cuts == 3
