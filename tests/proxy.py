"""Plans in `ipvsadm -Sn` notation, for tests of the proxy that read like its specification."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import dedent

from ipvsproxy import ipvsadm
from ipvsproxy.config import Config
from ipvsproxy.model import DEVICE, InterfaceAddress, Link, Scheduler
from ipvsproxy.nodeview import NodeView, node_view
from ipvsproxy.planner import Planner
from ipvsproxy.site import ALL_SCHEDULERS
from kubecore.model import KubeObject, Node, Upsert
from kubecore.snapshot import ClusterState

ETH0 = InterfaceAddress("eth0", "192.168.1.1", 24)
ETH0_6 = InterfaceAddress("eth0", "fd00:1::1", 64)
THIS = Node("n1", internal_ips=("192.168.1.1", "fd00:1::1"), zone="z1")
VIEW = node_view("n1", THIS, addresses=(ETH0, ETH0_6))
"""Node n1 in zone z1, with one address of each family."""


DEFAULTS = Config()


def view(*addresses: str, node: Node = THIS, links: str = "", **fields: object) -> NodeView:
    """Node n1 with `eth0=192.168.1.1/24`-like addresses and `veth1:veth eth0:`-like links."""
    parsed = []
    for text in addresses:
        name, _, address = text.partition("=")
        host, _, length = address.partition("/")
        parsed.append(InterfaceAddress(name, host, int(length or (128 if ":" in host else 32))))
    kinds = [Link(*text.split(":")) for text in links.split()]
    return node_view("n1", node, addresses=parsed, links=kinds, **fields)  # type: ignore[arg-type]  # the test's own


def cluster(*objects: KubeObject) -> ClusterState:
    """A cluster of these objects."""
    state = ClusterState()
    for obj in objects:
        state.apply_event(Upsert(obj))
    return state


def planned(
    *objects: KubeObject,
    node: NodeView = VIEW,
    config: Config = DEFAULTS,
    schedulers: frozenset[Scheduler] = ALL_SCHEDULERS,
) -> Planner:
    """What node n1 is to be programmed with."""
    state = cluster(*objects)
    planner = Planner(config, node, schedulers)
    planner.update(state, state.services)
    return planner


def shown(planner: Planner) -> list[str]:
    """`ipvsadm -Sn` lines; a firewall mark is written as what it stands for: `-f default/web:80/TCP`."""
    names = {}
    for key, server in planner.desired.virtual_servers.items():
        if key.protocol is None:
            port = planner._marks.holders[key.fwmark]
            family = " -6" if key.family == 6 else ""
            names[ipvsadm.service_text(key)] = f"-f {port.service}:{port.port}/{server.protocol.value}{family}"
    lines = []
    for line in ipvsadm.lines(planner.desired.virtual_servers.values()):
        option, rest = line[:3], line[3:]
        mark = next((m for m in names if rest.startswith(f"{m} ")), None)
        lines.append(option + (names[mark] + rest[len(mark) :] if mark else rest))
    return lines


def expect(text: str) -> list[str]:
    """The lines of an indented block."""
    return [line for line in dedent(text).strip().splitlines() if line]


def elements(planner: Planner, *names: str) -> set[str]:
    """Elements of these sets as nft writes them: `service4 10.96.0.1 . tcp . 80 : goto cluster_ip`."""
    return {
        f"{e.set} {' . '.join(e.key)}" + (f" : {e.value}" if e.value else "")
        for e in planner.desired.elements
        if e.set in names
    }


def reasons(planner: Planner) -> list[tuple[str, str]]:
    """(Service, reason) of every problem."""
    return sorted((str(s), p.reason) for s in planner.plans for p in planner.problems(s))


def vips(planner: Planner) -> set[str]:
    """Routed addresses."""
    return set(planner.desired.vips)


def real_servers(lines: Iterable[str], server: str) -> set[str]:
    """Real servers of `server`, such as "-t 10.96.0.1:80"."""
    start = f"-a {server} -r "
    return {line.removeprefix(start).split()[0] for line in lines if line.startswith(start)}


__all__ = ["DEVICE", "cluster", "elements", "expect", "planned", "real_servers", "reasons", "shown", "view", "vips"]
