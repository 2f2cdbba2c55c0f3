"""`python -m loadgen`."""

from __future__ import annotations

import sys

from loadgen.cli import main as cli
from loadgen.cli.terminal.streams import run


def main() -> int:
    """The exit code. A worker talks to its parent by stdout, which it therefore keeps."""
    return cli.main() if sys.argv[1:2] in (["worker"], ["scrape"]) else run(cli.main)


if __name__ == "__main__":
    sys.exit(main())
