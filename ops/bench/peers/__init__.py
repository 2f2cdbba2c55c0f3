"""The programs that the gateway is compared with: each installed into its own folder and run with one worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ops.bench.peers import pypi
from ops.bench.peers.base import InstallError, Peer
from ops.bench.peers.debian import Haproxy, Nginx
from ops.bench.peers.naive import Naive
from ops.bench.peers.npm import Portkey

__all__ = ["HOME", "PEERS", "InstallError", "Peer", "peer"]

HOME: Final = Path("~/.cache/streaming-gateway/bench")  # not expanded yet

PEERS: Final[Mapping[str, Callable[[], Peer]]] = {
    "nginx": Nginx,
    "haproxy": Haproxy,
    "vllm-router": pypi.vllm_router,
    "vllm-router-rr": pypi.vllm_router_round_robin,
    "sglang-router": pypi.sglang_router,
    "smg": pypi.smg,
    "portkey": Portkey,
    "litellm": pypi.LiteLLM,
    "aiohttp-naive": Naive,
}


def peer(name: str) -> Peer:
    """The peer of that name. Raises KeyError listing the known ones."""
    if name not in PEERS:
        raise KeyError(f"unknown peer {name!r}: choose from {', '.join(PEERS)}")
    return PEERS[name]()
