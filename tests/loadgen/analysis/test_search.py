"""The search for the highest load that meets objectives, in virtual time on servers whose limit is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.analysis import Search, Stage
from loadgen.analysis.search.crossing import linked, placed
from loadgen.analysis.search.fit import Row, fitted, inverted, student, wilson
from loadgen.analysis.search.queue import tail, waits
from tests.loadgen.kit.queues import (
    Server,
    batches,
    bucket,
    places,
    refusing,
    run_stage,
    search_rate,
    sharing,
    some_slow,
)

SHARE = 0.05


def rate_where(share_above: Callable[[float], float], low: float, high: float) -> float:
    """The rate at which this share of requests, growing with the rate, is SHARE: to a hundredth of a percent."""
    while high - low > 1e-4 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if share_above(middle) < SHARE else (low, middle)
    return low


def erlang(rate: float, service: float, limit: float) -> float:
    """P(wait > limit) of M/D/1 by Erlang's formula (1909): exact, though not for long waits, as its signs
    alternate."""
    total = sum(
        (rate * (k * service - limit)) ** k / math.factorial(k) * math.exp(-rate * (k * service - limit))
        for k in range(int(limit / service) + 1)
    )
    return 1 - (1 - rate * service) * total


def late_in_batches(rate: float, period: float, size: int, limit: float) -> float:
    """P(wait > limit) where a batch is served every period, for a limit between one period and two.

    The number that wait after a batch is a Markov chain. An arrival at `u` before the next batch is late if its
    place in the line is beyond that batch and `u + period` is above the limit, or beyond two batches.
    """
    most = 400
    mean = rate * period
    arriving = [math.exp(-mean)]
    for k in range(1, most):
        arriving.append(arriving[-1] * mean / k)
    left = [1.0] + [0.0] * (most - 1)
    for _ in range(3000):
        joined = [0.0] * most
        for waiting, chance in enumerate(left):
            if chance > 1e-14:
                for k in range(most - waiting):
                    if arriving[k] < 1e-14 and k > mean:
                        break
                    joined[waiting + k] += chance * arriving[k]
        after = [sum(joined[: size + 1]), *joined[size + 1 :], *[0.0] * size]
        change = sum(abs(a - b) for a, b in zip(after, left, strict=True))
        left = after
        if change < 1e-12:
            break
    steps, late = 200, 0.0
    for step in range(steps):
        before_next = (step + 0.5) / steps * period  # until the next batch
        earlier = rate * (period - before_next)  # mean arrivals before it in this period
        chance = math.exp(-earlier)
        ahead = [0.0] * most
        term = chance
        for k in range(most):
            for waiting in range(most - k):
                if left[waiting] > 1e-12:
                    ahead[waiting + k] += term * left[waiting]
            term *= earlier / (k + 1)
            if term < 1e-13 and k > earlier:
                break
        first_late = size if before_next + period > limit else 2 * size
        late += sum(ahead[first_late:]) / steps
    return late


SERVERS: dict[str, tuple[Server, float, Callable[[], float]]] = {
    # name: (server, limit on the wait in seconds, the rate at which 5 % wait longer)
    "one place": (places(1, 0.01), 0.04, lambda: rate_where(lambda rate: erlang(rate, 0.01, 0.04), 1, 99)),
    "token bucket": (bucket(100, 6), 1e-9, lambda: rate_where(lambda rate: erlang(rate, 0.01, 0.05), 1, 99)),
    "batches": (
        batches(0.1, 8),
        0.15,
        lambda: rate_where(lambda rate: late_in_batches(rate, 0.1, 8, 0.15), 40, 78),
    ),
    # by 4,000,000 arrivals in one simulation
    "sixteen places": (places(16, 0.1), 0.01, lambda: 108.7),
}


@pytest.mark.parametrize("name", SERVERS)
def test_the_limit_is_found_within_3_percent_in_ten_seeds(name: str) -> None:
    server, limit, rate = SERVERS[name]
    truth = rate()
    answers = [search_rate(server, limit, start=truth / 7.3, seed=seed) for seed in range(10)]
    errors = [(answer.load or 0.0) / truth - 1 for answer in answers]
    assert max(map(abs, errors)) < 0.03, errors
    assert [answer.state for answer in answers] == ["found"] * 10
    inside = sum((answer.low or 0.0) <= truth <= (answer.high or 0.0) for answer in answers)
    assert inside >= 6, [(answer.low, answer.high) for answer in answers]
    assert all(answer.first == "ttft" and answer.broke_at is not None for answer in answers)


def test_processor_sharing_with_its_time_in_the_server_is_found_too() -> None:
    """Its truth is of one simulation of 400,000 arrivals, so the bound is wider by that."""
    answer = search_rate(sharing(0.05, 4), 0.08, start=8, seed=1, base=0.0)
    assert answer.load == pytest.approx(42.8, rel=0.035)


def test_a_server_without_a_limit_is_said_to_have_none() -> None:
    answer = search_rate(places(10_000, 0.01), 0.04, start=10, seed=1, top=500)
    assert (answer.state, answer.load) == ("no limit", None)
    assert answer.tried == (10, 500)


def test_a_highest_rate_that_is_run_again_for_longer_is_still_the_highest() -> None:
    """Its first stage is short, and drifts: it is not settled."""
    search = Search(attainment=0.95, precision=0.02, start=20, top=40, seconds=600, least=2.0)
    while (plan := search.next()) is not None:
        assert len(search.stages) < 20
        due = [place / plan.load for place in range(plan.requests)]
        strain = [0.5 * place / plan.requests if plan.requests < 300 else 0.3 for place in range(plan.requests)]
        search.add(Stage(plan.load, due, strain, seconds=due[-1], overlap=1.0))
    assert search.found().state == "no limit"


def test_objectives_that_one_request_alone_misses_are_not_met_at_any_rate() -> None:
    answer = search_rate(places(1, 0.05), -0.02, start=10, seed=1, base=0.05)
    assert (answer.state, answer.load, answer.first) == ("not met", None, "ttft")
    assert answer.broke["ttft"] == 0


def test_a_search_that_has_no_time_says_that_it_is_not_sure() -> None:
    answer = search_rate(places(1, 0.01), 0.04, start=10, seed=1, seconds=20)
    assert answer.state == "unsure"
    assert answer.seconds < 40
    assert Search(attainment=0.9, precision=0.1, start=1, top=9, seconds=9).found().state == "nothing"


def test_a_server_that_gives_no_answer_any_more_ends_the_search() -> None:
    search = Search(attainment=0.95, precision=0.02, start=4, top=1e4, seconds=600)
    while (plan := search.next()) is not None:
        dead = plan.load > 20 or search.found().state == "failed" or any(stage.dead for stage in search.stages)
        due = [place / plan.load for place in range(plan.requests)]
        strain = [math.inf if dead else 0.2] * plan.requests
        failures = {"refused": plan.requests} if dead else {}
        search.add(
            Stage(plan.load, due, strain, seconds=due[-1], failures=failures, missed={"ttft": len(failures)})
        )
    answer = search.found()
    assert (answer.state, answer.load, answer.failures) == ("failed", 16, {"refused": 1.0})
    assert len(search.stages) == 5


@pytest.mark.parametrize(("strain", "state"), [(0.5, "all met"), (1.5, "all missed")])
def test_a_search_whose_time_ends_on_one_side_of_the_limit_says_which(strain: float, state: str) -> None:
    search = Search(attainment=0.95, precision=0.02, start=64, top=1e6, seconds=30, least=2.0)
    while (plan := search.next()) is not None:
        due = [place / plan.load for place in range(plan.requests)]
        search.add(Stage(plan.load, due, [strain] * plan.requests, seconds=12, missed={"ttft": plan.requests}))
    answer = search.found()
    assert (answer.state, answer.load) == (state, None)


def test_a_server_that_was_not_warm_at_first_is_found_as_if_it_had_been() -> None:
    server, limit, rate = SERVERS["one place"]
    began = 0.0

    def cold(arrivals: Sequence[float]) -> list[float]:
        waited = server(arrivals)
        return [wait + (1.0 if began + at < 20 else 0.0) for at, wait in zip(arrivals, waited, strict=True)]

    search = Search(attainment=0.95, precision=0.02, start=20, top=1e6, seconds=600, least=2.0)
    rng = random.Random(1)
    while (plan := search.next()) is not None:
        began = search.elapsed
        search.add(run_stage(plan, cold, limit, 0.001, rng))
    assert search.found().load == pytest.approx(rate(), rel=0.03)


@pytest.mark.parametrize(
    ("server", "limit", "truth"),
    [
        # by 300,000 arrivals in one simulation each
        pytest.param(places(16, 0.3), 2.0, 52.6, id="a limit so long that only overload exceeds it"),
        pytest.param(refusing(20, 100), 0.05, 20 / 0.95, id="a rate limit with a reserve of 100 requests"),
    ],
)
def test_a_limit_that_short_stages_do_not_show_is_found(server: Server, limit: float, truth: float) -> None:
    answers = [search_rate(server, limit, start=truth / 5, seed=seed, seconds=900) for seed in range(3)]
    assert [answer.load for answer in answers] == pytest.approx([truth] * 3, rel=0.03)


def test_requests_that_are_slow_at_any_load_do_not_lead_the_search_away() -> None:
    """4.5 % are too slow whatever the load: chance alone makes short stages miss 5 %."""
    answer = search_rate(some_slow(places(4, 0.1), 0.045, 1.0), 0.3, start=8, seed=1, seconds=1200)
    assert answer.load == pytest.approx(32.1, rel=0.08)


def users(limit: int, *, top: float = 4096, seconds: float = 600.0) -> Search:
    """A closed loop on a server where up to `limit` users are served in time, and each more makes all slower."""
    search = Search(attainment=0.95, precision=0.02, start=1, top=top, seconds=seconds, least=1.0, by="users")
    rng = random.Random(3)
    while (plan := search.next()) is not None:
        assert len(search.stages) < 200, "it does not end"
        assert plan.load == int(plan.load)
        count = int(min(plan.requests, plan.seconds * plan.load * 5))
        slow = max(0.0, (plan.load - limit) / limit) + (0.01 if plan.load <= limit else 0.06)
        strain = [1.5 if rng.random() < slow else 0.5 for _ in range(count)]
        due = [place / plan.load / 5 for place in range(count)]
        search.add(Stage(plan.load, due, strain, seconds=plan.seconds, overlap=plan.load, missed={"tpot": 1}))
    return search


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 40, 150])
def test_the_most_users_are_found(limit: int) -> None:
    answer = users(limit).found()
    assert answer.by == "users"
    assert answer.load is not None
    assert abs(answer.load - limit) <= max(1, 0.1 * limit), answer


@pytest.mark.parametrize("limit", [18, 19, 20, 21, 40, 500])
def test_a_sharp_limit_of_users_is_found_to_the_precision_from_its_lower_end(limit: int) -> None:
    """All requests are in time up to it, and none above it."""
    search = Search(attainment=0.95, precision=0.03, start=1, top=4096, seconds=600, least=1.0, by="users")
    while (plan := search.next()) is not None:
        count = int(plan.seconds * plan.load)
        strain = [0.98 if plan.load <= limit else 1.02] * count
        search.add(Stage(plan.load, [n / plan.load for n in range(count)], strain, seconds=plan.seconds))
    answer = search.found()
    assert answer.state == "found"
    assert answer.load is not None
    assert answer.high is not None
    assert answer.low is not None
    assert answer.load == answer.low <= limit <= answer.high
    assert limit <= answer.load * 1.03, "one user of twenty would be five per cent"


def test_a_stage_that_was_given_up_is_beyond_the_limit_and_no_stage_follows_above_it() -> None:
    search = Search(attainment=0.95, precision=0.05, start=4, top=1e4, seconds=600)
    while (plan := search.next()) is not None and len(search.stages) < 60:
        due = [place / plan.load for place in range(plan.requests)]
        over = plan.load > 20
        strain = [math.inf if over else 0.2] * plan.requests
        search.add(Stage(plan.load, due, strain, seconds=due[-1], aborted=over, overlap=1.0))
    answer = search.found()
    assert answer.load == pytest.approx(20, rel=0.06)
    assert max(stage.load for stage in search.stages) <= 32


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.5, 0.999), st.sampled_from(["rate", "users"]))
def test_whatever_stages_say_the_search_ends_in_its_time(seed: int, attainment: float, by: str) -> None:
    rng = random.Random(seed)
    search = Search(
        attainment=attainment, precision=0.02, start=2, top=500, seconds=120, least=1.0,
        by="users" if by == "users" else "rate",
    )  # fmt: skip
    while (plan := search.next()) is not None:
        assert len(search.stages) < 300
        assert 0 < plan.load <= 500
        count = rng.choice((0, 1, 2, 30, min(plan.requests, 400)))
        strain = [rng.choice((0.0, 0.9, 1.1, 5.0, math.inf)) for _ in range(count)]
        due = [place / plan.load for place in range(count)]
        search.add(Stage(plan.load, due, strain, seconds=rng.choice((1.0, 9.0)), aborted=rng.random() < 0.2))
    search.found()


# The parts


@pytest.mark.parametrize(("load", "limit"), [(0.3, 0.5), (0.5, 1.3), (0.8, 4.7), (0.9, 6.2)])
def test_the_law_of_the_simulated_queue_is_erlangs_and_its_own_simulations(load: float, limit: float) -> None:
    assert tail(load, limit) == pytest.approx(erlang(load, 1, limit), abs=1e-9)
    rng = random.Random(7)
    waited = waits(list(accumulate(rng.expovariate(load) for _ in range(100_000))), 1.0)
    assert sum(wait > limit for wait in waited) / len(waited) == pytest.approx(tail(load, limit), rel=0.25)


def test_the_law_at_its_ends() -> None:
    assert tail(1.0, 5) == tail(1.7, 5) == 1
    assert tail(0.4, 0) == pytest.approx(0.4)
    assert 0 <= tail(0.99, 300) < 0.01


@given(st.floats(-3, 3), st.floats(0.2, 5), st.integers(0, 999))
def test_a_line_without_noise_is_found_exactly(offset: float, slope: float, seed: int) -> None:
    rng = random.Random(seed)
    xs = [rng.uniform(0, 1) for _ in range(30)]
    line = fitted([Row(offset + slope * x, (1.0, x), rng.uniform(1, 9), 0) for x in xs])
    assert line is not None
    assert line.coefficients == pytest.approx([offset, slope], abs=1e-6)


def test_no_line_through_one_place() -> None:
    assert fitted([Row(float(n), (1.0, 2.0), 1.0, 0) for n in range(9)]) is None
    assert fitted([]) is None
    assert inverted([[1.0, 2.0], [2.0, 4.0]]) is None


def test_no_crossing_of_a_curve_that_falls_with_load() -> None:
    assert placed(0.0, -20.0, [[0.01, 0.0], [0.0, 0.01]], -3.0, 1.96) is None


def test_the_interval_of_a_crossing_covers_it_as_often_as_it_says() -> None:
    """The line is 3 + 6 x and 6 at 0.5."""
    rng, inside, n = random.Random(5), 0, 300
    for _ in range(n):
        rows = [Row(3 + 6 * (x / 40) + rng.gauss(0, 0.9), (1.0, x / 40), 1.0, x // 20) for x in range(40)]
        line = fitted(rows)
        assert line is not None
        offset, slope = line.coefficients
        at = placed(offset, slope, line.covariance, 6.0, student(line.spare))
        inside += at is not None and at[1] <= 0.5 <= at[2]
    assert 0.9 <= inside / n <= 0.99


def test_a_slope_that_is_hardly_known_matters_only_far_from_the_crossing() -> None:
    covariance = [[0.01, 0.0], [0.0, 25.0]]
    beside, far = (placed(offset, 10.0, covariance, -3.0, 1.96) for offset in (-3.0, -4.0))
    assert beside is not None
    assert far is not None
    assert beside[2] - beside[1] < 0.3 * (far[2] - far[1])


def test_the_correlation_of_neighbours_is_found_and_crosses_no_border_of_stages() -> None:
    rng, value, left = random.Random(3), 0.0, []
    for _ in range(4000):
        value = 0.7 * value + rng.gauss(0, 1)
        left.append(value)
    rows = [Row(0.0, (1.0,), 1.0, place // 1000) for place in range(4000)]
    assert linked(rows, left) == pytest.approx(0.7, abs=0.05)
    assert linked([Row(0.0, (1.0,), 1.0, place) for place in range(4000)], left) == 0


@pytest.mark.parametrize(("degrees", "point"), [(5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_students_points(degrees: int, point: float) -> None:
    assert student(degrees) == pytest.approx(point, rel=0.015)


def test_wilsons_interval() -> None:
    assert wilson(5, 100, 1.96) == pytest.approx((0.0215, 0.1118), abs=1e-3)
    assert wilson(0, 10, 1.96)[0] == pytest.approx(0, abs=1e-12)


def test_a_stage_that_was_too_short_for_its_queue_is_not_settled() -> None:
    growing = Stage(10, [n / 10 for n in range(400)], [n / 500 for n in range(400)], seconds=40)
    assert not growing.settled
    assert not growing.met(0.05, 2.0)
    rng = random.Random(1)
    resting = Stage(10, [n / 10 for n in range(400)], [rng.uniform(0, 0.9) for _ in range(400)], seconds=40)
    assert resting.settled
    assert resting.met(0.05, 2.0)
