"""The datasets that need no file: one prompt, random words, repeated prefixes, the corpus."""

from __future__ import annotations

from typing import Any

from corpus.bank import words
from corpus.draw import Draw
from corpus.sources import Sets, as_fields
from loadgen.spec import PromptForm
from loadgen.workload.model import FollowUp, Options, Prompt


def bounded(fields: dict[str, Any], endpoint: PromptForm, output_len: int | None) -> dict[str, Any]:
    """The fields with `max_tokens`, unless there is no length or the endpoint is embeddings."""
    return fields if output_len is None or endpoint == "embeddings" else {**fields, "max_tokens": output_len}


class Untimed:
    """A dataset without due times, of single requests."""

    def schedule(self) -> list[tuple[float, int]] | None:
        return None

    def then(self, number: int) -> tuple[FollowUp, ...]:
        return ()


class OnePrompt(Untimed):
    """One text for every request. With `unique` a nonce tells them apart, and each has its own id."""

    distinct: int | None = None

    def __init__(self, text: str, options: Options) -> None:
        self.name = "prompt"
        self._unique = options.unique
        self._form = options.form
        self._fields = as_fields(text, options.form)

    def prompt(self, number: int) -> Prompt:
        return Prompt(f"prompt/{number}" if self._unique else "prompt", self._form, self._fields)


class RandomWords(Untimed):
    """English words in random order, one token each by the SmolLM2 tokenizer, about one by others.

    vLLM draws token ids and decodes them, which needs the tokenizer and does not survive retokenising
    (vllm-project/vllm#42532: 1,000 became 5,128). Lengths are as vLLM draws them: uniform around `*_len`, with
    the shared prefix on top.
    """

    distinct: int | None = None

    def __init__(self, options: Options) -> None:
        self.name = "random"
        self._options = options
        self._prefix = words(Draw(options.seed, "random-prefix"), options.random_prefix_len)
        self._ratios = options.range_ratios()

    def prompt(self, number: int) -> Prompt:
        options = self._options
        draw = Draw(options.seed, "random", number)
        count = _around(draw, options.random_input_len, self._ratios[0])
        output = _around(draw, options.random_output_len, self._ratios[1])
        text = f"{self._prefix} {words(draw, count)}".strip()
        fields = bounded(as_fields(text, options.form), options.form, output)
        return Prompt(f"random/{number}", options.form, fields, options.random_prefix_len + count)


def _around(draw: Draw, length: int, ratio: float) -> int:
    low, high = int(length * (1 - ratio)), int(length * (1 + ratio))
    return max(1, low + draw.below(high - low + 1))


class RepeatedPrefixes(Untimed):
    """`num_prefixes` prefixes in turn, each time with a new suffix."""

    distinct: int | None = None

    def __init__(self, options: Options) -> None:
        self.name = "prefix_repetition"
        self._options = options
        self._prefixes = [
            words(Draw(options.seed, "prefix", number), options.prefix_repetition_prefix_len)
            for number in range(options.prefix_repetition_num_prefixes)
        ]

    def prompt(self, number: int) -> Prompt:
        options = self._options
        prefix = self._prefixes[number % len(self._prefixes)]
        suffix = words(Draw(options.seed, "suffix", number), options.prefix_repetition_suffix_len)
        fields = as_fields(f"{prefix} {suffix}", options.form)
        return Prompt(
            f"prefix_repetition/{number}",
            options.form,
            bounded(fields, options.form, options.prefix_repetition_output_len),
            options.prefix_repetition_prefix_len + options.prefix_repetition_suffix_len,
        )


class Corpus(Untimed):
    """The corpus' prompt sets; beyond the hand-written prompts, variants of them."""

    distinct: int | None = None

    def __init__(self, options: Options) -> None:
        self.name = "corpus" + "".join(f":{name}" for name in options.corpus_set)
        self._options = options
        self._sets = Sets(options.corpus_set, options.form, options.seed)

    def prompt(self, number: int) -> Prompt:
        source_prompt = self._sets.prompt(number)
        endpoint = self._options.form
        return Prompt(
            source_prompt.id,
            endpoint,
            bounded(source_prompt.fields, endpoint, self._options.corpus_output_len),
            source_prompt.estimate,
        )
