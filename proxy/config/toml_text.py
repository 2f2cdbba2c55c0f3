"""Settings as a TOML file that reads back as the same settings, without secrets; and values in TOML."""

from __future__ import annotations

from typing import Any, Final

from proxy.config.redact import shown_url
from proxy.config.settings import Option, Settings, options

_FIRST: Final = "# All settings, as a file for --config. "
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def toml_string(text: str) -> str:
    """A basic string. What is not printable is escaped, so that it cannot control a terminal either."""
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'


def settings_as_toml(settings: Settings) -> str:
    """All settings. The first line says whether secrets are left out, and of which settings."""
    lines: list[str] = []
    secret: list[str] = []
    group = ""
    for option in options():
        if option.group != group:
            group = option.group
            lines += ["", f"# {group}"]
        value = getattr(settings, option.name)
        hint = _secret(option, value)
        if hint:
            secret.append(option.name)
            lines.append(f"# {option.name}{hint}: a secret, left out; set {option.env[0]}")
        elif _is_lowered(option, value):
            lines.append(f"# {option.name} = {_value(option, value)}: its default, lowered to another setting")
        else:
            lines.append(f"{option.name} = {_value(option, value)}")
    left_out = f"Secrets are left out and must be given as well: {', '.join(secret)}."
    return "\n".join([_FIRST + (left_out if secret else "It holds no secret."), *lines]) + "\n"


def _secret(option: Option, value: Any) -> str:
    """What a comment shows of a value that is secret or holds a secret; "" where the value may be shown."""
    if option.hidden:
        return " = ***" if value not in ("", "auto") else ""
    if option.metavar == "URL" and isinstance(value, str) and shown_url(value) != value:
        return f" = {toml_string(shown_url(value))}"
    return ""


def _is_lowered(option: Option, value: Any) -> bool:
    """Whether `reconcile` has lowered a default below what may be set: it does so again where it is left out."""
    if not isinstance(value, int | float):
        return False
    try:
        option.read(option.typed(value))
    except ValueError:
        return True
    return False


def _value(option: Option, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if option.name in ("models", "model_fallbacks"):
        return f"{{{', '.join(f'{toml_string(name)} = {_entry(entry)}' for name, entry in value)}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_string, value))}]"
    if isinstance(value, str):
        return toml_string(value)
    text = option.typed(value)
    return text if text[-1].isdigit() else toml_string(text)


def _entry(entry: tuple[Any, ...]) -> str:
    """What a name of a model stands for: models, or models with weights."""
    if isinstance(entry[0], str):
        return f"[{', '.join(map(toml_string, entry))}]"
    return f"{{{', '.join(f'{toml_string(model)} = {weight!r}' for model, weight in entry)}}}"
