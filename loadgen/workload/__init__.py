"""Which requests a run sends, in which order and how often.

The nouns, from the outside in:

- `Options`: the flags that choose a workload, as plain data. A job carries them to each worker.
- `Workload`: what `open_workload` makes of them. It yields the run's `Item`s, the same ones at every call and
  in every process, and warm-up items that share no prefix with them.
- `Item`: a `Prompt`, and its time where the workload is a trace. With `FollowUp`s it is a conversation: the turns
  of a chat, or the calls of an agent, of which later ones wait for earlier ones.
- `Prompt`: the fields of a request's body that carry the prompt. Two requests with equal bytes share one `id`.
- `Source` (inside): a dataset as distinct prompts by number. The corpus, random words and repeated prefixes
  need no file; vLLM's custom JSONL, ShareGPT and traces (Mooncake, Azure, `corpus compose`) are read and
  checked as a whole before the first request.

`describe_sent` computes what was really sent: shares of duplicates and of common prefixes. A flag or file that
cannot be used raises `WorkloadError`. Nothing here knows sockets or pacing.
"""

from loadgen.workload.conversations import conversation_size
from loadgen.workload.model import (
    DATASETS,
    TOO_FEW,
    Dataset,
    FollowUp,
    Item,
    Options,
    Prompt,
    Workload,
)
from loadgen.workload.workload import describe_sent, open_workload

__all__ = [
    "DATASETS",
    "TOO_FEW",
    "Dataset",
    "FollowUp",
    "Item",
    "Options",
    "Prompt",
    "Workload",
    "conversation_size",
    "describe_sent",
    "open_workload",
]
