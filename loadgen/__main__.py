"""`python -m loadgen`."""

from __future__ import annotations

import sys

from loadgen.cli.main import main
from loadgen.cli.terminal.streams import run

if __name__ == "__main__":
    sys.exit(main() if sys.argv[1:2] == ["worker"] else run(main))  # a worker talks to its parent by stdout
