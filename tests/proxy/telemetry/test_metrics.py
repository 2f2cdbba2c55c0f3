"""The metrics page: what each fact becomes, that it is valid, and that clients cannot make it grow."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import re
from collections.abc import Callable
from typing import Any, cast, get_args

import pytest
from aioprometheus.collectors import REGISTRY, Registry
from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.embeddings.metrics import EmbedMetrics
from proxy.flights.queue.metrics import QueueMetrics
from proxy.redis import cache
from proxy.telemetry import metrics
from proxy.telemetry.metrics import ENDPOINTS, MAX_MODELS, OPS, VERDICTS, Metrics
from proxy.wire.openai import PATHS
from tests.kit.clock import virtual
from tests.kit.missing import module

ANSWERED: dict[str, Any] = {
    "endpoint": "chat",
    "status": 200,
    "verdict": "miss",
    "model": "m1",
    "queue_s": 0.25,
    "ttft_s": 0.5,
    "total_s": 3.0,
    "prompt_tokens": 31,
    "completion_tokens": 128,
    "token_source": "usage",
}


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample of the page by its name and labels as written."""
    lines = metrics.render("")[0].decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def everything() -> Metrics:
    """Metrics that have met each fact at least once."""
    made = Metrics()
    made.request(**ANSWERED)
    made.request(**ANSWERED | {"status": 404, "ttft_s": None, "queue_s": 0.0, "model": None, "token_source": None})
    made.flight_landed("landed", "m1", 0.02)
    made.coalesced("chat")
    made.cache("hit")
    made.cache_breaker(True)
    made.upstream_request("http://[::1]:8000/base")
    made.upstream_error("http://[::1]:8000/base", "upstream_truncated")
    made.retry("429")
    made.retry_denied()
    made.backend_breaker("http://[::1]:8000/base", True)
    made.batch(7)
    made.connection_refused()
    made.gauge("flights", "Flights.", lambda: 3)
    made.counter("log_lines_dropped_total", "Lines.", lambda: 4)
    return made


def test_nothing_is_registered_globally() -> None:
    everything()
    assert REGISTRY.get_all() == []


def test_two_sets_of_metrics_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.connection_refused()
    assert samples(other)["gateway_connections_refused_total"] == 0


def test_metrics_go_into_the_registry_that_is_given() -> None:
    registry = Registry()
    Metrics(registry)
    assert registry.get("gateway_requests_total").name == "gateway_requests_total"


def test_the_content_type_is_that_of_the_text_format() -> None:
    for accept in (
        "",
        "*/*",
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
        "\x00,,",
    ):
        body, kind = Metrics().render(accept)
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert body.endswith(b"\n")


def test_each_fact_is_on_the_page() -> None:
    found = samples(everything())
    assert found['gateway_requests_total{endpoint="chat",status="200",verdict="miss"}'] == 1
    assert found['gateway_requests_total{endpoint="chat",status="404",verdict="miss"}'] == 1
    assert found['gateway_request_duration_seconds_sum{endpoint="chat"}'] == 6
    assert found['gateway_time_to_first_token_seconds_sum{endpoint="chat",verdict="miss"}'] == 0.5
    assert found['gateway_queue_duration_seconds_count{endpoint="chat"}'] == 1
    assert found['gateway_tokens_total{direction="in",model="m1",source="usage"}'] == 31
    assert found['gateway_tokens_total{direction="out",model="m1",source="usage"}'] == 128
    assert found['gateway_flights_ended_total{outcome="landed"}'] == 1
    assert found['gateway_inter_token_seconds_sum{model="m1"}'] == 0.02
    assert found['gateway_coalesced_total{endpoint="chat"}'] == 1
    assert found['gateway_cache_operations_total{op="hit"}'] == 1
    assert found['gateway_cache_breaker_changes_total{to="open"}'] == 1
    assert found['gateway_upstream_requests_total{backend="http://[::1]:8000/base"}'] == 1
    assert found['gateway_upstream_errors_total{backend="http://[::1]:8000/base",code="upstream_truncated"}'] == 1
    assert found['gateway_retries_total{cause="429"}'] == 1
    assert found["gateway_retries_denied_total"] == 1
    assert found['gateway_backend_breaker_changes_total{backend="http://[::1]:8000/base",to="open"}'] == 1
    assert found["gateway_lookup_batch_size_sum"] == 7
    assert found["gateway_connections_refused_total"] == 1
    assert found["gateway_flights"] == 3
    assert found["gateway_log_lines_dropped_total"] == 4


