"""Metrics of several processes, summed: what is counted adds up, what all have in common stays one."""

from __future__ import annotations

import pytest
from aioprometheus.collectors import Registry

from proxy.telemetry import PREFIX, Metrics, lasting, rendered, summed
from proxy.telemetry.families import Family


def test_the_page_of_one_process_is_the_same_as_plain_data() -> None:
    metrics = Metrics()
    metrics.cache("hit", 3)
    metrics.batch(7)
    metrics.gauge("flights", "Flights under way.", lambda: 2)
    page, kind = metrics.render("")
    ours, our_kind = rendered(metrics.families(), "")
    assert kind == our_kind

    def lines(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if not line.startswith("process_")]

    assert lines(ours) == lines(page)


def test_counts_and_buckets_add_up_and_shared_facts_do_not() -> None:
    pages = []
    for hits, flights, up, available in ((3, 2, 1, 1), (4, 5, 0, 0)):
        metrics = Metrics(Registry())
        metrics.cache("hit", hits)
        metrics.batch(hits)
        metrics.gauge("flights", "", lambda flights=flights: flights)  # type: ignore[misc]
        metrics.gauge("backend_up", "", lambda up=up: up, {"backend": "a"})  # type: ignore[misc]
        metrics.gauge("cache_available", "", lambda available=available: available)  # type: ignore[misc]
        pages.append(metrics.families())
    total = {family.name.removeprefix(PREFIX): family for family in summed(pages, PREFIX)}
    assert ({"op": "hit"}, 7) in total["cache_operations_total"].samples
    assert total["flights"].samples == [({}, 7)]
    assert total["backend_up"].samples == [({"backend": "a"}, 1)]
    assert total["cache_available"].samples == [({}, 0)]
    assert total["build_info"].samples[0][1] == 1
    ((_, buckets),) = total["lookup_batch_size"].samples
    assert isinstance(buckets, list)
    assert dict(buckets)["count"] == 2
    assert dict(buckets)["sum"] == 7


def shown(name: str, *values: float) -> object:
    pages = [[Family(PREFIX + name, "", "gauge", [({}, value)])] for value in values]
    return summed(pages, PREFIX)[0].samples[0][1]


@pytest.mark.parametrize("name", ["cache_available", "fleet_live", "admission_live"])
def test_a_state_is_that_of_the_worst_process(name: str) -> None:
    assert [shown(name, *each) for each in ((1, 1), (1, 0, 1), (0, 0))] == [1, 0, 0]


@pytest.mark.parametrize("name", ["limits_local", "redis_refusing", "redis_servers_away"])
def test_a_fault_that_all_processes_see_is_counted_once(name: str) -> None:
    assert [shown(name, *each) for each in ((1, 1), (0, 1, 0), (0, 0))] == [1, 1, 0]


def test_of_a_process_that_has_ended_its_counts_stay_and_its_gauges_go() -> None:
    counter = Family("gateway_a_total", "", "counter", [({}, 3)])
    gauge = Family("gateway_b", "", "gauge", [({}, 3)])
    assert lasting([counter, gauge]) == [counter]
    assert summed([[counter], [counter, gauge]], PREFIX)[0].samples == [({}, 6)]


def test_series_that_only_one_process_has_are_kept() -> None:
    one = Family("gateway_a_total", "", "counter", [({"x": "1"}, 3)])
    other = Family("gateway_a_total", "", "counter", [({"x": "2"}, 4)])
    assert summed([[one], [other]], PREFIX)[0].samples == [({"x": "1"}, 3), ({"x": "2"}, 4)]
    assert one.samples == [({"x": "1"}, 3)], "what is summed is not changed"
