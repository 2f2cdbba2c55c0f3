"""`ops/production.toml` is accepted, also with what is commented out, and fits the grace period of the unit."""

from __future__ import annotations

import re
import tomllib

import pytest

from proxy.config.loader import load
from proxy.config.settings import options
from tests.ops.kit import OPS, ROOT, check_config, grace_is_enough

FILE = OPS / "production.toml"
COMMENTED = re.compile(r"^# (?=[a-z_]+ = )", re.MULTILINE)


def test_the_gateway_accepts_it_as_it_is() -> None:
    done = check_config(["python", "-m", "proxy", "--config", str(FILE)], {})
    open_to_all = "host = 0.0.0.0: without api_keys_file everyone who reaches it may use the engines"
    assert (done.code, done.err) == (0, f"proxy: warning: {open_to_all}\n")  # until its keys are uncommented
    assert tomllib.loads(done.out).keys() >= {option.name for option in options()}
    assert "secret." in done.out.splitlines()[0]


def test_what_is_commented_out_are_settings_too() -> None:
    text = FILE.read_text()
    whole = COMMENTED.sub("", text)
    assert whole.count("\n") == text.count("\n")
    settings = load(["--config", "x"], {}, lambda path: whole)
    assert settings.warnings == ()
    assert all((settings.tls_cert, settings.api_keys_file, settings.backend_api_key_file))


@pytest.mark.parametrize(
    "name",
    [
        *("backends", "redis", "max_inflight", "queue_timeout", "host", "api_keys_file", "admin_port", "tls_cert"),
        *("rate_limit_rps", "log_format", "memory_budget", "drain_delay"),
    ],
)
def test_it_has_what_is_set_first_and_says_why(name: str) -> None:
    before, found, _ = COMMENTED.sub("", FILE.read_text()).partition(f"\n{name} = ")
    assert found
    heading = before.rpartition("\n\n")[2]
    assert heading.startswith("# -- ")
    assert heading.count("\n# ") >= 1


def test_its_drain_fits_the_unit() -> None:
    printed = check_config(["python", "-m", "proxy", "--config", str(FILE)], {}).out
    seconds = re.search(
        r"^TimeoutStopSec=(\d+)$", (ROOT / "ops/systemd/gateway.service").read_text(), re.MULTILINE
    )
    assert seconds is not None
    assert grace_is_enough(float(seconds[1]), printed)
