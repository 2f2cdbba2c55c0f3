"""Every flag of `vllm bench serve` is taken or answered by name. The default suite checks the recorded flags of
the newest release, `-m vllm` those of the installed one. `python -m tests.loadgen.cli.test_vllm_flags` writes the
documentation's table, and with `--record` the flags of the installed vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli.main import main, parser_for
from loadgen.cli.vllm.bench_serve import run_arguments
from loadgen.cli.vllm.flags import BACKENDS, BY_NAME, DATASETS, FLAGS, RELEASE, table
from loadgen.errors import UsageError
from ops.vllm import LATER, VLLM, Installation
from tests.kit.missing import lacking

ROOT = Path(__file__).parent.parent.parent.parent
PAGE = ROOT / "ops" / "docs" / "vllm-bench-serve.md"
RECORDED = Path(__file__).with_name("vllm_flags.json")
HOME = Path(os.environ.get("VLLM_HOME") or "~/.cache/streaming-gateway/vllm").expanduser()
READ = """
import json
from vllm.benchmarks.serve import add_cli_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
flags = {}
for action in parser._actions:
    for name in action.option_strings:
        flags[name] = {"values": action.nargs, "choices": sorted(action.choices or [])}
del flags["-h"], flags["--help"]
print(json.dumps(flags))
"""
VALUES = {  # a value that vLLM accepts, where 1 is none
    "--base-url": "http://127.0.0.1:1",
    "--chat-template-kwargs": "{}",
    "--extra-body": "{}",
    "--goodput": "ttft:1",
    "--header": "a=b",
    "--lora-assignment": "random",
    "--metadata": "a=b",
    "--percentile-metrics": "ttft",
    "--random-range-ratio": "0.5",
    "--speed-bench-dataset-subset": "qualitative",
    "--ramp-up-strategy": "linear",
    "--dataset-name": "random",
    "--backend": "openai",
}


def recorded() -> dict[str, Any]:
    flags: dict[str, Any] = json.loads(RECORDED.read_text())["flags"]
    return flags


def words_of(name: str, flag: dict[str, Any]) -> list[str]:
    return [name] if flag["values"] == 0 else [name, VALUES.get(name, "1")]


def installed(release: str) -> dict[str, Any]:
    """The flags of an installed vLLM, by its own parser. Skips where it is not installed."""
    installation = Installation(HOME)
    later = HOME / f"vllm-{release}"
    if not installation.done() or (release in LATER and not (later / "stamp").exists()):
        lacking(f"vLLM {release}", f"python ops/vllm.py install --release {release}", in_ci=False)
    env = dict(os.environ, HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", PYTHONSAFEPATH="1")
    env["PYTHONPATH"] = str(later) if release in LATER else ""
    done = subprocess.run(
        [installation.python, "-c", READ], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    flags: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return flags


def test_the_list_is_the_recorded_releases() -> None:
    assert json.loads(RECORDED.read_text())["release"] == RELEASE
    assert sorted(BY_NAME) == sorted(recorded())
    assert len(BY_NAME) == len(FLAGS)
    assert set(recorded()["--backend"]["choices"]) == set(BACKENDS)
    assert set(recorded()["--dataset-name"]["choices"]) == set(DATASETS) - {"sonnet"}


@pytest.mark.vllm
@pytest.mark.timeout(180)
@pytest.mark.parametrize("release", [VLLM, *LATER])
def test_the_installed_release_has_no_flag_dataset_or_backend_that_is_not_known(release: str) -> None:
    flags = installed(release)
    assert set(flags) - set(BY_NAME) == set()
    assert set(flags["--backend"]["choices"]) - set(BACKENDS) == set()
    assert set(flags["--dataset-name"]["choices"]) - set(DATASETS) == set()
    if release == RELEASE:
        assert flags == recorded()


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize("underscores", [False, True])
def test_each_is_taken_or_answered_in_one_line(
    name: str, underscores: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    word, *value = words_of(name, recorded()[name])
    spelt = "--" + word[2:].replace("-", "_") if underscores else word
    if BY_NAME[name].fate != "answered":
        assert main_parses(["vllm-bench-serve", spelt, *value])
        return
    with pytest.raises(SystemExit, match="2"):
        main(["vllm-bench-serve", spelt, *value])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err == f"loadgen vllm-bench-serve: {name} is not taken here: {BY_NAME[name].here}\n"


def main_parses(words: list[str]) -> bool:
    """Whether the command line is understood; nothing is sent."""
    words[1] = words[1].replace("_", "-")
    run_arguments(parser_for(["vllm-bench-serve"]).parse_args(words))
    return True


@pytest.mark.parametrize("name", sorted(name for name, flag in BY_NAME.items() if flag.fate == "answered"))
def test_run_answers_them_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", *words_of(name, recorded()[name])])
    assert capsys.readouterr().err == (
        f"loadgen run: {name} of `vllm bench serve` is not taken here: {BY_NAME[name].here}\n"
    )


def arguments(*words: str) -> Any:
    return run_arguments(parser_for(["vllm-bench-serve"]).parse_args(["vllm-bench-serve", *words]))


def test_without_flags_it_does_what_vllm_does() -> None:
    args = arguments()
    assert (args.dataset_name, args.random_input_len, args.random_output_len) == ("random", 1024, 128)
    assert (args.num_prompts, args.request_rate, args.max_concurrency) == (1000, float("inf"), None)
    assert (args.backend, args.ignore_eos, args.too_few) == ("openai", True, "repeat")
    assert (args.no_stream, args.result_dir, args.vllm_dir) == (False, "out", ".")


def test_flags_mean_what_they_mean_in_vllm() -> None:
    assert arguments("--no-stream").no_stream is False  # of datasets, not of responses
    assert arguments("--no-oversample").too_few == "fewer"
    lengths = arguments("--input-len", "9", "--output-len", "7", "--random-output-len", "3")
    assert (lengths.random_input_len, lengths.random_output_len, lengths.custom_output_len) == (9, 7, 7)
    assert arguments("--backend", "openai-embeddings").ignore_eos is False
    assert arguments("--dataset-name", "custom", "--num-prompts", "0").num_prompts is None
    assert arguments("--header", "a=b", "c=d").header == [("a", "b"), ("c", "d")]
    closed = arguments("--max-concurrency", "4")
    assert (closed.request_rate, closed.max_concurrency) == (None, 4)
    ramp = arguments("--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "2")
    assert ramp.request_rate is None
    assert arguments("--result-dir", "d").vllm_dir == "d"
    assert arguments("--disable-tqdm").quiet is True
    ratio = arguments("--random-range-ratio", '{"input": 0.1, "output": 0.2}').random_range_ratio
    assert ratio == {"input": 0.1, "output": 0.2}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *((f"--dataset-name {name}", name) for name, instead in DATASETS.items() if instead),
        *((f"--backend {name}", name) for name, instead in BACKENDS.items() if instead),
        ("--random-batch-size 2", "leave it at 1"),
        ("--num-prompts 0", "give at least 1"),
    ],
)
def test_what_is_not_measured_is_refused_by_name(words: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        arguments(*words.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--metric-percentiles 0,50", "not a list of percentiles"),
        ("--metric-percentiles ,", "not a list of percentiles"),
        ("--percentile-metrics ttft,x", "x is no metric; give some of ttft, tpot"),
        ("--request-id-prefix a\nb", "printable ASCII"),
        ("--random-range-ratio {", "not JSON"),
        ("--header x", "NAME:VALUE"),
        ("--backend opnai", "did you mean openai?"),
        ("--num-promts 3", "did you mean --num-prompts?"),
    ],
)
def test_a_bad_value_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["vllm-bench-serve", *words.split(" ", 1)])
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def page_with_table() -> str:
    before, start, rest = PAGE.read_text("utf-8").partition("<!-- flags -->\n")
    _, end, after = rest.partition("<!-- end of flags -->\n")
    assert start, f"{PAGE} lacks its markers"
    assert end, f"{PAGE} lacks its markers"
    return f"{before}{start}{table()}\n{end}{after}"


def test_the_documents_table_is_this_list() -> None:
    assert PAGE.read_text("utf-8") == page_with_table(), "run python -m tests.loadgen.cli.test_vllm_flags"


if __name__ == "__main__":
    if "--record" in sys.argv:
        facts = {"release": RELEASE, "flags": installed(RELEASE)}
        RECORDED.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page_with_table(), "utf-8")
