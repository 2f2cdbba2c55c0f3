"""The flags of a workload: every option has one, vLLM's names and defaults, contradictions refused."""

from __future__ import annotations

import argparse

import pytest

from loadgen.cli.flags.workload import add_workload_flags, workload_options
from loadgen.errors import WorkloadError
from loadgen.workload.model import Options


def parsed(*argv: str) -> Options:
    parser = argparse.ArgumentParser()
    add_workload_flags(parser)
    return workload_options(parser.parse_args(argv), "chat")


def test_without_flags_the_defaults_are_those_of_the_options() -> None:
    options = parsed()
    assert options == Options(salt=options.salt)


@pytest.mark.parametrize("name", sorted(set(Options.__struct_fields__) - {"endpoint", "salt"}))
def test_every_option_has_its_flag(name: str) -> None:
    parser = argparse.ArgumentParser()
    add_workload_flags(parser)
    assert f"--{name.replace('_', '-')}" in parser.format_help()


def test_flags_reach_their_options() -> None:
    options = parsed(
        *("--dataset-name", "random", "--random-input-len", "7", "--random-range-ratio", "0.5", "--seed", "3"),
        *("--num-prompts", "9", "--duplicates", "0.3", "--zipf", "0.9", "--unique", "--unique-salt", "x"),
    )
    assert options == Options(
        dataset_name="random",
        random_input_len=7,
        random_range_ratio=0.5,
        seed=3,
        num_prompts=9,
        duplicates=0.3,
        zipf=0.9,
        unique=True,
        salt="x",
    )


def test_sets_may_be_repeated_or_joined_by_commas() -> None:
    assert parsed("--corpus-set", "code, languages", "--corpus-set", "short-chat").corpus_set == (
        "code",
        "languages",
        "short-chat",
    )


def test_a_prompt_alone_is_a_dataset_and_contradicts_another() -> None:
    assert parsed("--prompt", "x").dataset_name == "prompt"
    with pytest.raises(WorkloadError, match="--prompt applies to --dataset-name prompt, not random"):
        parsed("--prompt", "x", "--dataset-name", "random")


def test_a_salt_is_fresh_for_each_run_and_recorded_with_its_flags() -> None:
    parser = argparse.ArgumentParser()
    add_workload_flags(parser)
    args = parser.parse_args([])
    options = workload_options(args, "chat")
    assert options.salt == args.unique_salt != parsed().salt
    assert len(options.salt) == 16
