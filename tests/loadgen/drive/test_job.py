"""A job's share of the schedule and its warm-up requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from loadgen.drive.processes.job import Job, Schedule, warm_up, warm_up_requests
from loadgen.drive.session import Session
from loadgen.spec import Body, Endpoint, Http, Pace
from loadgen.workload import Workload
from loadgen.workload.model import Item, Options, Prompt
from loadgen.workload.workload import open_workload


def job(endpoint: Endpoint, salt: str, warmups: int = 5, workers: int = 1) -> Job:
    return Job(
        run="r",
        targets={"a": "http://a", "b": "http://b"},
        endpoint=endpoint,
        path="/",
        body=Body(model="m"),
        http=Http(),
        pace=Pace(max_concurrency=8),
        schedule=Schedule(),
        workload=Options(
            dataset_name="prompt", prompt="Name three colours.", endpoint=endpoint, num_prompts=3, salt=salt
        ),
        num_prompts=3,
        num_warmups=warmups,
        workers=workers,
    )


def warm_prompts(order: Job) -> list[Prompt]:
    return [request.prompt for request in warm_up_requests(order, open_workload(order.workload))]


@pytest.mark.parametrize("endpoint", ["chat", "completions", "embeddings"])
def test_warm_ups_share_no_prompt_with_the_run_nor_with_another_runs(endpoint: Endpoint) -> None:
    """The complaint: warm-up shared prompts with the run, so the run measured a warm cache."""
    first, second = job(endpoint, "salt1"), job(endpoint, "salt2")
    run = [item.prompt.fields for item in open_workload(first.workload).requests()]
    others = run + [prompt.fields for prompt in warm_prompts(second)]
    warm = [prompt.fields for prompt in warm_prompts(first)]
    assert len(run) == 3
    assert len(warm) == 10
    assert not any(fields in others for fields in warm)


def test_each_target_gets_the_same_warm_ups_numbered_downwards() -> None:
    order = job("chat", "s", warmups=2)
    requests = list(warm_up_requests(order, open_workload(order.workload)))
    assert [request.number for request in requests] == [-1, -2, -3, -4]
    assert [request.target for request in requests] == ["a", "b", "a", "b"]
    assert requests[0].prompt == requests[1].prompt != requests[2].prompt


def test_workers_share_warm_ups_and_places_without_a_rest() -> None:
    whole = job("chat", "s", warmups=7, workers=3)
    shares = [whole.share(worker, "") for worker in range(3)]
    assert sum(len(warm_prompts(share)) for share in shares) == 7 * 2
    assert [share.pace.max_concurrency for share in shares] == [3, 3, 2]


async def test_texts_are_loaded_before_a_worker_is_ready_though_there_is_no_warm_up() -> None:
    """With a start that all workers share, the first request of a trace was late by the loading."""
    made: list[str] = []

    class Loads:
        def requests(self) -> Iterator[Item]:
            made.append("loaded")
            yield Item(Prompt("p", "chat", {}))

    order = job("chat", "s", warmups=0)
    assert await warm_up(order, cast(Session, None), cast(Workload, Loads()), lambda record: None) is None
    assert made == ["loaded"]
