"""A run summed up: nothing counted twice, failures never fast, and the order of records without meaning."""

from __future__ import annotations

import random

import msgspec
import pytest

from loadgen.analysis.definitions import measure
from loadgen.analysis.stages import focus, limit_of
from loadgen.analysis.summary import measure_records, summarise, summarise_measured
from loadgen.analysis.timeline import bin_timeline, kept_up, peak_in_flight, peak_tokens_per_second, window
from loadgen.record import Kind
from loadgen.report.view import view
from tests.loadgen.analysis.test_definitions import ev, record
from tests.loadgen.kit.sampling import Load, ab_records, records, run_of, sweep_records

SLOS = {"ttft": 60.0, "tpot": 14.0}


def test_everything_is_counted_once() -> None:
    load = Load(requests=300, warmups=8, fault=0.1)
    found = summarise(run_of(), records(load), SLOS)
    whole = found.whole
    assert (whole.requests, found.warmups) == (300, 8)
    assert whole.completed + whole.failed + whole.cancelled == 300
    assert sum(whole.errors.values()) == whole.failed > 10
    assert whole.error_rate == whole.failed / 300
    assert whole.goodput is not None
    assert whole.goodput.attempted == 300


def test_workers_records_may_come_in_any_order() -> None:
    """Merged equals whole: what two workers wrote apart says what one would have."""
    everything = list(records(Load(requests=250, fault=0.05, shared=True)))
    mixed = everything[1::2] + everything[::2]
    random.Random(1).shuffle(mixed)
    assert summarise(run_of(), mixed, SLOS) == summarise(run_of(), everything, SLOS)


def test_a_failure_that_ended_at_once_makes_nothing_faster() -> None:
    good = list(records(Load(requests=120, fault=0, warmups=0)))
    failed = [
        msgspec.structs.replace(
            one,
            index=1000 + place,
            end_ns=(one.sent_ns or 0) + 1,
            failure="status",
            events=one.events[:2],
            completion_tokens=5,
        )
        for place, one in enumerate(good)
    ]
    before, after = summarise(run_of(), good, SLOS).whole, summarise(run_of(), good + failed, SLOS).whole
    for name in ("ttft", "ttft_due", "tpot", "itl", "e2el", "e2el_due"):
        assert after.stats[name] == before.stats[name]
    assert (after.completed, after.failed, after.output_tokens) == (120, 120, before.output_tokens)
    assert before.goodput is not None
    assert after.goodput is not None
    assert after.goodput.attainment == (before.goodput.attainment or 0.0) / 2


def test_cancelled_requests_are_apart_and_no_failures() -> None:
    seen = [record(ev(20), ev(30)), record(failure="cancelled"), record(failure="shed", sent_ns=None, end_ns=None)]
    whole = summarise(run_of(), seen).whole
    assert (whole.completed, whole.failed, whole.cancelled) == (1, 1, 1)
    assert whole.errors == {"cancelled": 1, "shed": 1}
    assert whole.error_rate == 0.5


def test_shared_answers_never_flatter_the_rest() -> None:
    found = summarise(run_of(), records(Load(requests=400, shared=True)))
    assert found.fresh is not None
    assert set(found.by_shared) >= {"miss", "hit", "attached", "bypass"}
    slow, all_of_them = found.fresh.stats["ttft"].at(50), found.whole.stats["ttft"].at(50)
    assert slow is not None
    assert slow.value is not None
    assert all_of_them is not None
    assert all_of_them.value is not None
    assert slow.value > all_of_them.value
    assert found.fresh.completed == found.by_shared["miss"].completed + found.by_shared["bypass"].completed
    assert found.whole.generated_tokens == found.fresh.output_tokens < found.whole.output_tokens


def test_a_stage_has_the_latencies_of_what_was_generated_for_it() -> None:
    seen = list(records(Load(requests=200, shared=True, stage="rate=8", warmups=0)))
    found = summarise(run_of(), seen)
    assert found.fresh is not None
    assert found.by_stage["rate=8"].stats["ttft"] == found.fresh.stats["ttft"]
    assert found.by_stage["rate=8"].completed == found.whole.completed


def test_a_sweep_has_its_stages_in_order_and_an_ab_its_sides() -> None:
    sweep = summarise(run_of(), sweep_records((2, 8), requests=30))
    assert list(sweep.by_stage) == ["rate=2", "rate=8"]
    assert sum(stage.requests for stage in sweep.by_stage.values()) == sweep.whole.requests == 60
    assert sweep.by_target == {}
    ab = summarise(run_of(), ab_records(20))
    assert {name: part.requests for name, part in ab.by_target.items()} == {"a": 20, "b": 20}


