"""Owns `--check-config`: the settings in force, in the form that `--config` reads, without secrets.
Must not know what the settings do.
Called by `__main__`."""

from __future__ import annotations

import msgspec

from proxy.config.redact import shown_url
from proxy.config.settings import Settings, options
from proxy.prepare import prepare


def check(settings: Settings) -> tuple[str, list[str]]:
    """Every setting as a line of TOML, and warnings. What the settings name is read too: keys, deny list,
    certificates. Raises SettingsError."""
    prepared = prepare(settings)
    lines = []
    for option in options():
        value = getattr(settings, option.name)
        if option.metavar == "URL":
            value = [shown_url(url) for url in value] if isinstance(value, tuple) else shown_url(value)
        shown = msgspec.json.encode(list(value) if isinstance(value, tuple) else value).decode()
        if option.hidden and value:
            lines.append(f"# {option.name} is set, and not shown")
        else:
            lines.append(f"{option.name} = {shown}")
    return "\n".join(lines) + "\n", [*settings.warnings, *prepared.warnings]
