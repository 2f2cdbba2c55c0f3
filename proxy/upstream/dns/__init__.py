"""Engines that DNS names: a `Discovery` follows the addresses of `dns+http://` URLs (A and AAAA, or SRV), looks
each name up again when its TTL is over, and has the engines changed. An engine is used once it has answered."""

from proxy.upstream.dns.discovery import Discovery

__all__ = ["Discovery"]
