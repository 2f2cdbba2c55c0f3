"""The dashboard's rows for the queue and for embeddings."""

from __future__ import annotations

from typing import Final

from ops.dashboard.panel import Panel, Row, gauge, quantiles, rate, some

WAITING: Final = Row(
    "Waiting for an engine",
    (
        Panel("Waiting by class", ((gauge("queue_waiting", "priority"), "{{priority}}"),), stack=True),
        Panel(
            "Callers that wait",
            ((gauge("queue_owners"), ""),),
            help="Each caller gets its share of dispatches, and of a full queue.",
        ),
        Panel(
            "Wait for a place",
            tuple((some(expr), name) for expr, name in quantiles("place_wait_seconds")),
            "s",
            help="Only requests that had to wait.",
        ),
        Panel("Refused or dropped", ((rate("queue_refused_total", by="why"), "{{why}}"),), "ops"),
        Panel(
            "Out of time, moved up",
            (
                (some(rate("deadlines_missed_total")), "x-request-timeout over"),
                (rate("queue_promoted_total"), "promoted by a more urgent twin"),
            ),
            "ops",
        ),
        Panel(
            "At one engine at most",
            ((f"max by (backend) ({gauge('backend_max_inflight', 'backend')})", "{{backend}}"),),
            help="max_inflight, configured or adapted (auto); summed over the gateways.",
        ),
    ),
)

EMBEDDINGS: Final = Row(
    "Embeddings and tokens",
    (
        Panel("Inputs", ((rate("embed_items_total", by="source"), "{{source}}"),), "ops", stack=True),
        Panel(
            "Inputs an array",
            tuple((some(expr), name) for expr, name in quantiles("embed_array_items")),
        ),
        Panel(
            "Tokens",
            (
                (some(rate("generated_tokens_total")), "generated, each once"),
                (some(rate("tokens_total", 'direction="out"')), "delivered"),
            ),
            "short",
            help="The difference is what sharing saves.",
        ),
    ),
)
