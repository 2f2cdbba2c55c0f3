"""Multipart forms: taken apart as python-multipart takes them, which vLLM reads with, or refused."""

from __future__ import annotations

from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, cast

import httpx
import pytest
from aiohttp import FormData
from aiohttp.abc import AbstractStreamWriter
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from python_multipart import multipart
from python_multipart.exceptions import FormParserError

from proxy.errors import GatewayError
from proxy.wire.http.form import MAX_PARTS, MAX_TEXT, read_form
from proxy.wire.http.media_type import media_of
from tests.kit.forms import form_of, joined, part

GOOD = form_of(b"x", {"model": "whisper", "prompt": "hé"})
FILE = part("file", b"RIFF", filename="a.wav")
MODEL = part("model", b"m1")


def plain(head: bytes, value: bytes = b"v") -> bytes:
    return head + b"\r\n\r\n" + value


DISPOSITION = b'Content-Disposition: form-data; name="model"'


def test_parts_lie_where_they_are_said_to() -> None:
    form = read_form(GOOD, b"x")
    assert [(p.name, p.file, GOOD[p.start : p.end]) for p in form.parts] == [
        ("model", False, b"whisper"),
        ("prompt", False, "hé".encode()),
        ("file", True, b"RIFF"),
    ]
    assert (form.text("model"), form.text("none")) == ("whisper", None)
    assert form.texts() == ["model", "prompt", "file", "whisper", "hé"]
    with pytest.raises(GatewayError):
        form.text("file")


@pytest.mark.parametrize(
    "body",
    [
        joined(b"x", MODEL)[:-2],  # no CRLF at the end
        joined(b"x", part("a[]", b"1"), part("a[]", b"2")),
        joined(b"x", part("model", b"")),
        joined(b"x", plain(b"content-disposition:form-data;name=model")),
        joined(b"x", plain(DISPOSITION + b"\r\nContent-Length: 1")),
        joined(b"x", plain(DISPOSITION + b"\r\nContent-Transfer-Encoding: binary\r\nX-Y: z")),
        joined(b"x", plain(DISPOSITION + b"\r\nContent-Type: text/plain; charset=UTF-8")),
        joined(b"x", part("file", b"\r\n-x\r\n--\r\n-\xff", filename="")),
        joined(b"x", plain(b'Content-Disposition: form-data; name="f"; filename="a"; filename*=utf-8\'\'b')),
        joined(b"x", part("_charset_", b"UTF-8"), MODEL),
    ],
)
def test_what_every_reader_takes_alike_is_taken(body: bytes) -> None:
    assert read_form(body, b"x").parts


