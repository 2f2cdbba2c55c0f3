"""What Prometheus is told of waiting: each fact under its name and label, and zeros from the start."""

from __future__ import annotations

from proxy.flights.embeddings.metrics import SOURCES, EmbedMetrics
from proxy.flights.queue.metrics import REASONS, QueueMetrics
from proxy.flights.watchdog import KINDS
from proxy.telemetry.metrics import Metrics


def lines(metrics: Metrics, begin: str) -> dict[str, float]:
    page = metrics.render("text/plain")[0].decode().splitlines()
    found = [line.removeprefix("gateway_") for line in page if line.startswith(f"gateway_{begin}")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in found}


def test_counts_begin_at_zero_and_each_fact_is_counted_once() -> None:
    metrics = Metrics()
    told = QueueMetrics(metrics.registry)
    assert lines(metrics, "queue_refused") == {f'queue_refused_total{{why="{why}"}}': 0.0 for why in REASONS}
    assert lines(metrics, "watchdog") == {f'watchdog_healed_total{{what="{kind}"}}': 0.0 for kind in KINDS}
    assert lines(metrics, "queue_promoted") == {"queue_promoted_total": 0.0}
    told.refused("pushed_out")
    told.healed("turn")
    told.promoted()
    told.missed("arriving")
    told.dispatched(0, 2.0)
    told.dispatched(2, 3.0)
    assert lines(metrics, "queue_refused")['queue_refused_total{why="pushed_out"}'] == 1.0
    assert lines(metrics, "watchdog")['watchdog_healed_total{what="turn"}'] == 1.0
    assert lines(metrics, "queue_promoted") == {"queue_promoted_total": 1.0}
    assert lines(metrics, "deadlines") == {'deadlines_missed_total{phase="arriving"}': 1.0}
    assert lines(metrics, "place_wait_seconds_sum") == {
        'place_wait_seconds_sum{priority="high"}': 2.0, 'place_wait_seconds_sum{priority="low"}': 3.0
    }  # fmt: skip


def test_embeddings_are_counted_by_source_and_arrays_by_size() -> None:
    metrics = Metrics()
    told = EmbedMetrics(metrics.registry)
    zeros = {f'embed_items_total{{source="{source}"}}': 0.0 for source in SOURCES}
    assert lines(metrics, "embed_items") == zeros
    assert lines(metrics, "embed_arrays") == {"embed_arrays_split_total": 0.0}
    assert lines(metrics, "embed_refused") == {"embed_refused_items_total": 0.0}
    for count, fact in enumerate((told.cached, told.joined, told.asked), 1):
        fact(count)
        fact(count)
    told.array(5)
    told.split()
    told.refused(3)
    assert list(lines(metrics, "embed_items").values()) == [2.0, 4.0, 6.0]
    assert lines(metrics, "embed_arrays") == {"embed_arrays_split_total": 1.0}
    assert lines(metrics, "embed_refused") == {"embed_refused_items_total": 3.0}
    assert lines(metrics, "embed_array_items_sum") == {"embed_array_items_sum": 5.0}
