"""`ipvsproxy run`: the daemon on a node."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ipvsproxy.commands.options import UsageError, add_config_options, add_source_options, settings, tell, this_node

if TYPE_CHECKING:
    from ipvsproxy.config import Config

CONFIG_POLL_S = 10.0
"""How often the configuration file is looked at; a mounted ConfigMap is itself renewed about once a minute."""

_DESCRIPTION = """\
Make the Services of a cluster work on this node, and keep them working. Needs CAP_NET_ADMIN (and, for the settings that
--init-only makes, write access to /proc/sys). Ends on SIGTERM or SIGINT and leaves everything working; `cleanup`
removes it.
Exit code: 0 stopped by a signal or because the configuration file changed, 1 failed, 2 wrong usage or configuration.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("run", help="run the proxy on this node", description=_DESCRIPTION)
    add_source_options(parser)
    parser.add_argument(
        "--init-only",
        action="store_true",
        help="make the settings that need privileges (sysctls, IPVS timeouts, modules) and exit; `run` then needs "
        "CAP_NET_ADMIN alone",
    )
    parser.add_argument(
        "--write-config-to",
        type=Path,
        metavar="FILE",
        help="write the configuration that file and flags come to, defaults included, and exit",
    )
    parser.add_argument("--cleanup", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--proc-sys",
        type=Path,
        default=Path("/proc/sys"),
        metavar="DIR",
        help="where the kernel's settings are written (default /proc/sys); a container without privileges has that "
        "read-only, and the node's /proc/sys/net mounted elsewhere",
    )
    parser.add_argument(
        "--log-format",
        choices=("auto", "console", "json"),
        default="auto",
        help="auto: console on a terminal, else json",
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    from ipvsproxy.applier import describe  # noqa: PLC0415
    from ipvsproxy.daemon import BindFailed  # noqa: PLC0415
    from ipvsproxy.dataplane import DataplaneError  # noqa: PLC0415
    from ipvsproxy.kernel.sysctl import SysctlError  # noqa: PLC0415
    from kubecore import log  # noqa: PLC0415
    from kubecore.access import AccessError  # noqa: PLC0415

    if args.cleanup:
        raise UsageError("--cleanup: a command of its own here; run ipvsproxy cleanup, with --kube-proxy for both")
    loaded = settings(args)
    name = this_node(args, loaded)
    log.configure(level=loaded.config.log_level, fmt=args.log_format)
    for line in loaded.ignored:
        tell(f"info: {line}")
    if args.write_config_to:
        return _write_config(args.write_config_to, loaded.config)
    try:
        return asyncio.run(_serve(args, loaded.config, name))
    except (AccessError, BindFailed, SysctlError) as error:
        tell(f"ipvsproxy: {error}")
    except DataplaneError as error:
        tell(f"ipvsproxy: {describe(error)}")
    return 1


async def _serve(args: argparse.Namespace, config: Config, node_name: str) -> int:
    from prometheus_client import disable_created_metrics  # noqa: PLC0415

    from ipvsproxy.daemon import Daemon, stop_on_signals  # noqa: PLC0415
    from ipvsproxy.kernel.host import families_here  # noqa: PLC0415
    from ipvsproxy.kernel.plane import KernelDataPlane  # noqa: PLC0415
    from ipvsproxy.kernel.preflight import check, prepare  # noqa: PLC0415
    from ipvsproxy.sources import CLUSTER, WATCHED  # noqa: PLC0415
    from kubecore.access import load_access  # noqa: PLC0415
    from kubecore.api import ApiClient  # noqa: PLC0415
    from kubecore.files import FileSource  # noqa: PLC0415
    from kubecore.reflector import Reflector  # noqa: PLC0415
    from kubecore.store import Source  # noqa: PLC0415
    from kubecore.throttle import Limits  # noqa: PLC0415

    findings = await check(config)
    for line in findings.warnings:
        tell(f"warning: {line}")
    await prepare(config, findings, args.proc_sys)
    if args.init_only:
        return 0
    _set_oom_score(config.oom_score_adj)
    client: ApiClient | None = None
    source: Source
    if args.source == CLUSTER:
        access = load_access(kubeconfig=config.client.kubeconfig, server=config.client.server)
        limits = Limits(config.client.qps, config.client.burst)
        client = ApiClient(access, user_agent="ipvsproxy", limits=limits)
        source = Reflector(client, WATCHED)
    else:
        source = FileSource(args.source, WATCHED)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    stop = asyncio.Event()
    stop_on_signals(asyncio.get_running_loop(), stop.set)
    async with await KernelDataPlane.open() as dataplane:
        daemon = Daemon(
            config=config,
            node_name=node_name,
            source=source,
            client=client,
            dataplane=dataplane,
            schedulers=findings.schedulers,
            families=families_here(),
        )
        watching = asyncio.create_task(_stop_when_changed((args.config, args.additions), stop))
        try:
            await daemon.run(stop)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    return 0


def _write_config(file: Path, config: Config) -> int:
    import yaml  # noqa: PLC0415

    from ipvsproxy.configwrite import documents  # noqa: PLC0415

    try:
        file.write_text(yaml.safe_dump_all(documents(config), sort_keys=False), encoding="utf-8")
    except OSError as error:
        tell(f"{file}: {error.strerror}; name a file that can be written with --write-config-to")
        return 1
    return 0


def _set_oom_score(value: int | None) -> None:
    """Have the kernel spare this process when memory runs out; without CAP_SYS_RESOURCE it may refuse a lower value."""
    if value is None:
        return
    import structlog  # noqa: PLC0415

    from kubecore import log  # noqa: PLC0415

    file = Path("/proc/self/oom_score_adj")
    try:
        file.write_text(f"{value}\n")
    except OSError as error:
        structlog.get_logger().info(log.OOM_SCORE_KEPT, wanted=value, error=error.strerror)


async def _stop_when_changed(files: Iterable[str | None], stop: asyncio.Event) -> None:
    """End the daemon when a configuration file has another content, as kube-proxy does: it starts anew with it.

    A file that is gone or unreadable for a moment (a ConfigMap being swapped) changes nothing.
    """
    before = {Path(file): _content(Path(file)) for file in files if file}
    if not before:
        return
    import structlog  # noqa: PLC0415

    from kubecore import log  # noqa: PLC0415

    while True:
        await asyncio.sleep(CONFIG_POLL_S)
        for path, content in before.items():
            now = _content(path)
            if now and now != content:
                structlog.get_logger().info(log.CONFIG_CHANGED, file=str(path))
                stop.set()
                return


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
