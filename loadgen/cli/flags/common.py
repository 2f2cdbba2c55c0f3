"""The flags that the measuring commands share, by vLLM's names where vLLM has them, and the settings read from
them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any, Final

from loadgen.cli.flags import values
from loadgen.cli.flags.loads import AddModel, add_lora
from loadgen.errors import UsageError
from loadgen.secrets import HIDDEN, is_secret, masked_fields, secrets_in, secrets_of_url, without_userinfo
from loadgen.spec import MIB, PATHS, Body, Endpoint, ErrorLimit, Http, Limits

BACKENDS: Final[dict[str, Endpoint]] = {
    "openai-chat": "chat",
    "openai-responses": "responses",
    "anthropic": "messages",
    "vllm-rerank": "rerank",
    "openai": "completions",
    "vllm": "completions",
    "openai-embeddings": "embeddings",
}


FURTHER: Final = ("min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logprobs")
"""Fields of a request's body with a flag of the same name."""


def add_server(parser: argparse.ArgumentParser, *, target: bool = True) -> None:
    group = parser.add_argument_group("the server")
    if target:
        group.add_argument(
            "--base-url", type=values.url, metavar="URL", help="the server, such as http://gpu-1:8000"
        )
        group.add_argument(
            "--host", default="127.0.0.1", help="the server's host, instead of --base-url (default %(default)s)"
        )
        group.add_argument("--port", type=values.whole(1, 65535), default=8000, help="default %(default)s")
    group.add_argument(
        "--backend", choices=list(BACKENDS), default="openai-chat", help="which API (default %(default)s)"
    )
    group.add_argument(
        "--endpoint",
        metavar="NAME|PATH",
        help=f"the API, one of {', '.join(PATHS)}; or a path, if it is not the API's default",
    )
    group.add_argument(
        "--model",
        action=AddModel,
        metavar="NAME[:SHARE]",
        help="default: the first of /v1/models; repeated, with a share such as 0.7 or 70%%: a mix",
    )
    group.add_argument(
        "--served-model-name", metavar="NAME", help="the model's name in requests, if it is not --model"
    )
    group.add_argument("--tokenizer", metavar="NAME", help="a name for the results; none is loaded")
    group.add_argument("--api-key", metavar="KEY", help="default: OPENAI_API_KEY of the environment")
    group.add_argument(
        "--header",
        type=values.header,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:VALUE",
        help="one or more; repeatable",
    )
    group.add_argument("--insecure", action="store_true", help="accept any TLS certificate")
    group.add_argument(
        "--ready-check-timeout-sec",
        type=values.number(0, 86400),
        default=0.0,
        metavar="S",
        help="wait this long for /v1/models to respond before starting (default %(default)g: try once)",
    )
    group.add_argument(
        "--request-id-prefix",
        type=values.header_text,
        default="",
        metavar="TEXT",
        help="x-request-id is this and the request's number (default: a random one for each run)",
    )
    add_lora(parser)
    group.add_argument("--no-keepalive", action="store_true", help="a new connection for every request")


