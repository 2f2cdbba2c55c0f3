"""What a workload is made of: prompts, items, options, and the interface that every dataset implements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, Protocol, get_args

import msgspec

from loadgen.errors import WorkloadError
from loadgen.spec import FORMS, Endpoint, PromptForm

Dataset = Literal[
    "corpus", "custom", "random", "sharegpt", "trace", "prompt", "prefix_repetition", "recording", "burstgpt"
]
DATASETS: Final[tuple[str, ...]] = get_args(Dataset)
TooFew = Literal["refuse", "repeat", "fewer"]
TOO_FEW: Final[tuple[str, ...]] = get_args(TooFew)
DEFAULT_PROMPTS: Final = 1000


class Prompt(msgspec.Struct, frozen=True):
    """The prompt as fields of a request's body. Never changed in place: duplicates share `fields`."""

    id: str  # duplicates (equal bytes) have the same one
    endpoint: PromptForm
    fields: dict[str, Any]  # messages, prompt or input, and max_tokens if the workload sets it
    expected_input: int | None = None  # an estimate in tokens, for composing; never printed as a count


class FollowUp(msgspec.Struct, frozen=True, kw_only=True):
    """A later request of a conversation, due `gap_s` seconds after the last of those before it has ended."""

    prompt: Callable[[], Prompt]
    """Composed when it is due. With `continues` it has only what is new: its messages, and fields that replace the
    earlier ones."""
    after: tuple[int, ...]  # places of the requests it waits for, 0 the first; none: from the conversation's start
    gap_s: float = 0.0
    continues: bool = False  # after the messages of the one request in `after` and the answer to them


class Item(msgspec.Struct, frozen=True):
    """One request of a workload, or a conversation of several."""

    prompt: Prompt
    at_s: float | None = None  # due, from the run's start; None: the pacer decides
    then: tuple[FollowUp, ...] = ()


class Workload(Protocol):
    """What a run sends."""

    name: str

    def requests(self) -> Iterator[Item]:
        """The run's requests, lazily; every call yields the same ones."""

    def warmups(self, n: int) -> Iterator[Item]:
        """`n` requests like the run's that share no prefix block with it or with each other."""


class Source(Protocol):
    """A dataset: distinct prompts by number."""

    name: str
    distinct: int | None
    """How many there are; None: unlimited."""

    def prompt(self, number: int) -> Prompt: ...

    def then(self, number: int) -> tuple[FollowUp, ...]:
        """The rest of the conversation that begins with this prompt."""

    def schedule(self) -> list[tuple[float, int]] | None:
        """A trace's (seconds from 0, prompt number), ascending. None: the dataset has no times."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The flags, with vLLM's names and defaults where vLLM has them. Lengths are in tokens."""

    dataset_name: Dataset = "corpus"
    dataset_path: str | None = None
    endpoint: Endpoint = "chat"
    prompt: str | None = None
    num_prompts: int | None = None  # None: 1,000, or all that a file holds
    seed: int = 0
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float | dict[str, float] = 0.0
    """Lengths from len * (1 - ratio) to len * (1 + ratio), one ratio for each of `input` and `output` as vLLM."""
    random_prefix_len: int = 0
    prefix_repetition_prefix_len: int = 256
    prefix_repetition_suffix_len: int = 256
    prefix_repetition_num_prefixes: int = 10
    prefix_repetition_output_len: int = 128
    sharegpt_output_len: int | None = None  # None: about the length of the answer in the file
    images: int = 0  # pictures at the end of each prompt
    image_size: str = "512x512"
    rerank_documents: int = 10  # to rank in each request to the rerank endpoint
    turns: str | None = None  # of a conversation: N, or LOW-HIGH; None: single requests
    think_time: str = "0"  # seconds between an answer and the next turn; see `parse_think_time`
    history: Literal["own", "file"] = "own"  # whose answers a later turn carries
    custom_output_len: int = 256  # -1: each line's own output_tokens
    corpus_output_len: int | None = None  # None: the engine decides
    corpus_set: tuple[str, ...] = ()
    disable_shuffle: bool = False
    too_few: TooFew = "refuse"  # when a file has fewer prompts than num_prompts
    trace_jitter: float | None = None  # seconds; None: within one slot if the file's clock is coarse
    duplicates: float = 0.0
    zipf: float = 1.1
    unique: bool = False
    salt: str = ""  # of the nonces of `unique`

    @property
    def form(self) -> PromptForm:
        return FORMS[self.endpoint]

    def range_ratios(self) -> tuple[float, float]:
        """Of input and output. Raises WorkloadError for a dict that does not name exactly these two."""
        ratio = self.random_range_ratio
        if not isinstance(ratio, dict):
            return ratio, ratio
        if set(ratio) != {"input", "output"}:
            raise WorkloadError(
                "--random-range-ratio as JSON must have input and output and no other name, such as "
                '{"input": 0.3, "output": 0.5}'
            )
        return ratio["input"], ratio["output"]
