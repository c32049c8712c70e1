"""`python -m ipvsproxy`."""

from __future__ import annotations

import sys

from ipvsproxy.cli import main as _main


def main() -> None:
    """Entry point of the `ipvsproxy` script."""
    sys.exit(_main())


if __name__ == "__main__":
    main()
