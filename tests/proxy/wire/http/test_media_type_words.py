"""A body's type in words: what is told of one that is refused, cut where it is long."""

from __future__ import annotations

import pytest

from proxy.errors import Code, GatewayError
from proxy.wire.http.media_type import Media, media_of, require_json, require_plain, unread
from tests.proxy.wire.http.test_media_type import headers, typed

HOW = "add the header Content-Type: application/json (curl: -H 'content-type: application/json')"
FORMS = ("accept", "application/json, multipart/form-data")
JSON = ("accept", "application/json")


def refused(kind: str | None, *more: tuple[str, str], json_only: bool = False) -> GatewayError:
    with pytest.raises(GatewayError) as e:
        media_of(headers() if kind is None else typed(kind, *more), json_only=json_only)
    return e.value


@pytest.mark.parametrize("json_only", [False, True])
def test_a_body_without_a_type_is_told_what_to_add(json_only: bool) -> None:
    error = refused(None, json_only=json_only)
    assert (error.message, error.headers) == (f"The body has no Content-Type: {HOW}.", (JSON,))


@pytest.mark.parametrize(
    ("kind", "json_only", "message", "accepted"),
    [
        ("x" * 70 + "; a", True, f"Send application/json, not {'x' * 64!r}: {HOW}.", JSON),
        ("x" * 70, False, f"The Content-Type {'x' * 64!r} is none: {HOW}.", FORMS),
        ("text/" + "x" * 70, False, f"not text/{'x' * 64}: {HOW}.", FORMS),
        ("a/x-www-form-urlencoded", False, f"not a/x-www-form-urlencoded: {HOW}.", FORMS),
        ("application/json; charset=" + "x" * 70, True, f"Send the body in UTF-8, not in {'x' * 64!r}.", JSON),
        ("multipart/form-data; charset=latin-1; boundary=x", False, "not in 'latin-1'.", JSON),
    ],
)
def test_a_type_that_is_refused_is_told_by_its_beginning(
    kind: str, json_only: bool, message: str, accepted: tuple[str, str]
) -> None:
    error = refused(kind, json_only=json_only)
    assert error.message.endswith(message), error.message
    assert (error.code, error.headers) == (Code.UNSUPPORTED_MEDIA_TYPE, (accepted,))


def test_two_types_and_a_path_whose_bodies_are_checked() -> None:
    error = refused("application/json", ("content-type", "application/json"))
    assert (error.message, error.headers) == ("There is more than one Content-Type; send one.", (FORMS,))
    told = unread("/" * 300)
    assert f"so {'/' * 200} takes application/json, or" in told.message
    assert (told.headers, told.status) == ((FORMS,), 415)


def test_a_form_is_checked_for_its_boundary_and_its_encoding() -> None:
    error = refused("multipart/form-data; boundary=" + "a" * 71)
    assert (error.code, error.param) == (Code.INVALID_HEADER, "content-type")
    for kind in ("multipart/form-data; boundary=x", "application/json"):
        error = refused(kind, ("content-encoding", "g" * 70))
        assert error.message == f"Send the body without a Content-Encoding, not as {'g' * 64!r}."
    assert media_of(typed("multipart/form-data; boundary=x", ("content-encoding", " ")), json_only=False) == Media(
        "form", b"x"
    )
    require_plain(headers(("content-encoding", ""), ("content-encoding", " identity ")))
    require_json(typed(" application/json\t"))
    assert media_of(typed("audio/wav", ("content-encoding", "gzip")), json_only=False) == Media("other")
