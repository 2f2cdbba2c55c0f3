"""Settings as frozen data, where they come from, and the names that users write.

A reader meets, in this order:

- `Settings` declares every setting once: default, flag, environment variable, TOML key, help and the reader of
  its value (`values`). An `Option` is one setting as it is given.
- `load` reads flags, environment and file, in this order of precedence, and reports all errors at once.
- `conflicts` finds settings that exclude or need one another; settings that bound one another are reconciled by
  `load`.
- `read_file` reads a file that a setting names. `FileWatch` loads it again when it changes: a `Watched` is one
  setting's files, `Contents` their digests, a `Take` puts loaded content in effect on the event loop.
- `Known`, `mask_url`, `shown_url` and `shown_path` decide what of a value may be shown.
- `vocabulary` holds the names that several rooms know: retry causes, priorities, routing policies.

What a setting does is decided elsewhere; this room knows no request, engine or Redis.
"""

from proxy.config.conflicts import conflicts
from proxy.config.file_watch import Contents, FileWatch, Take, Watched
from proxy.config.files import no_password, read_file, warn_if_open
from proxy.config.loader import exposed, load
from proxy.config.redact import Known, mask_url, secrets_in, shown_path, shown_url
from proxy.config.settings import VERSION, Settings, options
from proxy.config.values import secret
from proxy.config.vocabulary import (
    CONNECT,
    DEFAULT_RETRY_CAUSES,
    FIRST_TOKEN,
    NORMAL,
    PRIORITIES,
    RESET,
    RETRY_CAUSES,
    STALE,
    TRUNCATED,
)

__all__ = [
    "CONNECT",
    "DEFAULT_RETRY_CAUSES",
    "FIRST_TOKEN",
    "NORMAL",
    "PRIORITIES",
    "RESET",
    "RETRY_CAUSES",
    "STALE",
    "TRUNCATED",
    "VERSION",
    "Contents",
    "FileWatch",
    "Known",
    "Settings",
    "Take",
    "Watched",
    "conflicts",
    "exposed",
    "load",
    "mask_url",
    "no_password",
    "options",
    "read_file",
    "secret",
    "secrets_in",
    "shown_path",
    "shown_url",
    "warn_if_open",
]
