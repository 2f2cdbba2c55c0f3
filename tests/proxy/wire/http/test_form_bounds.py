"""Forms at their bounds: as many parts, headers and bytes as may be, and names that are cut in refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proxy.errors import GatewayError
from proxy.wire.http.form import MAX_HEAD, MAX_HEADERS, MAX_PARTS, MAX_TEXT, Form, read_form
from tests.kit.forms import joined, part

HEAD = b'Content-Disposition: form-data; name="a"'


def with_headers(*headers: bytes, value: bytes = b"v", name: bytes = b"a") -> bytes:
    return joined(b"x", b"\r\n".join([HEAD.replace(b'"a"', b'"%b"' % name), *headers]) + b"\r\n\r\n" + value)


def refused(body: bytes) -> GatewayError:
    with pytest.raises(GatewayError) as e:
        read_form(body, b"x")
    return e.value


def test_a_form_may_have_so_many_parts() -> None:
    many = [part(f"p{n}", b"") for n in range(MAX_PARTS + 1)]
    assert len(read_form(joined(b"x", *many[:-1]), b"x").parts) == MAX_PARTS
    assert f"more than {MAX_PARTS} parts" in refused(joined(b"x", *many)).message


def test_a_part_may_have_so_many_headers_and_bytes_of_them() -> None:
    headers = [b"X-%d: 1" % n for n in range(MAX_HEADERS)]
    assert read_form(with_headers(*headers[:-1]), b"x").text("a") == "v"
    assert f"more than {MAX_HEADERS} headers" in refused(with_headers(*headers)).message
    room = MAX_HEAD - len(HEAD) - len(b"\r\nX: \r\n\r\n")
    assert read_form(with_headers(b"X: " + b"y" * room), b"x").text("a") == "v"
    assert f"within {MAX_HEAD} bytes" in refused(with_headers(b"X: " + b"y" * (room + 1))).message


def test_a_text_may_have_so_many_bytes_and_a_file_more() -> None:
    form = read_form(
        joined(b"x", part("a", b"y" * MAX_TEXT), part("f", b"z" * (MAX_TEXT + 1), filename="f")), b"x"
    )
    assert [p.end - p.start for p in form.parts] == [MAX_TEXT, MAX_TEXT + 1]
    error = refused(joined(b"x", part("a", b"y" * (MAX_TEXT + 1))))
    assert (error.param, f"over {MAX_TEXT} bytes" in error.message) == ("a", True)


def test_an_empty_part_is_a_part() -> None:
    form = read_form(joined(b"x", part("a", b"")), b"x")
    assert form.text("a") == ""
    assert (form.files, form.parts[0].start) == ([], form.parts[0].end)


LONG = "n" * 70


@pytest.mark.parametrize(
    "body",
    [
        joined(b"x", part(LONG, b""), part(LONG, b"")),
        with_headers(b"Content-Length: 2", name=LONG.encode()),
        with_headers(b"Content-Transfer-Encoding: base64", name=LONG.encode()),
        with_headers(b"Content-Encoding: gzip", name=LONG.encode()),
        with_headers(b"Content-Type: multipart/mixed", name=LONG.encode()),
        with_headers(b"Content-Type: text/plain; charset=latin-1", name=LONG.encode()),
        with_headers(value=b"v" * (MAX_TEXT + 1), name=LONG.encode()),
        with_headers(value=b"\xff", name=LONG.encode()),
        joined(b"x", f'Content-Disposition: form-data; name="{LONG}"; name*=b'.encode() + b"\r\n\r\nv"),
    ],
)
def test_a_name_is_told_by_its_beginning(body: bytes) -> None:
    error = refused(body)
    assert error.param == "n" * 64
    assert "n" * 65 not in error.message


@pytest.mark.parametrize(
    "body",
    [
        with_headers(*[b"%b: 1" % (b"X" * 70)] * 2),
        joined(b"x", b"Content-Disposition: form-data; name=a; %b=1; %b=2\r\n\r\nv" % ((b"x" * 70,) * 2)),
        joined(b"x", f'Content-Disposition: form-data; name=" {"x" * 70}"'.encode() + b"\r\n\r\nv"),
    ],
)
def test_what_else_is_repeated_of_a_form_is_cut(body: bytes) -> None:
    message = refused(body).message
    most = 63 if "spaces around" in message else 64  # the space counts
    assert "x" * most in message
    assert "x" * (most + 1) not in message


@pytest.mark.parametrize(
    "headers",
    [
        [b"Content-Length: 1"],
        [b"Content-Transfer-Encoding: BINARY"],
        [b"Content-Transfer-Encoding: 7bit"],
        [b"Content-Encoding: Identity"],
        [b"Content-Type: multipart"],
        [b"Content-Type: text/plain; charset=utf8"],
        [b'Content-Type: text/plain; charset="UTF-8"; charset=utf-8'],
    ],
)
def test_headers_that_change_nothing_are_taken(headers: Sequence[bytes]) -> None:
    assert read_form(with_headers(*headers), b"x").text("a") == "v"


@pytest.mark.parametrize("kind", [b"text/plain; charset=utf-8; charset=utf-16", b"text/plain;charset="])
def test_each_charset_of_a_type_counts(kind: bytes) -> None:
    assert "UTF-8" in refused(with_headers(b"Content-Type: " + kind)).message


def test_a_repeated_name_may_be_given_where_it_is_a_list() -> None:
    form = read_form(joined(b"x", part("a[]", b"1"), part("a[]", b"2"), part("_charset_", b" UTF8 ")), b"x")
    assert form.text("a[]") == "1"
    assert form.texts() == ["a[]", "a[]", "_charset_", "1", "2", " UTF8 "]


def test_a_file_is_no_text_and_the_refusal_names_it() -> None:
    form = read_form(joined(b"x", part("a", b"1"), part("f", b"2", filename="f")), b"x")
    assert [p.name for p in form.files] == ["f"]
    assert form.texts() == ["a", "f", "1"]
    with pytest.raises(GatewayError, match="'f' is a file") as e:
        form.text("f")
    assert e.value.param == "f"
    assert form.text("g") is None


def test_a_value_is_put_in_the_place_of_its_own_field_alone() -> None:
    body = joined(b"x", part("a", b"1"), part("b", b"22"))
    form = read_form(body, b"x")
    assert read_form(form.replaced("b", b"new"), b"x").texts() == ["a", "b", "1", "new"]
    assert read_form(form.replaced("a", b""), b"x").texts() == ["a", "b", "", "22"]
    assert isinstance(form, Form)
    assert form.body == body
