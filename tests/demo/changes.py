"""Steps that change the cluster while traffic flows: how fast a change arrives, and that no connection fails by it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from copy import deepcopy

from tests.demo import api, objects
from tests.demo.cluster import CLUSTER_DNS, Cluster
from tests.demo.report import Report, milliseconds
from tests.demo.services import VIP_CLUSTER, WEB
from tests.lab.kernel.lab import GuestError
from tests.lab.kernel.net import CallError, CommandError, Connection
from tests.lab.kernel.outcomes import Answer, servers

TARGET = "10.96.20.1:80"
MOVING, NEW_ADDRESS = "moving.demo.svc.cluster.local", "10.96.20.22"
_STREAMS = (
    ("client", TARGET, "tcp"),
    ("client", "10.96.20.1:9000", "udp"),
    ("outside", "192.168.50.11:30081", "tcp"),
    ("outside", f"{VIP_CLUSTER}:80", "tcp"),
)
_INTERVAL_S = 0.03
_SETTLE_S = 0.5
"""Traffic goes on for so long between two steps."""
_LIMIT_S = 5.0
"""A change takes milliseconds, on a machine that is very busy a second or two; beyond this it waited for something."""
_TRIES = 60
"""Whoever takes turns with other clients does not meet every server in as many connections as there are servers."""
_REMEDY = "the log of the proxies, ipvsproxy-node-a.log and ipvsproxy-node-b.log, says what was applied when"


def run(cluster: Cluster, report: Report) -> None:
    """All changes under one continuous load."""
    report.section("Changes while traffic flows: TCP and UDP by ClusterIP, TCP by node port and load balancer address")
    streams = {
        (host, target, proto): cluster.host(host).traffic(target, proto=proto, interval_s=_INTERVAL_S)
        for host, target, proto in _STREAMS
    }
    started = time.monotonic()
    begins: list[tuple[float, str]] = []
    try:
        connections = open_connections(cluster)
        steps: dict[str, Callable[[], None]] = {
            "scale up": lambda: scale_up(cluster, report),
            "readiness": lambda: fail_readiness(cluster, report, connections),
            "scale down": lambda: scale_down(cluster, report),
            "new ClusterIP": lambda: move(cluster, report),
            "kill -9": lambda: kill_proxy(cluster, report, connections),
        }
        for name, step in steps.items():
            begins.append((time.monotonic() - started, name))
            try:
                step()
            except (CommandError, CallError, GuestError) as error:
                report.check(False, f"Step {name}: broken off", seen=error, remedy=_REMEDY)
        begins.append((time.monotonic() - started, "after all"))
        time.sleep(_SETTLE_S)
        dead = _dead(connections)
        report.check(
            not dead,
            "Connections that were open all along still answer",
            f"{len(connections)} of {len(WEB)}",
            seen=f"no answer on those to {dead}",
            remedy=_REMEDY,
        )
        for connection in connections.values():
            connection.close()
    finally:
        reports = {stream: traffic.stop() for stream, traffic in streams.items()}
    report.table(
        ("from", "to", "", "connections", "failed", "longest gap"),
        [(*stream, str(r.count), str(len(r.failures)), milliseconds(r.longest_gap_s)) for stream, r in reports.items()],
    )
    failures = [
        f"{' '.join(stream)}: {what} at {at_s:.2f} s ({_during(begins, at_s)})"
        for stream, r in reports.items()
        for at_s, what in r.failures
    ]
    report.check(
        not failures,
        "Failed connections in all these changes",
        f"{len(failures)} of {sum(r.count for r in reports.values())}",
        seen="; ".join(failures[:5]),
        remedy=_REMEDY,
    )


def open_connections(cluster: Cluster) -> dict[str, Connection]:
    """One open connection to each pod behind `web`, through its ClusterIP."""
    return {pod: connection for pod in sorted(WEB) if (connection := _open_to(cluster, pod)) is not None}


def scale_up(cluster: Cluster, report: Report) -> None:
    """A fourth pod becomes ready."""
    arrived_s = cluster.call(api.scale_up, objects.spare_pods()["web-4"], TARGET)
    report.check(
        arrived_s < _LIMIT_S,
        "Scale up: from the API change to the first connection at the new pod",
        milliseconds(arrived_s),
        seen=f"more than {_LIMIT_S:g} s",
        remedy=_REMEDY,
    )
    time.sleep(_SETTLE_S)


def fail_readiness(cluster: Cluster, report: Report, connections: dict[str, Connection]) -> None:
    """A pod's readiness probe fails, and later succeeds."""
    last_s = cluster.call(api.make_unready, "demo", "web-2", TARGET)
    report.check(
        last_s < _LIMIT_S,
        "A pod that is not ready gets no new connection after",
        milliseconds(last_s),
        seen=f"more than {_LIMIT_S:g} s",
        remedy=_REMEDY,
    )
    report.check(
        "web-2" not in _dead(connections),
        "Its open connection goes on",
        seen="no answer",
        remedy=_REMEDY,
    )
    cluster.call(api.set_ready, "demo", "web-2", True)
    cluster.call(api.until_answered, TARGET, ["web-2"])
    time.sleep(_SETTLE_S)
    seen = servers(cluster.host("client").connect(TARGET, count=_TRIES))
    report.check("web-2" in seen, "Ready again, it takes part again", seen=dict(seen), remedy=_REMEDY)


