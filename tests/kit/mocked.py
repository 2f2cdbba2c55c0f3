"""A client's request without a connection."""

from __future__ import annotations

from typing import Any

from aiohttp.test_utils import make_mocked_request


class _Mocked:
    """aiohttp's, with what a `Request` of the gateway's has besides: a head that is not a known one."""

    plain = False
    made = None

    def __init__(self, request: Any) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def mocked_request(method: str, path: str, **more: Any) -> Any:
    """`more`: as `make_mocked_request` has it."""
    return _Mocked(make_mocked_request(method, path, **more))
