"""Files that change while the gateway runs, over sockets: keys, deny lists, certificates, the engines' key."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.app import App
from tests.kit.certificates import Authority
from tests.kit.client import get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.patience import patience
from tests.kit.redis_server import Certificate, redis_server, tls_end
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until
from tests.proxy.access.test_policy import bearer, entry
from tests.proxy.server.listener.test_tls import connected, trusting
from tests.proxy.telemetry.test_metrics import samples
from tests.system.test_life import started

CHAT = "/v1/chat/completions"
NOTICED = 5.0  # seconds


class Volume:
    """A folder as the kubelet mounts a Secret: its files are links through `..data`, which is swapped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def put(self, **files: str | Path) -> None:
        self._number += 1
        version = self._folder / f"..{self._number}"
        version.mkdir(parents=True)
        for stem, content in files.items():
            name = stem.replace("_", ".")
            data = content.read_bytes() if isinstance(content, Path) else content.encode()
            (version / name).write_bytes(data)
            (version / name).chmod(0o600)
            if not (self._folder / name).is_symlink():
                (self._folder / name).symlink_to(f"..data/{name}")
        (self._folder / "..tmp").symlink_to(version.name)
        (self._folder / "..tmp").replace(self._folder / "..data")
        if self._number > 1:
            shutil.rmtree(self._folder / f"..{self._number - 1}")

    def path(self, name: str) -> str:
        return str(self._folder / name)


async def noticed(fact: Callable[[], bool]) -> None:
    """Within the time in which it has to be."""
    async with patience(NOTICED):
        await until(fact)


def metric(app: App, name: str) -> float:
    return samples(app.metrics).get(f"gateway_{name}", -1.0)


def reloads(app: App, file: str, result: str = "good") -> float:
    return metric(app, f'reloads_total{{file="{file}",result="{result}"}}')


