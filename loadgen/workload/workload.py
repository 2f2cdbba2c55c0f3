"""Datasets, duplicates and nonces combined into the requests of a run. Pure but for reading a file: the same
options give the same bytes in every process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from corpus.draw import Draw
from corpus.manifest import CorpusError
from corpus.measure import Prefixes, Twins, prompt_bytes
from corpus.mix import mixed, nonce, with_nonce
from loadgen.errors import WorkloadError
from loadgen.workload.conversations import (
    MadeConversations,
    custom_conversations,
    parse_think_time,
    parse_turns,
    sharegpt_conversations,
)
from loadgen.workload.datasets import Corpus, OnePrompt, RandomWords, RepeatedPrefixes
from loadgen.workload.files import custom, sharegpt
from loadgen.workload.images import Rerank, WithImages, parse_size
from loadgen.workload.model import (
    DEFAULT_PROMPTS,
    FollowUp,
    Item,
    Options,
    Prompt,
    Source,
    Workload,
)
from loadgen.workload.traces import trace

MADE: Final = ("corpus", "random", "prefix_repetition", "prompt")
"""Datasets without end."""

PREFIX_BLOCK: Final = 64
"""Bytes: about vLLM's block of 16 tokens of English."""


def open_workload(options: Options) -> Workload:
    """The workload of these options; a file is read and checked as a whole. Raises WorkloadError."""
    _check(options)
    try:
        source = _source(options)
        if options.turns is not None and options.dataset_name in MADE:
            source = MadeConversations(source, options)
        if options.images:
            source = WithImages(source, options)
        if options.endpoint == "rerank" and options.dataset_name != "custom":
            source = Rerank(source, options)
    except CorpusError as e:
        raise WorkloadError(f"--corpus-set: {e}") from None
    schedule = source.schedule()
    if schedule is not None:
        if options.duplicates:
            raise WorkloadError(
                "--duplicates does not apply to a trace, which has its own duplicates; compose one instead"
            )
        return Planned(source, [number for _, number in schedule], [at for at, _ in schedule], options)
    return Planned(source, _order(source, options), None, options)


def _source(options: Options) -> Source:
    if options.turns is not None and options.dataset_name in ("custom", "sharegpt"):
        return (
            custom_conversations(options) if options.dataset_name == "custom" else sharegpt_conversations(options)
        )
    match options.dataset_name:
        case "corpus":
            return Corpus(options)
        case "random":
            return RandomWords(options)
        case "prefix_repetition":
            return RepeatedPrefixes(options)
        case "prompt":
            if not options.prompt or not options.prompt.strip():
                raise WorkloadError("--dataset-name prompt needs --prompt TEXT")
            return OnePrompt(options.prompt, options)
        case "custom":
            return custom(options)
        case "sharegpt":
            return sharegpt(options)
        case "trace" | "recording" | "burstgpt":
            return trace(options)


def _order(source: Source, options: Options) -> list[int]:
    """Prompt numbers, one per request. A file is repeated only if `too_few` says so: repeats measure caches."""
    count = options.num_prompts or (DEFAULT_PROMPTS if source.distinct is None else source.distinct)
    if source.distinct is not None and count > source.distinct and options.too_few != "refuse":
        if options.duplicates:
            raise WorkloadError("--too-few and --duplicates contradict each other: both repeat prompts")
        draw = Draw(options.seed, "too-few")
        missing = count - source.distinct if options.too_few == "repeat" else 0
        return [*range(source.distinct), *(draw.below(source.distinct) for _ in range(missing))]
    order = mixed(count, options.duplicates, options.zipf, Draw(options.seed, "mix"))
    needed = max(order) + 1
    if source.distinct is not None and needed > source.distinct:
        raise WorkloadError(
            f"{source.name} has {source.distinct} different prompts, {needed} are needed: lower --num-prompts, or "
            f"allow repeats with --duplicates {min(1 - source.distinct / count + 0.005, 0.99):.2f}"
            " or --too-few repeat"
        )
    return order


