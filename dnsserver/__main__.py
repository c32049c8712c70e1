"""`python -m dnsserver` and the `dnsserver` script."""

from __future__ import annotations

import signal
import sys

from dnsserver.cli import main as _main


def main() -> None:
    """Run the command line and end the process with its exit code."""
    code = _main()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # one more while the interpreter goes must not replace the exit code
    sys.exit(code)


if __name__ == "__main__":
    main()
