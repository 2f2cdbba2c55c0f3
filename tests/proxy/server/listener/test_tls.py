"""TLS to clients: no older than 1.2, read again, and wrong files told."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
from pathlib import Path

import pytest

from proxy.errors import SettingsError
from proxy.server.listener.tls import server_context
from tests.kit.certificates import Authority, encrypt
from tests.kit.client import Connection
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import PATIENCE
from tests.kit.patience import patience
from tests.kit.running import HELLO, gateway
from tests.system.test_life import started


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.pem))


async def connected(port: int, context: ssl.SSLContext) -> Connection:
    return Connection(
        *await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost", limit=2**20)
    )


async def test_clients_are_served_over_tls_and_a_new_certificate_is_taken_at_once(
    engine: Engine, tmp_path: Path
) -> None:
    engine.auto(echo_script())
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def use(authority: Authority) -> None:
        issued = authority.issue("localhost")
        shutil.copy(issued.cert, cert)
        shutil.copy(issued.key, key)

    use(first)
    async with gateway(engine, tls_cert=str(cert), tls_key=str(key)) as app:
        assert app.url.startswith("https://")
        async with await connected(app.port, trusting(first)) as client:
            await client.request("POST", "/v1/chat/completions", str(HELLO).replace("'", '"').encode())
            assert (await client.read()).status == 200
            use(second)
            await app.reload()
            async with await connected(app.port, trusting(second)) as other:
                await other.request("GET", "/health")
                assert (await other.read()).status == 200
            key.write_bytes(b"nonsense")
            await app.reload()  # told, and not taken
            async with await connected(app.port, trusting(second)) as other:
                await other.request("GET", "/health")
                assert (await other.read()).status == 200
            await client.request("GET", "/health")
            assert (await client.read()).status == 200
            with pytest.raises(ssl.SSLError):
                await connected(app.port, trusting(first))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_what_is_older_than_tls_1_2_or_no_tls_gets_nothing(engine: Engine, tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("localhost")
    async with gateway(engine, tls_cert=str(issued.cert), tls_key=str(issued.key)) as app:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connected(app.port, old)
        async with await Connection.open(f"http://127.0.0.1:{app.port}") as plain:
            await plain.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP" not in await plain.reader.read(100)


def test_wrong_files_are_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("localhost"), authority.issue("other")
    for cert, key, says in (
        (tmp_path / "no-such", one.key, "No such file"),
        (one.cert, other.key, "KEY_VALUES_MISMATCH"),
        (one.key, one.key, "PEM"),
        (one.cert, encrypt(one.key), "is encrypted"),
    ):
        with pytest.raises(SettingsError) as e:
            server_context(str(cert), str(key))
        assert says in str(e.value)


def test_each_wrong_file_is_told_by_its_setting_and_what_it_lacks(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("localhost"), authority.issue("other")
    gone, empty, half = (str(tmp_path / name) for name in ("gone", "empty", "half.pem"))
    Path(empty).touch()
    Path(half).write_bytes(one.key.read_bytes().replace(b"M", b"!"))
    cert, key = str(one.cert), str(one.key)
    no_key, no_cert = "holds no private key in PEM form", "holds no certificate in PEM form"
    for given, says in (
        ((gone, key), f"tls_cert = '{gone}': No such file or directory"),
        ((cert, gone), f"tls_key = '{gone}': No such file or directory"),
        ((cert, str(tmp_path)), f"tls_key = '{tmp_path}': Is a directory"),
        ((cert, ""), f"tls_cert = '{cert}': {no_key}, and tls_key is not set"),
        ((key, cert), f"tls_cert = '{key}': {no_cert}; it is a private key: tls_key is for that"),
        ((cert, cert), f"tls_key = '{cert}': {no_key}; it is a certificate: tls_cert is for that"),
        ((empty, key), f"tls_cert = '{empty}': {no_cert}"),
        ((cert, empty), f"tls_key = '{empty}': {no_key}"),
        (
            (cert, str(other.key)),
            f"tls_key = '{other.key}': is not the key of tls_cert = '{cert}' (KEY_VALUES_MISMATCH)",
        ),
    ):
        with pytest.raises(SettingsError) as e:
            server_context(*given)
        assert str(e.value) == says
    with pytest.raises(SettingsError, match="must be a certificate chain and its private key, in PEM form"):
        server_context(cert, half)


@pytest.mark.e2e
async def test_the_running_program_speaks_tls(engine: Engine, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("localhost")
    flags = (
        "--backend",
        engine.url,
        "--redis",
        "off",
        "--tls-cert",
        str(issued.cert),
        "--tls-key",
        str(issued.key),
    )
    async with started(tmp_path / "log", *flags) as process:
        port = int(process.url.rpartition(":")[2])
        async with await connected(port, trusting(authority)) as client:
            await client.request("GET", "/ready")
            assert (await client.read()).status == 200
        process.signal(signal.SIGTERM)
        await process.ended()


async def test_a_handshake_that_never_comes_is_bounded_as_a_head_is(engine: Engine, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "one")
    issued = authority.issue("localhost")
    async with gateway(engine, tls_cert=str(issued.cert), tls_key=str(issued.key), head_timeout=0.2) as app:
        port = app.port
        for part in (b"", b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(part)
            async with patience(PATIENCE):
                assert await reader.read() == b""
            writer.close()
    timeout = 0.2
    while True:  # a handshake, and then no head; on a busy machine the time may be over before the handshake is
        async with gateway(
            engine, tls_cert=str(issued.cert), tls_key=str(issued.key), head_timeout=timeout
        ) as app:
            try:
                secured = await connected(app.port, trusting(authority))
            except (ConnectionError, ssl.SSLError):
                if timeout > PATIENCE:
                    raise
                timeout *= 2
                continue
            async with secured:
                assert await secured.at_eof()
            break


def test_http_1_1_is_what_is_spoken_over_tls_1_2_or_newer(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("localhost")
    context = server_context(str(issued.cert), str(issued.key))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    ours = trusting(authority)
    ours.set_alpn_protocols(["h2", "http/1.1"])
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(down, up, server_hostname="localhost")
    server = context.wrap_bio(up, down, server_side=True)
    left: list[ssl.SSLObject] = [client, server]
    for _ in range(10):
        for end in tuple(left):
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert left == []
    assert client.selected_alpn_protocol() == "http/1.1"
