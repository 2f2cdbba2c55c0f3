"""Owns the embedded engine's process: llama.cpp's own server over the model that comes along.
Must not know the gateway.
Called as `python -m proxy.embedded.engine_child MODEL PORT` by the embedded engine."""

from __future__ import annotations

import signal
import sys

SLOTS = 8  # generations at a time
CONTEXT = 2048  # tokens each
PROMPTS_MIB = 256  # of earlier prompts that are kept; 8 GiB by default
ERRORS = 1  # the least verbose level of its log


def main() -> None:
    from xllamacpp import CommonParams, Server, llama_pooling_type

    params = CommonParams()
    params.model.path = sys.argv[1]
    params.hostnames = ["127.0.0.1"]
    params.port = int(sys.argv[2])
    params.model_alias = {"smollm2"}
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    params.endpoint_metrics = True
    params.embedding = True  # with pooling, one server answers chat, completions and embeddings
    params.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_batch = params.n_ubatch = CONTEXT  # an embedded text goes through in one piece: 512 by default
    params.cache_ram_mib = PROMPTS_MIB
    params.verbosity = ERRORS
    params.ui = params.fit_params = params.warmup = False
    # Waiting threads sleep: spinning ones starve each other, and the gateway, where cores are few.
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    server = Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # threads inherit it
    main()
