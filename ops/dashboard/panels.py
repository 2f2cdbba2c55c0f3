"""The dashboard's rows and panels with their queries. tests/ops/test_watch.py runs each against a real
Prometheus."""

from __future__ import annotations

from typing import Final

from ops.dashboard.panel import GENERATING, ONE, RATE, Panel, Row, gauge, heat, quantiles, rate, share, some
from ops.dashboard.waiting import EMBEDDINGS, WAITING

HEAD: Final = Row(
    "At a glance",
    (
        Panel("Requests", ((rate("requests_total"), ""),), "reqps", "stat", 4),
        Panel(
            "Failing",
            ((share(rate("requests_total", 'status=~"5..",status!="501"'), rate("requests_total")), ""),),
            "percentunit",
            "stat",
            4,
            "5xx, but for 501. The objective is 0.1 %.",
            red=0.001,
        ),
        Panel(
            "TTFT p95",
            (quantiles("time_to_first_token_seconds")[1],),
            "s",
            "stat",
            4,
            "The objective: 99 % within 2.5 s.",
            red=2.5,
        ),
        Panel(
            "Shared",
            (
                (
                    share(
                        rate("requests_total", f'{GENERATING},verdict=~"hit|attached|merged"'),
                        rate("requests_total", GENERATING),
                    ),
                    "",
                ),
            ),
            "percentunit",
            "stat",
            4,
            "Of the generations asked for: answered by another's, or out of Redis.",
        ),
        Panel(
            "Engines up", ((gauge("backend_up"), ""),), "short", "stat", 4, "Summed over the gateways.", green=1
        ),
        Panel(
            "Alerts firing",
            (('count(ALERTS{alertstate="firing",alertname=~"Gateway.*"}) or vector(0)', ""),),
            "short",
            "stat",
            4,
            "ops/docs/troubleshooting.md has a section for each.",
            red=1,
        ),
    ),
)

TRAFFIC: Final = Row(
    "Traffic",
    (
        Panel(
            "Requests by status",
            ((rate("requests_total", by="status"), "{{status}}"),),
            "reqps",
            stack=True,
            help="499: the client disconnected.",
        ),
        Panel(
            "Requests by endpoint",
            ((rate("requests_total", by="endpoint"), "{{endpoint}}"),),
            "reqps",
            stack=True,
        ),
        Panel(
            "Tokens to clients",
            ((rate("tokens_total", by="direction, model"), "{{direction}} {{model}}"),),
            "short",
            help="Per second; `in` is prompts. Shared answers count for each reader.",
        ),
        Panel(
            "Under way",
            (
                (gauge("flights"), "answers in the making"),
                (gauge("subscribers"), "readers"),
                (gauge("client_connections"), "connections"),
            ),
        ),
        Panel(
            "How answers ended",
            ((rate("flights_ended_total", by="outcome"), "{{outcome}}"),),
            "ops",
            stack=True,
            help="failed, error: cut off or refused by an engine. cancelled: the last reader disconnected.",
        ),
        Panel(
            "Failing answers",
            (
                (
                    share(
                        rate("flights_ended_total", 'outcome=~"failed|error"'),
                        rate("flights_ended_total", 'outcome=~"landed|failed|error"'),
                    ),
                    "share",
                ),
            ),
            "percentunit",
            help="Includes streams that failed after their 200, which the status does not show.",
            red=0.05,
        ),
    ),
)

LATENCY: Final = Row(
    "Latency",
    (
        Panel("Time to first token", heat("time_to_first_token_seconds"), "s", "heatmap", 12),
        Panel(
            "Time per token",
            heat("inter_token_seconds"),
            "s",
            "heatmap",
            12,
            "The mean gap of a stream's tokens, one value a generation (TPOT).",
        ),
        Panel("TTFT", quantiles("time_to_first_token_seconds"), "s", width=6),
        Panel(
            "TTFT p95 by how it was answered",
            (
                (
                    f"histogram_quantile(0.95, {rate('time_to_first_token_seconds_bucket', by='le, verdict')})",
                    "{{verdict}}",
                ),
            ),
            "s",
            width=6,
            help="miss: from the engine. hit: from Redis.",
        ),
        Panel(
            "TPOT by model p95",
            ((f"histogram_quantile(0.95, {rate('inter_token_seconds_bucket', by='le, model')})", "{{model}}"),),
            "s",
            width=6,
        ),
        Panel("Whole request", quantiles("request_duration_seconds"), "s", width=6),
    ),
)

