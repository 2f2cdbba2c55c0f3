"""The embedded engine's process, `python -m proxy.embedded.engine_child MODEL PORT`: llama.cpp's server with
the embedded model."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

SLOTS = 8  # concurrent generations
CONTEXT = 2048  # tokens each
PROMPTS_MIB = 256  # cache of earlier prompts; 8 GiB by default
ERRORS = 1  # the least verbose level of its log


NOT_INSTALLED = 2  # its exit code where a library is missing
OPENMP = "libgomp.so.1"  # xllamacpp links to the system's, and minimal systems have none
SEARCH = "LD_LIBRARY_PATH"  # read by the loader at the start of a process alone


def start_again_with_openmp(error: ImportError) -> None:
    """Where the system's OpenMP is missing: replace this process by one that finds that of cmeel-libomp. Raises
    SystemExit with what to install, or `error` where it is about something else."""
    if OPENMP not in str(error):
        raise error
    spec = importlib.util.find_spec("cmeel")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        lib = Path(folder).parent / "cmeel.prefix" / "lib"
        if (lib / OPENMP).is_file() and os.environ.get(SEARCH) != str(lib):
            # Without KMP_BLOCKTIME, LLVM's threads spin for 200 ms before they sleep.
            env = os.environ | {SEARCH: str(lib), "KMP_BLOCKTIME": "0"}
            os.execve(sys.executable, [sys.executable, "-m", "proxy.embedded.engine_child", *sys.argv[1:]], env)  # noqa: S606
    sys.stderr.write(f"{error}; install it with: apt-get install libgomp1   or: pip install cmeel-libomp\n")
    sys.exit(NOT_INSTALLED)


def main() -> None:
    # Waiting threads of OpenMP sleep at once: spinning ones took a token from 20 ms to 1.4 s on two busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        import xllamacpp  # noqa: F401
    except ImportError as e:
        start_again_with_openmp(e)
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
    params.n_batch = params.n_ubatch = CONTEXT  # an embedded text is one batch; 512 by default
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
