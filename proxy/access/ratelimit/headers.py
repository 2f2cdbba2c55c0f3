"""Rate limits in answers: OpenAI's headers and durations, and the error of a refusal."""

from __future__ import annotations

import math

from proxy.access.ratelimit.buckets import SLACK, Claim, Decision, Limit, wait
from proxy.errors import Code, GatewayError


def duration(seconds: float) -> str:
    """`0s`, `12ms`, `8.64s`, `6m0s`, `1h0m0s`: as OpenAI writes them, rounded up to the millisecond."""
    ms = max(0, math.ceil(seconds * 1000 - 1e-6))
    if not ms:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    text = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def headers(claim: Claim, decision: Decision) -> list[tuple[str, str]]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`: of the caller's own limits, else of the global
    ones. Reset is the time until the meter is empty. A refusal has a header for the retry, too."""
    result: list[tuple[str, str]] = []
    for kind, own, everyone, own_level, global_level in (
        ("requests", claim.own.requests, claim.everyone.requests, decision.own[0], decision.everyone[0]),
        ("tokens", claim.own.tokens, claim.everyone.tokens, decision.own[1], decision.everyone[1]),
    ):
        if own is not None:
            result += _meter(kind, own, own_level)
        elif everyone is not None:
            result += _meter(kind, everyone, global_level)
    if decision.over is not None:
        seconds = pause(claim, decision)
        if math.isinf(seconds):
            result.append(("x-should-retry", "false"))  # OpenAI's clients retry after any other 429
        else:
            result.append(("retry-after-ms", str(math.ceil(seconds * 1000))))
    return result


def _meter(kind: str, ceiling: Limit, level: float) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{kind}", str(int(ceiling.size))),
        (f"x-ratelimit-remaining-{kind}", str(max(0, math.floor(ceiling.size - level + SLACK)))),
        (f"x-ratelimit-reset-{kind}", duration(level / ceiling.rate)),
    ]


def pause(claim: Claim, decision: Decision) -> float:
    """Seconds until a refused request is within its limits; infinite: never."""
    return max(
        wait(claim.own, decision.own, claim.tokens), wait(claim.everyone, decision.everyone, claim.tokens), 0.001
    )


def counted(number: float, what: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{number:g} {what}" if number == 1 else f"{number:g} {what}s"


def rate_limit_error(claim: Claim, decision: Decision) -> GatewayError:
    """The error of a refusal: 429 for the caller's own limit, 503 for the global one."""
    assert decision.over is not None
    whose, kind = decision.over
    bounds, levels = (claim.own, decision.own) if whose == "caller" else (claim.everyone, decision.everyone)
    seconds = pause(claim, decision)
    retry = None if math.isinf(seconds) else math.ceil(seconds)
    # Only more tokens than a meter's size can never pass, whichever limit was exceeded first.
    again = (
        "The request can never pass: send a shorter prompt."
        if retry is None
        else f"Try again in {duration(seconds)}."
    )
    if kind == "requests" and bounds.requests is not None:
        text = (
            f"limit {counted(bounds.requests.rate, 'request')} a second, at most {bounds.requests.size:g} at once"
        )
    elif kind == "tokens" and bounds.tokens is not None:
        size = bounds.tokens.size
        text = f"limit {counted(size, 'token')} a minute, used {levels.tokens:.0f}, requested about {claim.tokens}"
    else:
        text = f"limit {counted(bounds.streams or 0, 'request')} under way at a time"
        if retry is not None:
            again = f"Wait until one has finished, or try again in {duration(seconds)}."
    if whose == "caller" or retry is None:
        return GatewayError(Code.RATE_LIMITED, f"Rate limit reached: {text}. {again}", retry_after=retry)
    message = f"The gateway has reached its limit for all clients together: {text}. {again}"
    return GatewayError(Code.CEILING_REACHED, message, retry_after=retry)