def test_a_histogram_is_cumulative_up_to_its_count() -> None:
    made = Metrics()
    for value in (0.0005, 0.001, 0.3, 500.0):
        made.request(**ANSWERED | {"ttft_s": value})
    name = 'gateway_time_to_first_token_seconds_{}{{endpoint="chat"{},verdict="miss"}}'
    found = samples(made)
    at = {le: found[name.format("bucket", f',le="{le}"')] for le in ("0.001", "0.25", "0.5", "120.0", "+Inf")}
    assert at == {"0.001": 2, "0.25": 2, "0.5": 3, "120.0": 3, "+Inf": 4}
    assert found[name.format("count", "")] == 4
    assert found[name.format("sum", "")] == pytest.approx(500.3015)


def test_what_may_happen_is_there_as_a_zero_before_it_does() -> None:
    found = samples(Metrics())
    assert {key for key, value in found.items() if value == 0} >= {
        f'gateway_cache_operations_total{{op="{op}"}}' for op in OPS
    }


def test_the_process_is_told_of() -> None:
    found = samples(Metrics())
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_cpu_seconds_total"] > 0
    assert 2 < found["process_open_fds"] < found["process_max_fds"]
    assert any(name.startswith("gateway_build_info{") for name in found)


def test_the_process_is_left_out_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> list[str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "listdir", missing)
    assert "process_open_fds" not in samples(Metrics())


def test_the_labels_known_here_are_those_that_the_callers_use() -> None:
    assert set(get_args(cache.Op)) == set(OPS)
    assert set(PATHS) < set(ENDPOINTS)


# -- clients cannot make it grow --------------------------------------------------------------------


def test_models_over_the_cap_are_other_and_nothing_is_lost() -> None:
    made = Metrics()
    for i in range(MAX_MODELS + 10):
        made.request(**ANSWERED | {"model": f"m{i}"})
    tokens = {key: value for key, value in samples(made).items() if 'tokens_total{direction="in"' in key}
    assert len(tokens) == MAX_MODELS + 1
    assert sum(tokens.values()) == 31 * (MAX_MODELS + 10)
    assert tokens['gateway_tokens_total{direction="in",model="other",source="usage"}'] == 310


def test_a_model_that_no_engine_answered_for_takes_no_place() -> None:
    made = Metrics()
    for i in range(MAX_MODELS):
        made.request(**ANSWERED | {"model": f"made up {i}", "status": 404})
    made.request(**ANSWERED)
    assert samples(made)['gateway_tokens_total{direction="in",model="m1",source="usage"}'] == 31


@pytest.mark.parametrize(("came", "label"), [(7, "m1"), (0, "other"), (None, "other")])
def test_a_model_is_known_once_it_has_generated_for_a_client_that_left(came: int | None, label: str) -> None:
    made = Metrics()
    for _ in range(2):
        made.request(**ANSWERED | {"status": 499, "completion_tokens": came, "token_source": "events"})
    assert samples(made)[f'gateway_tokens_total{{direction="in",model="{label}",source="events"}}'] == 62
    assert samples(made).get('gateway_tokens_total{direction="out",model="m1",source="events"}') == (
        2 * came if came else None
    )


def test_what_clients_make_up_is_not_remembered() -> None:
    made = Metrics()
    for i in range(3 * MAX_MODELS):
        name = f"made up {i}"
        made.request(**ANSWERED | {"model": name, "status": 404})
        made.request(**ANSWERED | {"endpoint": name, "token_source": None})
        made.request(**ANSWERED | {"verdict": name, "status": 1000 + i, "token_source": name})
    assert list(made._kinds) == [("chat", 404, "miss")]
    assert list(made._spent) == []


def test_requests_are_told_the_same_however_they_are_given() -> None:
    by_name, by_place = Metrics(), Metrics()
    for changes in ({}, {"ttft_s": None}, {"prompt_tokens": 0, "completion_tokens": None}, {"status": 499}):
        by_name.request(**ANSWERED | changes)
        by_place.request(*(ANSWERED | changes).values())
    gateways = [{k: v for k, v in samples(m).items() if k.startswith("gateway_")} for m in (by_name, by_place)]
    assert gateways[0] == gateways[1]


