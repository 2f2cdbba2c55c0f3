"""The flags of `run` that make a load more than single requests: conversations, cancelled requests."""

from __future__ import annotations

import argparse
import re
from typing import Final

from loadgen.cli.flags import values
from loadgen.errors import UsageError
from loadgen.spec import Cancel

_AFTER: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) *(?P<unit>tokens?|s|ms)")


def add_cancel(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "cancelled requests",
        "Clients that leave before the end. The engine's metrics show whether it stops: if not, the exit code is 1.",
    )
    group.add_argument(
        "--cancel", type=values.share, metavar="SHARE", help="share of the requests, such as 10%% or 0.1"
    )
    group.add_argument(
        "--cancel-after",
        type=cancel_after,
        metavar="WHEN",
        help="20tokens (of the response), or 1.5s or 300ms from sending",
    )
    group.add_argument(
        "--cancel-within",
        type=values.number(0, 600, above=True),
        default=1.0,
        metavar="S",
        help="the engine must have stopped by then (default %(default)g)",
    )
    group.add_argument(
        "--cancel-metrics",
        type=values.http_url,
        action="append",
        metavar="URL",
        help="where the engine shows its running requests; repeatable (default: /metrics of the server)",
    )


def cancel_after(text: str) -> tuple[int | None, float | None]:
    """(tokens, seconds), of which one is None."""
    match = _AFTER.fullmatch(text.strip())
    number = 0.0 if match is None else float(match["number"])
    if match is not None and number > 0:
        if match["unit"] in ("s", "ms"):
            return None, number if match["unit"] == "s" else number / 1000
        if number.is_integer():
            return int(number), None
    raise argparse.ArgumentTypeError(
        f"{text!r}: give a number of tokens or a time, such as 20tokens, 1.5s or 300ms"
    )


def cancel_of(args: argparse.Namespace) -> Cancel | None:
    """Raises UsageError for a flag without the other."""
    share, after = getattr(args, "cancel", None), getattr(args, "cancel_after", None)
    if not share:
        if after is not None:
            raise UsageError("--cancel-after needs --cancel SHARE, such as --cancel 10%")
        return None
    if after is None:
        raise UsageError("--cancel needs --cancel-after, such as 20tokens or 1.5s")
    tokens, seconds = after
    if tokens is not None and args.no_stream:
        raise UsageError("--cancel-after TOKENS needs a stream: with --no-stream give a time, such as 1.5s")
    return Cancel(share=share, tokens=tokens, seconds=seconds, seed=args.seed)


def add_conversation_rate(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--conversation-rate",
        type=values.number(0, above=True),
        metavar="R",
        help="open loop of conversations (--turns), begun per second; without it --max-concurrency users have one each",
    )
