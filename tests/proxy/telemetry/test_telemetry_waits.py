"""What is waited for and what is not passed over: a full terminal, and a certificate behind a good one."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import pytest

from proxy import terminal
from proxy.telemetry.certificates import DAY, WARN_DAYS, Certificates
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from tests.kit.running import lines


def test_a_full_terminal_is_waited_for_without_turning(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Poll:
        def register(self, fd: int, what: int) -> None:
            told.append((fd, what))

        def poll(self) -> None:
            told.append("waits")

    def write(fd: int, data: memoryview) -> int:
        if told[-1:] != ["waits"]:
            raise BlockingIOError
        told.append(bytes(data[:2]))
        return 2

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(select, "poll", Poll)
    terminal._write(7, b"abcd")
    assert told == [(7, select.POLLOUT), "waits", b"ab", (7, select.POLLOUT), "waits", b"cd"]


def test_every_certificate_is_looked_at(tmp_path: Path) -> None:
    log = Log(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT))
    certificates = Certificates(Metrics(), log, lambda: 0.0)
    for name, days in (("good", WARN_DAYS), ("soon", WARN_DAYS - 1), ("fine", 900), ("gone", -1)):
        certificates.renew(name, days * DAY)
    log.close(30)
    told = [(line["certificate"], line["msg"]) for line in lines(tmp_path / "log")]
    assert told == [("soon", "certificate expires soon"), ("gone", "certificate has expired")]