SLY = st.text(max_size=300) | st.sampled_from(['"} 1\n', "\\", "a\nb", 'x",y="', "other", ""])


@given(
    st.lists(st.tuples(SLY, st.sampled_from([*ENDPOINTS, "/made/up"]), st.integers(-1, 1000), SLY), max_size=20)
)
def test_a_page_stays_valid_whatever_clients_send(calls: list[tuple[str, str, int, str]]) -> None:
    made = Metrics()
    for text, endpoint, status, other in calls:
        made.request(**ANSWERED | {"model": text, "endpoint": endpoint, "status": status, "verdict": other})
        made.flight_landed(other, text, 0.1)
        made.upstream_error(text, other)
    requests = {key: n for key, n in samples(made).items() if key.startswith("gateway_requests_total")}
    pattern = r'gateway_requests_total\{endpoint="(\w+)",status="(\d{3}|other)",verdict="(\w+)"\}'
    for key in requests:
        match = re.fullmatch(pattern, key)
        assert match is not None
        assert match[1] in {*ENDPOINTS, "other"}
        assert match[3] in {*VERDICTS, "other"}
    assert sum(requests.values()) == len(calls)


# -- an independent reader --------------------------------------------------------------------------


def test_prometheus_own_parser_reads_the_page() -> None:
    parser = module("prometheus_client.parser", "dev")
    made = everything()
    made.request(**ANSWERED | {"model": 'a"b\\c\nd'})
    text = made.render("")[0].decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    assert {family.name: family.type for family in families.values()} == {
        name.removesuffix("_total") if kind == "counter" else name: kind for name, kind in kinds.items()
    }
    parsed = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert len(parsed) == len(samples(made))
    assert parsed[("gateway_tokens_total", (("direction", "in"), ("model", "a_b_c_d"), ("source", "usage")))] == 31
    for family in families.values():
        assert family.documentation
        if family.type == "histogram":
            by_labels: dict[Any, list[tuple[float, float]]] = {}
            counts: dict[Any, float] = {}
            for sample in family.samples:
                labels = {name: value for name, value in sample.labels.items() if name != "le"}
                if sample.name.endswith("_bucket"):
                    by_labels.setdefault(str(labels), []).append((float(sample.labels["le"]), sample.value))
                elif sample.name.endswith("_count"):
                    counts[str(labels)] = sample.value
            assert {labels: max(buckets)[1] for labels, buckets in by_labels.items()} == counts
            assert all(buckets == sorted(buckets) and len(buckets) > 5 for buckets in by_labels.values())
            assert all([n for _, n in b] == sorted(n for _, n in b) for b in by_labels.values())


def test_names_keep_to_the_conventions() -> None:
    for line in everything().render("")[0].decode().splitlines():
        if line.startswith("# TYPE"):
            name, kind = line.split()[2:]
            assert re.fullmatch(r"(gateway|process)(_[a-z]+)+", name)
            assert name.endswith("_total") is (kind == "counter")
            if kind == "histogram":
                assert name.endswith(("_seconds", "_size"))


def test_every_public_method_says_what_it_is_for() -> None:
    for name, method in inspect.getmembers(metrics.Metrics, inspect.isfunction):
        assert name.startswith("_") or method.__doc__


# -- the event loop ---------------------------------------------------------------------------------


@virtual
async def test_the_loop_is_watched_until_that_is_stopped() -> None:
    made = Metrics()
    stop = made.watch_loop(asyncio.get_running_loop())
    await asyncio.sleep(3.5)
    assert samples(made)["gateway_event_loop_lag_seconds_count"] == 3
    stop()
    await asyncio.sleep(10)
    assert samples(made)["gateway_event_loop_lag_seconds_count"] == 3


