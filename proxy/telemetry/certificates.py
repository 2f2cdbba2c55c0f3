"""How long certificates are valid: read from their files, exported as gauges, and warned of once a day near the
end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from proxy.errors import SettingsError
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics

WARN_DAYS: Final = 14
DAY: Final = 86_400.0
EVERY: Final = 60.0  # seconds between two checks


def expiry_of(name: str, path: str) -> float:
    """Unix time at which the first certificate of a PEM chain expires. Raises SettingsError; `name` is the
    setting."""
    # Imported here: without TLS it costs no start-up time.
    from cryptography.x509 import load_pem_x509_certificates

    try:
        with open(path, "rb") as file:
            chain = load_pem_x509_certificates(file.read())
        return min(certificate.not_valid_after_utc for certificate in chain).timestamp()
    except OSError as e:
        raise SettingsError(f"{name} = {path!r}: {e.strerror or e}") from None
    except (ValueError, OverflowError):
        raise SettingsError(f"{name} = {path!r}: must hold certificates in PEM form") from None


class Certificates:
    """The certificates in use, by the setting that names them."""

    def __init__(self, metrics: Metrics, log: Log, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._expiries: dict[str, float] = {}
        self._warned: dict[str, float] = {}

    def renew(self, name: str, expires: float) -> None:
        """This certificate is in use from now on; `expires` is Unix time."""
        if name not in self._expiries:
            self._metrics.gauge(
                "certificate_seconds_left",
                "Time until the certificate in use expires; negative once it has expired.",
                lambda: self._expiries[name] - self._clock(),
                {"certificate": name},
            )
        if self._expiries.get(name) != expires:
            self._expiries[name] = expires
            self._warned.pop(name, None)
        self.look()

    def look(self) -> None:
        """Warn of certificates that expire within WARN_DAYS, each once a day."""
        now = self._clock()
        for name, expires in self._expiries.items():
            left = expires - now
            if left >= WARN_DAYS * DAY or now - self._warned.get(name, -DAY) < DAY:
                continue
            self._warned[name] = now
            self._log.event(
                "warning",
                "certificate has expired" if left <= 0 else "certificate expires soon",
                certificate=name,
                days_left=round(left / DAY, 1),
                expires=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires)),
            )
