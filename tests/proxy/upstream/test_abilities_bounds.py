"""What is forgotten of an engine, what is doubted, and how much of it is kept."""

from __future__ import annotations

from proxy.upstream.abilities import MOST_MODELS, Abilities
from proxy.wire.fold.shape import LLAMA, VLLM, Shape
from proxy.wire.openai import decode
from tests.proxy.upstream.test_abilities import api_request

COMPLETION = decode("completions", b'{"model":"m","prompt":"x"}')


def test_what_is_forgotten_is_told_by_the_epoch_and_nothing_of_it_comes_back() -> None:
    abilities = Abilities()
    abilities.learn(["m"], "chat", VLLM)
    abilities.spoil(api_request(), "new")
    abilities.doubt(api_request())
    assert (abilities.epoch, repr(abilities)) == (0, "<Abilities shapes=0 odd=1>")
    abilities.forget()
    assert (abilities.epoch, repr(abilities), abilities.fold, abilities.told()) == (
        1,
        "<Abilities shapes=0 odd=0>",
        None,
        [],
    )
    abilities.learn(["m"], "chat", VLLM)
    assert abilities.spoil(api_request(), "again")
    abilities.learn(["m"], "chat", LLAMA)
    assert abilities.told() == ["chat: again"], "nothing was doubted of this engine"
    abilities.forget()
    assert abilities.epoch == 2


def test_a_doubt_is_of_one_endpoint_and_what_is_odd_there_goes_with_another_shape() -> None:
    abilities = Abilities()
    for endpoint in ("chat", "completions"):
        abilities.learn(["m", None], endpoint, VLLM)
    abilities.spoil(api_request(), "a")
    abilities.spoil(COMPLETION, "b")
    abilities.doubt(api_request())
    assert (abilities.knows("m", "chat"), abilities.knows(None, "chat")) == (False, False)
    assert (abilities.knows("m", "completions"), abilities.knows("m2", "completions")) == (True, False)
    abilities.learn(["m"], "chat", LLAMA)
    assert abilities.told() == ["completions: b"]
    abilities.learn(["m"], "chat", VLLM)
    assert abilities.told() == ["completions: b"], "a doubt is settled once"


def test_as_many_models_are_known_as_may_be_and_a_known_one_may_change() -> None:
    abilities = Abilities()
    abilities.learn([f"{n}" for n in range(2 * MOST_MODELS)], "chat", VLLM)
    abilities.learn(["one more"], "chat", VLLM)
    abilities.learn(["0"], "chat", LLAMA)
    assert [abilities.knows(name, "chat") for name in ("511", "one more")] == [True, False]
    assert abilities.shape(api_request("0")) == LLAMA


def test_whether_streams_fold_and_why_not_is_told() -> None:
    abilities = Abilities()
    abilities.learn(["m"], "chat", VLLM)
    assert (abilities.fold, abilities.told()) == (True, [])
    abilities.learn(["e"], "completions", Shape("none"))
    assert abilities.fold is True, "it has no such endpoint: nothing is to be told"
    abilities.learn(["e"], "completions", Shape("none", why="odd"))
    assert (abilities.fold, abilities.told()) == (False, ["completions: odd"])
    abilities.learn(["e"], "completions", VLLM)
    assert abilities.fold is True
    abilities.spoil(api_request(n=2, logprobs=True), "new")
    assert (abilities.fold, abilities.told()) == (False, ["chat with logprobs with n: new"])
