"""Every flag of `vllm bench serve` 0.33 and what becomes of it here. The command's parser, its help, the answers
to vLLM's flags in other commands and the table in the documentation come from this list."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

RELEASE: Final = "0.33.0"
"""The release of vLLM whose flags these are."""

Fate = Literal["same", "own", "nothing", "answered"]
"""same: `run`'s flag of that name. own: `bench_serve.py` turns it into flags of `run`. nothing: accepted without
an effect. answered: refused with exit code 2 and what to use."""


class Flag(NamedTuple):
    """One flag of vLLM's."""

    name: str
    fate: Fate
    here: str  # what it does, why it has no effect, or what to use
    default: Any = None  # of `same` where vLLM's differs from `run`'s, and of `own`
    values: Literal[0, 1, "*"] = 1


def _same(name: str, here: str, default: Any = None) -> Flag:
    return Flag(name, "same", here, default)


def _nothing(name: str, here: str, values: Literal[0, 1, "*"] = 0) -> Flag:
    return Flag(name, "nothing", here, values=values)


def _answered(name: str, here: str, values: Literal[0, 1, "*"] = 1) -> Flag:
    return Flag(name, "answered", here, values=values)


_FILE: Final = "write its prompts to a JSONL file for --dataset-name custom"
_MEDIA: Final = (
    "`python -m loadgen run --images N` adds generated pictures; a file for --dataset-name custom may have "
    "`messages` with image_url parts"
)
_RERANK: Final = "`python -m loadgen run --endpoint rerank --rerank-documents N` generates documents to rank"
_AUDIO: Final = "audio is not measured"
_FIELD: Final = "a field of every request"
_TRACE: Final = "`python -m loadgen run --dataset-name trace` reads Mooncake's JSONL, with its own times"

FLAGS: Final = (
    # the dataset
    _same("--dataset-path", "the file of custom, sharegpt or burstgpt"),
    Flag(
        "--dataset-name",
        "own",
        "random, sharegpt, custom, prefix_repetition, burstgpt (its lengths; not its times)",
        "random",
    ),
    Flag("--num-prompts", "own", "number of requests; 0 or less with a file: all of it", 1000),
    _same("--seed", "seed of all random choices"),
    Flag(
        "--no-oversample",
        "own",
        "a file with too few prompts is sent once; without it some are repeated",
        values=0,
    ),
    _same("--disable-shuffle", "keep the file's order"),
    _nothing("--no-stream", "datasets are files, which are always read whole; responses are streamed"),
    _nothing("--trust-remote-code", "no code of a model is loaded"),
    _nothing("--skip-chat-template", "prompts are always sent as they are in the file"),
    _answered("--enable-multimodal-chat", _MEDIA, 0),
    Flag("--input-len", "own", "for --random-input-len"),
    Flag("--output-len", "own", "for the output length of the dataset that is used"),
    _same("--custom-output-len", "tokens of a response; -1: output_tokens of each line"),
    _answered("--custom-ensure-client-side-data", _MEDIA, 0),
    _same("--sharegpt-output-len", "tokens of a response (default: about as in the file)"),
    _same(
        "--random-input-len", "words of a prompt; a word is one token of SmolLM2's tokenizer, about one of others"
    ),
    _same("--random-output-len", "tokens of a response"),
    _same("--random-range-ratio", 'a share, or {"input": SHARE, "output": SHARE}'),
    _same("--random-prefix-len", "words of a prefix that all prompts share"),
    Flag("--random-batch-size", "own", "1 only: one text in a request of embeddings", 1),
    _answered("--no-reranker", _RERANK, 0),
    _same("--prefix-repetition-prefix-len", "words of a shared prefix"),
    _same("--prefix-repetition-suffix-len", "words of the distinct rest"),
    _same("--prefix-repetition-num-prefixes", "number of prefixes"),
    _same("--prefix-repetition-output-len", "tokens of a response"),
    _answered("--random-mm-base-items-per-request", _MEDIA),
    _answered("--random-mm-num-mm-items-range-ratio", _MEDIA),
    _answered("--random-mm-limit-mm-per-prompt", _MEDIA),
    _answered("--random-mm-bucket-config", _MEDIA),
    _answered("--hf-subset", _FILE),
    _answered("--hf-split", _FILE),
    _answered("--hf-name", _FILE),
    _answered("--hf-output-len", _FILE),
    _answered("--spec-bench-output-len", _FILE),
    _answered("--spec-bench-category", _FILE),
    _answered("--speed-bench-dataset-subset", _FILE),
    _answered("--speed-bench-output-len", _FILE),
    _answered("--speed-bench-category", _FILE),
    _answered("--blazedit-min-distance", _FILE),
    _answered("--blazedit-max-distance", _FILE),
    _answered("--bfcl-categories", _FILE),
    _answered("--asr-min-audio-len-sec", _AUDIO),
    _answered("--asr-max-audio-len-sec", _AUDIO),
    _answered("--timed-trace-chunk-hash-size", _TRACE),
    _answered("--timed-trace-sec-multiplier", _TRACE),
    _answered("--timed-trace-label-timestamp", _TRACE),
    _answered("--timed-trace-label-input-length", _TRACE),
    _answered("--timed-trace-label-output-length", _TRACE),
    _answered("--timed-trace-label-hash-ids", _TRACE),
    Flag("--self-timed", "answered", _TRACE, values=0),
    Flag("--no-self-timed", "answered", _TRACE, values=0),
    # the server
    Flag("--backend", "own", "vllm, openai, openai-chat, openai-responses, openai-embeddings", "openai"),
    _same("--base-url", "the server"),
    _same("--host", "the server's host, without --base-url"),
    _same("--port", "its port"),
    _same("--endpoint", "the path (default: the backend's)"),
    _same("--header", "NAME=VALUE, one or more"),
    _same("--insecure", "accept any TLS certificate"),
    _same("--model", "default: the first of /v1/models"),
    _same("--served-model-name", "the model's name in requests, if it is not --model"),
    _same("--tokenizer", "a name for the results: tokens are counted by the server's usage"),
    _nothing("--tokenizer-mode", "no tokenizer is loaded", 1),
    _nothing("--skip-tokenizer-init", "no tokenizer is loaded"),
    _same("--ready-check-timeout-sec", "wait this long for /v1/models to respond"),
    # arrivals
    _same("--request-rate", "requests per second; inf: all at once", float("inf")),
    _same("--burstiness", "gamma shape of the gaps, which are not rescaled to an exact total"),
    _same("--max-concurrency", "most requests in flight"),
    _same("--ramp-up-strategy", "linear or exponential"),
    _same("--ramp-up-start-rps", "the rate of the first request"),
    _same("--ramp-up-end-rps", "the rate of the last request"),
    _same("--num-warmups", "warm-up requests, of prompts that the run does not send"),
    _answered(
        "--probe-request-rate", "start a second `python -m loadgen run --prompt hi --max-tokens 1` beside it"
    ),
    # fields of a request
    _same("--ignore-eos", "always on for random, as in vLLM"),
    _same("--temperature", _FIELD),
    _same("--top-p", _FIELD),
    _same("--top-k", _FIELD),
    _same("--min-p", _FIELD),
    _same("--frequency-penalty", _FIELD),
    _same("--presence-penalty", _FIELD),
    _same("--repetition-penalty", _FIELD),
    _same("--logprobs", "a field of every request; of completions only, as in vLLM"),
    _same("--extra-body", "JSON, merged into every request"),
    _answered(
        "--chat-template-kwargs", "--extra-body '{\"chat_template_kwargs\": {...}}' with --backend openai-chat"
    ),
    _same("--request-id-prefix", "x-request-id is this and a number"),
    _nothing(
        "--use-beam-search", "vLLM does not use it either; --extra-body '{\"use_beam_search\": true}' sends it"
    ),
    _same("--lora-modules", "adapters to use instead of --model; the report has each one's figures"),
    _same("--lora-assignment", "random or round-robin"),
    # results
    _same("--label", "the name in folder, file and reports"),
    _same("--save-result", "also write vLLM's file, into --result-dir or the current folder"),
    _same("--save-detailed", "with a list entry for each request"),
    _same("--append-result", "add a line to that file"),
    _same("--result-filename", "its name"),
    Flag("--result-dir", "own", "where that file and the run's folder go (default of the folder: out)"),
    _same("--metadata", "KEY=VALUE, one or more, at the file's top level"),
    _same("--percentile-metrics", "checked; the file has all metrics"),
    _same("--metric-percentiles", "percentiles of the file, beside 50, 90, 95, 99 and 99.9", [99.0]),
    _same("--goodput", "objectives such as ttft:500 tpot:50 e2el:5000, in ms"),
    Flag("--disable-tqdm", "own", "--quiet: no live view", values=0),
    _nothing("--plot-timeline", "report.html in the run's folder always has plots of the run's time"),
    _nothing("--timeline-itl-thresholds", "the plots show the distribution of ITL", 1),
    _nothing("--plot-dataset-stats", "the reports always have the lengths"),
    _answered("--profile", "POST /start_profile to the server before the run, and /stop_profile after it", 0),
)