def test_a_knee_is_the_sweeps_own_else_found_again() -> None:
    seen = list(sweep_records((2, 8, 20), requests=240))
    found = summarise(run_of(), seen)
    limit = limit_of(found)
    assert (limit.kept, limit.over) == (8, 20)
    assert limit.done == found.by_stage["rate=8"].request_throughput
    assert focus(found) == ("at 8 req/s, the knee", "rate=8", found.by_stage["rate=8"])
    told = run_of()
    told.config["limit"] = {"kept": 2.0, "over": 8.0}
    assert focus(summarise(told, seen))[1] == "rate=2"


def test_where_no_limit_was_found_none_is_named() -> None:
    found = summarise(run_of(), sweep_records((2, 4, 8), requests=240))
    assert str(limit_of(found)) == "no limit found up to 8 req/s"
    assert focus(found)[:2] == ("at 8 req/s, the highest rate tried", "rate=8")


def test_a_stages_rates_are_what_was_counted_in_its_time() -> None:
    """Ten requests of 4 tokens, due once a second; the server takes half a second for each at a time, or 2 s."""
    for took_s, seconds in ((0.5, 10.0), (2.0, 20.0)):
        seen = []
        for place in range(10):
            at = max(place * 1000, place * took_s * 1000)
            seen.append(
                record(
                    ev(at + took_s * 1000), due=place * 1000, sent=at, end=at + took_s * 1000, stage="rate=1",
                    completion_tokens=4,
                )
            )  # fmt: skip
        stage = summarise(run_of(), seen).by_stage["rate=1"]
        assert stage.request_throughput == pytest.approx(10 / seconds)
        assert stage.output_throughput == pytest.approx(40 / seconds)
        assert stage.peak_output_throughput >= stage.output_throughput


def test_a_stage_of_users_lasts_until_the_last_of_them_was_given_up() -> None:
    """Where the server hung after 0.5 s of 4 it said 61 requests per second."""
    answered = record(ev(500), due=0, sent=0, end=500, stage="4 users", completion_tokens=4)
    hung = record(due=500, sent=500, stage="4 users", failure="cancelled")
    hung.end_ns, hung.closed_ns = None, 4_000_000_000
    stage = summarise(run_of(), [answered, hung]).by_stage["4 users"]
    assert stage.request_throughput == pytest.approx(1 / 4)
    assert stage.output_throughput == pytest.approx(4 / 4)


def test_a_stage_of_a_single_request_has_no_throughput_of_its_own() -> None:
    """One answer in 170 ms is not 5.9 requests per second."""
    one = summarise(run_of(), [record(ev(100), stage="rate=0.5", completion_tokens=4)]).by_stage["rate=0.5"]
    assert one.request_throughput == 0.5
    assert one.output_throughput == 2


def test_a_server_that_falls_behind_is_seen_by_how_long_it_ends() -> None:
    keeping, behind = (
        [measure(record(ev(at * pace + 50), due=at, sent=at)) for at in range(0, 1000, 10)] for pace in (1, 2)
    )
    assert kept_up(keeping) == pytest.approx(1)
    assert kept_up(behind) == pytest.approx(0.5)


def test_a_cache_that_keeps_up_hides_no_server_that_falls_behind() -> None:
    mixed = [
        measure(record(ev(at * 2 + 50), due=at, sent=at, shared="miss"))
        if at % 20
        else measure(record(ev(at + 1), due=at, sent=at, shared="hit"))
        for at in range(0, 1000, 10)
    ]
    assert kept_up(mixed) == pytest.approx(0.5, abs=0.02)
    hits = [request for request in mixed if not request.fresh]
    assert kept_up(hits) == pytest.approx(1)


def test_a_count_without_usage_is_no_count() -> None:
    seen = [record(ev(20), ev(30), completion_tokens=2), record(ev(20), ev(30))]
    whole = summarise(run_of(), seen).whole
    assert (whole.output_tokens, whole.without_usage) == (2, 1)
    assert whole.stats["tpot"].n == 1
    assert whole.cached_tokens is None


def test_a_response_that_went_on_after_its_last_event_is_warned_of() -> None:
    events = ev(20), ev(30), ev(31, Kind.DONE)
    summary = summarise(run_of(), [record(*events, end=end, completion_tokens=2) for end in (31, 81, 82)])
    assert summary.whole.lingering == 1
    (said,) = [text for text in view(run_of(), summary).warnings if "after their last event" in text]
    assert said.startswith("1 of 3 responses went on for more than 50 ms")