TWO = "given twice"
REFUSED = [
    (joined(b"x", MODEL, MODEL), TWO),
    (joined(b"x", MODEL, part("model", b"m2", filename="a")), TWO),
    (b"", "begin with the boundary"),
    (b"preamble\r\n" + GOOD, "begin with the boundary"),
    (b"\r\n" + GOOD, "begin with the boundary"),
    (GOOD + b"epilogue", "nothing after"),
    (GOOD + GOOD, "nothing after|end with|followed by"),
    (GOOD + b"\r\n", "nothing after"),
    (GOOD[:-4], "end with|followed by"),
    (GOOD[:-5], "end with"),
    (GOOD[:-20], "headers must end|end with|followed"),
    (b"--x--\r\n" + GOOD, "followed by"),
    (joined(b"y", MODEL), "begin with the boundary"),
    (GOOD.replace(b"\r\n", b"\n"), "followed by|line"),
    (joined(b"x", part("a", b"1\n--x\nContent-Disposition: form-data; name=model\n\nm2")), "beginning of a line"),
    (joined(b"x", part("a", b"1\r--x\r\n")), "beginning of a line"),
    (joined(b"x", part("a", b"1\r\n--xy\r\n")), "followed by"),
    (joined(b"x", part("a", b"1\r\n--x \r\n")), "followed by"),
    (joined(b"x", part("a", b"in a line --x in it")), "beginning of a line"),
    (b"--x\r\n" + MODEL + b"\r\n--x\r\n--x--\r\n", "headers must end|end with|line"),
    (b"--x\r\n\r\nno headers\r\n--x--\r\n", "headers must end|Content-Disposition"),
    (joined(b"x", plain(DISPOSITION + b"\r\nX" + b"y" * 5000)), "within"),
    (joined(b"x", plain(DISPOSITION + b"\r\n" + DISPOSITION)), "two headers"),
    (joined(b"x", plain(DISPOSITION + b"\r\n ; filename=a")), "no header"),
    (joined(b"x", plain(DISPOSITION + b"\r\nX-Y : z")), "no header"),
    (joined(b"x", plain(DISPOSITION + b"\nX-Y: z")), "no header"),
    (joined(b"x", plain(DISPOSITION + b"\r\nX: \x01")), "no header"),
    (joined(b"x", plain(b"\r\n".join([DISPOSITION, *(b"X-%d: 1" % n for n in range(8))]))), "more than 8"),
    (joined(b"x", plain(b"X: y")), "Content-Disposition"),
    (joined(b"x", plain(b"Content-Disposition: attachment; name=model")), "Content-Disposition"),
    (joined(b"x", plain(b"Content-Disposition: form-data")), "a name"),
    (joined(b"x", plain(b"Content-Disposition: form-data; filename=a")), "a name"),
    (joined(b"x", plain(b"Content-Disposition: form-data; name=a; name=model")), "'name' twice"),
    (joined(b"x", plain(b"Content-Disposition: form-data; name=a; NAME=model")), "'name' twice"),
    (joined(b"x", plain(b"Content-Disposition: form-data; name*=utf-8''model")), "plainly|a name"),
    (joined(b"x", plain(b"Content-Disposition: form-data; name=a; name*=utf-8''model")), "plainly"),
    (joined(b"x", plain(b"Content-Disposition: form-data; name=a; name*0=mo; name*1=del")), "plainly"),
    (joined(b"x", plain(b"Content-Disposition: form-data; name=file; filename*=utf-8''a")), "plainly"),
    (
        joined(b"x", plain(b"Content-Disposition: form-data; name=a; name*=m; filename=b; filename*=utf-8''b")),
        "plainly",
    ),
    (joined(b"x", plain(b'Content-Disposition: form-data; name="a\\"; name=\\"model"')), "Content-Disposition"),
    (joined(b"x", plain(b'Content-Disposition: form-data; name="a')), "Content-Disposition"),
    (joined(b"x", plain(b'Content-Disposition: form-data; name="model "')), "spaces"),
    (joined(b"x", plain('Content-Disposition: form-data; name="model\u200b"'.encode())), "spaces|print"),
    (joined(b"x", plain(b'Content-Disposition: form-data; name="m\xff"')), "UTF-8"),
    (joined(b"x", plain(DISPOSITION + b"\r\nContent-Length: 9")), "Content-Length"),
    (joined(b"x", plain(DISPOSITION + b"\r\nContent-Transfer-Encoding: base64", b"bTE=")), "Transfer-Encoding"),
    (joined(b"x", plain(DISPOSITION + b"\r\nContent-Encoding: gzip")), "Content-Encoding"),
    (joined(b"x", plain(DISPOSITION + b"\r\nContent-Type: multipart/mixed; boundary=y")), "multipart itself"),
    (joined(b"x", plain(DISPOSITION + b"\r\nContent-Type: text/plain; charset=utf-16")), "UTF-8"),
    (joined(b"x", part("model", b"\xff\xfem\0")), "not UTF-8"),
    (joined(b"x", part("_charset_", b"utf-16"), MODEL), "UTF-8"),
    (joined(b"x", part("a", b"x" * (MAX_TEXT + 1))), "over"),
    (joined(b"x", *(part(f"p{n}", b"") for n in range(MAX_PARTS + 1))), "more than"),
]


@pytest.mark.parametrize(("body", "why"), REFUSED)
def test_what_readers_could_take_apart_otherwise_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(GatewayError) as e:
        read_form(body, b"x")
    assert e.value.status == 400
    assert any(each in e.value.message for each in why.split("|")), e.value.message


@pytest.mark.parametrize("boundary", [b"-", b"--", b"-a--a", b"aa", b"----WebKitFormBoundary7MA4YWxk", b"=_x?"])
def test_whatever_its_boundary_a_form_is_read_alike_or_refused(boundary: bytes) -> None:
    body = form_of(boundary, {"model": "m", "a": "b"})
    try:
        form = read_form(body, boundary)
    except GatewayError:
        assert boundary in (b"-", b"--")
        return
    assert theirs(body, boundary) == [(p.name, p.file, body[p.start : p.end]) for p in form.parts]


