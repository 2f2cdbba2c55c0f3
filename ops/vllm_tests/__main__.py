"""Runs vLLM's own tests through the gateway: `tox -e vllm-tests -- --minutes 30`. Records are kept under
out/vllm-tests, so a run continues where it was stopped. Exits 1 if a test fails through the gateway and not
direct, 2 if it cannot run."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ops import vllm
from ops.vllm_tests import outcome, sources
from ops.vllm_tests.demand import Demand, served
from ops.vllm_tests.run import Run, Suite
from ops.vllm_tests.stand import Stand, listening

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "out" / "vllm-tests"
LONGEST = {"smollm2": 8192, "minilm": 256}
"""Context length of our models, in tokens."""


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ops.vllm_tests", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="PART", help="only modules whose path contains this")
    parser.add_argument(
        "--release",
        choices=(vllm.VLLM, *vllm.LATER),
        default=os.environ.get("VLLM_RELEASE") or vllm.VLLM,
        help="vLLM release (default: $VLLM_RELEASE, now %(default)s)",
    )
    parser.add_argument("--checkout", type=Path, help="vLLM's sources (default: its source distribution, by pip)")
    parser.add_argument(
        "--home", type=Path, default=Path(os.environ.get("VLLM_HOME") or "~/.cache/streaming-gateway/vllm")
    )
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="start no module after so many minutes; a later run continues"
    )
    parser.add_argument("--again", action="store_true", help="run modules with a record again")
    parser.add_argument("--report", action="store_true", help="write the report of past results, and run nothing")
    parser.add_argument("--servers", type=int, default=1, help="concurrent vLLMs, each with 2 GB of cache")
    parser.add_argument("--together", action="store_true", help="share servers among similar demands")
    parser.add_argument("--batch", type=int, default=5, help="modules per pytest process")
    parser.add_argument("--patience", type=float, default=400.0, help="seconds until a vLLM must be ready")
    parser.add_argument("--test-seconds", type=float, default=180.0, help="time limit of one test")
    parser.add_argument(
        "--gateway", action="append", default=[], metavar="FLAG", help="one more argument of the gateway"
    )
    return parser


class Engines:
    """The command that serves a demand, by ops/vllm.py; its process ends with this one, killed or not."""

    def __init__(
        self, home: Path, release: str, suite: Suite, environment: Mapping[str, str], *, together: bool
    ) -> None:
        self._start = [sys.executable, vllm.__file__, "serve", "--home", str(home), "--release", release]
        self._suite = suite
        self._together = together
        self._environment = environment

    def __call__(self, demand: Demand, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        models = self._suite.models
        ours, words = served(demand, models, LONGEST)
        environment = dict(demand.env)
        if self._together:
            same = self._suite.together[ours]
            words = same.words(words, sorted(name for name, one in models.items() if one == ours))
            environment = {**same.env, **environment}
        kind = ["--embed"] if ours == "minilm" else []
        command = [*self._start, "--bare", "--die-with-parent", "--port", str(port), *kind, *words]
        return command, {**self._environment, **environment}


def main(arguments: Sequence[str] | None = None) -> int:
    given = flags().parse_args(arguments)
    suite = Suite.read(Path(__file__).parent / "modules.toml")
    out = OUT / given.release
    chosen = [path for path in suite.modules if not given.modules or any(part in path for part in given.modules)]
    if not chosen:
        flags().error(f"no module has any of {', '.join(given.modules)} in its path; modules.toml has them all")
    try:
        unknown = [] if given.report else _run(given, suite, out, chosen)
    except (sources.SourceError, vllm.InstallError, OSError) as error:
        print(f"vllm-tests: {error}", file=sys.stderr)
        return 2
    done = [module for path in suite.modules if (module := outcome.Module.load(out / "records", path)) is not None]
    text = outcome.report(done, suite.left_out, given.release, unknown)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text)
    print(text.partition("\n## ")[0])
    lack = [path for path in chosen if path not in {module.path for module in done}]
    print(f"{out / 'report.md'}" + (f"; {len(lack)} modules are not run yet" if lack else ""))
    return int(any(module.bad for module in done))


def _run(given: argparse.Namespace, suite: Suite, out: Path, chosen: Sequence[str]) -> list[str]:
    """Run these modules; returns those of the checkout that are not listed."""
    end = time.monotonic() + 60 * given.minutes
    home = given.home.expanduser().resolve()
    installation = vllm.Installation(home)
    installation.ensure()
    overlay = installation.ensure_later(given.release) if given.release in vllm.LATER else None
    beside = home.parent / f"{home.name}-tests"
    checkout = sources.checkout(given.checkout, given.release, beside, installation.python).resolve()
    python = sources.tester(beside, installation.python)
    folders = {"smollm2": installation.chat_model, "minilm": installation.embed_model}
    hub = sources.hub(out / "hub", {name: folders[ours] for name, ours in suite.models.items()}, suite.empty)
    environment = {**os.environ, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    engines = Engines(home, given.release, suite, environment, together=given.together)
    stand = Stand(out, engines, most=given.servers, patience=given.patience, gateway=given.gateway)
    path = [str(part) for part in (checkout, overlay, ROOT) if part is not None]
    pytest = [str(python), "-m", "pytest"]
    run = Run(stand, checkout, pytest, environment, path, out, given.test_seconds, suite.left_out)
    with listening(stand):
        records = {path: outcome.Module.load(out / "records", path) for path in chosen}
        known = {path for path, record in records.items() if record is not None and not record.cut}
        due = [path for path in chosen if given.again or path not in known]
        for at in range(0, len(due), given.batch):
            if time.monotonic() > end:
                break
            for module in run.modules(due[at : at + given.batch]):
                module.save(out / "records")
                print(f"{module.path}: {dict(module.counts)} {module.trouble}", flush=True)
    return suite.unknown(checkout)


def _terminated(number: int, frame: object) -> None:
    sys.exit(128 + number)  # through every `finally`: no server stays behind


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
