"""The small cluster: nodes, pods, an API server, cluster DNS and one proxy a node, in network namespaces of one kernel.

Knows how the machines are wired and which commands run on them. Must not know what is shown or tested. Used by the demo
and by the end-to-end tests.

    outside 192.168.50.77 ──┐                     ┌── upstream 192.168.50.53 (DNS of the rest of the world)
    control 192.168.50.5  ──┤  LAN 192.168.50.0/24├── elsewhere 192.168.50.60 (all other addresses of manifests)
                            ├─────────────────────┤
       node-a 192.168.50.10 ┘                     └ node-b 192.168.50.11
       pods 10.244.1.0/24                           pods 10.244.2.0/24
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnsserver import corefile
from kubecore.files import load
from tests.demo import api, objects
from tests.demo.objects import ELSEWHERE, Machine, Object
from tests.lab.kernel.lab import Lab
from tests.lab.kernel.net import CommandError, Host, Net, Process, Server

CONTROL, UPSTREAM = "192.168.50.5", "192.168.50.53"
OUTSIDE = {4: "192.168.50.77", 6: "fd00:50::77"}
CLUSTER_DNS = "10.96.0.10"
POD_CIDRS = "10.244.0.0/16,fd00:10:244::/48"
VIPS = {"203.0.113.0/24": "192.168.50.10", "2001:db8::/64": "fd00:50::10", "192.168.50.200": "192.168.50.11"}
"""Addresses of load balancers, and to which node our outside client sends them, as a router on the LAN would."""
_LAN = {
    "control": [f"{CONTROL}/24", "fd00:50::5/64"],
    "upstream": [f"{UPSTREAM}/24", "fd00:50::53/64"],
    "outside": [f"{OUTSIDE[4]}/24", f"{OUTSIDE[6]}/64"],
    ELSEWHERE: ["192.168.50.60/24", "fd00:50::60/64"],
}
_NODES = {
    "node-a": (["192.168.50.10/24", "fd00:50::10/64"], ["10.244.1.1/32", "fd00:10:244:1::1/128"]),
    "node-b": (["192.168.50.11/24", "fd00:50::11/64"], ["10.244.2.1/32", "fd00:10:244:2::1/128"]),
}
_POD_ROUTES = {"node-a": ("10.244.1.0/24", "fd00:10:244:1::/64"), "node-b": ("10.244.2.0/24", "fd00:10:244:2::/64")}
_BIN = Path(sys.executable).parent
_PATIENCE_S = 180.0
"""A daemon that starts on a busy machine; it takes 2 s on an idle one."""
_DEVICE_LENGTH = 15  # IFNAMSIZ less the terminating zero
_CONNTRACK_MAX = "/proc/sys/net/netfilter/nf_conntrack_max"
_POD_FILE = "/etc/resolv.conf"

PROXY_CONFIG = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ipvs
clusterCIDR: {pod_cidrs}
clientConnection: {{kubeconfig: {kubeconfig}}}
{settings}"""
_UPSTREAM_COREFILE = """\
.:53 {
    hosts /dev/null {
        192.0.2.80 www.example.org
        192.0.2.81 registry.example.org
    }
}
"""
_POD_RESOLV_CONF = f"""\
search demo.svc.cluster.local svc.cluster.local cluster.local
nameserver {CLUSTER_DNS}
options ndots:5
"""


@dataclass(frozen=True)
class Spec:
    """What the cluster is to be made of."""

    manifests: tuple[Path, ...] = (objects.SCENARIOS,)
    """Files and directories whose objects are added to the demo's own."""
    settings: str = ""
    """More YAML for the proxies' KubeProxyConfiguration, and further documents."""