def scale_down(cluster: Cluster, report: Report) -> None:
    """The fourth pod terminates with a connection open, then is gone."""
    connection = _open_to(cluster, "web-4")
    cluster.call(api.delete, "Pod", "demo", "web-4")
    cluster.call(api.until_left, TARGET, "web-4")
    time.sleep(_SETTLE_S)
    seen = servers(cluster.host("client").connect(TARGET, count=8))
    drained = "web-4" not in seen and _answers(connection, "web-4")
    report.check(
        drained,
        "Scale down: the terminating pod keeps its open connection and gets no new one",
        seen=f"new: {dict(seen)}; open: {connection and connection.ping()}",
        remedy=_REMEDY,
    )
    if connection is not None:
        connection.close()
    cluster.call(api.finish, "demo", "web-4")
    time.sleep(_SETTLE_S)


def move(cluster: Cluster, report: Report) -> None:
    """A Service is deleted and made anew with another ClusterIP."""
    report.command("pod client", f"dig +short {MOVING}", cluster.dig("client", MOVING))
    service = deepcopy(next(o for o in cluster.objects if o["kind"] == "Service" and o["metadata"]["name"] == "moving"))
    service["spec"] |= {"clusterIP": NEW_ADDRESS, "clusterIPs": [NEW_ADDRESS]}
    took = cluster.call(api.replace_service, service, CLUSTER_DNS, MOVING)
    lines = cluster.dig("client", MOVING)
    report.command("pod client", f"dig +short {MOVING}", lines)
    report.check(
        lines == [NEW_ADDRESS],
        "Service deleted and made again with a new ClusterIP: the name follows",
        f"gone after {milliseconds(took['gone_s'])}, new address after {milliseconds(took['resolved_s'])}, "
        f"first connection after {milliseconds(took['answered_s'])}",
        seen=lines,
        remedy=_REMEDY,
    )


def kill_proxy(cluster: Cluster, report: Report, connections: dict[str, Connection]) -> None:
    """kill -9 of a node's proxy with connections open; a change meanwhile; a new proxy."""
    node, proxy = "node-a", cluster.proxies["node-a"]
    proxy.kill(signal.SIGKILL)
    proxy.wait()
    time.sleep(_SETTLE_S)
    dead = _dead(connections)
    report.check(
        not dead, f"ipvsproxy on {node} killed (kill -9): open connections go on", seen=f"dead: {dead}", remedy=_REMEDY
    )
    cluster.call(api.set_ready, "demo", "web-3", False)
    started = time.monotonic()
    with report.doing(f"starting ipvsproxy on {node} again"):
        cluster.start_proxy(node)
        cluster.await_proxy(node)
    took_s = time.monotonic() - started
    seen = servers(cluster.host("client").connect(TARGET, count=8))
    dead = _dead(connections)
    report.check(
        not dead and "web-3" not in seen,
        "Restarted: what changed meanwhile is applied, open connections go on",
        f"{took_s:.1f} s from start to applied",
        seen=f"dead: {dead}; new connections: {dict(seen)}",
        remedy=_REMEDY,
    )
    cluster.call(api.set_ready, "demo", "web-3", True)
    time.sleep(_SETTLE_S)


def _open_to(cluster: Cluster, pod: str) -> Connection | None:
    """An open connection to this pod, by trying."""
    for _ in range(_TRIES):
        connection = cluster.host("client").open(TARGET)
        if isinstance(connection.first, Answer) and connection.first.server == pod:
            return connection
        connection.close()
    return None


def _dead(connections: dict[str, Connection]) -> list[str]:
    """The pods to which there is no connection that answers."""
    return [pod for pod in sorted(WEB) if not _answers(connections.get(pod), pod)]


def _answers(connection: Connection | None, name: str) -> bool:
    if connection is None:
        return False
    outcome = connection.ping()
    return isinstance(outcome, Answer) and outcome.server == name


def _during(begins: list[tuple[float, str]], at_s: float) -> str:
    return ([name for begin_s, name in begins if begin_s <= at_s] or ["before all"])[-1]