def test_pauses_of_the_collector_are_measured_until_that_is_stopped() -> None:
    made = Metrics()
    gc.disable()  # a collection that comes by itself would count too
    try:
        stop = made.watch_collector()
        before = len(gc.callbacks)
        gc.collect()
        stop()
        gc.collect()
    finally:
        gc.enable()
    assert len(gc.callbacks) == before - 1
    pauses = of(made, "gc_pause_seconds")
    assert pauses["2"]["count"] == 1
    assert 0 < pauses["2"]["sum"] < 60


ZEROS = {
    "cache_breaker_changes_total": ("to", "open closed"),
    "cache_operations_total": ("op", "hit miss error garbage bypassed store store_skipped other_build"),
    "embed_items_total": ("source", "cache joined asked"),
    "flights_ended_total": ("outcome", "hit landed followed error failed cancelled"),
    "keys_refused_total": ("reason", "missing unknown expired not_operator ended"),
    "queue_refused_total": (
        "why",
        "queue_full queue_share_exceeded queue_timeout deadline_unmeetable memory_full shutting_down pushed_out",
    ),
    "rate_limited_total": ("limit", "requests tokens streams global"),
    "retries_total": ("cause", "connect reset truncated malformed 429 502 503 504 first-token stale"),
    "watchdog_healed_total": ("what", "turn lookup place flight"),
}


def test_every_value_that_a_label_may_have_is_a_zero_from_the_start() -> None:
    made = Metrics()
    QueueMetrics(made.registry)
    EmbedMetrics(made.registry)
    wanted = {
        f'gateway_{name}{{{label}="{value}"}}' for name, (label, of) in ZEROS.items() for value in of.split()
    }
    found = samples(made)
    assert {key for key in found if any(key.startswith(f"gateway_{name}{{") for name in ZEROS)} == wanted
    assert not any(found[key] for key in wanted)
    once = "retries_denied_total", "connections_refused_total", "limit_fallbacks_total"
    assert {found[f"gateway_{name}"] for name in once} == {0}


# -- bounds of what is counted ----------------------------------------------------------------------


def of(metrics: Metrics, name: str) -> dict[str, Any]:
    """The samples of one metric, by the values of their labels."""
    return {" ".join(labels.values()): value for labels, value in metrics.samples(name)}


def test_only_positive_numbers_of_tokens_count() -> None:
    made = Metrics()
    for tokens in (1, -5, 0, None, 2):
        made.request(**ANSWERED | {"prompt_tokens": tokens, "completion_tokens": tokens})
        made.flight_landed("landed", "m1", None, tokens or 0)
    assert of(made, "tokens_total") == {"in m1 usage": 3, "out m1 usage": 3}
    assert of(made, "generated_tokens_total") == {"m1": 3}
    made.flight_landed("landed", "m2", None)
    assert of(made, "generated_tokens_total") == {"m1": 3}
    assert (list(made._spent), list(made._made)) == ([("m1", "usage")], ["m1"])


@pytest.mark.parametrize(("status", "label"), [(399, "m1"), (400, "other")])
def test_a_model_takes_a_place_up_to_the_status_400(status: int, label: str) -> None:
    made = Metrics()
    made.request(**ANSWERED | {"status": status})
    assert of(made, "tokens_total").keys() == {f"in {label} usage", f"out {label} usage"}


def test_a_model_that_made_tokens_takes_a_place_while_there_is_one() -> None:
    made = Metrics()
    for n in range(MAX_MODELS + 2):
        made.flight_landed("landed", f"m{n}", 0.5, 3)
    made.flight_landed("landed", "m0", 0.5, 3)
    found = of(made, "generated_tokens_total")
    assert (len(found), found["m0"], found["other"]) == (MAX_MODELS + 1, 6, 6)
    assert len(made._made) == MAX_MODELS
    assert len(of(made, "inter_token_seconds")) == MAX_MODELS + 1


def test_the_wait_counts_where_there_was_a_first_token_or_a_wait() -> None:
    made = Metrics()
    for queue_s, ttft_s in ((0.0, 0.5), (0.5, None), (0.0, None)):
        made.request(**ANSWERED | {"queue_s": queue_s, "ttft_s": ttft_s})
    assert of(made, "queue_duration_seconds")["chat"]["count"] == 2
    assert of(made, "time_to_first_token_seconds")["chat miss"]["count"] == 1
    assert of(made, "request_duration_seconds")["chat"]["count"] == 3