class Cluster:
    """A running cluster. `build` makes it; closing the lab ends it.

    Attributes:
        servers: the lab's servers by machine name.
        proxies: the running `ipvsproxy run` by node name.
        left_out: objects of the user's that the cluster's own displaced, a line each.
        problems: what else is to be said about the user's objects, a line each.
    """

    def __init__(self, lab: Lab, net: Net, spec: Spec) -> None:
        self.lab, self.net, self.spec = lab, net, spec
        self.directory = lab.directory / net.name
        self.directory.mkdir()
        self.kubeconfig = self.directory / "kubeconfig"
        self.pod_kubeconfig = self.directory / "pod-kubeconfig"
        self.servers: dict[str, Server] = {}
        self.proxies: dict[str, Process] = {}
        self.daemons: dict[str, Process] = {}
        own = objects.own_objects()
        further: list[Object] = []
        self.problems: list[str] = []
        for path in spec.manifests:
            found, problems = objects.theirs(path)
            further += found
            self.problems += problems
        self.objects, self.left_out = objects.merged(own, further)
        self.machines = self._plan()

    def _plan(self) -> list[Machine]:
        self._manifests = self.directory / "objects.yaml"
        objects.write(self.objects, self._manifests)
        everyone = self.directory / "everyone.yaml"
        objects.write([*self.objects, *objects.spare_pods().values()], everyone)
        state, _ = load(everyone)
        return [m for m in objects.machines(state, self.objects) if CONTROL not in m.addresses]

    def host(self, name: str) -> Host:
        """A node, a pod, or one of control, upstream, outside, elsewhere."""
        return self.net.host(name)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes' names."""
        return tuple(_NODES)

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """What brings the cluster up, in order: what to say, what to do."""
        return [
            (f"two nodes, {len(self.machines)} pods and outside addresses, a LAN", self.lay_out),
            ("API server, upstream DNS server", self._start_control),
            ("ipvsproxy run on both nodes", self._start_proxies),
            ("dnsserver run in pod dns-1, the API server and the clients reached through ipvsproxy", self._start_dns),
        ]

    def _start_control(self) -> None:
        self.start_control()
        self.start_upstream()
        self.problems += self.await_control()

    def _start_proxies(self) -> None:
        for node in self.nodes:
            self.start_proxy(node)
        for node in self.nodes:
            self.await_proxy(node)

    def _start_dns(self) -> None:
        self.start_dns("dns-1")
        self.await_dns()
        self.await_dns(name="registry.example.org")  # the upstream server may come up later than ours

    # -- the network

    def lay_out(self) -> None:
        """Makes every host, link, address, route and lab server."""
        self.lab.preload("tests.demo.api")
        # A small machine's default is 8192, which the load of a minute fills; only the first namespace may raise it.
        self._in_guest(["bash", "-c", f"echo 262144 >{_CONNTRACK_MAX} || true"])
        for node in _NODES:
            self.net.host(node, forwarding=True)
        self.net.lan("eth0", {**{n: lan for n, (lan, _) in _NODES.items()}, **_LAN})
        routes: dict[str, list[str]] = {name: [] for name in (*_NODES, *_LAN)}
        for node, (own, gateways) in _NODES.items():
            via = [address.partition("/")[0] for address in own]
            for other in routes:
                if other not in (node, "outside"):
                    routes[other] += [f"route add {net} via {v}" for net, v in zip(_POD_ROUTES[node], via, strict=True)]
            for number, machine in enumerate(self.machines):
                if machine.host == node and machine.own_namespace:
                    addresses = [_single(address) for address in machine.addresses]
                    device = machine.name if len(machine.name) <= _DEVICE_LENGTH else f"pod{number}"
                    self.net.link(node, machine.name, gateways, addresses, gateway=True, device_a=device)
                    routes[node] += [f"route add {address} dev {device}" for address in addresses]
        outside_world = [a for m in self.machines if m.host == ELSEWHERE for a in m.addresses]
        for address in outside_world:
            routes[ELSEWHERE].append(f"address add {_single(address)} dev lo")
            gateway = "fd00:50::60" if ":" in address else "192.168.50.60"
            for node in _NODES:
                routes[node].append(f"route add {_single(address)} via {gateway}")
        routes["outside"] += [f"route add {vip} via {via}" for vip, via in VIPS.items()]
        for name, lines in routes.items():
            self.host(name).ip(lines)
        for machine in self.machines:
            if machine.serves:
                self._serve(machine)
        self._use_cluster_dns()

    def _serve(self, machine: Machine) -> None:
        host = self.host(machine.name if machine.own_namespace else machine.host)
        tcp, udp, sctp = (
            sorted(port for kind, port in machine.ports if kind == transport) for transport in ("tcp", "udp", "sctp")
        )
        for address in machine.addresses if not machine.own_namespace else (None,):
            if machine.ports:
                self.servers[machine.name] = host.serve(
                    tcp=tcp, udp=udp, sctp=sctp, name=machine.name, address=address, delay_s=machine.delay_s
                )

    def _use_cluster_dns(self) -> None:
        """Every command in the guest resolves names as a pod of namespace `demo` does."""
        path = self.directory / "resolv.conf"
        path.write_text(_POD_RESOLV_CONF)
        # /etc/resolv.conf may be a link into /run, which in the guest is empty; only the guest sees what is mounted.
        script = 'target=$(readlink -m "$1"); mkdir -p "${target%/*}"; [ -e "$target" ] || : >"$target"'
        self._in_guest(["bash", "-c", f'{script}; mount --bind "$2" "$target"', "-", _POD_FILE, str(path)])

    def _in_guest(self, argv: Sequence[str]) -> None:
        reply = self.lab.request(
            "run", limit_s=10, namespace=None, argv=list(argv), stdin="", env={}, cwd=None, timeout_s=10
        )
        if reply["code"] != 0:
            raise CommandError(f"{argv}: {reply['stderr']}")

    # -- the processes

    def start_control(self) -> None:
        """The API server, with its controllers."""
        self.daemons["apiserver"] = self.host("control").popen(
            [
                *(sys.executable, "-m", "tests.lab.apiserver", "--tls", "--token", "demo=system:admin"),
                *("--host", CONTROL, "--port", "6443", "--name", "10.96.0.1", "--controllers"),
                *("--service-cidr", "10.96.0.0/12", "--service-cidr", "fd00:10:96::/112"),
                *("--manifests", str(self._manifests), "--kubeconfig-out", str(self.kubeconfig)),
            ]
        )

    def await_control(self) -> list[str]:
        """Waits until the API serves; returns the objects that it refused, a line each."""
        self.daemons["apiserver"].wait_for_log("^serving ", _PATIENCE_S)
        # Pods find the API server where every pod does: behind the `kubernetes` Service, that is through our own proxy.
        text = self.kubeconfig.read_text().replace(f"https://{CONTROL}:6443", "https://10.96.0.1:443")
        self.pod_kubeconfig.write_text(text)
        log = self.daemons["apiserver"].log()
        return [line.partition(": left out: ")[2] for line in log.splitlines() if ": left out: " in line]

    def start_proxy(self, node: str) -> Process:
        """`ipvsproxy run` on a node."""
        config = self.directory / "kube-proxy.yaml"
        config.write_text(
            PROXY_CONFIG.format(pod_cidrs=POD_CIDRS, kubeconfig=self.kubeconfig, settings=self.spec.settings)
        )
        process = self.host(node).popen([str(_BIN / "ipvsproxy"), "run", "--config", str(config), "--node", node])
        self.proxies[node] = process
        return process

    def await_proxy(self, node: str) -> None:
        """Returns when the node's Services work."""
        self.proxies[node].wait_for_log("ipvsproxy.reconciler.started", _PATIENCE_S)

    def start_dns(self, pod: str) -> Process:
        """`dnsserver run` in a pod, configured as kubeadm does; the node's resolv.conf names the upstream server."""
        node_file = self.directory / "node-resolv.conf"
        node_file.write_text(f"nameserver {UPSTREAM}\n")
        config = self.directory / "Corefile"
        config.write_text(corefile.DEFAULT.replace("/etc/resolv.conf", str(node_file)))
        process = self.host(pod).popen(
            [str(_BIN / "dnsserver"), "run", "--config", str(config)], env={"KUBECONFIG": str(self.pod_kubeconfig)}
        )
        self.daemons[pod] = process
        return process

    def start_upstream(self) -> Process:
        """A DNS server that knows www.example.org and registry.example.org."""
        config = self.directory / "upstream.Corefile"
        config.write_text(_UPSTREAM_COREFILE)
        self.daemons["upstream"] = self.host("upstream").popen(
            [str(_BIN / "dnsserver"), "run", "--config", str(config)]
        )
        return self.daemons["upstream"]

    def await_dns(self, server: str = CLUSTER_DNS, name: str = "kubernetes.default.svc.cluster.local") -> None:
        """Returns when `name` has an address, for a client in a pod."""
        deadline = time.monotonic() + _PATIENCE_S
        question = f"dig -r @{server} +short +tries=1 +timeout=1 {name}"
        while (answer := self.host("client").run(question, check=False)).code != 0 or not answer.stdout.strip():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}:\n{process.log()[-3000:]}" for name, process in self.daemons.items())
                raise CommandError(f"{name} has no address from {server} after {_PATIENCE_S:g} s; logs:\n{logs}")
            time.sleep(0.1)

    def terminate_dns(self, pod: str) -> None:
        """A pod of cluster DNS is deleted: it leaves the Service, is told to end, finishes what it has, and is gone."""
        self.call(api.delete, "Pod", "kube-system", pod)
        process = self.daemons.pop(pod)
        process.kill()
        process.wait(_PATIENCE_S)
        self.call(api.finish, "kube-system", pod)

    # -- what clients and operators do

    def dig(self, host: str, arguments: str) -> list[str]:
        """The lines dig prints with +short, in one of the hosts."""
        # -r: what dig asks must not depend on a .digrc of the person's.
        return without_remarks(self.host(host).run(f"dig -r +search +short {arguments}").stdout)

    def call(self, function: Callable[..., Any], *args: Any, host: str = "client", **kwargs: Any) -> Any:
        """A function of `api` run in a pod (or on another host), with the right kubeconfig as first argument."""
        kubeconfig = self.kubeconfig if host in (*_NODES, *_LAN) else self.pod_kubeconfig
        return self.host(host).call(function, str(kubeconfig), *args, **kwargs)

    def diff(self, node: str) -> str:
        """What `ipvsproxy diff` finds between the API and the node's kernel; empty: equal."""
        config = self.directory / "kube-proxy.yaml"
        result = self.host(node).run(
            [str(_BIN / "ipvsproxy"), "diff", "--config", str(config), "--node", node, "--output", "json"], check=False
        )
        return "" if result.code == 0 else f"exit {result.code}: {result.stdout}{result.stderr}"

    def logs(self) -> dict[str, str]:
        """What every process has written."""
        running = {**{f"ipvsproxy-{node}": p for node, p in self.proxies.items()}, **self.daemons}
        return {name: process.log() for name, process in running.items()}


def build(lab: Lab, net: Net, spec: Spec) -> Cluster:
    """A cluster that works: proxies have programmed their nodes and names resolve."""
    cluster = Cluster(lab, net, spec)
    for _, step in cluster.steps():
        step()
    return cluster


def without_remarks(text: str) -> list[str]:
    """The records in dig's short output, without `;; communications error` of a try that another one mended."""
    return [line for line in text.splitlines() if line.strip() and not line.startswith(";")]


def _single(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"
