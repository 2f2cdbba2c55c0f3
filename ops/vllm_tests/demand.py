"""What the fixture of a test module demands of its server, and the flags of a small model on a CPU that serve
it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

DROPPED: Final = frozenset({
    "--gpu-memory-utilization", "--max-num-seqs", "--port", "--host", "--enforce-eager", "--trust-remote-code",
    "--enable-lora", "--max-lora-rank", "--max-cpu-loras", "--max-loras", "--tokenizer",
})  # fmt: skip
"""Flags for GPUs, addresses and adapters. A tokenizer is that of the model, which here is another."""
ADAPTERS: Final = "--lora-modules"
NEEDS: Final = {
    "--tensor-parallel-size": "several GPUs",
    "--speculative-config": "a draft model",
    "--uds": "a socket that only vLLM makes",
    "--attention-backend": "an attention backend of a GPU",
    "--watermark-config": "Triton, which a CPU lacks",
}
"""Unsupported flags, with the reason."""
HALF: Final = frozenset({"half", "float16"})
SMALL: Final = frozenset({
    "--max-model-len", "--max_model_len", "--dtype", "--seed", "--served-model-name", "--max-num-batched-tokens",
    "--enable-chunked-prefill", "--no-enable-prefix-caching", "--no-async-scheduling",
    "--structured-outputs-config.backend", "--runner", "--chat-template",
})  # fmt: skip
"""Flags that are ignored when servers are shared."""


class Impossible(Exception):
    """The fixture's demand cannot be served here; the text says why."""


@dataclass(frozen=True)
class Demand:
    """The arguments of a `RemoteOpenAIServer`."""

    model: str
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Demand:
        return cls(given["model"], tuple(given["args"]), tuple(sorted(given["env"].items())))

    @property
    def asks_for_key(self) -> bool:
        """Its engine requires a key, so the gateway must forward the client's."""
        return any(word.partition("=")[0] == "--api-key" for word in self.args)


def served(demand: Demand, models: Mapping[str, str], longest: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
    """Our model that replaces the demanded one, and the further arguments of vLLM.

    `models`: hub name to our model. Raises Impossible.
    """
    ours = models.get(demand.model)
    if ours is None:
        raise Impossible(f"needs the model {demand.model}")
    names, words = [demand.model], list[str]()
    for flag, values in _flags(demand.args):
        if flag in NEEDS:
            raise Impossible(f"needs {NEEDS[flag]} ({flag})")
        if flag == ADAPTERS:
            names += [value.partition("=")[0] for value in values]  # the model itself answers by their names
        elif flag == "--served-model-name":
            names[:1] = values
        elif flag in ("--max-model-len", "--max_model_len"):
            words += ["--max-model-len", str(min(int(values[0]), longest[ours]))]
        elif flag == "--dtype" and values[0] in HALF:
            words += [flag, "bfloat16"]
        elif flag not in DROPPED:
            words += [flag, *values]
    return ours, (*words, "--served-model-name", *names)


@dataclass(frozen=True)
class Together:
    """The common flags of one server per model, for all tests it can serve."""

    flags: tuple[str, ...]
    names: tuple[str, ...]  # that it answers by, besides those of the hub
    env: Mapping[str, str]

    def words(self, words: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
        """The words of `served` without the ignored flags."""
        known = {word for word in self.flags if word.startswith("--")} | SMALL
        asked = [word for flag, values in _flags(words) if flag not in known for word in (flag, *values)]
        return (*self.flags, *asked, "--served-model-name", *names, *self.names)


def _flags(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with its values. `--flag=value` counts as two words; words before the first flag are dropped."""
    flag, values = "", list[str]()
    for word in args:
        if word.startswith("--"):
            if flag:
                yield flag, values
            flag, equals, value = word.partition("=")
            values = [value] if equals else []
        else:
            values.append(word)
    if flag:
        yield flag, values