SHARING: Final = Row(
    "Sharing",
    (
        Panel(
            "How generations were answered",
            ((rate("requests_total", GENERATING, "verdict"), "{{verdict}}"),),
            "reqps",
            stack=True,
            help="attached: joined a running generation. merged: sampled twins sent as one. hit: from Redis.",
        ),
        Panel(
            "Shares",
            tuple(
                (
                    share(
                        rate("requests_total", f'{GENERATING},verdict="{v}"'), rate("requests_total", GENERATING)
                    ),
                    v,
                )
                for v in ("hit", "attached", "merged")
            ),
            "percentunit",
            stack=True,
        ),
        Panel(
            "Readers of a generation",
            ((share(gauge("subscribers"), gauge("flights")), "readers"),),
            help="Current value; 1 without sharing.",
        ),
        Panel("Joined a generation", ((some(rate("coalesced_total", by="endpoint")), "{{endpoint}}"),), "ops"),
        Panel(
            "Asked of engines, asked of us",
            (
                (rate("upstream_requests_total"), "sent to engines"),
                (rate("requests_total", GENERATING), "asked of us"),
            ),
            "reqps",
            help="The difference is what sharing saves.",
        ),
        Panel("Look-ups in one round trip", quantiles("lookup_batch_size")[:2]),
    ),
)

ENGINES: Final = Row(
    "Engines and breakers",
    (
        Panel(
            "Up",
            ((f"min by (backend) (gateway_backend_up{{{ONE}}})", "{{backend}}"),),
            kind="state-timeline",
            width=12,
            words={"0": "down", "1": "up"},
            green=1,
        ),
        Panel(
            "Breakers",
            ((f"max by (backend) (gateway_backend_breaker{{{ONE}}})", "{{backend}}"),),
            kind="state-timeline",
            width=12,
            words={"0": "closed", "1": "half open", "2": "open"},
            red=1,
        ),
        Panel("In flight at engines", ((gauge("backend_inflight", "backend"), "{{backend}}"),)),
        Panel(
            "As engines report",
            (
                (f"max by (backend) (gateway_backend_requests_running{{{ONE}}})", "running {{backend}}"),
                (f"max by (backend) (gateway_backend_requests_waiting{{{ONE}}})", "waiting {{backend}}"),
            ),
        ),
        Panel(
            "KV cache in use",
            ((f"max by (backend) (gateway_backend_kv_cache_usage{{{ONE}}})", "{{backend}}"),),
            "percentunit",
            red=0.95,
        ),
        Panel("Requests to engines", ((rate("upstream_requests_total", by="backend"), "{{backend}}"),), "reqps"),
        Panel(
            "Failures of engines",
            ((some(rate("upstream_errors_total", by="backend, code")), "{{backend}} {{code}}"),),
            "ops",
        ),
        Panel(
            "Asked again",
            (
                (rate("retries_total", by="cause"), "{{cause}}"),
                (rate("retries_denied_total"), "denied by the budget"),
                (rate("streams_continued_total", by="outcome"), "stream continued: {{outcome}}"),
            ),
            "ops",
        ),
    ),
)