def _check(options: Options) -> None:
    lengths = {
        "--num-prompts": (options.num_prompts, 1),
        "--random-input-len": (options.random_input_len, 1),
        "--random-output-len": (options.random_output_len, 1),
        "--random-prefix-len": (options.random_prefix_len, 0),
        "--prefix-repetition-prefix-len": (options.prefix_repetition_prefix_len, 1),
        "--prefix-repetition-suffix-len": (options.prefix_repetition_suffix_len, 1),
        "--prefix-repetition-num-prefixes": (options.prefix_repetition_num_prefixes, 1),
        "--prefix-repetition-output-len": (options.prefix_repetition_output_len, 1),
        "--sharegpt-output-len": (options.sharegpt_output_len, 1),
        "--custom-output-len": (None if options.custom_output_len == -1 else options.custom_output_len, 1),
        "--corpus-output-len": (options.corpus_output_len, 1),
    }
    for flag, (value, least) in lengths.items():
        if value is not None and not least <= value <= 10_000_000:
            raise WorkloadError(f"{flag} must be {least} to 10,000,000; got {value}")
    ranges = {
        "--random-range-ratio": (options.range_ratios()[0], 0.0, 0.999),
        "--random-range-ratio of the output": (options.range_ratios()[1], 0.0, 0.999),
        "--duplicates": (options.duplicates, 0.0, 0.999),
        "--zipf": (options.zipf, 0.0, 4.0),
        "--trace-jitter": (options.trace_jitter or 0.0, 0.0, 3600.0),
    }
    for flag, (number, low, high) in ranges.items():
        if not low <= number <= high:
            raise WorkloadError(f"{flag} must be {low:g} to {high:g}; got {number:g}")
    if options.images:
        parse_size(options.image_size)
        if options.form != "chat":
            raise WorkloadError(
                f"--images is for chat, responses and messages; {options.endpoint} takes no pictures"
            )
    parse_think_time(options.think_time)
    if options.turns is not None:
        parse_turns(options.turns)
        if options.form != "chat":
            raise WorkloadError(
                f"--turns is for chat, responses and messages; {options.endpoint} has no conversations"
            )
        if options.dataset_name in ("trace", "recording", "burstgpt"):
            raise WorkloadError("--turns does not apply to a trace, which says itself which requests follow which")
    elif options.think_time != "0" or options.history != "own":
        raise WorkloadError("--think-time and --history are for conversations: give --turns")
    if options.corpus_set and options.dataset_name != "corpus":
        raise WorkloadError(f"--corpus-set applies to --dataset-name corpus, not {options.dataset_name}")
    if options.dataset_path and options.dataset_name in MADE:
        raise WorkloadError(
            f"--dataset-path applies to custom, sharegpt, trace, burstgpt and recording; {options.dataset_name} "
            "reads no file"
        )


class Planned:
    """A dataset's prompts in the order of the run."""

    def __init__(self, source: Source, order: list[int], times: list[float] | None, options: Options) -> None:
        self.name = source.name
        self._source = source
        self._order = order
        self._times = times
        self._options = options

    def __len__(self) -> int:
        return len(self._order)

    def requests(self) -> Iterator[Item]:
        for place, number in enumerate(self._order):
            prompt = self._source.prompt(number)
            if self._options.unique:
                prompt = self._with_nonce(prompt, "run", number)
            then = self._source.then(number)
            if self._options.unique:
                then = tuple(self._unique(follow_up, number) for follow_up in then)
            yield Item(prompt, None if self._times is None else self._times[place], then)

    def warmups(self, n: int) -> Iterator[Item]:
        """The run's prompts from its end backwards, each after its own nonce."""
        for place in range(n):
            prompt = self._source.prompt(self._order[-1 - place % len(self._order)])
            yield Item(self._with_nonce(prompt, "warm-up", place, name=f"warm-up/{place}"))

    def _unique(self, follow_up: FollowUp, number: int) -> FollowUp:
        """With the nonce of its conversation, unless it continues a prompt that has it."""
        if follow_up.continues:
            return follow_up
        prompt = follow_up.prompt
        return msgspec.structs.replace(follow_up, prompt=lambda: self._with_nonce(prompt(), "run", number))

    def _with_nonce(self, prompt: Prompt, *what: object, name: str = "") -> Prompt:
        front = nonce(self._options.salt, *what, self._options.seed)
        try:
            fields = with_nonce(prompt.fields, front)
        except ValueError as e:
            raise WorkloadError(f"{prompt.id}: {e}") from None
        return Prompt(name or prompt.id, prompt.endpoint, fields, prompt.expected_input)


def describe_sent(items: Iterable[Item]) -> dict[str, Any]:
    """Statistics of what was really sent, for `Run.sent_stats`.

    `duplicate_share`: requests equal to an earlier one. `prefix_share`: share of prompt bytes that an infinite
    prefix cache with blocks of PREFIX_BLOCK bytes would have had from earlier requests, duplicates included.
    `unique`: no request shares even its first block with an earlier one. Of conversations these are of the first
    requests; `later_turns` is the number of the others.
    """
    twins, prefixes = Twins(), Prefixes(PREFIX_BLOCK)
    conversations = later = 0
    for item in items:
        conversations += bool(item.then)
        later += len(item.then)
        twins.add(item.prompt.fields, item.prompt.endpoint)
        prefixes.add(prompt_bytes(item.prompt.fields))
    requests = twins.times.total()
    return {
        "requests": requests,
        "distinct_prompts": len(twins.times),
        "duplicate_share": round(twins.duplicate_share, 4),
        "max_repeats": max(twins.times.values(), default=0),
        "prefix_share": round(prefixes.byte_share, 4),
        "prefix_block_bytes": PREFIX_BLOCK,
        "mean_prompt_bytes": round(prefixes.bytes / requests, 1) if requests else 0.0,
        "unique": prefixes.hits == 0 and len(twins.times) == requests,
        **({"conversations": conversations, "later_turns": later} if conversations else {}),
    }
