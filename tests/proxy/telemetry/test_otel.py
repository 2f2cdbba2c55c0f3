"""OpenTelemetry asked for: what is said where it is not installed, or cannot do what the environment asks for."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.resources import prepare
from proxy.telemetry import otel
from proxy.telemetry.log import Log
from tests.kit.patience import run_process
from tests.kit.running import lines


def test_without_the_extra_the_settings_are_refused_and_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install .*\[trace\]"):
        prepare(Settings(trace="otlp"))
    prepare(Settings())


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_another_protocol_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} = 'grpc'"):
        otel.packages({name: "grpc"})


def test_the_program_ends_with_2_before_it_starts_anything() -> None:
    environ = os.environ | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "GATEWAY_TRACE": "otlp"}
    command = [sys.executable, "-m", "proxy", "--backend", "http://127.0.0.1:9", "--check-config"]
    done = run_process(command, env=environ, capture_output=True, text=True, seconds=50)
    assert done.returncode == 2
    assert "http/protobuf only" in done.stderr


def test_what_opentelemetry_says_again_and_again_is_told_once_in_a_while(tmp_path: Path) -> None:
    path, now = tmp_path / "log", [0.0]
    log = Log(os.open(path, os.O_WRONLY | os.O_CREAT))
    words = otel._Words(log, clock=lambda: now[0])
    logger = logging.getLogger("opentelemetry.sdk")
    for at in (0.0, 1.0, otel.TELL_SECONDS - 1, otel.TELL_SECONDS, otel.TELL_SECONDS + 1):
        now[0] = at
        logger.warning("away at %g", at)
    words.close()
    log.close(30)
    assert [line["detail"] for line in lines(path)] == ["away at 0", f"away at {otel.TELL_SECONDS:g}"]
    assert logging.getLogger("opentelemetry").handlers == []
