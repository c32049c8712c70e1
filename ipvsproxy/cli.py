"""The command line: which commands there are, and exit codes.

Knows: argparse. Must not know: what a command does (`commands`). Called by `__main__`.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; 2 of `diff` says that something differs, so that there
every mistake is 1.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ipvsproxy.commands.options import UsageError, tell
from ipvsproxy.sources import SourceError
from kubecore import __version__, log

COMMANDS = ("run", "plan", "diff", "cleanup")
"""Modules in `commands`, in the order of the help."""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="ipvsproxy",
        description="Kubernetes service proxy on IPVS: makes the Services of a cluster work on this node.",
    )
    root.add_argument("--version", action="version", version=f"ipvsproxy {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"ipvsproxy.commands.{name}").add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with it closed, as some supervisors do
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for as long as the process lives
    words = sys.argv[1:] if argv is None else list(argv)
    wrong_use = 1 if words[:1] == ["diff"] else 2
    try:
        args = parser().parse_args(words)
    except SystemExit as done:  # argparse has said why
        return wrong_use if done.code else 0
    log.configure(level="warning")  # stdout is the answer's; `run` sets what the configuration says
    try:
        code: int = args.run(args)
    except UsageError as error:
        tell(str(error))
        return wrong_use
    except SourceError as error:
        tell(f"ipvsproxy: {error}")
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to be said
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        tell(f"ipvsproxy: the output could not be written: {error.strerror}")
        return 1
    return code
