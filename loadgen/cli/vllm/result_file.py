"""The JSON file of `vllm bench serve --save-result`: one line, the same fields as result.json."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadgen.cli.flags import values
from loadgen.errors import UsageError
from loadgen.record import Run


def add_result_file(parser: argparse.ArgumentParser) -> None:
    """The flags, by vLLM's names."""
    group = parser.add_argument_group(
        "the result file of `vllm bench serve`", "Beside the run's folder, which always has result.json."
    )
    group.add_argument("--save-result", action="store_true", help="write it, into --result-dir")
    group.add_argument("--append-result", action="store_true", help="add a line to it")
    group.add_argument(
        "--result-filename", type=_file_name, metavar="NAME", help="default: by label, rate, model and time"
    )
    group.add_argument(
        "--save-detailed",
        action="store_true",
        help="with a list entry for each request (also in result.json), and the texts of the responses",
    )
    group.add_argument(
        "--percentile-metrics",
        type=values.metric_names,
        metavar="NAMES",
        help="accepted as by vLLM; all metrics are in the file",
    )
    group.add_argument(
        "--metric-percentiles",
        type=values.percentiles,
        metavar="P[,P]",
        help="percentiles of result.json beside 50, 90, 95, 99 and 99.9",
    )


def check_result_file(args: argparse.Namespace) -> None:
    """Raises UsageError, before the run, for a place where no file can be written."""
    if args.result_filename and not (args.save_result or args.append_result):
        raise UsageError("--result-filename needs --save-result or --append-result")
    folder = Path(_folder(args))
    if (args.save_result or args.append_result) and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder, so no result file can be written there")


def save_result_file(args: argparse.Namespace, result: Mapping[str, Any], run: Run) -> Path | None:
    """Write what the flags ask for. Raises OSError."""
    if not (args.save_result or args.append_result):
        return None
    path = Path(_folder(args)) / (args.result_filename or _default_name(args, run))
    path.parent.mkdir(parents=True, exist_ok=True)
    line = msgspec.json.encode(result)
    with path.open("ab" if args.append_result else "wb", buffering=0) as file:
        start = file.tell()
        rest = memoryview(b"\n" * bool(start) + line)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:  # half a line would spoil those before it
            with contextlib.suppress(OSError):
                file.truncate(start)
            raise OSError(error.errno, error.strerror, str(path)) from None
    return path


def _folder(args: argparse.Namespace) -> str:
    return str(getattr(args, "vllm_dir", None) or args.result_dir)


def _default_name(args: argparse.Namespace, run: Run) -> str:
    """As vLLM names it."""
    label = args.label or args.backend
    cap = f"-concurrency{args.max_concurrency}" if args.max_concurrency else ""
    rate = f"{args.request_rate if args.request_rate is not None else 'inf'}qps"
    if args.ramp_up_strategy:
        rate = f"ramp-up-{args.ramp_up_strategy}-{args.ramp_up_start_rps}qps-{args.ramp_up_end_rps}qps"
    time = "".join(character for character in run.date[:19] if character.isdigit())
    model = run.model.rsplit("/", 1)[-1]
    return f"{label}-{rate}{cap}-{model}-{time[:8]}-{time[8:]}.json".replace("/", "-")


def _file_name(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("give the name of a file")
    return text