def test_a_value_is_replaced_where_it_is_and_added_where_it_is_not() -> None:
    form = read_form(GOOD, b"x")
    assert form.replaced("model", b"m2") == GOOD.replace(b"whisper", b"m2")
    added = read_form(form.replaced("n", b"7"), b"x")
    assert (added.text("n"), added.text("model"), len(added.parts)) == ("7", "whisper", 4)


# -- what clients send


class Sink:
    """What a form is written to."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        self.data += data


def boundary_of(kind: str) -> bytes:
    return media_of(CIMultiDictProxy(CIMultiDict({"content-type": kind})), json_only=False).boundary


@pytest.mark.parametrize("filename", ["a.wav", 'ü "x".wav'])
async def test_forms_of_usual_clients_are_taken(filename: str) -> None:
    data = {"model": "m", "prompt": "é", "timestamp_granularities[]": ["word", "segment"]}
    request = httpx.Request("POST", "http://x/", data=data, files={"file": (filename, b"RIFF\xff", "audio/wav")})
    form = FormData({"model": "m", "prompt": "é"})
    form.add_field("file", b"RIFF\xff", filename=filename.replace('"', ""), content_type="audio/wav")
    payload, sink = form(), Sink()
    await payload.write(cast(AbstractStreamWriter, sink))
    sent = [(request.headers["content-type"], request.read()), (payload.headers["Content-Type"], bytes(sink.data))]
    for kind, body in sent:
        read = read_form(body, boundary_of(kind))
        assert (read.text("model"), read.text("prompt"), len(read.files)) == ("m", "é", 1)


# -- beside two other readers


def theirs(body: bytes, boundary: bytes) -> list[tuple[str, bool, bytes]] | None:
    """The parts as Starlette has them of python-multipart; None where it refuses."""
    parts: list[dict[str, Any]] = []
    field, value = bytearray(), bytearray()

    def header_end() -> None:
        if bytes(field).lower() == b"content-disposition":
            parts[-1]["disposition"] = bytes(value)
        field.clear()
        value.clear()

    def headers_finished() -> None:
        options = multipart.parse_options_header(parts[-1].get("disposition"))[1]
        if b"name" not in options:
            raise FormParserError("no name")
        parts[-1] |= {"name": options[b"name"].decode(), "file": b"filename" in options}

    try:
        parser = multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": lambda: parts.append({"data": bytearray()}),
                "on_part_data": lambda data, start, end: parts[-1]["data"].extend(data[start:end]),
                "on_part_end": lambda: parts[-1].update(done=True),
                "on_header_field": lambda data, start, end: field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: value.extend(data[start:end]),
                "on_header_end": header_end,
                "on_headers_finished": headers_finished,
            },
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError):
        return None
    return [(each["name"], each["file"], bytes(each["data"])) for each in parts if "done" in each]


def email_reading(body: bytes, boundary: bytes) -> list[tuple[str, bool, bytes]]:
    """The same by Python's own reader of MIME messages."""
    head = b'Content-Type: multipart/form-data; boundary="' + boundary + b'"\r\n\r\n'
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    return [
        (str(each.get_param("name", header="content-disposition")), each.get_filename() is not None,
         bytes(each.get_payload(decode=True) or b""))
        for each in message.iter_parts()
    ]  # fmt: skip


CHUNKS = st.sampled_from(
    [b"--x", b"--x--", b"\r\n", b"\n", b"\r", b"--", b"x", b'Content-Disposition: form-data; name="model"',
     b'; filename="a"', b"; name=b", b"\r\n\r\n", b"a: b", b" ", b"\t", b'"', b"\\", b";", b"m2", b"\x00", b"\xff"]
)  # fmt: skip
FORMS = st.lists(
    st.tuples(st.sampled_from(["model", "prompt", "file", "n"]), st.binary(max_size=6), st.booleans()), max_size=4
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    parts = [part(name, value, filename="f" if file else None) for name, value, file in draw(FORMS)]
    body = joined(b"x", *parts)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(CHUNKS) + body[min(len(body), at + draw(st.integers(0, 4))) :]
    return body


@given(mutated())
@example(GOOD)
def test_a_form_is_read_as_the_engine_reads_it_or_refused(body: bytes) -> None:
    try:
        form = read_form(body, b"x")
    except GatewayError as e:
        assert e.status == 400
        return
    ours = [(p.name, p.file, body[p.start : p.end]) for p in form.parts]
    assert ours == theirs(body, b"x")
    if body.isascii() and b"\r\n" not in b"".join(data for _, _, data in ours):  # email reads lines
        assert [each[:2] for each in ours] == [each[:2] for each in email_reading(body, b"x")]
