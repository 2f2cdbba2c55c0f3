"""The pytest plugin (`-p ops.vllm_tests.plugin`) that points vLLM's server fixture at the gateway, or at vLLM, and
records outcomes. It runs under vLLM's interpreter, so it imports nothing else of this program."""

from __future__ import annotations

import importlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

BROKER, TARGET, ONLY, RESULTS = (
    f"VLLM_TESTS_{name}" for name in ("BROKER", "TARGET", "ONLY", "RESULTS")
)  # a Unix socket; gateway or engine; a file of test ids, or nothing; a file to append to
CLASS = "RemoteOpenAIServer"
SHOWN = 3000  # characters of a failure that are kept: its end


def ask(broker: socket.socket, **demand: Any) -> dict[str, str]:
    """The address of this server, started if no equal one runs, and in use until `broker` closes. Raises
    RuntimeError if it does not start."""
    broker.connect(os.environ[BROKER])
    broker.sendall(json.dumps(demand).encode() + b"\n")
    with broker.makefile("rb") as reply:
        found: dict[str, str] = json.loads(reply.readline() or b'{"error": "the stand is gone"}')
    if "impossible" in found:
        pytest.skip(found["impossible"])
    if "error" in found:
        raise RuntimeError(found["error"])
    return found


class Served:
    """Which tests have a server: through a fixture, or created by the test itself."""

    made = 0
    fixtures: ClassVar[set[str]] = set()


def pointed(original: Any) -> Any:
    """vLLM's class without a process: its clients and URLs point at the stand's server."""

    class Pointed(original):  # type: ignore[misc]  # whichever class the checkout has
        def __init__(
            self,
            model: str,
            vllm_serve_args: list[str],
            *,
            env_dict: dict[str, str] | None = None,
            seed: int | None = 0,
            override_hf_configs: dict[str, Any] | None = None,
            **rest: Any,
        ) -> None:
            del rest  # of processes and their patience
            args = list(vllm_serve_args)
            args += ["--seed", str(seed)] if seed is not None else []
            args += ["--hf-overrides", json.dumps(override_hf_configs)] if override_hf_configs else []
            self.show_hidden_metrics = any("show-hidden-metrics" in word for word in args)
            self.uds = None
            self.broker = socket.socket(socket.AF_UNIX)
            where = ask(self.broker, model=model, args=args, env=env_dict or {})
            self.host, _, port = where[os.environ[TARGET]].rpartition("/")[2].rpartition(":")
            self.port = int(port)
            Served.made += 1

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.broker.shutdown(socket.SHUT_WR)  # the stand keeps it for the next module that asks alike
            self.broker.recv(1)  # it knows that the server is not in use
            self.broker.close()

    Pointed.__name__ = Pointed.__qualname__ = CLASS
    return Pointed


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Runs before any conftest of the checkout imports the class."""
    utils = importlib.import_module("tests.utils")
    setattr(utils, CLASS, pointed(getattr(utils, CLASS)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get(ONLY):
        return
    with open(os.environ[ONLY], encoding="utf-8") as file:
        chosen = set(json.load(file))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    before = Served.made
    result = yield
    if Served.made > before:
        Served.fixtures.add(fixturedef.argname)
    return result


class Record:
    """The record of one test: the outcome of its worst phase."""

    def __init__(self) -> None:
        self.made = 0
        self.found: dict[str, Any] = {}

    def write(self, found: dict[str, Any]) -> None:
        with open(os.environ[RESULTS], "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.made = Served.made
        self.found = {"id": nodeid, "outcome": "passed", "words": "", "seconds": 0.0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.found["seconds"] += report.duration
        if report.failed and self.found["outcome"] != "failed":
            self.found.update(outcome="failed", words=report.longreprtext[-SHOWN:])
        elif report.skipped and self.found["outcome"] == "passed":
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
            self.found.update(outcome="skipped", words=str(why).removeprefix("Skipped: ")[:SHOWN])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        result = yield
        names = getattr(item, "fixturenames", ())
        self.found["served"] = Served.made > self.made or not Served.fixtures.isdisjoint(names)
        self.write(self.found)
        return result

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed or (report.skipped and report.nodeid.endswith(".py")):
            words = report.longreprtext if report.failed else str(report.longrepr)
            self.write({"id": report.nodeid, "outcome": "uncollected", "words": words[-SHOWN:]})


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Record(), "what vLLM's tests came to")