BY_NAME: Final = {flag.name: flag for flag in FLAGS}

DATASETS: Final = {
    "random": "",
    "sharegpt": "",
    "custom": "",
    "prefix_repetition": "",
    "burstgpt": "",
    "random-mm": _MEDIA,
    "custom_image": _MEDIA,
    "custom_audio": _AUDIO,
    "random-rerank": _RERANK,
    "hf": _FILE,
    "spec_bench": _FILE,
    "speed_bench": _FILE,
    "sonnet": "vLLM has removed it; prefix_repetition shares a prefix in the same way",
    "timed_trace": _TRACE,
}
"""vLLM's datasets, and what to use for those that are not read here."""

BACKENDS: Final = {
    "vllm": "",
    "openai": "",
    "openai-chat": "",
    "openai-embeddings": "",
    "openai-responses": "",
    "openai-audio": _AUDIO,
    "openai-embeddings-chat": "use openai-embeddings",
    "openai-embeddings-clip": "use openai-embeddings, for text",
    "openai-embeddings-vlm2vec": "use openai-embeddings, for text",
    "infinity-embeddings": "use openai-embeddings",
    "infinity-embeddings-clip": "use openai-embeddings, for text",
    "vllm-pooling": "use openai-embeddings",
    "vllm-rerank": _RERANK,
}
"""vLLM's backends, and what to use for those that are not measured here."""


def answer(name: str) -> str | None:
    """What another command says of a flag of vLLM's that does nothing in any command; None for other flags."""
    flag = BY_NAME.get(name)
    if flag is None or flag.fate in ("same", "own"):
        return None
    return f"{name} of `vllm bench serve` is not taken here: {flag.here}"


def table() -> str:
    """The documentation's table, as Markdown."""
    fates = {"same": "taken", "own": "taken", "nothing": "no effect", "answered": "refused"}
    rows = [f"| `{flag.name}` | {fates[flag.fate]} | {flag.here} |" for flag in FLAGS]
    return "\n".join(["| `vllm bench serve` | here | |", "|---|---|---|", *rows])
