"""The headers of every answer."""

from __future__ import annotations

from proxy.wire.http.security import SECURITY_HEADERS, SECURITY_LINES


def test_every_answer_is_no_script_and_for_its_own_origin() -> None:
    assert SECURITY_LINES == "x-content-type-options: nosniff\r\ncross-origin-resource-policy: same-origin\r\n"
    assert SECURITY_HEADERS == {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
