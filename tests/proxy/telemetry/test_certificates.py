"""How long certificates are valid: the weakest of a chain, a gauge, one warning a day."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from proxy.errors import SettingsError
from proxy.telemetry.certificates import DAY, WARN_DAYS, Certificates, expiry_of
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from tests.kit.certificates import Authority
from tests.kit.running import lines
from tests.proxy.telemetry.test_metrics import samples


def test_a_chain_is_as_good_as_its_weakest_part(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    long, short = authority.issue("localhost", days=90), authority.issue("localhost", days=3)
    assert expiry_of("tls_cert", str(long.cert)) == pytest.approx(time.time() + 90 * DAY, abs=60)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(long.cert.read_bytes() + short.cert.read_bytes() + long.key.read_bytes())
    assert expiry_of("tls_cert", str(chain)) == pytest.approx(time.time() + 3 * DAY, abs=60)


@pytest.mark.parametrize(
    "text", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_told(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "cert.pem"
    path.write_bytes(text)
    with pytest.raises(SettingsError, match="must hold certificates in PEM form"):
        expiry_of("backend_cert", str(path))
    with pytest.raises(SettingsError, match="No such file"):
        expiry_of("backend_cert", str(tmp_path / "no-such"))


def test_what_expires_soon_is_warned_of_once_a_day_and_anew_when_it_is_renewed(tmp_path: Path) -> None:
    path, now = tmp_path / "log", 1e9
    log, metrics = Log(os.open(path, os.O_WRONLY | os.O_CREAT)), Metrics()
    certificates = Certificates(metrics, log, clock=lambda: now)
    certificates.renew("tls_cert", now + (WARN_DAYS + 1) * DAY)
    certificates.look()
    left = 'gateway_certificate_seconds_left{certificate="tls_cert"}'
    assert samples(metrics)[left] == (WARN_DAYS + 1) * DAY
    for _ in range(48):  # two days
        now += DAY / 24
        certificates.look()
    assert samples(metrics)[left] == (WARN_DAYS - 1) * DAY
    certificates.renew("tls_cert", now - 5)
    certificates.renew("tls_cert", now - 5)
    log.close(30)
    told = [(line["level"], line["msg"], line["certificate"], line["days_left"]) for line in lines(path)]
    # The first at less than 14 days, an hour after the first day; the next one a day later is not due yet.
    assert told == [
        ("warning", "certificate expires soon", "tls_cert", pytest.approx(14.0, abs=0.1)),
        ("warning", "certificate has expired", "tls_cert", pytest.approx(0.0, abs=0.1)),
    ]


def test_the_times_of_warnings_are_kept_to_the_second(tmp_path: Path) -> None:
    path, now = tmp_path / "log", 1e9
    log, metrics = Log(os.open(path, os.O_WRONLY | os.O_CREAT)), Metrics()
    certificates = Certificates(metrics, log, clock=lambda: now)
    ends = now + WARN_DAYS * DAY
    certificates.renew("a", ends)
    certificates.renew("b", ends + 10 * DAY)
    assert samples(metrics)['gateway_certificate_seconds_left{certificate="b"}'] == (WARN_DAYS + 10) * DAY
    certificates.look()  # 14 days are no warning yet
    for after in (1.0, DAY, DAY + 1.0, 2 * DAY, 2 * DAY + 1.0, WARN_DAYS * DAY):
        now = 1e9 + after
        certificates.look()
        certificates.look()
    log.close(30)
    told = [line for line in lines(path) if line["certificate"] == "a"]
    assert [line["days_left"] for line in told] == [14.0, 13.0, 12.0, 0.0]
    assert [line["msg"] for line in told] == ["certificate expires soon"] * 3 + ["certificate has expired"]
    assert told[0]["expires"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))


def test_the_same_certificate_read_again_is_not_warned_of_again_and_another_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(os.open(path, os.O_WRONLY | os.O_CREAT))
    certificates = Certificates(Metrics(), log, clock=lambda: 1e9)
    for expires in (1e9 + DAY, 1e9 + DAY, 1e9 + 2 * DAY):
        certificates.renew("a", expires)
    log.close(30)
    assert [line["days_left"] for line in lines(path)] == [1.0, 2.0]
