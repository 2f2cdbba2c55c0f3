"""Settings as frozen data, where they come from, and the names that users write.

A reader meets, in this order:

- `Settings` declares every setting once: default, flag, environment variable, TOML key, help and the reader of
  its value (`values`). An `Option` is one setting as it is given.
- `load` reads flags, environment and file, in this order of precedence, and reports all errors at once.
- `flags` is the command line: help, version, completion. `hints` says what an unknown name may have meant.
- `conflicts` finds settings that exclude or need one another; settings that bound one another are reconciled by
  `load`.
- `settings_as_toml` writes them as a file that reads back as the same settings.
- `read_file` reads a file that a setting names. The module `file_watch` loads it again when it changes; it is not
  imported here, as it needs asyncio and most commands do not.
- `ModelNames` are the names of models that clients may use, resolved to those of the engines.
- `read_keys_file` reads the API keys file: a `KeyEntry` for each key.
- `Known`, `mask_url`, `shown_url`, `shown_address` and `shown_path` decide what of a value may be shown.
- `vocabulary` holds the names that several rooms know: retry causes, priorities, routing policies.

What a setting does is decided elsewhere; this room knows no request, engine or Redis.
"""

from proxy.config.conflicts import conflicts
from proxy.config.files import no_password, pair_problem, read_file, warn_if_open
from proxy.config.flags import Parser, program_name, version
from proxy.config.keys_file import KeyEntry, hash_of, read_keys_file
from proxy.config.loader import exposed, load
from proxy.config.model_names import ModelNames, alias_conflicts, model_names
from proxy.config.redact import Known, mask_url, secrets_in, shown_address, shown_path, shown_url
from proxy.config.settings import Settings, options
from proxy.config.toml_text import settings_as_toml, toml_string
from proxy.config.values import redis_hosts, salt_secret, secret
from proxy.config.vocabulary import (
    CONNECT,
    DEFAULT_RETRY_CAUSES,
    FIRST_TOKEN,
    MALFORMED,
    NORMAL,
    PRIORITIES,
    RESET,
    RETRY_CAUSES,
    RETRY_STATUSES,
    STALE,
    TRUNCATED,
)

__all__ = [
    "CONNECT",
    "DEFAULT_RETRY_CAUSES",
    "FIRST_TOKEN",
    "MALFORMED",
    "NORMAL",
    "PRIORITIES",
    "RESET",
    "RETRY_CAUSES",
    "RETRY_STATUSES",
    "STALE",
    "TRUNCATED",
    "KeyEntry",
    "Known",
    "ModelNames",
    "Parser",
    "Settings",
    "alias_conflicts",
    "conflicts",
    "exposed",
    "hash_of",
    "load",
    "mask_url",
    "model_names",
    "no_password",
    "options",
    "pair_problem",
    "program_name",
    "read_file",
    "read_keys_file",
    "redis_hosts",
    "salt_secret",
    "secret",
    "secrets_in",
    "settings_as_toml",
    "shown_address",
    "shown_path",
    "shown_url",
    "toml_string",
    "version",
    "warn_if_open",
]
