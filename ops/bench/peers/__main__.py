"""Install the peers, or check that they work."""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ops.bench.peers import HOME, PEERS, InstallError, Peer, peer
from ops.bench.peers.check import check
from ops.bench.peers.folder import say
from ops.bench.subjects import end_on_sigterm


def main(arguments: Sequence[str] | None = None) -> int:
    """0 on success, 1 if a peer failed, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m ops.bench.peers", description=__doc__)
    parser.add_argument("action", choices=("install", "check"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"peers (default: all): {', '.join(PEERS)}")
    parser.add_argument("--home", type=Path, default=HOME, help="folder of the peers (default: %(default)s)")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.names if name not in PEERS]:
        parser.error(f"unknown peer {', '.join(unknown)}: choose from {', '.join(PEERS)}")
    home = args.home.expanduser().absolute()
    act = _install if args.action == "install" else _check
    return max([_tried(act, peer(name), home) for name in args.names or PEERS])


def _tried(act: Callable[[Peer, Path], bool], one: Peer, home: Path) -> int:
    """Exit status for one peer; if it fails, the others still run."""
    try:
        return 0 if act(one, home) else 1
    except (InstallError, RuntimeError, OSError, http.client.HTTPException) as error:
        say(f"{one.name}: {error}")
        return 1


def _install(one: Peer, home: Path) -> bool:
    began = time.monotonic()
    one.install(home)
    print(f"{one.name} {one.version(home)}: ready after {time.monotonic() - began:.1f} s", flush=True)
    return True


def _check(one: Peer, home: Path) -> bool:
    found = check(one, home)
    print(
        f"{found.name} {found.version}: started in {found.start_seconds:.2f} s; "
        f"JSON: {found.plain}; streamed: {found.streamed}",
        flush=True,
    )
    return found.right


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
