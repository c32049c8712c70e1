"""`dnsserver check COREFILE`: every problem of a configuration, or what it amounts to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dnsserver import corefile, names
from dnsserver.chain import plugin_names
from dnsserver.corefile_model import Config


def add(commands: Any) -> None:
    """Put the command on the command line."""
    command: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="read a Corefile and say everything that is wrong with it",
        description="Read a Corefile with everything it imports. Exit status: 0 it can be used, 2 it cannot; then "
        "standard error has a line for each problem, with file, line and what to write instead.",
    )
    command.add_argument("corefile", type=Path, metavar="COREFILE")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check; returns the exit code."""
    try:
        config = corefile.load(args.corefile)
    except corefile.CorefileError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        print(f"{args.corefile}: {count} problem{'s' if count != 1 else ''}", file=sys.stderr)
        return 2
    print(summary(args.corefile, config))
    return 0


def summary(path: Path, config: Config) -> str:
    """What the configuration does, a line for each server block."""
    count = len(config.blocks)
    lines = [f"{path}: good, {count} server block{'s' if count != 1 else ''}, SHA-512 {config.digest[:16]}…"]
    for block in config.blocks:
        keys = " ".join(f"{names.to_text(key.zone)}:{key.port}" for key in block.keys)
        where = f" on {' '.join(block.bind)}" if block.bind else ""
        lines.append(f"  {block.file}:{block.line}: {keys}{where}: {' '.join(plugin_names(block)) or 'no plugins'}")
    return "\n".join(lines)
