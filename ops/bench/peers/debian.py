"""nginx and HAProxy: Debian's packages unpacked into a folder (no root, nothing else is changed), with their
configurations."""

from __future__ import annotations

import os
import platform
import pwd
import resource
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ops.bench.peers.base import PINS, Command, InstallError
from ops.bench.peers.folder import Run, ensure, need, run, say

MAX_CONNECTIONS: Final = 8192  # on each side

NGINX: Final = """\
{user}worker_processes 1;
worker_rlimit_nofile {files};
daemon off;
pid {work}/nginx.pid;
error_log {work}/nginx.error.log warn;
events {{
    use epoll;
    worker_connections {connections};
}}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 100000000;
    client_max_body_size 0;
    client_body_buffer_size 128k;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    upstream engine {{
        server {engine};
        keepalive 4096;
        keepalive_requests 100000000;
        keepalive_timeout 600s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_buffer_size 16k;
            proxy_buffers 4 16k;
            proxy_busy_buffers_size 32k;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""

HAPROXY: Final = """\
global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    http-reuse always
    option http-no-delay
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 600s
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend engine
backend engine
    server engine {engine} pool-purge-delay 600s
"""


def nginx_config(work: Path, port: int, engine: str, *, files: int, user: str | None) -> str:
    """`user`: the worker's user if the master runs as root; it must be able to write into `work`."""
    # Both sides of a stream are connections of the one worker.
    return NGINX.format(
        user=f"user {user};\n" if user else "", files=files, connections=2 * MAX_CONNECTIONS,
        work=work, port=port, engine=urlsplit(engine).netloc,
    )  # fmt: skip


def haproxy_config(port: int, engine: str, *, files: int) -> str:
    # A stream takes two descriptors; HAProxy refuses to start if the limit is too low for its maxconn.
    connections = max(64, min(MAX_CONNECTIONS, (files - 64) // 2))
    return HAPROXY.format(connections=connections, port=port, engine=urlsplit(engine).netloc)


class Debian:
    """A program of a Debian package, with the libraries that only it needs."""

    ready = "/health"  # forwarded: the engine answers
    reserialises = False
    libraries: tuple[str, ...] = ("libpcre2-8-0",)

    def __init__(self, name: str, run: Run = run) -> None:
        self.name = name
        self._run = run

    def headers(self, engine: str) -> dict[str, str]:
        return {}

    def install(self, home: Path) -> None:
        folder = home / self.name
        ensure(folder, f"{PINS[self.name]} {self.libraries}", lambda: self._install(folder))

    def version(self, home: Path) -> str:
        return need(home / self.name / "version", self.name).read_text()

    def _install(self, folder: Path) -> None:
        debs = folder / "debs"
        debs.mkdir()
        try:
            self._run(["apt-get", "download", f"{self.name}={PINS[self.name]}"], cwd=debs)
        except InstallError:
            say(f"no {self.name}={PINS[self.name]} is offered; taking the revision that is")
            try:
                self._run(["apt-get", "download", self.name], cwd=debs)
            except InstallError as error:
                raise InstallError(f"{error}\n{self.name} comes from Debian: run apt-get update first") from error
        (own,) = debs.glob("*.deb")
        version = self._run(["dpkg-deb", "-f", str(own), "Version"]).strip()
        self._run(["apt-get", "download", *self.libraries], cwd=debs)
        for deb in sorted(debs.iterdir()):
            self._run(["dpkg-deb", "-x", str(deb), str(folder)])
        linked = self._run(["env", *_assignments(self._env(folder)), "ldd", str(self._program(folder))])
        missing = [line.split()[0] for line in linked.splitlines() if "not found" in line]
        if missing:
            raise InstallError(
                f"{self.name} lacks {', '.join(missing)}: apt-get install {self.name} installs them"
            )
        (folder / "version").write_text(version)

    def _program(self, folder: Path) -> Path:
        return folder / "usr" / "sbin" / self.name

    def _env(self, folder: Path) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(folder / "usr" / "lib" / f"{platform.machine()}-linux-gnu")}


class Nginx(Debian):
    def __init__(self, run: Run = run) -> None:
        super().__init__("nginx", run)

    def command(self, home: Path, work: Path, port: int, engine: str) -> Command:
        program = need(self._program(home / self.name), self.name)
        config = work / "nginx.conf"
        user = pwd.getpwuid(0).pw_name if os.geteuid() == 0 else None
        config.write_text(nginx_config(work, port, engine, files=open_files(), user=user))
        # -e: otherwise it writes to /var/log until it has read its configuration.
        argv = [str(program), "-p", str(work), "-e", str(work / "nginx.error.log"), "-c", str(config)]
        return Command(argv, self._env(home / self.name), work)


class Haproxy(Debian):
    libraries = ("libpcre2-8-0", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")

    def __init__(self, run: Run = run) -> None:
        super().__init__("haproxy", run)

    def command(self, home: Path, work: Path, port: int, engine: str) -> Command:
        program = need(self._program(home / self.name), self.name)
        config = work / "haproxy.cfg"
        config.write_text(haproxy_config(port, engine, files=open_files()))
        return Command([str(program), "-db", "-f", str(config)], self._env(home / self.name), work)


def open_files() -> int:
    """The highest limit of file descriptors that this user may set."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)


def _assignments(env: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in env.items()]
