"""The flag that says whose /metrics are read beside a run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from urllib.parse import urlsplit

from loadgen.cli.flags import values
from loadgen.drive import Source
from loadgen.spec import Http

OFF = "off"


def metrics_url(text: str) -> str:
    """A URL, with /metrics where it has no path, or `off`."""
    if text == OFF:
        return text
    url = values.url(text)
    return url if urlsplit(url).path.strip("/") else f"{url}/metrics"


def add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the engine's own figures")
    group.add_argument(
        "--engine-metrics",
        type=metrics_url,
        action="append",
        metavar="URL",
        help="read the /metrics of this vLLM or gateway once a second, besides those of the server itself; "
        "repeatable; off: read none (default: the server's, if it has them)",
    )


def add_gpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", type=values.whole(1), metavar="N", help="GPUs of the server, for its throughput per GPU"
    )


def sources_of(args: argparse.Namespace, targets: Mapping[str, str], http: Http) -> list[Source]:
    """What to read. Headers, which may hold a key, go to the servers of the run only."""
    given = args.engine_metrics or []
    if OFF in given:
        return []
    origins = {urlsplit(base)[:2] for base in targets.values()}
    own = {f"{urlsplit(base).scheme}://{urlsplit(base).netloc}/metrics": name for name, base in targets.items()}
    urls = dict.fromkeys([*own, *given])
    return [
        Source(
            name=(f"server {own[url]}" if len(targets) > 1 else "server")
            if url in own
            else urlsplit(url).netloc.rpartition("@")[2],
            url=url,
            headers=http.headers if urlsplit(url)[:2] in origins else (),
            insecure=http.insecure,
            required=url in given,
        )
        for url in urls
    ]
