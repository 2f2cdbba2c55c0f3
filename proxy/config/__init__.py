"""TODO"""

from proxy.config.conflicts import conflicts
from proxy.config.file_watch import Contents, FileWatch, Take, Watched
from proxy.config.files import read_file, warn_if_open
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
    "options",
    "read_file",
    "secret",
    "secrets_in",
    "shown_path",
    "shown_url",
    "warn_if_open",
]
