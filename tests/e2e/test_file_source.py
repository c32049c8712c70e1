"""One machine, a folder of manifests and both daemons: edits arrive within a second; the node's address may change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.kernel.net import Net, answered
from tests.lab.kernel.outcomes import REFUSED, servers, sources

pytestmark = pytest.mark.kernel
BIN = Path(sys.executable).parent

NODE = """\
apiVersion: v1
kind: Node
metadata: {{name: box}}
status: {{addresses: [{{type: InternalIP, address: {address}}}]}}
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  ports: [{{port: 80, targetPort: 8080, nodePort: 30080}}]
---
apiVersion: v1
kind: Endpoints
metadata: {{name: web, namespace: default}}
subsets: [{{addresses: [{addresses}], ports: [{{port: 8080}}]}}]
"""
PROMISED_S = 1.0
SLACK_S = 4.0
"""The guest's one CPU is shared with the test's own clients, and its host with whatever else it does."""


def test_edits_and_a_new_node_address(net: Net, tmp_path: Path) -> None:
    box = net.host("box", forwarding=True)
    net.link("box", "client", ["192.0.2.1/24"], ["192.0.2.2/24"], gateway=True)
    for name in ("one", "two"):
        number = {"one": 1, "two": 2}[name]
        net.link("box", name, [f"198.51.100.{10 * number}/32"], [f"198.51.100.{10 * number + 1}/32"], gateway=True)
        box.ip([f"route add 198.51.100.{10 * number + 1}/32 dev {name}"])
        net.host(name).serve(tcp=[8080])
    node, web = tmp_path / "node.yaml", tmp_path / "web.yaml"
    node.write_text(NODE.format(address="192.0.2.1"))
    web.write_text(SERVICE.format(addresses="{ip: 198.51.100.11}"))
    proxy = box.popen([str(BIN / "ipvsproxy"), "run", "--source", str(tmp_path), "--node", "box"])
    dns = box.popen([str(BIN / "dnsserver"), "run", "--source", str(tmp_path)])
    proxy.wait_for_log("ipvsproxy.reconciler.started", 60)
    dns.wait_for_log("process.daemon.started", 60)
    client = net.host("client")
    assert servers(client.connect("192.0.2.1:30080", count=2)) == {"one": 2}

    # A second endpoint, and another ClusterIP.
    web.write_text(SERVICE.format(addresses="{ip: 198.51.100.11}, {ip: 198.51.100.21}").replace("0.80", "0.81"))
    _within(lambda: set(servers(client.connect("192.0.2.1:30080", count=4))) == {"one", "two"})
    _within(lambda: box.run("dig -r +short @127.0.0.1 web.default.svc.cluster.local").lines == ["10.96.0.81"])
    assert set(servers(box.connect("10.96.0.81:80", count=4))) == {"one", "two"}

    # A broken file keeps its last good content.
    web.write_text(web.read_text().replace("kind: Service", "kind: [Service"))
    proxy.wait_for_log(r"manifest\.file\.rejected")
    assert set(servers(client.connect("192.0.2.1:30080", count=4))) == {"one", "two"}
    web.write_text(SERVICE.format(addresses="{ip: 198.51.100.21}"))
    _within(lambda: set(servers(client.connect("192.0.2.1:30080", count=4))) == {"two"})

    # The node gets another address: node ports follow the interface, and so does the source of its own connections.
    box.ip(["address del 192.0.2.1/24 dev client", "address add 192.0.2.9/24 dev client"])
    client.ip(["route replace default via 192.0.2.9"])
    node.write_text(NODE.format(address="192.0.2.9"))
    _within(lambda: servers(client.connect("192.0.2.9:30080", timeout_s=0.5)) == {"two": 1})
    _within(lambda: sources(answered(box.connect("10.96.0.80:80"))) == {"192.0.2.9"})
    rules = box.ipvs_rules()
    assert not any("192.0.2.1:30080" in line for line in rules)

    # The Service goes.
    web.unlink()
    _within(lambda: client.connect("192.0.2.9:30080") == [REFUSED])
    _within(lambda: box.run("dig -r +short @127.0.0.1 web.default.svc.cluster.local").lines == [])
    assert proxy.stop() == 0
    assert dns.stop() == 0


def _within(holds: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < PROMISED_S + SLACK_S, "not so in time"
        time.sleep(0.05)
