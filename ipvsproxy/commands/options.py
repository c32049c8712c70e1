"""Options that several commands share, and what they come to.

Knows: argparse, reading the configuration file, the node's name. Must not know: what a command does with it.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ipvsproxy.configfile import Loaded

_FLAG = "flag:"
"""Prefix of the attributes that hold kube-proxy's flags, apart from a command's own options."""


class UsageError(Exception):
    """The command line or the configuration is wrong: a line each; exit code 2."""


class _Gathered(argparse.Action):
    """A list given by several flags is all they say, as in kube-proxy; of other flags the last one holds."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """`--config` and every flag of kube-proxy that means something here."""
    from ipvsproxy.configfields import FLAGS, IGNORED_FLAGS  # noqa: PLC0415
    from ipvsproxy.configvalues import boolean, cidrs, feature_gates, node_port_addresses  # noqa: PLC0415

    parser.add_argument(
        "--config",
        metavar="FILE",
        help="KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), unmodified; a second document of kind "
        "IPVSProxyConfiguration (ipvsproxy.io/v1alpha1) has what is ours. Default: kube-proxy's defaults",
    )
    parser.add_argument(
        "--additions",
        metavar="FILE",
        help="the IPVSProxyConfiguration in a file of its own, where --config is somebody else's, such as kube-proxy's "
        "ConfigMap",
    )
    group = parser.add_argument_group("settings (as kube-proxy's flags; a flag beats the file)")
    for name, field in FLAGS.items():
        kwargs: dict[str, Any] = {"nargs": "?", "const": "true"} if field.parse is boolean else {}
        if field.parse in {cidrs, feature_gates, node_port_addresses}:
            kwargs = {"action": _Gathered}
        group.add_argument(
            f"--{name}",
            dest=f"{_FLAG}{name}",
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=field.help.replace("%", "%%"),
            **kwargs,
        )
    for name in IGNORED_FLAGS:
        names = ["-v", "--v"] if name == "v" else [f"--{name}"]
        group.add_argument(*names, dest=f"{_FLAG}{name}", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """`--source` and `--node`."""
    parser.add_argument(
        "--source",
        type=_source,
        default="cluster",
        metavar="cluster|PATH",
        help="where Services, EndpointSlices and Nodes come from: the API server (default), or a file or directory of "
        "manifests",
    )
    parser.add_argument(
        "--node",
        metavar="NAME",
        help="this node's name (default: hostnameOverride, $NODE_NAME, the hostname)",
    )


def _source(text: str) -> str:
    """As given; an empty one (of a shell variable that is not set) would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; write cluster, or the path of manifests")
    return text


def settings(args: argparse.Namespace) -> Loaded:
    """Configuration from `--config` and flags.

    Raises: UsageError with everything that is wrong.
    """
    from ipvsproxy.configfile import ConfigError, load_config  # noqa: PLC0415

    text = _read(args.config, "--config") if args.config else None
    additions = (_read(args.additions, "--additions"), args.additions) if args.additions else None
    flags = {name.removeprefix(_FLAG): value for name, value in vars(args).items() if name.startswith(_FLAG)}
    try:
        return load_config(text, args.config or "", flags, additions)
    except ConfigError as error:
        raise UsageError("\n".join(error.mistakes)) from error


def _read(file: str, option: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; give a file with {option}") from error


def this_node(args: argparse.Namespace, loaded: Loaded) -> str:
    """The name of the node to work for. Raises: UsageError."""
    from ipvsproxy.configfile import ConfigError, node_name  # noqa: PLC0415

    environment = os.environ.get("NODE_NAME")
    try:
        return node_name(loaded.config, flag=args.node, environment=environment, hostname=socket.gethostname())
    except ConfigError as error:
        raise UsageError(str(error)) from error


def console() -> Console:
    """Standard output for tables, every text as it is: to rich, `[fd00::1]` would be a style."""
    from rich.console import Console  # noqa: PLC0415

    return Console(markup=False, emoji=False)


def tell(message: str) -> None:
    """Say something to the person at the terminal: stdout is the answer's alone."""
    print(message, file=sys.stderr)