async def test_a_symlink_swap_of_keys_and_deny_list_is_noticed_by_itself(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    volume = Volume(tmp_path / "volume")
    volume.put(keys_toml=entry("ka", "team-a"), deny_txt="bluebird\n")
    async with gateway(
        engine, api_keys_file=volume.path("keys.toml"), deny_file=volume.path("deny.txt"), log_to=tmp_path / "log"
    ) as app:
        assert (await post_json(app.url, CHAT, HELLO, bearer("ka"))).status == 200
        volume.put(keys_toml=entry("kb", "team-b"), deny_txt="hello\nbluebird\n")
        await noticed(lambda: reloads(app, "api_keys_file") == reloads(app, "deny_file") == 1)
        assert (await post_json(app.url, CHAT, HELLO, bearer("ka"))).status == 401
        denied = await post_json(app.url, CHAT, HELLO, bearer("kb"))
        assert denied.json()["error"]["code"] == "content_denied"
    told = {line["setting"]: line for line in lines(tmp_path / "log") if line["msg"] == "reloaded"}
    assert told["api_keys_file"]["what"] == "added: team-b; removed: team-a"
    assert told["api_keys_file"]["who"] == "file"
    assert told["deny_file"]["what"] == "2 rules"
    log = (tmp_path / "log").read_bytes()
    assert b"sha256" not in log


async def test_a_half_written_keys_file_changes_nothing_and_the_whole_one_is_taken(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    both = entry("ka", "team-a") + entry("kb", "team-b")
    path.write_text(both)
    async with (
        gateway(engine, api_keys_file=str(path), log_to=tmp_path / "log") as app,
        streaming(app.url, CHAT, HELLO_STREAM, bearer("kb")) as client,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        assert await client.event() is not None
        write = path.write_text
        write(both[:-80])  # in the middle of the second entry
        await noticed(lambda: reloads(app, "api_keys_file", "failed") == 1)
        assert metric(app, 'last_reload_successful{file="api_keys_file"}') == 0
        assert (await get(app.url, "/v1/models", bearer("kb"))).status == 200
        write(both + entry("kc", "team-c"))
        await noticed(lambda: reloads(app, "api_keys_file") == 1)
        assert metric(app, 'last_reload_successful{file="api_keys_file"}') == 1
        assert (await get(app.url, "/v1/models", bearer("kc"))).status == 200
        await turn.finish()
        assert b"[DONE]" in (await client.read()).body  # its key was there all the time
    (failed,) = [line for line in lines(tmp_path / "log") if line["msg"] == "not reloaded"]
    assert (failed["event"], failed["result"], failed["file"]) == ("audit", "failed", str(path))


async def test_a_deny_list_is_swapped_under_load_and_each_request_meets_one_whole_list(
    engine: Engine, tmp_path: Path
) -> None:
    engine.auto(echo_script())
    path, new = tmp_path / "deny.txt", tmp_path / "new.txt"
    path.write_text("first secret\n")
    async with gateway(engine, deny_file=str(path)) as app:

        async def says(text: str) -> int:
            body = HELLO | {"messages": [{"role": "user", "content": text}]}
            return (await post_json(app.url, CHAT, body)).status

        statuses: set[tuple[int, int]] = set()
        swapped = False

        async def load() -> None:
            while not swapped:
                statuses.add((await says("the first secret"), await says("the second secret")))

        loads = [asyncio.create_task(load()) for _ in range(4)]
        await until(lambda: statuses == {(400, 200)})
        new.write_text("".join(f"some rule {number}\n" for number in range(5_000)) + "second secret\n")
        new.replace(path)
        await noticed(lambda: reloads(app, "deny_file") == 1)
        swapped = True
        await asyncio.gather(*loads)
        assert statuses <= {(400, 200), (400, 400), (200, 400)}
        assert (await says("the first secret"), await says("the second secret")) == (200, 400)


async def test_a_certificate_is_rotated_by_a_swap_and_old_connections_live_on(
    engine: Engine, tmp_path: Path
) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    one, two = first.issue("localhost", days=30), second.issue("localhost", days=3)
    volume = Volume(tmp_path / "volume")
    volume.put(tls_crt=one.cert, tls_key=one.key)
    cert, key = volume.path("tls.crt"), volume.path("tls.key")
    async with gateway(engine, tls_cert=cert, tls_key=key, log_to=tmp_path / "log") as app:
        left = 'certificate_seconds_left{certificate="tls_cert"}'
        assert metric(app, left) == pytest.approx(30 * 86_400, abs=120)
        async with await connected(app.port, trusting(first)) as old:
            volume.put(tls_crt=two.cert, tls_key=two.key)
            await noticed(lambda: reloads(app, "tls_cert") == 1)
            assert metric(app, left) == pytest.approx(3 * 86_400, abs=120)
            async with await connected(app.port, trusting(second)) as new:
                for client in (old, new):
                    await client.request("GET", "/health")
                    assert (await client.read()).status == 200
            with pytest.raises(ssl.SSLError):
                await connected(app.port, trusting(first))
            bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a client that names no server gets the new one too
            bare.check_hostname = False
            bare.load_verify_locations(str(second.pem))
            _, writer = await asyncio.open_connection("127.0.0.1", app.port, ssl=bare)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
            writer.close()
            volume.put(tls_crt=one.cert, tls_key=two.key)  # a pair that does not fit
            await noticed(lambda: reloads(app, "tls_cert", "failed") == 1)
            async with await connected(app.port, trusting(second)) as new:
                await new.request("GET", "/health")
                assert (await new.read()).status == 200
    warned = [line for line in lines(tmp_path / "log") if line["msg"] == "certificate expires soon"]
    assert [line["certificate"] for line in warned] == ["tls_cert"]


async def test_the_key_that_engines_ask_for_is_another_for_the_next_request(
    engine: Engine, tmp_path: Path
) -> None:
    engine.auto(echo_script())
    secret = tmp_path / "secret"
    write = secret.write_text
    write("first-key\n")
    async with gateway(engine, backend_api_key_file=str(secret), log_to=tmp_path / "log") as app:
        for key, number in (("first-key", 0), ("second-key", 1)):
            write(f"{key}\n")
            await noticed(lambda number=number: reloads(app, "backend_api_key_file") == number)  # type: ignore[misc]
            assert (await post_json(app.url, CHAT, HELLO)).status == 200
            assert engine.requests[-1].headers["authorization"] == f"Bearer {key}"
        write("two words\n")
        await noticed(lambda: reloads(app, "backend_api_key_file", "failed") == 1)
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
        assert engine.requests[-1].headers["authorization"] == "Bearer second-key"
    log = (tmp_path / "log").read_bytes()
    for secret_text in (b"first-key", b"second-key", b"two words"):
        assert secret_text not in log


async def test_a_deleted_file_keeps_what_was_in_force_until_it_is_back(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    path = tmp_path / "keys.toml"
    text = entry("ka", "team-a")
    path.write_text(text)
    async with gateway(engine, api_keys_file=str(path), log_to=tmp_path / "log") as app:
        path.rename(tmp_path / "away")
        await noticed(lambda: reloads(app, "api_keys_file", "failed") == 1)
        assert (await post_json(app.url, CHAT, HELLO, bearer("ka"))).status == 200
        (tmp_path / "away").rename(path)
        await noticed(lambda: reloads(app, "api_keys_file") == 1)
        assert metric(app, 'last_reload_successful{file="api_keys_file"}') == 1
    told = [(line["msg"], line.get("what")) for line in lines(tmp_path / "log") if line.get("event") == "audit"]
    assert told == [("not reloaded", None), ("reloaded", "no key")]


@pytest.mark.e2e
async def test_the_running_program_ends_a_removed_keys_stream_and_reads_new_engines(
    engine: Engine, tmp_path: Path
) -> None:
    volume = Volume(tmp_path / "volume")

    def put(*entries: str, engines: list[str]) -> None:
        volume.put(keys_toml="".join(entries), gateway_toml=f"backends = {engines!r}")

    put(entry("ka", "team-a"), entry("kb", "team-b"), engines=[engine.url])
    flags = (
        "--config",
        volume.path("gateway.toml"),
        "--api-keys-file",
        volume.path("keys.toml"),
        "--redis",
        "off",
    )
    async with (
        Engine(echo_script()) as second,
        started(tmp_path / "log", *flags) as process,
        streaming(process.url, CHAT, HELLO_STREAM, bearer("ka")) as client,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        assert await client.event() is not None
        async with patience(NOTICED):
            put(entry("kb", "team-b"), engines=[second.url])
            assert b'"key_revoked"' in (await client.read()).body
        await process.logged("engines changed")
        assert (await post_json(process.url, CHAT, HELLO, bearer("kb"))).status == 200
        assert second.generations == 1
        process.signal(signal.SIGTERM)
        await process.ended()
    audits = {line["msg"] for line in process.lines() if line.get("event") == "audit"}
    assert audits == {"reloaded", "requests ended", "stopping"}


async def test_the_certificate_shown_to_engines_is_another_for_the_next_connection(tmp_path: Path) -> None:
    from tests.kit.certificates import server_context

    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    server = theirs.issue("localhost")
    first, second = ours.issue("first"), ours.issue("second", days=20)
    volume = Volume(tmp_path / "volume")
    volume.put(ca_crt=theirs.pem, tls_crt=first.cert, tls_key=first.key)
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subject = writer.get_extra_info("peercert")["subject"]
        seen.append(subject[0][0][1])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n\r\n" + b'{"data":[]}')
        await writer.drain()
        writer.close()

    context = server_context(server, clients_of=ours.pem)
    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{listener.sockets[0].getsockname()[1]}"
    async with (
        listener,
        gateway(
            url,
            backend_ca=volume.path("ca.crt"),
            backend_cert=volume.path("tls.crt"),
            backend_key=volume.path("tls.key"),
            refresh_seconds=0.1,
        ) as app,
    ):
        await until(lambda: "first" in seen)
        volume.put(ca_crt=theirs.pem, tls_crt=second.cert, tls_key=second.key)
        await noticed(lambda: reloads(app, "backend_cert") == 1)
        await noticed(lambda: seen[-1] == "second")
        left = metric(app, 'certificate_seconds_left{certificate="backend_cert"}')
        assert left == pytest.approx(20 * 86_400, abs=120)


async def test_the_certificates_of_redis_hold_for_its_next_connection(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = Certificate.make(tmp_path / "one"), Certificate.make(tmp_path / "two")
    trusted = tmp_path / "ca.pem"
    shutil.copy(one.cert, trusted)
    async with redis_server() as path, tls_end(path, two) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={trusted}&ssl_certfile={one.cert}&ssl_keyfile={one.key}"
        async with gateway(engine, redis=url, redis_timeout_ms=1000) as app:
            assert app.cache is not None
            assert not app.cache.available  # it is another's certificate that it trusts
            assert metric(app, 'certificate_seconds_left{certificate="redis"}') == pytest.approx(
                2 * 86_400, abs=120
            )
            shutil.copy(two.cert, tmp_path / "new.pem")
            (tmp_path / "new.pem").replace(trusted)
            await noticed(lambda: reloads(app, "redis") == 1)
            await until(lambda: app.cache is not None and app.cache.available)
            assert (await post_json(app.url, CHAT, HELLO)).status == 200
