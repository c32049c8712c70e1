"""The daemon on a node with an API server: what it asks, what it tells the cluster by events, and its requests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kubecore.model import LoadBalancerIngress, ServiceType, TrafficPolicy
from tests.builders import service
from tests.lab.kernel.net import Net, Process
from tests.lab.kernel.outcomes import servers
from tests.proxy_daemon import IPVSPROXY, NODE, STARTED, THIS, Site, backends, until

pytestmark = pytest.mark.kernel

API = "http://127.0.0.1:8001"
VIP = "10.96.0.1:80"


@pytest.fixture
def site(net: Net, tmp_path: Path) -> Site:
    it = Site(net, tmp_path)
    it.put(
        THIS,
        service("web", "10.96.0.1 fd00:96::1", "80", annotations="ipvsproxy.io/scheduler=wrrr"),
        *backends("web", "p1 p2"),
        service("node", "10.96.0.2", external_ips=(NODE,)),
        service("first", "10.96.0.3", external_ips=("198.51.100.1",), created_s=1.0),
        service("second", "10.96.0.4", external_ips=("198.51.100.1",), created_s=2.0),
        service("theirs", "10.96.0.9", "80", labels="service.kubernetes.io/service-proxy-name=other"),
        service(
            "checked",
            "10.96.0.5",
            type=ServiceType.LOAD_BALANCER,
            ingress=(LoadBalancerIngress(ip="203.0.113.1"),),
            external_policy=TrafficPolicy.LOCAL,
            health_check_node_port=31000,
        ),
    )
    argv = [sys.executable, "-m", "tests.lab.apiserver", "--no-bootstrap", "--port", "8001", "--token", "t"]
    argv += ["--manifests", str(it.manifests), "--kubeconfig-out", str(tmp_path / "kubeconfig")]
    it.node.popen(argv).wait_for_log("serving", timeout_s=60)
    return it


def start(site: Site, *arguments: str) -> Process:
    kubeconfig = str(site.config.parent / "kubeconfig")
    argv = [*IPVSPROXY, "run", "--config", str(site.config), "--node", "n1", "--kubeconfig", kubeconfig]
    return site.node.popen([*argv, *arguments], env={"PYTHONDONTWRITEBYTECODE": "1"})


def events(site: Site) -> set[tuple[str, ...]]:
    """Each event as (type, reason, action, object)."""
    url = f"{API}/apis/events.k8s.io/v1/events"
    listed: dict[str, Any] = json.loads(site.node.run(["curl", "-s", "-H", "Authorization: Bearer t", url]).stdout)
    return {
        (e["type"], e["reason"], e["action"], f"{e['regarding']['kind']} {e['regarding']['name']}")
        for e in listed["items"]
    }


def test_events_and_requests(site: Site) -> None:
    taken = site.node.serve(tcp=[31000])
    daemon = start(site)
    daemon.wait_for_log(STARTED, timeout_s=60)
    assert servers(site.client.connect(VIP, count=2)) == {"p1": 1, "p2": 1}
    assert not {line for line in site.servers() if "10.96.0.9" in line}
    wanted: set[tuple[str, ...]] = {
        ("Normal", "Starting", "StartKubeProxy", "Node n1"),
        ("Warning", "UnknownScheduler", "Plan", "Service web"),
        ("Warning", "AddressNotClaimed", "Plan", "Service node"),
        ("Warning", "AddressTaken", "Plan", "Service second"),
        ("Warning", "FailedToStartServiceHealthcheck", "Listen", "Service checked"),
    }
    until(lambda: events(site), wanted, 30)
    taken.close()
    metrics = site.get("http://127.0.0.1:10249/metrics")[1]
    assert 'rest_client_requests_total{code="200",host="127.0.0.1:8001",method="GET"}' in metrics
    assert 'rest_client_requests_total{code="201",host="127.0.0.1:8001",method="POST"}' in metrics
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("port", "reason"), [(10249, "FailedToStartMetricServer"), (10256, "FailedToStartProxierHealthcheck")]
)
def test_a_port_that_must_be_had(site: Site, port: int, reason: str) -> None:
    site.node.serve(tcp=[port])
    daemon = start(site, "--bind-address-hard-fail")
    assert daemon.wait(60) == 1
    assert ("Warning", reason, "StartKubeProxy", "Node n1") in events(site)
    assert "bindAddressHardFail is set" in daemon.log()