LIMITS: Final = Row(
    "Limits and admission",
    (
        Panel("Queue", ((gauge("queue_depth"), "waiting"), (gauge("queue_limit"), "limit"))),
        Panel(
            "Time in the queue",
            quantiles("queue_duration_seconds"),
            "s",
            help="From the request until it is sent to an engine, or a hit.",
        ),
        Panel("Refused by limits", ((rate("rate_limited_total", by="limit"), "{{limit}}"),), "ops"),
        Panel(
            "Counted by limits",
            (
                (some(gauge("limited_requests")), "requests under way"),
                (some(gauge("limited_callers")), "callers"),
            ),
        ),
        Panel(
            "Refused otherwise",
            (
                (rate("connections_refused_total"), "connections"),
                (some(rate("content_denied_total", by="where")), "deny list {{where}}"),
                (some(rate("requests_total", 'status="503"')), "503"),
            ),
            "ops",
        ),
        Panel(
            "Limits decided alone",
            ((rate("limit_fallbacks_total"), "a second"),),
            "ops",
            help="While Redis is unavailable, each process enforces the limits on its own.",
        ),
    ),
)

REDIS: Final = Row(
    "Redis",
    (
        Panel(
            "Available",
            ((f"gateway_cache_available{{{ONE}}}", "{{instance}}"),),
            kind="state-timeline",
            words={"0": "away", "1": "asked"},
            green=1,
        ),
        Panel(
            "Refusals",
            ((f"gateway_redis_refusing{{{ONE}}} == 1 or vector(0)", "{{instance}} {{reason}}"),),
            kind="stat",
            help="Redis's error code while it refuses a command; the log says what to do.",
        ),
        Panel(
            "Look-ups and stores",
            ((rate("cache_operations_total", by="op"), "{{op}}"),),
            "ops",
            help="bypassed: Redis was skipped because it is unavailable.",
        ),
        Panel(
            "Hit share",
            (
                (
                    share(
                        rate("cache_operations_total", 'op="hit"'),
                        rate("cache_operations_total", 'op=~"hit|miss"'),
                    ),
                    "of look-ups",
                ),
            ),
            "percentunit",
        ),
    ),
)

FLEET: Final = Row(
    "The fleet",
    (
        Panel(
            "Shares with other gateways",
            ((f"gateway_fleet_live{{{ONE}}}", "{{instance}}"),),
            kind="state-timeline",
            words={"0": "alone", "1": "shares"},
            green=1,
            help="With --fleet auto. Alone: Redis is away, or refuses the fleet's commands.",
        ),
        Panel(
            "Generations begun",
            ((f"sum by (instance) (rate(gateway_fleet_led_total{{{ONE}}}[{RATE}]))", "{{instance}}"),),
            "ops",
            help="By the gateway that generates. One far above the others gets more connections than its part.",
        ),
        Panel(
            "Flights of several gateways",
            ((rate("fleet_flights_total", by="what"), "{{what}}"),),
            "ops",
            help="followed: answered by another gateway's generation. lost: cut with that gateway.",
        ),
    ),
)

PROCESS: Final = Row(
    "Process",
    (
        Panel(
            "CPU",
            ((f"rate(process_cpu_seconds_total{{{ONE}}}[{RATE}])", "{{instance}}"),),
            "percentunit",
            help="Share of one core; a gateway is one event loop.",
            red=0.9,
        ),
        Panel("Memory", ((f"process_resident_memory_bytes{{{ONE}}}", "{{instance}}"),), "bytes"),
        Panel("Loop lag", quantiles("event_loop_lag_seconds"), "s", help="How late timers run.", red=0.25),
        Panel(
            "File descriptors",
            ((f"process_open_fds{{{ONE}}}", "{{instance}}"), (f"process_max_fds{{{ONE}}}", "limit")),
        ),
        Panel("Log lines lost", ((rate("log_lines_dropped_total", by="instance"), "{{instance}}"),), "ops"),
        Panel(
            "What runs",
            ((f"time() - gateway_start_time_seconds{{{ONE}}}", "{{instance}}"),),
            "s",
            "stat",
            4,
            "Up for.",
        ),
        Panel("Version", ((f"gateway_build_info{{{ONE}}}", "{{instance}} {{version}}"),), "short", "table", 4),
    ),
)

ROWS: Final = (HEAD, TRAFFIC, LATENCY, SHARING, ENGINES, WAITING, LIMITS, EMBEDDINGS, REDIS, FLEET, PROCESS)
