"""What is remembered of one engine: which streams may be waited for, and until when."""

from __future__ import annotations

import json
from typing import Any

from proxy.upstream.abilities import Abilities
from proxy.wire.fold.shape import LLAMA, VLLM, Shape
from proxy.wire.openai import ApiRequest, decode

NONE = Shape("none", why="bodies differ")


def api_request(model: str = "m", **more: Any) -> ApiRequest:
    messages = [{"role": "user", "content": "x"}]
    return decode("chat", json.dumps({"model": model, "messages": messages, **more}).encode())


def test_nothing_is_waited_for_where_nothing_is_known() -> None:
    abilities = Abilities()
    assert abilities.shape(api_request()) is None
    assert not abilities.folds(api_request())
    assert abilities.fold is None


def test_what_a_dialect_is_known_to_fold_at_its_end_is_waited_for() -> None:
    vllm, llama = Abilities(), Abilities()
    vllm.learn(["m"], "chat", VLLM)
    llama.learn(["m"], "chat", LLAMA)
    tool = {"type": "function", "function": {"name": "f"}}
    assert vllm.folds(api_request())
    assert llama.folds(api_request(n=1, logprobs=False))
    assert vllm.folds(api_request(n=2, logprobs=True))
    assert not llama.folds(api_request(n=2))
    assert not llama.folds(api_request(logprobs=True))
    assert not vllm.folds(api_request(tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}}))
    assert not vllm.folds(api_request("other"))


def test_a_shape_of_any_model_is_for_those_without_their_own() -> None:
    abilities = Abilities()
    abilities.learn(["a", None], "chat", VLLM)
    abilities.learn(["b"], "chat", NONE)
    assert abilities.folds(api_request("c"))
    assert not abilities.folds(api_request("b"))
    assert abilities.fold is False
    assert abilities.told() == ["chat: bodies differ"]


def test_what_did_not_fold_is_not_waited_for_again_until_the_engine_has_been_away() -> None:
    abilities = Abilities()
    abilities.learn(["m"], "chat", VLLM)
    assert abilities.spoil(api_request(n=2), "new")
    assert not abilities.spoil(api_request(n=3), "new")
    assert not abilities.folds(api_request(n=2))
    assert abilities.folds(api_request())
    assert abilities.told() == ["chat with n: new"]
    abilities.forget()
    abilities.learn(["m"], "chat", VLLM)
    assert abilities.folds(api_request(n=2))


def test_what_was_odd_is_so_no_more_where_the_engine_turns_out_to_be_another() -> None:
    abilities = Abilities()
    abilities.learn(["m"], "chat", VLLM)
    abilities.spoil(api_request(), "new")
    abilities.doubt(api_request())
    assert not abilities.knows("m", "chat")
    abilities.learn(["m"], "chat", VLLM)
    assert not abilities.folds(api_request())
    abilities.doubt(api_request())
    abilities.learn(["m"], "chat", LLAMA)
    assert abilities.folds(api_request())


def test_many_models_take_no_more_room_than_some() -> None:
    abilities = Abilities()
    abilities.learn([f"m{n}" for n in range(10_000)], "chat", VLLM)
    assert abilities.folds(api_request("m0"))
    assert not abilities.folds(api_request("m9999"))