def add_request(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fields of every request")
    group.add_argument(
        "--no-stream", action="store_true", help="request one JSON body instead of a stream; there is no TTFT then"
    )
    group.add_argument("--max-tokens", type=values.whole(1), metavar="N", help="overrides the prompt's own limit")
    group.add_argument("--temperature", type=values.number(0), metavar="T")
    group.add_argument("--top-p", type=values.number(0, 1), metavar="P")
    group.add_argument("--top-k", type=values.whole(-1), metavar="K")
    group.add_argument("--min-p", type=values.number(0, 1), metavar="P")
    group.add_argument("--frequency-penalty", type=values.number(-2, 2), metavar="X")
    group.add_argument("--presence-penalty", type=values.number(-2, 2), metavar="X")
    group.add_argument("--repetition-penalty", type=values.number(0, above=True), metavar="X")
    group.add_argument(
        "--logprobs", type=values.whole(0), metavar="N", help="of completions: log-probabilities a token"
    )
    group.add_argument(
        "--request-seed", type=values.whole(0), metavar="N", help="the `seed` field of each request"
    )
    group.add_argument("--ignore-eos", action="store_true", help="vLLM: generate exactly max_tokens")
    group.add_argument(
        "--extra-body", type=values.json_object, default={}, metavar="JSON", help="merged into every request"
    )
    group.add_argument(
        "--continuous-usage",
        action="store_true",
        help="request usage in every chunk, which shows how many tokens a chunk has (vLLM)",
    )


def add_times(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("time limits, in seconds; 0 is no limit")
    limits = {"connect": 10, "request": 600, "idle": 120}
    texts = {
        "connect": "for a new connection",
        "request": "for a whole request, including its connection",
        "idle": "without data, before the first token and between tokens",
    }
    for name, default in limits.items():
        group.add_argument(
            f"--{name}-timeout",
            type=values.number(0),
            default=float(default),
            metavar="S",
            help=f"{texts[name]} (default {default})",
        )
    group.add_argument(
        "--max-seconds", type=values.number(0, above=True), metavar="S", help="send nothing more after this time"
    )
    group.add_argument(
        "--grace-seconds",
        type=values.number(0),
        default=30.0,
        metavar="S",
        help="after --max-seconds, for requests in flight to end; the rest is cut off and counted separately "
        "(default %(default)g)",
    )
    group.add_argument(
        "--max-response-bytes",
        type=values.whole(1024),
        default=64 * MIB,
        metavar="N",
        help="of one response; a larger one counts as garbage (default 64 MiB)",
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Limits on this program's error. Above them the run is invalid, exit code 3."""
    group = parser.add_argument_group(
        "the generator's own error",
        "Figures should be accurate to 1 ms or 5 %. With a larger error the run is marked invalid, exit code 3.",
    )
    number = values.number(0)
    group.add_argument(
        "--limit-error-ms", type=number, default=1.0, metavar="MS", help="error in ms (default %(default)g)"
    )
    group.add_argument(
        "--limit-late-ms", type=number, default=5.0, metavar="MS", help="p99 of lateness (default %(default)g)"
    )
    group.add_argument(
        "--limit-error-share",
        type=number,
        default=0.05,
        metavar="X",
        help="or this share of the median TTFT (for lateness) or ITL (for lag), if larger (default %(default)g)",
    )
    group.add_argument(
        "--limit-censored",
        type=number,
        default=0.05,
        metavar="X",
        help="share of merged events (default %(default)g)",
    )
    group.add_argument(
        "--limit-cpu", type=number, default=0.9, metavar="X", help="of one core (default %(default)g)"
    )
    group.add_argument(
        "--max-error-rate",
        type=values.number(0, 1),
        default=0.0,
        metavar="X",
        help="share of failed requests above which the exit code is 1 (default %(default)g)",
    )
    group.add_argument(
        "--clock",
        choices=("kernel", "user"),
        default="kernel",
        help="clock that stamps received data: the kernel's (Linux), or this program's for comparison",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--label", default="", help="the run's name, in its folder and reports")
    group.add_argument(
        "--result-dir", default="out", metavar="DIR", help="where the run's folder is created (default out)"
    )
    group.add_argument(
        "--metadata",
        type=values.pair,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="one or more, at the top level of result.json; repeatable",
    )
    group.add_argument(
        "--goodput", nargs="+", metavar="SLO", help="objectives such as ttft:500 tpot:50 e2el:5000, in ms"
    )
    group.add_argument("--quiet", action="store_true", help="no live view; with --json no progress either")
    group.add_argument(
        "--json", action="store_true", help="print result.json alone on stdout, and everything else on stderr"
    )


def refuse_workers(parser: argparse.ArgumentParser, why: str) -> None:
    """Refuse `--workers` with the reason, instead of as an unknown flag."""

    class Refuse(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            parser.error(f"--workers is for `run`: {why}")

    parser.add_argument("--workers", action=Refuse, help=argparse.SUPPRESS, default=argparse.SUPPRESS)


# Reading


def http_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Http:
    key = key_of(args, environ)
    if any(map(secrets_of_url, servers_of(args))) and (
        key or any(name.lower() == "authorization" for name, _ in args.header)
    ):
        raise UsageError(
            "a user or password in a URL and a key, or --header Authorization, are the same header of a request: "
            "give one of them (OPENAI_API_KEY of the environment is a key)"
        )
    headers = [("Authorization", f"Bearer {key}")] if key else []
    return Http(
        headers=(*headers, *args.header),
        keepalive=not args.no_keepalive,
        insecure=args.insecure,
        connect_timeout=args.connect_timeout,
        request_timeout=args.request_timeout,
        idle_timeout=args.idle_timeout,
        max_response_bytes=args.max_response_bytes,
    )


def key_of(args: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """The key, without spaces and line ends around it; "" for none. Raises UsageError for one that no header can
    carry."""
    key = str(args.api_key or environ.get("OPENAI_API_KEY") or "").strip()
    odd = next((character for character in key if not "!" <= character <= "~"), None)
    if odd is not None:
        source = "--api-key" if args.api_key else "OPENAI_API_KEY"
        what = {"\n": "a line end", "\r": "a line end", " ": "a space"}.get(odd, f"the character {odd!a}")
        raise UsageError(f"the key of {source} has {what} inside; give the key alone, on one line")
    return key


def body_of(args: argparse.Namespace, model: str) -> Body:
    return Body(
        model=model,
        stream=not args.no_stream,
        continuous_usage=args.continuous_usage,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.request_seed,
        ignore_eos=args.ignore_eos,
        extra=_further_fields(args) | args.extra_body,
    )


def _further_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling fields that `Body` does not name."""
    chosen = {name: getattr(args, name) for name in FURTHER}
    return {name: value for name, value in chosen.items() if value is not None}


def limits_of(args: argparse.Namespace) -> Limits:
    return Limits(
        error_ms=args.limit_error_ms,
        late_ms=args.limit_late_ms,
        error_share=args.limit_error_share,
        censored=args.limit_censored,
        cpu=args.limit_cpu,
    )


def endpoint_of(args: argparse.Namespace) -> Endpoint:
    """By `--endpoint` if it is an API's name or path, else by `--backend`."""
    if args.endpoint in PATHS:
        return args.endpoint  # type: ignore[no-any-return]
    for endpoint, path in PATHS.items():
        if args.endpoint and args.endpoint.rstrip("/").endswith(path.removeprefix("/v1")):
            return endpoint
    return BACKENDS[args.backend]


def path_of(args: argparse.Namespace) -> str:
    path: str = PATHS[endpoint_of(args)] if args.endpoint in (None, "", *PATHS) else args.endpoint
    return path if path.startswith("/") else f"/{path}"


def base_of(args: argparse.Namespace) -> str:
    if args.base_url:
        return str(args.base_url)
    host = f"[{args.host}]" if ":" in args.host else args.host
    return values.url(f"http://{host}:{args.port}")


# Secrets


def servers_of(args: argparse.Namespace) -> list[str]:
    """The servers' URLs, as far as they are given."""
    return [url for name in ("base_url", "a", "b") if (url := getattr(args, name, None))]


def urls_of(args: argparse.Namespace) -> list[str]:
    """Every URL that is given."""
    more = ("engine_metrics", "cancel_metrics")
    return [*servers_of(args), *(url for name in more for url in getattr(args, name, None) or ())]


def secrets_of(args: argparse.Namespace, environ: Mapping[str, str]) -> list[str]:
    """The secrets that must not be in any file, log or error."""
    secrets = [key_of(args, environ)]
    secrets += [value for name, value in args.header if is_secret(name)]
    secrets += [value.partition(" ")[2] for value in secrets]  # the KEY of "Bearer KEY" by itself, too
    secrets += [*secrets_in(args.extra_body), *secrets_in(dict(args.metadata))]
    secrets += [secret for url in urls_of(args) for secret in secrets_of_url(url)]
    return [value for value in secrets if len(value) > 3]


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """Every flag as used, with secrets masked; infinity, which JSON lacks, as text."""
    config: dict[str, Any] = {}
    for name, value in sorted(vars(args).items()):
        if name == "api_key":
            value = HIDDEN if value else None
        elif name == "header":
            value = [f"{key}: {HIDDEN if is_secret(key) else text}" for key, text in value]
        elif name == "metadata":
            value = masked_fields(dict(value))
        elif name == "extra_body":
            value = masked_fields(value)
        elif name in ("base_url", "a", "b") and value:
            value = without_userinfo(value)
        elif name in ("engine_metrics", "cancel_metrics") and value:
            value = list(map(without_userinfo, value))
        elif isinstance(value, ErrorLimit):
            value = f"{100 * value.share:g}%" if value.share is not None else value.count
        elif isinstance(value, float) and math.isinf(value):
            value = "inf"
        if not callable(value):
            config[name] = value
    return config
