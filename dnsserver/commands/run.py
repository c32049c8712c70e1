"""`dnsserver run`: serve until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from dnsserver import daemon, supervisor
from dnsserver.configuration import BindError
from dnsserver.corefile import CorefileError
from dnsserver.daemon import Options
from dnsserver.server import ListenAddress
from dnsserver.source import SourceError
from kubecore import log
from kubecore.access import AccessError

_EPILOG = """\
Without --config: kubeadm's Corefile (cluster.local and reverse zones from the cluster, the rest to /etc/resolv.conf).
SIGTERM: /ready fails, answers go on for health's lameduck time, what is in flight is finished, exit status 0.
SIGUSR1: the Corefile is read again now. Exit status: 1 cannot serve, 2 wrong usage or Corefile.
"""


def add(commands: Any) -> None:
    """Put the command on the command line."""
    command: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="serve DNS",
        description="Serve DNS for a cluster, and forward the rest, as a Corefile says.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--config", type=Path, metavar="COREFILE", help="default: the options of kubeadm's Corefile")
    command.add_argument(
        "--source",
        default="cluster",
        metavar="cluster|PATH",
        help="where objects come from: the API server (default), or a directory or file of manifests",
    )
    command.add_argument(
        "--listen",
        action="append",
        default=[],
        type=listen_address,
        metavar="ADDRESS:PORT",
        help="serve every block here, UDP and TCP, whatever ports the Corefile names; may be given several times",
    )
    command.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes that share the ports")
    command.add_argument(
        "--snapshot", type=Path, metavar="PATH", help="file to keep the cluster in, to start from while the API is away"
    )
    command.add_argument("--log-level", choices=sorted(log.LEVELS), default="info")
    command.add_argument("--log-format", choices=["auto", "console", "json"], default="auto")
    command.set_defaults(run=run)


def listen_address(text: str) -> ListenAddress:
    """`ADDRESS:PORT`, `[IPv6]:PORT` or `:PORT` (every IPv4 address)."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        canonical = str(ip_address(host or "0.0.0.0"))
        number = int(port if colon else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write ADDRESS:PORT, for IPv6 [ADDRESS]:PORT") from None
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{text!r}: a port is at most 65535")
    return ListenAddress(canonical, number)


def _workers(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 128:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 1 to 128")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Serve; returns the exit code."""
    log.configure(level=args.log_level, fmt=args.log_format)
    options = Options(
        corefile=args.config,
        source=args.source,
        listen=tuple(args.listen),
        workers=args.workers,
        snapshot=args.snapshot,
        log_level=args.log_level,
        log_format=args.log_format,
    )
    try:
        serve = supervisor.run if options.workers > 1 else daemon.run
        return asyncio.run(serve(options))
    except CorefileError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except (BindError, AccessError, SourceError, OSError) as error:  # OSError: a plugin could not start
        print(f"dnsserver: {error}", file=sys.stderr)
        return 1
