"""The command line: which commands there are, and exit codes.

Knows: argparse. Must not know what a command does (`commands`). Called by `__main__`.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from kubecore import __version__

COMMANDS = ("run", "query", "check", "worker")
"""Modules in `commands`, in the order of the help. `worker` is what `run` starts, and not in it."""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="dnsserver",
        description="Cluster DNS: answers for Services, endpoints and pods of a Kubernetes cluster, forwards the rest.",
    )
    root.add_argument("--version", action="version", version=f"dnsserver {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        if find_spec(f"dnsserver.commands.{name}") is not None:
            import_module(f"dnsserver.commands.{name}").add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to be said
        return 1
    return code
