"""From records to figures: definitions of the measures, statistics, objectives. Pure: no files, no clock, no I/O.

The nouns:

- `Measured`: one request's TTFT, TPOT, ITL and E2E, from its `Record` (`definitions.py` says how each is
  defined and how other tools differ). A time that the kernel merged with others is a `Span` with bounds.
- `Sample`: values in clusters that may depend on each other. `Stat`: its mean and `Quantile`s, each with a 95 %
  interval, where the sample is large enough for one.
- `Summary`: a run as counts, rates and `Stat`s; a `Group` for the whole, each target, each stage, each cache
  verdict.
- `Loads`: what some kinds of load add: conversations by turn, cancelled requests, models, the answers of an `ab`.
- `SweepStage`: one rate of a sweep. `Limit`: the highest rate that the server keeps up with (the knee), and the
  lowest one that was too much.
- `Search`: which stage `find` runs next. It takes `Stage`s and gives `Plan`s; `Found` is its answer.
- `Pairs`: an `ab` run, request by request: B minus A.
- `Shift`: the difference of two runs with its interval. `Rule`: one `--fail-if`, which a comparison passes or
  breaks.

Durations are in milliseconds, points in time in nanoseconds since the run's start, rates per second.
"""

from loadgen.analysis.bins import Bin, histogram
from loadgen.analysis.definitions import Gaps, Measured, Span, measure
from loadgen.analysis.effect import (
    Shift,
    cliffs_delta,
    shift,
    size_of,
)
from loadgen.analysis.format import (
    UNKNOWN,
    amount,
    cell,
    count,
    digits,
    interval_text,
    ms,
    percent,
    point,
    rate,
    signed,
    time_text,
)
from loadgen.analysis.goodput import BadGoodput, Goodput, met, parse_goodput, strain, unmeasured
from loadgen.analysis.knee import (
    Limit,
    SweepStage,
    chance_warning,
    completion_ratio,
    find_limit,
    next_rate,
)
from loadgen.analysis.loads import (
    Answers,
    Cancellations,
    Conversations,
    Loads,
    Part,
)
from loadgen.analysis.paired import (
    PAIRED_MEASURES,
    Pairs,
    comparable_pairs,
    pair_up,
    paired_differences,
    pairs_by_order,
    pairs_of,
)
from loadgen.analysis.search import Found, Plan, Search, Stage
from loadgen.analysis.stages import (
    by_rate,
    focus,
    limit_of,
    unsteady_warning_of,
)
from loadgen.analysis.stats import (
    Bounds,
    Quantile,
    Sample,
    Stat,
    interpolated,
)
from loadgen.analysis.summary import (
    LINGER_MS,
    PER_REQUEST,
    POOLED,
    Group,
    Summary,
    in_order,
    measure_records,
    pooled,
    rate_of,
    sample_of,
    summarise,
    summarise_measured,
)
from loadgen.analysis.thresholds import (
    BadRule,
    Finding,
    Rule,
    check_metric,
    judge_rule,
    parse_rule,
)
from loadgen.analysis.timeline import SECOND, bin_timeline

__all__ = [
    "LINGER_MS",
    "PAIRED_MEASURES",
    "PER_REQUEST",
    "POOLED",
    "SECOND",
    "UNKNOWN",
    "Answers",
    "BadGoodput",
    "BadRule",
    "Bin",
    "Bounds",
    "Cancellations",
    "Conversations",
    "Finding",
    "Found",
    "Gaps",
    "Goodput",
    "Group",
    "Limit",
    "Loads",
    "Measured",
    "Pairs",
    "Part",
    "Plan",
    "Quantile",
    "Rule",
    "Sample",
    "Search",
    "Shift",
    "Span",
    "Stage",
    "Stat",
    "Summary",
    "SweepStage",
    "amount",
    "bin_timeline",
    "by_rate",
    "cell",
    "chance_warning",
    "check_metric",
    "cliffs_delta",
    "comparable_pairs",
    "completion_ratio",
    "count",
    "digits",
    "find_limit",
    "focus",
    "histogram",
    "in_order",
    "interpolated",
    "interval_text",
    "judge_rule",
    "limit_of",
    "measure",
    "measure_records",
    "met",
    "ms",
    "next_rate",
    "pair_up",
    "paired_differences",
    "pairs_by_order",
    "pairs_of",
    "parse_goodput",
    "parse_rule",
    "percent",
    "point",
    "pooled",
    "rate",
    "rate_of",
    "sample_of",
    "shift",
    "signed",
    "size_of",
    "strain",
    "summarise",
    "summarise_measured",
    "time_text",
    "unmeasured",
    "unsteady_warning_of",
]
