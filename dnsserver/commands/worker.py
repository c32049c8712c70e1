"""`dnsserver worker FD`: what `run --workers N` starts; not for operators."""

from __future__ import annotations

import argparse
from typing import Any

from dnsserver import worker


def add(commands: Any) -> None:
    """Put the command on the command line, but not into the help."""
    command: argparse.ArgumentParser = commands.add_parser("worker")
    command.add_argument("fd", type=int)
    command.set_defaults(run=lambda args: worker.run(args.fd))
