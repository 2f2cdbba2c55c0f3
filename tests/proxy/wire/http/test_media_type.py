"""What a head says of its body: a type is required, and what is right is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import Code, GatewayError
from proxy.wire.http.media_type import Media, media_of, require_json, require_plain
from tests.kit.cpu import cpu_seconds


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


def typed(kind: str, *more: tuple[str, str]) -> CIMultiDictProxy[str]:
    return headers(("content-type", kind), *more)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; charset=utf8 ;",
        "application/json; version=1",
        "application/vnd.api+json",
        "text/x+json",
    ],
)
def test_json_in_utf_8_is_taken(kind: str) -> None:
    require_json(typed(kind))
    assert media_of(typed(kind), json_only=True) == media_of(typed(kind), json_only=False) == Media("json")


ELSEWHERE = ("multipart/form-data; boundary=x", "application/jsonx", "application/octet-stream")


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/octet-stream",
        "json",
        "application/",
        "/json",
        "application/json, text/plain",
        "text/plain, application/json",
        "application/json text/plain",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=utf-8; charset=utf-16",
        "application/json; charset=utf-8; charset=utf-8",
        'application/json; charset="utf-8',
        "application/json; =x",
        "application\t/json",
        "application/json\x00",
        "text/plain; application/json",
        "multipart/form-data; x=application/json",
    ],
)
def test_any_other_type_is_refused_on_a_path_that_takes_json(kind: str | None) -> None:
    given_headers = headers() if kind is None else typed(kind)
    for check in (require_json, lambda h: media_of(h, json_only=True)):
        with pytest.raises(GatewayError) as e:
            check(given_headers)
        assert e.value.code is Code.UNSUPPORTED_MEDIA_TYPE
        assert ("accept", "application/json") in e.value.headers
        if "charset" not in str(kind):
            assert "content-type: application/json" in e.value.message
    if kind not in (None, *ELSEWHERE):
        with pytest.raises(GatewayError):
            media_of(given_headers, json_only=False)


@pytest.mark.parametrize(
    "codings", [["gzip"], ["identity", "gzip"], ["br"], ["identity, gzip"], ["x", "identity"]]
)
def test_an_encoded_body_is_refused_and_no_encoding_is_named(codings: list[str]) -> None:
    found = headers(("content-type", "application/json"), *(("content-encoding", coding) for coding in codings))
    for check in (require_plain, lambda h: media_of(h, json_only=False)):
        with pytest.raises(GatewayError) as e:
            check(found)
        assert (e.value.status, e.value.headers) == (415, (("accept-encoding", "identity"),))
    require_plain(headers(("content-encoding", "Identity")))
    require_plain(headers())


@pytest.mark.parametrize("kind", ["application/octet-stream", "audio/wav", "application/jsonl", "image/png; a=b"])
def test_elsewhere_a_type_that_a_page_has_to_ask_for_is_another(kind: str) -> None:
    assert media_of(typed(kind), json_only=False) == Media("other")


@pytest.mark.parametrize(
    "kind", ["text/plain", "TEXT/html", "multipart/mixed; boundary=x", "application/x-www-form-urlencoded"]
)
def test_a_type_that_any_page_can_send_is_refused_everywhere(kind: str) -> None:
    with pytest.raises(GatewayError) as e:
        media_of(typed(kind), json_only=False)
    assert e.value.status == 415


@pytest.mark.parametrize("boundary", ["x", '"x"', "----WebKitFormBoundary7MA4YWxk", '"a=b?"', "a" * 70])
def test_the_boundary_of_a_form_is_read(boundary: str) -> None:
    plain = boundary.strip('"')
    assert media_of(typed(f"multipart/form-data; boundary={boundary}"), json_only=False) == Media(
        "form", plain.encode()
    )


@pytest.mark.parametrize(
    "parameters",
    [
        "", "; boundary=", '; boundary=""', "; boundary=x; boundary=y", "; boundary=x; Boundary=x",
        "; boundary=" + "a" * 71, '; boundary="a b "', "; boundary*=utf-8''x", "; boundary=a{b",
        "; charset=utf-16; boundary=x", "; boundary=x;; a",
    ],
)  # fmt: skip
def test_a_boundary_that_readers_could_take_otherwise_is_refused(parameters: str) -> None:
    with pytest.raises(GatewayError) as e:
        media_of(typed("multipart/form-data" + parameters), json_only=False)
    assert e.value.status in (400, 415)


def test_two_types_are_refused() -> None:
    both = headers(("content-type", "application/json"), ("content-type", "text/plain"))
    with pytest.raises(GatewayError):
        media_of(both, json_only=False)
    with pytest.raises(GatewayError):
        media_of(both, json_only=True)


@given(st.text(max_size=40) | st.text("aj/;=+ \t\"\\'json", max_size=60))
def test_any_text_is_a_type_or_is_refused(kind: str) -> None:
    try:
        found = media_of(typed(kind), json_only=False)
    except GatewayError as e:
        assert e.status in (400, 415)
        return
    assert "/" in kind
    assert found.kind in ("json", "form", "other")


def test_a_long_type_takes_no_long_time() -> None:
    for kind in ("application/json" + "; a=b" * 3000, "application/json" + " ;" * 8000, "a/b" + '; c="' * 4000):
        try:
            media_of(typed(kind), json_only=False)
        except GatewayError as e:
            assert len(e.message) < 400


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=a; boundary*=utf-8''b",
        "multipart/form-data; boundary*0=a; boundary=a",
        "multipart/form-data; boundary=a; charset*=utf-16",
        "application/json; charset*=utf-8''utf-16",
    ],
)
def test_a_parameter_that_another_reader_takes_for_a_second_one_is_refused(kind: str) -> None:
    with pytest.raises(GatewayError) as caught:
        media_of(typed(kind), json_only=False)
    assert caught.value.code is Code.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(
    "kind",
    [
        f"application/json{' ' * 60_000}x",
        f"application/json{'; ' * 30_000}x",
        f"application/json{';a=b' * 15_000} x",
        f"application/json;a={'b' * 60_000} x",
        f'application/json;a="{";a=b" * 15_000}',
    ],
)
def test_a_type_is_read_in_time_linear_in_its_length(kind: str) -> None:
    def refused() -> None:
        with pytest.raises(GatewayError):
            require_json(typed(kind))

    assert cpu_seconds(refused) < 0.2
