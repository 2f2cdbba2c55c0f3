"""`python -m loadgen`."""

from __future__ import annotations

import sys


def main() -> int:
    """The exit code. A worker talks to its parent by stdout, which it therefore keeps."""
    try:
        from loadgen.cli import main as cli
        from loadgen.cli.terminal.streams import run

        return cli.main() if sys.argv[1:2] in (["worker"], ["scrape"]) else run(cli.main)
    except KeyboardInterrupt:  # Ctrl-C before the command has begun
        return 130


if __name__ == "__main__":
    sys.exit(main())
