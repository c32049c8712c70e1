"""The rendered pods, run: their command lines, users, capabilities, mounts and configuration, probed as rendered.

One node with a real kernel, an API server that permits what the charts' roles say and nothing else, a pod and a client.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.charts import kubeadm
from tests.charts.helm import Object, Rendered, template
from tests.charts.pods import Node, Pod
from tests.lab.kernel.fixtures import Kernel
from tests.lab.kernel.net import Net, Process
from tests.lab.kernel.outcomes import servers
from tools import reference

pytestmark = pytest.mark.kernel

NODE, API, CLIENT, POD = "192.168.50.10", "192.168.50.5", "192.168.50.99", "10.244.1.2"

CLUSTER = f"""
apiVersion: v1
kind: Node
metadata: {{name: n1}}
spec: {{podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}}
status: {{addresses: [{{type: InternalIP, address: {NODE}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kubernetes, namespace: default, labels: {{kubernetes.io/service-name: kubernetes}}}}
addressType: IPv4
ports: [{{name: https, port: 6443, protocol: TCP}}]
endpoints: [{{addresses: [{API}], conditions: {{ready: true}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  clusterIP: 10.96.0.80
  clusterIPs: [10.96.0.80]
  ports: [{{name: http, port: 80, targetPort: 8080, protocol: TCP}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints: [{{addresses: [{POD}], conditions: {{ready: true}}, nodeName: n1}}]
"""


class World:
    """The network, the API server on it, and the node's kubelet."""

    def __init__(self, net: Net, directory: Path, *charts: tuple[str, Object]) -> None:
        self.net = net
        self.directory = directory
        self.rendered: dict[str, Rendered] = {chart: template(chart, values) for chart, values in charts}
        self.node_host = net.host("node", forwarding=True)
        net.lan("eth0", {"node": [f"{NODE}/24"], "api": [f"{API}/24"], "client": [f"{CLIENT}/24"]})
        net.link("node", "pod", ["10.244.1.1/24"], [f"{POD}/24"], gateway=True)
        net.host("api").ip([f"route add 10.0.0.0/8 via {NODE}"])
        net.host("client").ip([f"route add default via {NODE}"])
        net.host("pod").serve(tcp=[8080])
        kubeconfig = self._start_api()
        ca_pem = base64.b64decode(kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
        self.node = Node(
            host=self.node_host,
            name="n1",
            address=NODE,
            directory=directory,
            config_maps={},
            token="the-token",
            ca_pem=ca_pem,
            api=("10.96.0.1", "443"),
        )
        for objects in self.rendered.values():
            self.node.add(objects)
        self.node.config_maps["kube-proxy"] = {
            "config.conf": kubeadm.KUBE_PROXY_CONFIG,
            "kubeconfig.conf": KUBE_PROXY_KUBECONFIG.format(server=f"https://{API}:6443"),
        }
        self.node.config_maps["coredns"] = {"Corefile": kubeadm.COREFILE}

    def _start_api(self) -> Object:
        roles = self.directory / "roles.yaml"
        kinds = {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
        roles.write_text(
            yaml.safe_dump_all(o for objects in self.rendered.values() for o in objects if o["kind"] in kinds)
        )
        cluster = self.directory / "cluster.yaml"
        cluster.write_text(CLUSTER)
        out = self.directory / "kubeconfig"
        account = f"system:serviceaccount:kube-system:{next(iter(self.rendered))}"
        command = [sys.executable, "-m", "tests.lab.apiserver", "--host", API, "--port", "6443", "--tls"]
        command += ["--name", "10.96.0.1", "--token", f"the-token={account}", "--rbac", str(roles)]
        command += ["--manifests", str(cluster), "--kubeconfig-out", str(out)]
        self.net.host("api").popen(command).wait_for_log("serving", timeout_s=30)
        kubeconfig: Object = yaml.safe_load(out.read_text())
        return kubeconfig

    def pod(self, chart: str, kind: str, name: str = "") -> Pod:
        return Pod(self.node, self.rendered[chart].one(kind, name))


KUBE_PROXY_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    server: {server}
  name: default
contexts:
- context: {{cluster: default, namespace: default, user: default}}
  name: default
current-context: default
users:
- name: default
  user: {{tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token}}
"""
"""As kubeadm writes it into kube-proxy's ConfigMap."""


@pytest.fixture
def directory(kernel: Kernel, tmp_path: Path) -> Path:
    """A directory that pods of any user may enter, unlike pytest's."""
    found = Path(kernel.lab.directory) / tmp_path.name
    found.mkdir()
    for part in (found, kernel.lab.directory):
        part.chmod(0o755)
    return found


def until(what: Callable[[], bool], process: Process, timeout_s: float = 30.0) -> None:
    """Wait for something to hold while a process runs."""
    deadline = time.monotonic() + timeout_s
    while not what():
        code = process.poll()
        assert code is None, f"ended with {code}:\n{process.log()}"
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s; log:\n{process.log()}"
        time.sleep(0.1)


def families(exposition: str) -> set[str]:
    """Metric families in a scrape."""
    return {line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE")}


def documented(daemon: str) -> set[str]:
    """Metric families in docs/metrics.md."""
    found = reference.registries()
    text = [f for name in (daemon, "both") for f in found[name].collect()]
    return {f.name + ("_total" if f.type == "counter" else "") for f in text}


def capabilities(process: Process, world: World) -> dict[str, str]:
    """Lines of /proc/PID/status that tell what a process may do."""
    text = world.node_host.run(["cat", f"/proc/{process.pid}/status"]).stdout
    rows = dict(line.split(":", 1) for line in text.splitlines())
    return {name: rows[name].strip() for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs")}


NET_BIND_SERVICE, NET_ADMIN = 1 << 10, 1 << 12


def running_proxy(world: World) -> tuple[Pod, Process]:
    """The proxy's pod, its init container done and its probes good."""
    pod = world.pod("ipvsproxy", "DaemonSet")
    code, said = pod.run("settings")
    assert code == 0, said
    proxy = pod.start("ipvsproxy")
    until(lambda: pod.probe("ipvsproxy", "startup")[0] == 200, proxy)
    until(lambda: pod.probe("ipvsproxy", "readiness")[0] == 200, proxy)
    assert pod.probe("ipvsproxy", "liveness")[0] == 200
    client = world.net.host("client")
    until(lambda: servers(client.connect("10.96.0.80:80", timeout_s=1.0)) == {"pod": 1}, proxy)
    assert "forbidden" not in proxy.log()
    return pod, proxy


def test_the_proxy(net: Net, directory: Path) -> None:
    values: Object = {"k8sServiceHost": API, "k8sServicePort": 6443, "config": {"clusterCIDR": "10.244.0.0/16"}}
    world = World(net, directory, ("ipvsproxy", values))
    world.node_host.sysctl({"net.ipv4.ip_forward": "0"})
    pod, proxy = running_proxy(world)

    assert world.node_host.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n"
    assert world.node_host.run(["cat", "/proc/sys/net/ipv4/vs/conntrack"]).stdout == "1\n"
    assert json.loads(pod.probe("ipvsproxy", "readiness")[1])["nodeEligible"] is True
    rights = capabilities(proxy, world)
    assert (int(rights["CapEff"], 16), int(rights["CapBnd"], 16)) == (NET_ADMIN, NET_ADMIN)
    assert rights["NoNewPrivs"] == "1"
    metrics, levels = (
        world.node_host.run(["curl", "-s", f"http://127.0.0.1:10249/{path}"]).stdout
        for path in ("metrics", "metrics/slis")
    )
    assert 'ipvsproxy_virtual_servers{ip_family="IPv4"} 2.0' in metrics
    assert families(metrics) | families(levels) == documented("ipvsproxy")
    assert "passed" in helm_test(world, "ipvsproxy", {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "pod")

    assert proxy.stop() == 0
    client = net.host("client")
    assert servers(client.connect("10.96.0.80:80", count=2)) == {"pod": 2}, "leaving must leave everything working"
    clean_up(world, values)


def test_the_proxy_with_kube_proxys_configmap_as_it_is(net: Net, directory: Path) -> None:
    values: Object = {"existingConfigMap": "kube-proxy", "additions": {"drain": {"grace": "1s"}, "logLevel": "debug"}}
    running_proxy(World(net, directory, ("ipvsproxy", values)))


def helm_test(world: World, chart: str, env: dict[str, str], where: str = "client") -> str:
    """What the script of `helm test` says."""
    test = world.rendered[chart].one("Pod", f"{chart}-test")
    container = test["spec"]["containers"][0]
    fixed = {e["name"]: e.get("value", NODE) for e in container["env"]}
    result = world.net.host(where).run(
        container["command"], env={**fixed, "KUBERNETES_SERVICE_PORT": "443", **env}, check=False, timeout_s=60
    )
    assert result.code == 0, result.stdout + result.stderr
    return result.stdout


def clean_up(world: World, values: Object) -> None:
    """What `cleanup.enabled` does on a node."""
    leaving = template("ipvsproxy", {**values, "cleanup": {"enabled": True, "kubeProxy": True}})
    world.node.directory = world.directory / "leaving"
    world.node.directory.mkdir()
    pod = Pod(world.node, leaving.one("DaemonSet"))
    code, said = pod.run("cleanup")
    assert code == 0, said
    assert world.node_host.ipvs_rules() == []
    assert "ipvsproxy" not in world.node_host.run(["nft", "list", "tables"]).stdout
    done = pod.start("done")
    done.wait_for_log("nothing of the proxy is left")
    assert done.stop() == 0


def test_the_dns_server(net: Net, directory: Path) -> None:
    values: Object = {"k8sServiceHost": API, "k8sServicePort": 6443, "workers": 2}
    world = World(net, directory, ("dnsserver", values))
    pod = world.pod("dnsserver", "Deployment")

    server = pod.start("dnsserver")
    until(lambda: pod.probe("dnsserver", "startup")[0] == 200, server)
    until(lambda: pod.probe("dnsserver", "readiness")[0] == 200, server)
    assert pod.probe("dnsserver", "liveness") == (200, "OK")
    rights = capabilities(server, world)
    assert (int(rights["CapEff"], 16), int(rights["CapBnd"], 16)) == (0, 0)
    assert rights["Uid"].split() == ["65532"] * 4

    said = helm_test(world, "dnsserver", {"DNSSERVER_TEST_SERVICE_HOST": NODE, "KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    assert "passed" in said
    with pytest.raises(AssertionError, match=r"FAILED: kubernetes by UDP: wanted '10\.96\.0\.2', got '10\.96\.0\.1'"):
        helm_test(world, "dnsserver", {"DNSSERVER_TEST_SERVICE_HOST": NODE, "KUBERNETES_SERVICE_HOST": "10.96.0.2"})
    metrics = world.node_host.run(["curl", "-s", f"http://{NODE}:9153/metrics"]).stdout
    assert "coredns_dns_requests_total{" in metrics
    assert families(metrics) == documented("dnsserver")

    server.kill()
    time.sleep(0.3)
    assert pod.probe("dnsserver", "readiness")[0] == 503, "no new queries, while those that come are answered"
    assert (
        net.host("client").run(["dig", "+short", f"@{NODE}", "web.default.svc.cluster.local"]).stdout == "10.96.0.80\n"
    )
    assert server.wait(20) == 0, server.log()
    assert "forbidden" not in server.log()


def test_the_node_local_cache(net: Net, directory: Path) -> None:
    upstream = {"k8sServiceHost": API, "k8sServicePort": 6443, "nodeLocal": {"enabled": True}}
    world = World(net, directory, ("dnsserver", upstream))
    # The cluster's DNS, in a pod of its own.
    node, world.node.host, world.node.address = world.node_host, net.host("pod"), POD
    central = world.pod("dnsserver", "Deployment", "dnsserver")
    dns = central.start("dnsserver")
    until(lambda: central.probe("dnsserver", "readiness")[0] == 200, dns)

    world.node.host, world.node.address = node, NODE
    world.node.services = {"KUBE_DNS_SERVICE_HOST": POD, "KUBE_DNS_SERVICE_PORT": "53"}
    pod = world.pod("dnsserver", "DaemonSet", "dnsserver-node-local")
    for _ in range(2):  # a second start finds the address there
        code, said = pod.run("address")
        assert code == 0, said
    cache = pod.start("dnsserver")
    until(lambda: pod.probe("dnsserver", "startup")[0] == 200, cache)
    until(lambda: pod.probe("dnsserver", "readiness")[0] == 200, cache)
    rights = capabilities(cache, world)
    assert int(rights["CapEff"], 16) == NET_BIND_SERVICE
    answer = net.host("pod").run(["dig", "+short", "@169.254.20.10", "web.default.svc.cluster.local"]).stdout
    assert answer == "10.96.0.80\n"
    refused = node.run(
        ["dig", "+short", "+time=1", "+tries=1", f"@{NODE}", "web.default.svc.cluster.local"], check=False
    )
    assert refused.code != 0, "the node's other addresses must stay free for others"
    assert cache.stop(20) == 0
