"""The command `python -m proxy.keys`, or `gateway-keys`: makes an API key and its entry for the keys file, or the
entry of an existing key. The entry goes to stdout, a new key to stderr."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence

from proxy.config import Parser, hash_of, program_name, read_keys_file, toml_string, version
from proxy.errors import SettingsError
from proxy.terminal import run

KEY_BYTES = 32
SHORT = 16  # characters: a shorter key can be guessed, by its hash too
FORM = "a key has printable ASCII characters and no spaces"


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
    lines = ["[[keys]]", f"name = {toml_string(name)}", f'sha256 = "{hash_of(key).hex()}"']
    if tenant is not None:
        lines.append(f"tenant = {toml_string(tenant)}")
    if models:
        lines.append(f"models = [{', '.join(map(toml_string, models))}]")
    if expires is not None:
        lines.append(f"expires = {toml_string(expires)}")
    if operator:
        lines.append('role = "operator"')
    return "\n".join(lines) + "\n"


def _given() -> str:
    """The first line of stdin; empty where stdin is closed or not text."""
    try:
        return sys.stdin.readline().strip() if sys.stdin is not None else ""
    except (OSError, UnicodeDecodeError):
        return ""


def command() -> int:
    """Run the command. Returns its exit code."""
    return run("proxy.keys", main, both=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises SettingsError: one line, without the values given, of which one may be a key."""
    parser = Parser(
        prog=program_name(sys.argv[0], "proxy.keys"),
        description="Make API keys for --api-keys-file. The entry goes to stdout, to be appended to the file; "
        "a new key goes to stderr, once: the file holds only its SHA-256.",
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, help in (("new", "make a key"), ("hash", "read an existing key from stdin")):
        sub = commands.add_parser(command, help=help)
        sub.add_argument("name", metavar="NAME", help="name of the key in the log")
        sub.add_argument("--tenant", help="tenant, within which answers may be shared; default: the key alone")
        sub.add_argument(
            "--model", action="append", default=[], help="a model that the key may use, repeatable; default: all"
        )
        sub.add_argument("--expires", metavar="TIME", help="expiry, such as 2027-01-31T00:00:00Z; default: never")
        sub.add_argument("--operator", action="store_true", help="allow the metrics, the state and the page")
    options, unknown = parser.parse_known_args(argv)
    if options.command is None:
        raise SettingsError(f"a COMMAND is required, new or hash; {parser.prog} --help explains them")
    for word in unknown:
        if word.startswith("-"):
            raise SettingsError(f"unknown flag {word.partition('=')[0]}; {parser.prog} new --help lists the flags")
        raise SettingsError("one NAME is expected, and no other argument; a key is read from stdin")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Raises SystemExit(0) after help and version."""
    try:
        options = _options(argv)
    except SettingsError as e:
        sys.stderr.write(f"proxy.keys: {e}\n")
        return 2
    key = new_key() if options.command == "new" else _given()
    if not key:
        sys.stderr.write(f"proxy.keys: {FORM}; hash reads it from stdin: hash NAME < FILE\n")
        return 2
    if not key.isascii() or not key.isprintable() or " " in key:
        sys.stderr.write(f"proxy.keys: {FORM}\n")
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
        read_keys_file(made, "")
    except SettingsError as e:
        sys.stderr.write(f"proxy.keys: {str(e).partition(': ')[2]}\n")  # without the line of a file
        return 2
    if options.command == "new":
        sys.stderr.write(key + "\n")
    elif len(key) < SHORT:
        sys.stderr.write(
            f"proxy.keys: warning: a key under {SHORT} characters can be guessed; new NAME makes one\n"
        )
    sys.stdout.write(made)
    return 0


if __name__ == "__main__":
    sys.exit(command())
