"""The command `python -m proxy.keys`: makes an API key and its entry for the keys file, or the entry of an
existing key. The entry goes to stdout, a new key to stderr."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence

import msgspec

from proxy import __version__
from proxy.access import hash_of, read_keys
from proxy.errors import SettingsError
from proxy.telemetry import run

KEY_BYTES = 32


def new_key() -> str:
    """256 random bits, in a form that secret scanners recognise."""
    return "sk-" + secrets.token_urlsafe(KEY_BYTES)


def entry(
    key: str,
    name: str,
    *,
    tenant: str | None = None,
    models: Sequence[str] = (),
    expires: str | None = None,
    operator: bool = False,
) -> str:
    """The entry of the keys file, in TOML."""
    lines = ["[[keys]]", f"name = {_text(name)}", f'sha256 = "{hash_of(key).hex()}"']
    if tenant is not None:
        lines.append(f"tenant = {_text(tenant)}")
    if models:
        lines.append(f"models = [{', '.join(map(_text, models))}]")
    if expires is not None:
        lines.append(f"expires = {_text(expires)}")
    if operator:
        lines.append('role = "operator"')
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    return msgspec.json.encode(value).decode()  # a JSON string is a valid TOML basic string


def _given() -> str:
    """The first line of stdin; empty where stdin is closed or not text."""
    try:
        return sys.stdin.readline().strip() if sys.stdin is not None else ""
    except (OSError, UnicodeDecodeError):
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m proxy.keys",
        description="Make API keys for --api-keys-file. The entry goes to stdout, to be appended to the file; "
        "a new key goes to stderr, once: the file holds only its SHA-256.",
    )
    parser.add_argument("--version", action="version", version=f"streaming-gateway {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, help in (("new", "make a key"), ("hash", "read an existing key from stdin")):
        sub = commands.add_parser(command, help=help)
        sub.add_argument("name", metavar="NAME", help="name of the key in the log")
        sub.add_argument("--tenant", help="tenant, within which answers may be shared; default: the key alone")
        sub.add_argument(
            "--model", action="append", default=[], help="a model that the key may use, repeatable; default: all"
        )
        sub.add_argument("--expires", metavar="TIME", help="expiry, such as 2027-01-31T00:00:00Z; default: never")
        sub.add_argument("--operator", action="store_true", help="allow the metrics, the state and the page")
    options = parser.parse_args(argv)
    key = new_key() if options.command == "new" else _given()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        sys.stderr.write("proxy.keys: a key has printable ASCII characters and no spaces\n")
        return 2
    made = entry(
        key,
        options.name,
        tenant=options.tenant,
        models=options.model,
        expires=options.expires,
        operator=options.operator,
    )
    try:
        read_keys(made, "NAME")
    except SettingsError as e:
        sys.stderr.write(f"proxy.keys: {e}\n")
        return 2
    if options.command == "new":
        sys.stderr.write(key + "\n")
    sys.stdout.write(made)
    return 0


def command() -> int:
    """The program's exit code: the entry of the console script."""
    return run("proxy.keys", main, both=True)


if __name__ == "__main__":
    sys.exit(command())
