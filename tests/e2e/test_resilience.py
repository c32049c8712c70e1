"""What must not be noticed: pods of cluster DNS coming and going, the API server away for half a minute."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.demo import api, objects
from tests.demo.cluster import CLUSTER_DNS, Cluster
from tests.lab.kernel.outcomes import servers

pytestmark = pytest.mark.kernel

OUTAGE_S = 30.0
CATCH_UP_S = 60.0
"""Back-off between attempts is at most 30 s, jitter included; two may fail as the server comes up."""
NAME = "web.demo.svc.cluster.local"
WEB = "10.96.20.1:80"
LATE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "late", "namespace": "demo"},
    "spec": {
        "clusterIP": "10.96.20.51",
        "clusterIPs": ["10.96.20.51"],
        "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
    },
}


@contextmanager
def lookups(cluster: Cluster, *sockets: str) -> Iterator[dict[str, Any]]:
    """Queries for NAME from a pod, all the time; what they met with is in the dict afterwards."""
    met: dict[str, Any] = {}
    process = cluster.host("client").popen([sys.executable, "-m", "tests.e2e.lookups", CLUSTER_DNS, NAME, *sockets])
    process.wait_for_log("asking")
    try:
        yield met
    finally:
        process.stop()
        met |= json.loads(process.log().splitlines()[-1])


def test_dns_pods_come_and_go(cluster: Cluster) -> None:
    """A rolling update of cluster DNS: no query through 10.96.0.10 is lost beyond what one retry mends."""
    second = objects.spare_pods()["dns-2"]
    first = next(o for o in cluster.objects if o["kind"] == "Pod" and o["metadata"]["name"] == "dns-1")
    with lookups(cluster) as met, lookups(cluster, "one-socket") as met_by_one_flow:
        for comes, goes in ((second, "dns-1"), (first, "dns-2")):
            cluster.start_dns(comes["metadata"]["name"])
            cluster.await_dns(comes["status"]["podIP"])
            cluster.call(api.apply, [comes])
            time.sleep(1.0)
            cluster.terminate_dns(goes)
            time.sleep(1.0)
    for each in (met, met_by_one_flow):
        assert each["lost"] == []
        assert each["count"] > 100


def test_api_server_away_for_half_a_minute(cluster: Cluster) -> None:
    """Everything works on; a change made just before has arrived, one made just after arrives."""
    cluster.call(api.scale_up, objects.spare_pods()["web-4"], WEB)
    streams = {proto: cluster.host("client").traffic(target, proto=proto, interval_s=0.05)
               for proto, target in (("tcp", WEB), ("udp", "10.96.20.1:9000"))}  # fmt: skip
    with lookups(cluster) as met:
        cluster.call(api.faults, {"action": "restart", "down_s": OUTAGE_S, "lose_history": True}, host="control")
        time.sleep(OUTAGE_S / 2)
        assert "web-4" in servers(cluster.host("client").connect(WEB, count=24))
        assert set(cluster.dig("client", NAME)) == {"10.96.20.1"}
        time.sleep(OUTAGE_S / 2 + 1)
        cluster.call(api.apply, [LATE])
        cluster.call(api.delete, "Pod", "demo", "web-4")
        cluster.call(api.until_answered, "10.96.20.51:80", within_s=CATCH_UP_S, timeout_s=2 * CATCH_UP_S)
        _until_resolved(cluster, "late.demo.svc.cluster.local", "10.96.20.51")
        for node_port in ("192.168.50.10:30081", "192.168.50.11:30081"):  # each node's proxy comes back in its own time
            _until_left(cluster, node_port, "web-4")
    cluster.call(api.finish, "demo", "web-4")
    cluster.call(api.delete, "Service", "demo", "late")
    failures = {proto: stream.stop().failures for proto, stream in streams.items()}
    assert failures == {"tcp": [], "udp": []}
    assert met["lost"] == []
    assert [name for name, proxy in cluster.proxies.items() if proxy.poll() is not None] == []


def _until_resolved(cluster: Cluster, name: str, address: str) -> None:
    deadline = time.monotonic() + CATCH_UP_S
    while cluster.dig("client", name) != [address]:
        assert time.monotonic() < deadline, f"{name} has no address after {CATCH_UP_S:g} s"
        time.sleep(0.5)


def _until_left(cluster: Cluster, target: str, pod: str) -> None:
    deadline = time.monotonic() + CATCH_UP_S
    while pod in servers(cluster.host("outside").connect(target, count=24)):
        assert time.monotonic() < deadline, f"{target} still leads to {pod} after {CATCH_UP_S:g} s"
        time.sleep(0.5)
