"""`python -m loadgen quick`: finds the server and tells in three sentences, after a minute, what it is, how fast
it is for one user, and for how many users at once."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import Final, NamedTuple

import aiohttp
import msgspec

from loadgen import store
from loadgen.analysis import Found, digits, in_order, measure_records, parse_goodput
from loadgen.cli import finish
from loadgen.cli.find import searched
from loadgen.cli.flags import common as flags
from loadgen.cli.flags import values
from loadgen.cli.flags.workload import add_workload_flags
from loadgen.cli.preflight import PROBE_TIMEOUT, connection_limit, models_of, proxy_note
from loadgen.cli.run import job_of, new_run
from loadgen.cli.terminal import live
from loadgen.drive import Client, new_loop
from loadgen.errors import UsageError
from loadgen.record import Record, Run
from loadgen.report import Files, objectives, unmeasured_text
from loadgen.secrets import Hide, without_userinfo
from loadgen.spec import Http

PORTS: Final = (8000, 8080, 8001, 30000, 11434, 1234, 5000, 3000)
"""Usual ports: vLLM and TGI, this gateway and llama.cpp, a second vLLM, SGLang, Ollama, LM Studio, LocalAI and
others."""
LOOK_TIMEOUT: Final = 1.0  # seconds for a usual port to answer; a URL that was given has longer
GOODPUT: Final = ("ttft:1000", "tpot:100")  # answers within a second, then faster than people read
MINUTES: Final = 0.9
TOKENS: Final = 48
MOST_USERS: Final = 64
KINDS: Final = {
    b"gateway_flights": "the streaming gateway",
    b"vllm:": "vLLM",
    b"sglang:": "SGLang",
    b"llamacpp:": "llama.cpp",
    b"tgi_": "TGI",
}
"""What /metrics contains, and what the server then is."""


class Look(NamedTuple):
    """A server that answered, and what it is."""

    url: str
    model: str
    kind: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    ports = ", ".join(map(str, PORTS))
    parser.add_argument(
        "url",
        nargs="?",
        type=values.url,
        metavar="URL",
        help=f"the server (default: the first of 127.0.0.1:{ports})",
    )
    parser.add_argument(
        "--goodput",
        nargs="+",
        default=list(GOODPUT),
        metavar="SLO",
        help=f"what is fast enough (default {' '.join(GOODPUT)})",
    )
    parser.add_argument("--model", help="default: the first of /v1/models")
    parser.add_argument("--api-key", metavar="KEY", help="default: OPENAI_API_KEY of the environment")
    parser.add_argument(
        "--result-dir", default="out", metavar="DIR", help="where the run's folder goes (default out)"
    )


def main(args: argparse.Namespace, argv: list[str]) -> int:
    finish.check_goodput(args.goodput)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_quick(args, argv))


async def _quick(args: argparse.Namespace, argv: list[str]) -> int:
    full = complete(args)
    full.base_url = args.url
    http = flags.http_of(full, os.environ)
    look = await found_server(args.url, args.model, http)
    full.base_url, full.model = look.url, look.model
    if note := proxy_note([look.url]):
        print(note, file=sys.stderr)
    hide = Hide(flags.secrets_of(full, os.environ))
    job = job_of(full, {"a": look.url}, http, look.model)
    job = msgspec.structs.replace(job, max_in_flight=connection_limit(MOST_USERS))
    run = new_run(full, argv, job, hide)
    folder = finish.make_folder(args.result_dir, "quick", finish.now())
    print(f"{look.kind} at {without_userinfo(look.url)}; about a minute …", file=sys.stderr)
    with live.view(quiet=True) as view, store.EventsFile(folder / store.EVENTS) as file:
        _, records, stages, found, unmeasured = await searched(full, job, run, hide, view, file, say=False)
    run.start_unix_ns, run.found = stages.start_unix_ns, msgspec.to_builtins(found)
    finish.judge(run, records, stages.worker_errors, flags.limits_of(full), open_loop=False)
    files = Files(folder)
    files.write(store.RUN, store.encoded_run(run))
    lost = [*([file.warning] if file.warning else []), *(f"could not write {text}" for text in files.lost)]
    slos = parse_goodput(run.config["goodput"])
    for sentence in sentences(look, records, found, slos, unmeasured, interrupted=run.interrupted):
        print(sentence)
    if run.invalid:
        print(f"The measurement is rough: {'; '.join(run.invalid[:1])}.", file=sys.stderr)
    for text in lost or [f"python -m loadgen report {folder} writes the whole report"]:
        print(text, file=sys.stderr)
    return exit_code(run, records, found, lost=bool(lost))


def exit_code(run: Run, records: list[Record], found: Found, *, lost: bool) -> int:
    """130 after Ctrl-C; 1 if no request completed, the server failed, or a file was `lost`; else 0."""
    if run.interrupted:
        return finish.INTERRUPTED
    completed = any(record.failure is None for record in records)
    return finish.OK if completed and not lost and found.state != "failed" else finish.FAILED


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """The flags of `find` with the values of a quick look."""
    parser = argparse.ArgumentParser()
    flags.add_server(parser)
    add_workload_flags(parser)
    flags.add_request(parser)
    flags.add_times(parser)
    flags.add_limits(parser)
    flags.add_output(parser)
    full = parser.parse_args([])
    full.api_key, full.goodput, full.result_dir = args.api_key, args.goodput, args.result_dir
    full.label, full.max_tokens, full.num_prompts, full.num_warmups, full.unique = "quick", TOKENS, 4_000, 1, True
    full.request_rate, full.max_concurrency, full.burstiness, full.shed = None, None, 1.0, False
    full.ramp_up_strategy = full.ramp_up_start_rps = full.ramp_up_end_rps = None
    full.trace_speed, full.concurrency, full.attainment, full.precision = 1.0, True, 0.9, 0.05
    full.max_minutes, full.top_concurrency, full.start_rate, full.top_rate = MINUTES, MOST_USERS, None, None
    return full


async def found_server(url: str | None, model: str | None, http: Http) -> Look:
    """The server of this URL, or the first usual port of this machine that lists models. Raises UsageError."""
    client = Client(http, kernel=False)
    try:
        if url is not None:
            look = await _look(client, url, model, PROBE_TIMEOUT)
            if look is None:
                raise UsageError(f"{url}/v1/models does not list models: is an OpenAI-compatible server there?")
            return look
        urls = (f"http://127.0.0.1:{port}" for port in PORTS)
        looks = await asyncio.gather(*(_look(client, each, model, LOOK_TIMEOUT) for each in urls))
    finally:
        await client.close()
    found = next((look for look in looks if look is not None), None)
    if found is None:
        ports = ", ".join(map(str, PORTS))
        raise UsageError(
            f"no server lists models on 127.0.0.1 (ports {ports}); give its URL: quick http://HOST:PORT"
        )
    return found


async def _look(client: Client, url: str, model: str | None, within: float) -> Look | None:
    try:
        status, body = await client.get(f"{url}/v1/models", within)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
    if status in (401, 403):
        raise UsageError(f"{url} answered {status}: it requires a key; set OPENAI_API_KEY or give --api-key")
    models = models_of(body) if status == 200 else []
    if not models:
        return None
    return Look(url, model or models[0], await _kind(client, url, within))


async def _kind(client: Client, url: str, within: float) -> str:
    """What the server says that it is."""
    try:
        status, page = await client.get(f"{url}/metrics", within)
    except (aiohttp.ClientError, OSError, TimeoutError):
        status, page = 0, b""
    if status == 200:
        return next((name for mark, name in KINDS.items() if mark in page), "an OpenAI-compatible server")
    return "an OpenAI-compatible server"


def sentences(
    look: Look,
    records: list[Record],
    found: Found,
    slos: dict[str, float],
    unmeasured: dict[str, str],
    *,
    interrupted: bool = False,
) -> list[str]:
    """Three sentences for anybody; two where Ctrl-C came before one user was answered, and a fourth about
    objectives that cannot be measured."""
    first = f"This is {look.kind} at {without_userinfo(look.url)}, serving {look.model}."
    alone = [
        request
        for request in in_order(measure_records(records))
        if request.stage == "1 user" and request.ttft is not None and request.completed
    ]
    if not alone and interrupted:
        return [first, "It was interrupted before a user was answered, so nothing else is known."]
    if not alone:
        empty = any(request is not None and request.empty for request in measure_records(records))
        answered = "with a token" if empty else "as a stream"
        failed = next((record for record in records if record.failure), None)
        why = f": {failed.detail or failed.failure}" if failed else ""
        return [
            first,
            f"No request of one user was answered {answered}{why}.",
            "So nothing is known of several users.",
        ]
    ttfts = sorted(request.ttft.value for request in alone if request.ttft is not None)
    rates = sorted(request.tokens_per_second for request in alone if request.tokens_per_second is not None)
    speed = f", then {digits(rates[len(rates) // 2])} tokens per second" if rates else ""
    second = f"One user alone waits {digits(ttfts[len(ttfts) // 2])} ms for the first token{speed}."
    third = "It was interrupted, so nothing is known of several users."
    unjudged = [f"{unmeasured_text(unmeasured)}."] if unmeasured else []
    if not slos:
        return [first, second, "Nothing is known of several users.", *unjudged]
    return [first, second, third if interrupted else _third(found, objectives(slos)), *unjudged]


def _third(found: Found, aims: str) -> str:
    lowest, highest = (f"{load:.0f} user{'s' if load > 1 else ''}" for load in found.tried or (1, 1))
    match found.state:
        case "failed":
            return "Then the server failed: it gave no answer any more."
        case "not met":
            return f"Not even one user at a time gets {aims} in nine of ten requests."
        case "all missed":
            return (
                f"Not even {lowest} got {aims} in nine of ten requests, as far as the few of a minute show: this "
                "server is too slow for `quick`; `find` takes the time that is needed."
            )
        case "no limit":
            return f"At least {highest} at once get {aims}; more were not tried."
        case "all met":
            return (
                f"Up to {highest} at once got {aims}, as far as the few requests of a minute show: this server is "
                "too slow for `quick` to find a limit; `find` takes the time that is needed."
            )
        case "nothing":
            return "Nothing is known of several users: no request ended in time."
        case _:
            about = "" if found.state == "found" else "about "
            load = found.load or 1
            which = f"{about}{load:.0f} user{'s' if load > 1 else ''}"
            return f"Up to {which} at once get {aims}; with more, {_worse(found)}."


def _worse(found: Found) -> str:
    if found.fault:
        return "this load generator was at its own limit"
    fails = sum(found.failures.values()) >= (1 - min(found.broke.values(), default=0.0)) / 2
    return "requests fail" if fails else "answers become slower than that"
