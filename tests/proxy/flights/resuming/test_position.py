"""Where a client is: ids read and written, frames found in a log, `id:` lines under any split."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.flights.flight import SLICE_BYTES
from proxy.flights.resuming.position import Numbered, Position, Seam, mark_of, read_position, walk
from proxy.flights.resuming.record import Record, Request, hashed, read_record
from proxy.wire import LAST_CHUNK, chunk, unchunks

FRAMES = st.lists(
    st.binary(max_size=40).map(lambda data: b"data: " + data.replace(b"\n", b" ") + b"\n\n"), max_size=20
)
A, B = "a" * 16, "b" * 16


class Pipe:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes | memoryview) -> bool:
        self.data += bytes(data)
        return True


@given(st.integers(0, 10**12 - 1), st.sampled_from(["", A, B]))
def test_a_position_is_read_as_it_is_written(frames: int, mark: str) -> None:
    assert read_position(str(Position(frames, mark))) == Position(frames, mark)


@pytest.mark.parametrize(
    "text", ["", " ", "-", "1-", "-1", "1.0", "1e3", "٣", "1" * 13, f"1-{A[1:]}", f"1-{A.upper()}", "1\n"]
)
def test_what_is_no_position(text: str) -> None:
    assert read_position(text) is None


def test_frames_behind_a_seam_have_its_mark() -> None:
    seams = [Seam(3, A), Seam(5, B), Seam(5, "c" * 16)]
    assert [mark_of(seams, frame)[:1] for frame in range(1, 8)] == ["", "", "", "a", "a", "c", "c"]


@given(FRAMES, st.integers(0, 30), st.integers(1, 5))
def test_a_frame_is_found_in_a_log_of_one_piece(frames: list[bytes], wanted: int, steps: int) -> None:
    log = b"".join(map(chunk, frames))
    *_, (passed, offset) = walk(log, wanted, steps)
    assert passed == min(wanted, len(frames))
    assert unchunks(log[offset:]) == frames[passed:]


@given(FRAMES, st.data(), st.integers(0, 3))
def test_ids_are_the_same_however_the_stream_is_cut(frames: list[bytes], data: st.DataObject, before: int) -> None:
    stream = b"".join(map(chunk, frames)) + LAST_CHUNK
    pipe = Pipe()
    seams = [Seam(4, A)]
    numbered = Numbered(pipe, before, seams)
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, 64))
        assert numbered.write(memoryview(stream)[at : at + size])
        at += size
    assert pipe.data.endswith(LAST_CHUNK)
    got = unchunks(pipe.data.removesuffix(LAST_CHUNK))
    wanted = []
    for n, frame in enumerate(frames, before + 1):
        wanted += [f"id: {n}-{A}\n".encode() if n > 4 else b"id: %d\n" % n, frame]
    assert got == wanted


def test_a_comment_has_no_id_and_a_frame_that_begins_with_one_has() -> None:
    pipe = Pipe()
    numbered = Numbered(pipe, 0, [])
    frames = (b": keep-alive\n\n", b": x\ndata: 1\n\n", b"data: 2\n\n")
    for frame in frames:
        numbered.write(chunk(frame))
    assert unchunks(pipe.data) == [frames[0], b"id: 1\n", frames[1], b"id: 2\n", frames[2]]


OURS = [b"id: 1\n", b"id: 2\n"]
ENGINE_IDS = [
    (b"id: 7\ndata: a\n\n", b"data: a\n\n"),
    (b"data: a\nid: 7\n\n", b"data: a\n\n"),
    (b"data: a\nid\n\n", b"data: a\n\n"),  # which would reset the client's
    (b"id:7\r\ndata: a\r\nid\r\nid: 8\r\n\r\n", b"data: a\r\n\r\n"),
    (b"id: 7\rdata: a\rid: x\r\r", b"data: a\r\r"),
    (b"\xef\xbb\xbfdata: a\n\n", b"data: a\n\n"),
    (b"\xef\xbb\xbfid: 7\nevent: message\ndata: a\n\n", b"event: message\ndata: a\n\n"),
    (b"identity: 7\ndata: id: 7\n id: 7\n\n", b"identity: 7\ndata: id: 7\n id: 7\n\n"),
    (b'data: {"id":7}\n\n', b'data: {"id":7}\n\n'),
]


@pytest.mark.parametrize(("frame", "said"), ENGINE_IDS)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_an_engine_s_own_ids_and_bom_are_dropped_however_the_stream_is_cut(
    frame: bytes, said: bytes, size: int
) -> None:
    assert numbered([frame, b"id: 9\n\n", b": x\nid: 9\n\n", frame], size) == [
        *(OURS[0], said, b"\n", b": x\n\n", OURS[1], said)
    ]


@pytest.mark.parametrize("size", [3000, SLICE_BYTES, 10**6])
def test_ids_before_the_data_of_a_large_frame_are_dropped(size: int) -> None:
    data = b"data: " + b"x" * (3 * SLICE_BYTES) + b"\n\n"
    assert numbered([b"\xef\xbb\xbfid: 7\n" + data, data], size) == [OURS[0], data, OURS[1], data]


def numbered(frames: list[bytes], size: int) -> list[bytes]:
    """What a client gets that is written these frames in pieces of this size."""
    pipe = Pipe()
    made = Numbered(pipe, 0, [])
    stream = b"".join(map(chunk, frames)) + LAST_CHUNK
    for at in range(0, len(stream), size):
        made.write(memoryview(stream)[at : at + size])
    assert pipe.data.endswith(LAST_CHUNK)
    return unchunks(pipe.data.removesuffix(LAST_CHUNK))


@given(st.binary(max_size=60))
def test_a_record_is_read_as_it_is_written_and_nothing_else_is_one(junk: bytes) -> None:
    record = Record(b"c", b"f", Request("chat", "m1", "alias", b"{}"), True, False, True, 30.0, (Seam(3, A),))
    encoded = record.encoded()
    assert read_record(encoded) == record
    assert read_record(None) is None
    for data in (encoded[:-1], encoded + b"x", junk):
        assert read_record(data) is None or data == encoded
    for other in (
        replace(record, grace=math.nan),
        replace(record, seams=(Seam(3, "\ndata: x"),)),
        replace(record, seams=(Seam(-1, A),)),
    ):
        assert read_record(other.encoded()) is None


def test_the_name_in_redis_differs_by_tenant() -> None:
    assert len({hashed(b"a", "bc"), hashed(b"ab", "c"), hashed(b"", "abc"), hashed(b"a", "b")}) == 4
