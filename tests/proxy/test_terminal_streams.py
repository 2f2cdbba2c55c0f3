"""Standard streams that are closed, full, unread or whose reader has gone: every program ends, and says so."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from loadgen.cli.terminal.streams import Stream as LoadgenStream
from proxy.terminal import GONE, Stream, run
from tests.kit.patience import patience
from tests.kit.warm import warm
from tests.proxy.test_terminal import fill

PATIENCE = 60.0
STREAMS = [Stream, LoadgenStream]
PROGRAMS = {
    "settings": (("proxy", "--check-config", "--backend", "http://127.0.0.1:1", "--redis", "off"), 0),
    "wrong settings": (("proxy", "--check-config", "--port", "x"), 2),
    "no start": (("proxy", "--redis", "off", "--backend", "http://127.0.0.1:1", "--host", "192.0.2.1"), 2),
    "help": (("proxy", "--help"), 0),
    "version": (("proxy", "--version"), 0),
    "new key": (("proxy.keys", "new", "a"), 0),
    "probe": (("proxy.probe", "health", "--port", "1"), 1),
    "loadgen help": (("loadgen", "run", "--help"), 0),
    "loadgen usage": (("loadgen", "run", "--none"), 2),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_text_is_written_whole_however_slowly_it_is_read(
    kind: type[Stream] | type[LoadgenStream], pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    stream = kind(writer)
    print("é", "\udcff", file=stream)
    stream.flush()
    assert os.read(reader, 100) == "é \\udcff\n".encode()
    assert (stream.lost, stream.encoding, stream.fileno(), stream.isatty()) == ("", "utf-8", writer, False)


@pytest.mark.parametrize("kind", STREAMS)
def test_a_reader_that_does_not_read_is_waited_for_once(
    kind: type[Stream] | type[LoadgenStream], pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    fill(writer)
    stream = kind(writer, seconds=0.01)
    stream.write("a")
    assert stream.lost == "nobody reads it"
    os.set_blocking(reader, False)
    while True:
        try:
            assert set(os.read(reader, 65536)) == {ord("x")}
        except BlockingIOError:
            break
    stream.write("b")
    with pytest.raises(BlockingIOError):  # after what is lost nothing follows
        os.read(reader, 1)


@pytest.mark.parametrize("kind", STREAMS)
def test_a_reader_that_is_gone_and_a_disk_that_is_full_are_told_apart(
    kind: type[Stream] | type[LoadgenStream], pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    os.close(reader)
    stream = kind(writer)
    stream.write("a")
    assert stream.lost == GONE
    full = os.open("/dev/full", os.O_WRONLY)
    stream = kind(full)
    stream.write("a")
    os.close(full)
    assert stream.lost == "No space left on device"


@pytest.mark.parametrize("kind", STREAMS)
def test_what_a_terminal_would_obey_is_written_out(
    kind: type[Stream] | type[LoadgenStream], pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    kind(writer).write("a\tb\n\x1b[2J\x9b1m\u202eé\x7f\r")
    assert os.read(reader, 100) == "a\tb\n\\x1b[2J\\x9b1m\\u202eé\\x7f\\r".encode()


def test_an_exit_by_words_is_no_number() -> None:
    before = sys.stdout, sys.stderr
    try:
        assert run("x", lambda: 3) == 3
        with pytest.raises(SystemExit):
            run("x", lambda: sys.exit("words"))
    finally:
        sys.stdout, sys.stderr = before


# -- the programs -----------------------------------------------------------------------------------


@contextmanager
def given(kind: str) -> Iterator[int]:
    """A descriptor that takes nothing."""
    with ExitStack() as stack:
        if kind == "full":
            writer = os.open("/dev/full", os.O_WRONLY)
        else:
            reader, writer = os.pipe()
            if kind == "gone":
                os.close(reader)
            else:
                fill(writer)
                stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        yield writer


LATE = {
    "proxy": ("proxy.config", "proxy.program"),
    "proxy.keys": ("proxy.config",),
    "proxy.probe": ("proxy.config",),
    "loadgen": ("loadgen.cli.run",),
}
"""Modules that a program imports late, which a warm start finds imported."""


async def ends(command: Sequence[str], close: str = "", **files: int) -> tuple[int, bytes, bytes]:
    files = dict.fromkeys(("stdout", "stderr"), asyncio.subprocess.PIPE) | files
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f'exec "$@" {close}', "sh", *command),
        stdin=asyncio.subprocess.DEVNULL,
        **files,  # type: ignore[arg-type]
    )
    try:
        async with patience(PATIENCE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out or b"", err or b""


def clean(err: bytes) -> bool:
    return b"Traceback" not in err and b"Exception ignored" not in err and b"Fatal" not in err


@pytest.mark.e2e
@pytest.mark.parametrize("name", PROGRAMS)
async def test_closed_streams_change_no_exit_code(name: str) -> None:
    words, code = PROGRAMS[name]
    for close in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        found, _, err = await ends([sys.executable, "-m", *words], close)
        assert found == code, (close, err)
        assert clean(err), err


@pytest.mark.e2e
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", ["full", "unread", "gone"])
async def test_what_cannot_be_written_hangs_and_crashes_nothing(name: str, kind: str) -> None:
    """What a program was asked to print and could not is exit code 1; a reader that has gone wants no more."""
    (program, *words), code = PROGRAMS[name]
    command = warm(program, *words, preload=LATE[program])  # the interpreter's own start is no matter here
    prints = code == 0
    with given(kind) as bad:
        found, _, err = await ends(command, stdout=bad)
        assert found == (1 if prints and kind != "gone" else code), err
        assert clean(err), err
        if prints and kind != "gone":
            assert b": stdout: " in err
        found, out, _ = await ends(command, stderr=bad)
        assert found == (1 if name == "new key" and kind != "gone" else code)
        assert bool(out) == (prints or name == "no start")  # its log
        found, _, _ = await ends(command, stdout=bad, stderr=bad)
        assert found == (1 if prints and kind != "gone" else code)


@pytest.mark.e2e
@pytest.mark.parametrize("close", ["<&-", "</dev/null"])
async def test_a_key_that_stdin_does_not_hold_is_refused(close: str) -> None:
    code, out, err = await ends([sys.executable, "-m", "proxy.keys", "hash", "a"], close)
    assert (code, out) == (2, b"")
    assert err.startswith(b"proxy.keys: a key has"), err
