"""`ipvsproxy plan`: what a node would be programmed with, without privileges and without touching anything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from ipvsproxy.commands.options import (
    UsageError,
    add_config_options,
    add_source_options,
    console,
    settings,
    tell,
    this_node,
)

if TYPE_CHECKING:
    from ipvsproxy.model import InterfaceAddress
    from ipvsproxy.planner import Planner

_DESCRIPTION = """\
Print the virtual servers, real servers, VIPs and set elements that a node would be programmed with. Needs no
privileges and changes nothing. Node addresses come from the Node object and from --node-address.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "plan",
        help="print what a node would be programmed with",
        usage="ipvsproxy plan [--source cluster|PATH] [--node NAME] [--config FILE] [--node-address IFACE=ADDRESS]... "
        "[--output table|json|ipvsadm] [settings]",
        description=_DESCRIPTION,
    )
    add_source_options(parser)
    parser.add_argument(
        "--node-address",
        action="append",
        default=[],
        metavar="IFACE=ADDRESS",
        help="an address of the node's, such as eth0=192.0.2.10 or eth0=192.0.2.10/24; may be repeated",
    )
    parser.add_argument(
        "--output",
        choices=("table", "json", "ipvsadm"),
        help="ipvsadm: lines as `ipvsadm -Sn` prints them; json: everything. Default: table on a terminal, else json",
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    from ipvsproxy.model import InterfaceAddress  # noqa: PLC0415
    from ipvsproxy.nodeview import node_view  # noqa: PLC0415
    from ipvsproxy.planner import Planner  # noqa: PLC0415
    from ipvsproxy.sources import look  # noqa: PLC0415
    from kubecore.model import ObjectKey  # noqa: PLC0415

    loaded = settings(args)
    addresses = _addresses(args.node_address)
    name = this_node(args, loaded)
    for line in loaded.ignored:
        tell(f"info: {line}")
    state, complaints = look(args.source, loaded.config.client.kubeconfig, loaded.config.client.server)
    for line in complaints:
        tell(line)
    node = state.nodes.get(ObjectKey("", name))
    if node is None:
        tell(f"warning: there is no Node {name!r} in {args.source}: no endpoint is local but those that name it")
    own = (*node.internal_ips, *node.external_ips) if node else ()
    given = {a.address for a in addresses}
    addresses += [InterfaceAddress("", a, 128 if ":" in a else 32) for a in own if a not in given]
    view = node_view(
        name,
        node,
        addresses=addresses,
        nodes=state.nodes.values(),
        bind_address=loaded.config.bind_address,
    )
    planner = Planner(loaded.config, view)
    planner.update(state, state.services)
    for service in sorted(planner.plans):
        for problem in planner.problems(service):
            tell(f"warning: Service {problem.service}: {problem.reason}: {problem.message}")
    for service, error in planner.failures.items():
        tell(f"error: Service {service} cannot be planned, which is a mistake of this program: {error!r}")
    output = args.output or ("table" if sys.stdout.isatty() else "json")
    {"table": _print_table, "json": _print_json, "ipvsadm": _print_ipvsadm}[output](planner)
    return 1 if planner.failures else 0


def _addresses(given: Iterable[str]) -> list[InterfaceAddress]:
    from ipvsproxy.model import InterfaceAddress  # noqa: PLC0415
    from kubecore.addresses import canonical_ip  # noqa: PLC0415

    found, mistakes = [], []
    for item in given:
        name, equals, address = item.partition("=")
        ip = canonical_ip(address.partition("/")[0])
        try:
            if not name or not equals or ip is None:
                raise ValueError  # noqa: TRY301 - one sentence for all mistakes
            found.append(InterfaceAddress(name, ip, ip_interface(address).network.prefixlen))
        except ValueError:
            mistakes.append(
                f"--node-address: {item!r} is not IFACE=ADDRESS; write eth0=192.0.2.10 or eth0=192.0.2.10/24"
            )
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return found


def _print_ipvsadm(planner: Planner) -> None:
    from ipvsproxy.ipvsadm import lines  # noqa: PLC0415

    for line in lines(planner.desired.virtual_servers.values()):
        print(line)


def _print_json(planner: Planner) -> None:
    import json  # noqa: PLC0415

    json.dump(as_json(planner), sys.stdout, indent=2)
    print()


def as_json(planner: Planner) -> dict[str, Any]:
    """Everything planned, as plain values."""
    from ipvsproxy.ipvsadm import flag_names, sort_key  # noqa: PLC0415

    desired = planner.desired
    servers = []
    for key in sorted(desired.virtual_servers, key=sort_key):
        server = desired.virtual_servers[key]
        identity: dict[str, Any] = {"family": key.family, "protocol": server.protocol.value}
        if key.protocol is None:
            identity |= {"fwmark": key.fwmark, "addresses": [{"address": a, "port": p} for a, p in server.fronts]}
        else:
            identity |= {"address": key.address, "port": key.port}
        servers.append(
            {
                **identity,
                "service": str(planner.service_of(key)),
                "scheduler": server.config.scheduler.value,
                "flags": flag_names(server.config),
                "persistenceSeconds": server.config.persistence_s,
                "realServers": [
                    {"address": k.address, "port": k.port, "weight": server.real_server_config.weight}
                    for k in sorted(server.real_servers)
                ],
                "draining": [{"address": k.address, "port": k.port} for k in sorted(server.draining)],
            }
        )
    sets: dict[str, list[Any]] = {}
    for element in sorted(desired.elements):
        row = {"key": list(element.key), "value": element.value} if element.value else {"key": list(element.key)}
        sets.setdefault(element.set, []).append(row)
    checks = [c for s in sorted(planner.plans) if (c := planner.health_check(s)) is not None]
    problems = [p for s in sorted(planner.plans) for p in planner.problems(s)]
    return {
        "node": planner.node.name,
        "virtualServers": servers,
        "vips": [{"address": a, "source": desired.vips[a]} for a in sorted(desired.vips)],
        "sets": sets,
        "healthChecks": [{"service": str(c.service), "port": c.port, "localEndpoints": c.local_ready} for c in checks],
        "problems": [{"service": str(p.service), "reason": p.reason, "message": p.message} for p in problems],
    }


def _print_table(planner: Planner) -> None:
    from rich.table import Table  # noqa: PLC0415

    from ipvsproxy import sets  # noqa: PLC0415
    from ipvsproxy.ipvsadm import flag_names, host_port, sort_key  # noqa: PLC0415

    desired = planner.desired
    drops = {k.verdict for k in (sets.Kind.NO_LOCAL, sets.Kind.EXTERNAL_NO_LOCAL, sets.Kind.RANGED_EXTERNAL_NO_LOCAL)}
    dropped = {(e.set, e.key) for e in desired.elements if e.value in drops}
    table = Table(title=f"Virtual servers on {planner.node.name}", title_justify="left")
    for column in ("Virtual server", "Service", "Scheduler", "Real servers"):
        table.add_column(column, overflow="fold")
    for key in sorted(desired.virtual_servers, key=sort_key):
        server = desired.virtual_servers[key]
        scheduling = [server.config.scheduler.value, *flag_names(server.config)]
        if server.config.persistence_s:
            scheduling.append(f"persistent {server.config.persistence_s} s")
        reals = [host_port(k.address, k.port) for k in sorted(server.real_servers)]
        if not reals:
            is_dropped = key.address and (sets.SERVICE_OF[key.family], sets.claim_key(key)) in dropped
            reals = ["none here: dropped" if is_dropped else "none: refused"]
        reals += [f"{host_port(k.address, k.port)} (draining)" for k in sorted(server.draining)]
        table.add_row(str(key), str(planner.service_of(key)), ", ".join(scheduling), "\n".join(reals))
    out = console()
    out.print(table)
    out.print(f"{len(desired.vips)} VIPs, {len(desired.elements)} set elements; all of it with --output json")