@pytest.mark.parametrize(
    ("name", "tell", "room"),
    [
        ("upstream_requests_total", Metrics.upstream_request, 256),
        ("memory_refused_total", Metrics.memory_refused, 16),
        ("reloads_total", lambda made, file: made.reloads(file, "good"), 16),
    ],
)
def test_names_that_may_be_many_have_so_many_places(
    name: str, tell: Callable[[Metrics, str], None], room: int
) -> None:
    made = Metrics()
    for n in range(room + 2):
        tell(made, f"n{n}")
    found = of(made, name)
    assert len(found) == room + 1
    assert [value for key, value in found.items() if key.startswith("other")] == [2]


def test_what_is_counted_several_at_a_time_is_counted_once_by_default() -> None:
    made = Metrics()
    made.reloads("keys", "good")
    made.key_refused("ended")
    made.reloads("keys", "failed", 3)
    made.key_refused("unknown", 4)
    assert of(made, "reloads_total") == {"keys good": 1, "keys failed": 3}
    refused = of(made, "keys_refused_total")
    assert (refused["ended"], refused["unknown"], refused["missing"]) == (1, 4, 0)


FACTS = [
    (lambda made: made.cache_breaker(False), "cache_breaker_changes_total", "closed"),
    (lambda made: made.backend_breaker("b", False), "backend_breaker_changes_total", "b closed"),
    (lambda made: made.probed("b", "known"), "probes_total", "b known"),
    (lambda made: made.unfolded("b"), "unfolded_streams_total", "b"),
    (lambda made: made.memory_refused("upload"), "memory_refused_total", "upload"),
    (lambda made: made.rate_limited("global"), "rate_limited_total", "global"),
    (lambda made: made.limit_fallback(), "limit_fallbacks_total", ""),
    (lambda made: made.content_denied("answer"), "content_denied_total", "answer"),
]


@pytest.mark.parametrize(("tell", "name", "labels"), FACTS)
def test_each_rarer_fact_counts_once(tell: Callable[[Metrics], None], name: str, labels: str) -> None:
    made = Metrics()
    tell(made)
    assert {key: value for key, value in of(made, name).items() if value} == {labels: 1}


def test_of_an_engine_that_was_removed_nothing_stays_and_its_place_is_free() -> None:
    made = Metrics()
    for backend in ("gone", "stays"):
        made.upstream_request(backend)
        made.upstream_error(backend, "upstream_truncated")
        made.backend_breaker(backend, True)
        made.probed(backend, "known")
        made.unfolded(backend)
        made.gauge("backend_up", "Up.", lambda: 1, {"backend": backend})
        made.gauge("backend_other", "Other.", lambda: 1, {"backend": backend})
    made.forget_backend("gone", ["backend_up"])
    found = samples(made)
    assert [key for key in found if 'backend="gone"' in key] == ['gateway_backend_other{backend="gone"}']
    assert sum('backend="stays"' in key for key in found) == 7
    for n in range(256):
        made.upstream_request(f"n{n}")
    assert sum("other" not in key for key in of(made, "upstream_requests_total")) == 256


def test_the_build_and_the_models_without_a_name_are_told() -> None:
    made = Metrics()
    made.request(**ANSWERED | {"model": None})
    made.flight_landed("landed", None, None, 2)
    assert [value for key, value in samples(made).items() if key.startswith("gateway_build_info{")] == [1]
    assert of(made, "generated_tokens_total") == {"unknown": 2}
    assert (list(made._spent), list(made._made)) == ([(None, "usage")], [None])


class LateLoop:
    """A loop whose timers run when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[float] = []
        self.run: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[float], None], argument: float) -> None:
        self.due.append(when)
        self.run = lambda: callback(argument)


def test_how_late_a_timer_runs_is_the_loop_s_lag() -> None:
    made, loop = Metrics(), LateLoop()
    made.watch_loop(cast(asyncio.AbstractEventLoop, loop))
    for now in (101.25, 102.25, 103.0):  # the last one early, as a clock that is set may have it
        loop.now = now
        loop.run()
    assert loop.due == [101.0, 102.25, 103.25, 104.0]
    (lag,) = of(made, "event_loop_lag_seconds").values()
    assert (lag["sum"], lag["count"], lag[0.001]) == (0.25, 3, 2)
