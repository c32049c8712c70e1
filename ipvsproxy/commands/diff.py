"""`ipvsproxy diff`: what is wanted against the live kernel of this node, changing nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from ipvsproxy.commands.options import add_config_options, add_source_options, console, settings, tell, this_node

if TYPE_CHECKING:
    from ipvsproxy.config import Config
    from ipvsproxy.dataplane import Op
    from kubecore.snapshot import ClusterState

_DESCRIPTION = """\
Compare what this node should be programmed with to what its kernel holds. Needs CAP_NET_ADMIN to read, changes nothing.
Exit code: 0 equal, 2 different, 1 something is wrong or could not be read.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("diff", help="compare the live kernel with what is wanted", description=_DESCRIPTION)
    add_source_options(parser)
    parser.add_argument(
        "--output", choices=("table", "json"), help="default: table on a terminal, else json, one operation a line"
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    from ipvsproxy.applier import describe  # noqa: PLC0415
    from ipvsproxy.dataplane import DataplaneError  # noqa: PLC0415
    from ipvsproxy.sources import look  # noqa: PLC0415

    loaded = settings(args)
    name = this_node(args, loaded)
    state, complaints = look(args.source, loaded.config.client.kubeconfig, loaded.config.client.server)
    for line in complaints:
        tell(line)
    try:
        ops = asyncio.run(operations(loaded.config, name, state))
    except DataplaneError as error:
        tell(f"ipvsproxy: the kernel cannot be read: {describe(error)}")
        return 1
    rows = [row(op) for op in ops]
    output = args.output or ("table" if sys.stdout.isatty() else "json")
    if output == "json":
        for each in rows:
            print(json.dumps(each))
    else:
        _print_table(rows)
    return 2 if rows else 0


async def operations(config: Config, node_name: str, state: ClusterState) -> list[Op]:
    """The operations that `run` would do now; empty if the kernel is as wanted.

    Real servers at weight 0 that are on their way out count as equal: draining is no difference.

    Raises: DataplaneError.
    """
    from ipvsproxy import nftables  # noqa: PLC0415
    from ipvsproxy.dataplane import CutFlows  # noqa: PLC0415
    from ipvsproxy.diff import diff  # noqa: PLC0415
    from ipvsproxy.kernel.plane import KernelDataPlane  # noqa: PLC0415
    from ipvsproxy.kernel.preflight import listed_schedulers  # noqa: PLC0415
    from ipvsproxy.nodeview import node_view  # noqa: PLC0415
    from ipvsproxy.picture import Picture  # noqa: PLC0415
    from ipvsproxy.planner import Planner  # noqa: PLC0415
    from ipvsproxy.site import ALL_SCHEDULERS  # noqa: PLC0415
    from kubecore.model import ObjectKey  # noqa: PLC0415

    async with await KernelDataPlane.open() as dataplane:
        host = await dataplane.read_host()
        elements = await dataplane.dump_elements() or set()
        picture = Picture(await dataplane.dump_virtual_servers(), await dataplane.dump_vips(), elements)
    view = node_view(
        node_name,
        state.nodes.get(ObjectKey("", node_name)),
        addresses=host.addresses,
        links=host.links,
        gateways=host.gateways,
        nodes=state.nodes.values(),
        bind_address=config.bind_address,
        families=host.families,
    )
    # As `run`, but where the kernel's list is not to be seen nothing is tried out: a look changes nothing.
    schedulers = listed_schedulers() or ALL_SCHEDULERS
    planner = Planner(config, view, schedulers, nftables.mark_elements(elements))
    planner.update(state, state.services)
    for error in planner.failures.values():
        raise error
    return [op for op in diff(planner.desired, picture) if not isinstance(op, CutFlows)]


def row(op: Op) -> dict[str, Any]:
    """One operation as plain values: what, on which, to what."""
    from ipvsproxy.applier import subject  # noqa: PLC0415
    from ipvsproxy.dataplane import ChangeElements  # noqa: PLC0415

    plain: dict[str, Any] = {"operation": type(op).__name__, "on": subject(op)}
    if isinstance(op, ChangeElements):
        plain["add"] = [_element(e) for e in op.add]
        plain["delete"] = [_element(e) for e in op.delete]
    return plain


def _element(element: Any) -> str:
    text = f"{element.set} {' . '.join(element.key)}"
    return f"{text} : {element.value}" if element.value else text


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table  # noqa: PLC0415

    out = console()
    if not rows:
        out.print("equal: the kernel holds what is wanted")
        return
    table = Table(title=f"{len(rows)} operations would be done", title_justify="left")
    table.add_column("Operation")
    table.add_column("On", overflow="fold")
    for each in rows:
        details = [*(f"+ {e}" for e in each.get("add", ())), *(f"- {e}" for e in each.get("delete", ()))]
        table.add_row(each["operation"], "\n".join([each["on"], *details]))
    out.print(table)