def test_counts_that_do_not_grow_are_warned_of() -> None:
    odd = record(*(ev(20 + at, tokens=0) for at in range(4)), completion_tokens=4)
    summary = summarise(run_of(), [odd, record(ev(20), ev(30), completion_tokens=2)])
    assert (summary.whole.miscounted, summary.whole.itl_by) == (1, "chunks")
    said = [text for text in view(run_of(), summary).warnings if "do not grow" in text]
    assert said == [
        "1 of 2 responses had counts of tokens in their chunks that do not grow with them: their ITL is by chunks"
    ]


def test_a_response_without_a_token_is_counted_and_in_no_latency() -> None:
    """It ends after 5 ms, so it lowered E2E."""
    full = [record(ev(20), ev(110), completion_tokens=2) for _ in range(3)]
    empty = record(ev(12, Kind.ROLE), ev(14, Kind.FINISH), ev(15, Kind.USAGE), completion_tokens=0)
    whole = summarise(run_of(), [*full, empty], {"e2el": 500.0}).whole
    assert (whole.completed, whole.failed, whole.empty) == (4, 0, 1)
    assert (whole.stats["e2el"].n, whole.stats["e2el"].mean) == (3, 100)
    assert whole.goodput is not None
    assert whole.goodput.good == 3
    body = record(ev(90, Kind.WHOLE), stream=False)  # of an embedding, which has no output
    assert summarise(run_of(), [body]).whole.empty == 0


def test_gaps_say_what_they_are_gaps_of() -> None:
    by_token = record(ev(20, tokens=1), ev(30, tokens=1))
    by_chunk = record(ev(20), ev(30))
    assert summarise(run_of(), [by_token]).whole.itl_by == "tokens"
    assert summarise(run_of(), [by_chunk]).whole.itl_by == "chunks"
    assert summarise(run_of(), [by_token, by_chunk]).whole.itl_by == "mixed"
    assert summarise(run_of(), [record(ev(90, Kind.WHOLE), stream=False)]).whole.itl_by == "none"


def test_a_run_without_records_is_summed_up_all_the_same() -> None:
    whole = summarise(run_of(), [], SLOS).whole
    assert (whole.requests, whole.request_throughput, whole.error_rate, whole.peak_in_flight) == (0, 0, 0, 0)


def test_a_summary_survives_the_way_to_json_and_back() -> None:
    found = summarise(run_of(), records(Load(requests=60, shared=True)), SLOS)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def test_measuring_apart_is_summarising() -> None:
    everything = list(records(Load(requests=60)))
    assert summarise_measured(run_of(), measure_records(everything), SLOS) == summarise(run_of(), everything, SLOS)


# Peaks


@pytest.mark.parametrize("seed", range(6))
def test_a_peak_is_never_below_the_mean(seed: int) -> None:
    seen = [measure(one) for one in records(Load(requests=40, seed=seed, warmups=0, rate=3))]
    start, end = window(seen)
    seconds = (end - start) / 1e9
    total = sum(one.output_tokens or 0 for one in seen if one.completed)
    for length in (seconds, 0.4):
        assert peak_tokens_per_second(seen, start, length) >= total / max(seconds, length) - 1e-9
    assert peak_tokens_per_second(seen, start, seconds) >= total / seconds


def test_in_flight_is_counted_by_the_instant_and_back_to_back_is_one() -> None:
    one, two, three = (measure(record(ev(at + 10), sent=at, due=at, end=at + 10)) for at in (10.0, 20.0, 15.0))
    assert peak_in_flight([one, two]) == 1
    assert peak_in_flight([one, two, three]) == 2
    unread = measure(record(ev(40), sent=35, due=15, write_ns=15_000_000))
    assert peak_in_flight([one, two, unread]) == 2, "in flight from its first byte written"


def test_the_timeline_loses_nothing() -> None:
    seen = [measure(one) for one in records(Load(requests=200, fault=0.05, warmups=0))]
    line = bin_timeline(seen, bins=50)
    assert sum(line.due) * line.width_s == pytest.approx(200)
    assert sum(line.sent) * line.width_s == pytest.approx(200)
    total = sum(one.output_tokens or 0 for one in seen if one.completed)
    assert sum(line.tokens) * line.width_s == pytest.approx(total)
    assert sum(line.failed) == sum(not one.completed for one in seen)
    assert max(line.in_flight) == peak_in_flight(seen)
