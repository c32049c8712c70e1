"""Steps about Services that stand still: who answers where, seen from pods, nodes and outside."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address

from tests.demo import api
from tests.demo.cluster import OUTSIDE, Cluster, without_remarks
from tests.demo.objects import Object
from tests.demo.report import Report
from tests.lab.kernel.outcomes import REFUSED, Answer, Outcome, servers, sources

_SILENT = ("default/kubernetes", "kube-system/kube-dns")
"""What answers there does not say who it is; the demo would not run without."""
CLIENT_NODE = "node-a"
WEB = {"web-1", "web-2", "web-3"}
NODE = {"node-a": "192.168.50.10", "node-b": "192.168.50.11"}
VIP_CLUSTER, VIP_LOCAL = "203.0.113.81", "203.0.113.82"
SCHEDULERS = {"rr": "10.96.20.11", "lc": "10.96.20.12", "sed": "10.96.20.13"}
SLOW = "work-slow"
_CONNECTIONS = 60
_TRIES = 3
"""On a machine that stands still now and then all pods are slow alike, and none gets less."""
_SHOWN = re.compile(
    r"\w+ +(10\.96\.20\.1:|\[fd00:10:96::20:1\]:80|10\.96\.20\.1[23]|192\.168\.50\.10:3008[12]|203\.0\.113)"
)
_REMEDY = "compare `ipvsadm -Ln` and `ipvsproxy diff` on the node, in a shell of the cluster: make demo KEEP=1"


def run(cluster: Cluster, report: Report) -> None:
    """Virtual servers, who answers through them, whom they see."""
    virtual_servers(cluster, report)
    reach(cluster, report)
    policies(cluster, report)
    distribution(cluster, report)
    everything(cluster, report)


def virtual_servers(cluster: Cluster, report: Report) -> None:
    """`ipvsadm -Ln` for the web Services."""
    report.section("The kernel: ipvsadm -Ln on node-a (here some Services of namespace demo)")
    command = "ipvsadm -Ln"
    blocks = _virtual_servers(cluster.host("node-a").run(command).stdout)
    shown = {head: reals for head, reals in blocks.items() if _SHOWN.match(head)}
    report.command("node-a", command, [line for head, reals in shown.items() for line in (head, *reals)])
    # A real server that drains has weight 0, the third column after the arrow.
    heads = {" ".join(head.split()[:3]): sum(r.split()[3] != "0" for r in reals) for head, reals in blocks.items()}
    wanted = {
        "TCP 10.96.20.1:80 rr": 3,
        "UDP 10.96.20.1:9000 rr": 3,
        "TCP [fd00:10:96::20:1]:80 rr": 3,
        "TCP 192.168.50.10:30081 rr": 3,
        f"TCP {VIP_CLUSTER}:80 rr": 3,
        f"TCP {VIP_LOCAL}:80 rr": 1,
        "TCP 10.96.20.12:80 lc": 3,
        "TCP 10.96.20.13:80 sed": 3,
    }
    missing = {head: n for head, n in wanted.items() if heads.get(head) != n}
    report.check(
        not missing,
        "Virtual servers with their pods and schedulers",
        f"{len(blocks)} on node-a",
        seen=f"wrong or missing: {missing}",
        remedy=_REMEDY,
    )


def reach(cluster: Cluster, report: Report) -> None:
    """HTTP, TCP and UDP through every way into a Service."""
    report.section("Reaching a Service: by name, by ClusterIP, by node port on both nodes, by load balancer address")
    for host, label, url in (
        ("client", "pod client", "http://web/"),
        ("client", "pod client", "http://web-cluster.demo.svc.cluster.local/"),
        ("outside", "outside", "http://192.168.50.10:30081/"),
        ("outside", "outside", "http://192.168.50.11:30081/"),
        ("outside", "outside", f"http://{VIP_CLUSTER}/"),
    ):
        result = cluster.host(host).run(f"curl -sS --max-time 5 {url}", check=False)
        output = result.stdout + result.stderr
        report.command(label, f"curl {url}", output)
        good = result.code == 0 and output.split(" ")[0] in WEB
        report.check(good, f"HTTP from {label}: {url}", seen=output, remedy=_REMEDY)
    for host, target, proto, what in (
        ("client", "10.96.20.1:80", "tcp", "ClusterIP, TCP, from a pod"),
        ("client", "10.96.20.1:9000", "udp", "ClusterIP, UDP, from a pod"),
        ("client", "[fd00:10:96::20:1]:80", "tcp", "ClusterIP, IPv6, from a pod"),
        ("node-b", "10.96.20.1:80", "tcp", "ClusterIP, from a process on a node"),
        ("web-1", "10.96.20.1:80", "tcp", "ClusterIP, from a pod behind it (hairpin)"),
        ("outside", "192.168.50.10:30081", "tcp", "node port on node-a, from outside"),
        ("outside", "192.168.50.11:30081", "tcp", "node port on node-b, from outside"),
        ("outside", f"{VIP_CLUSTER}:80", "tcp", "load balancer address, from outside"),
    ):
        outcomes = cluster.host(host).connect(target, proto=proto, count=6)
        seen = servers(outcomes)
        good = set(seen) == WEB and sum(seen.values()) == 6
        report.check(good, f"Every pod answers: {what}", _counts(seen), seen=_counts(seen), remedy=_REMEDY)
    refused = cluster.host("client").connect("10.96.20.1:81")
    report.check(
        refused == [REFUSED],
        "A port that is no Service's is refused at once",
        seen=refused[0],
        remedy="nft list table inet ipvsproxy on node-a",
    )


def policies(cluster: Cluster, report: Report) -> None:
    """Which pods, and which source addresses they see, for externalTrafficPolicy Cluster and Local."""
    report.section("externalTrafficPolicy: who answers the outside client 192.168.50.77, and whom they see")
    rows = []
    pods = {node: {m.name for m in cluster.machines if m.name in WEB and m.host == node} for node in cluster.nodes}
    for policy, port in (("Cluster", 30081), ("Local", 30082)):
        for node in cluster.nodes:
            target = f"{NODE[node]}:{port}"
            outcomes = cluster.host("outside").connect(target, count=6)
            rows.append((policy, target, _counts(servers(outcomes)), ", ".join(sorted(sources(outcomes)))))
            if policy == "Cluster":
                # A pod on the node itself is reached by the node's address on its link, one elsewhere by its LAN one.
                good = set(servers(outcomes)) == WEB and OUTSIDE[4] not in sources(outcomes)
            else:
                good = set(servers(outcomes)) == pods[node] and sources(outcomes) == {OUTSIDE[4]}
            what = "all pods, masqueraded" if policy == "Cluster" else "only its own pods, the client's address kept"
            report.check(good, f"Policy {policy} at {node}: {what}", seen=rows[-1], remedy=_REMEDY)
    report.table(("policy", "outside connects to", "answered by", "source they saw"), rows)
    outcomes = cluster.host("client").connect(f"{VIP_LOCAL}:80", count=6)
    report.check(
        set(servers(outcomes)) == WEB,
        "A pod on node-a reaches all pods through the policy-Local address",
        _counts(servers(outcomes)),
        seen=_counts(servers(outcomes)),
        remedy=_REMEDY,
    )
    health = {
        node: cluster.host("outside").run(f"curl -s -o /dev/null -w '%{{http_code}}' http://{NODE[node]}:31082/")
        for node in cluster.nodes
    }
    codes = {node: result.stdout for node, result in health.items()}
    report.check(
        set(codes.values()) == {"200"},
        "healthCheckNodePort answers 200 on nodes with a pod",
        seen=codes,
        remedy=_REMEDY,
    )


def distribution(cluster: Cluster, report: Report) -> None:
    """rr, lc and sed over the same three pods, of which one answers late."""
    report.section(f"Schedulers: {_CONNECTIONS} connections, 6 at a time, over three pods; work-slow takes 200 ms")
    pods = ("work-1", "work-2", "work-slow")
    third = _CONNECTIONS // len(pods)
    even = Counter(dict.fromkeys(pods, third))
    counts, good = {}, {}
    for name, address in SCHEDULERS.items():
        for _ in range(_TRIES):
            seen = servers(cluster.host("client").connect(f"{address}:80", count=_CONNECTIONS, parallel=6))
            all_answered = seen.keys() <= set(pods)
            counts[name], good[name] = seen, seen == even if name == "rr" else all_answered and seen[SLOW] <= third // 2
            if good[name]:
                break
    report.table(("pod", *counts), [(pod, *(str(counts[name][pod]) for name in counts)) for pod in pods])
    for name, seen in counts.items():
        what, figure = ("the slow pod gets less", f"{seen[SLOW]} of {_CONNECTIONS}")
        if name == "rr":
            what, figure = ("the same for every pod", f"{third} each")
        report.check(good[name], f"{name}: {what}", figure, seen=_counts(seen), remedy=_REMEDY)


@dataclass(frozen=True)
class Expectation:
    """A port of a Service and the machines that must answer through its ClusterIP."""

    service: str
    target: str
    proto: str
    endpoints: frozenset[str]
    """`10.244.1.11:8080`; none: refused."""
    spread: bool
    """Each of them in turn; otherwise affinity, nearness or the scheduler's choice decides among them."""
    local: bool = False
    """internalTrafficPolicy Local: only those on the client's node; without any its packets are dropped."""


def everything(cluster: Cluster, report: Report) -> None:
    """Every Service of the manifests through its ClusterIP, and its name; then the proxies' own comparison."""
    names = ", ".join(str(path.name) for path in cluster.spec.manifests)
    report.section(f"Every Service of the cluster, those of {names} included, through its ClusterIP and its name")
    for line in cluster.left_out:
        report.say(f"(not taken over, its name or address is the demo's own: {line})")
    for line in cluster.problems:
        report.say(f"(in the manifests: {line})")
    services = cluster.call(api.get_all, "Service")
    slices = cluster.call(api.get_all, "EndpointSlice")
    wanted = expectations(services, slices)
    wrong = []
    for each in wanted:
        outcomes = cluster.host("client").connect(
            each.target, proto=each.proto, count=max(2, 2 * len(each.endpoints)), parallel=2, reset=True
        )
        if complaint := _judge(each, outcomes):
            wrong.append(f"{each.service} {each.target}: {complaint}")
    report.check(
        bool(wanted) and not wrong,
        "Every port is answered by exactly its ready endpoints, refused without any",
        f"{len(wanted)} ports of {len({e.service for e in wanted})} Services",
        seen="; ".join(wrong),
        remedy=_REMEDY,
    )
    wrong_names = _wrong_names(cluster, services)
    report.check(
        not wrong_names,
        "Every Service's name leads to it",
        f"{len(services)} Services",
        seen="; ".join(wrong_names),
        remedy="dig the name in a shell of the cluster: make demo KEEP=1",
    )
    for node in cluster.nodes:
        with report.doing(f"ipvsproxy diff on {node}"):
            found = cluster.diff(node)
        report.check(not found, f"ipvsproxy diff on {node}: kernel and API agree", seen=found, remedy=_REMEDY)


def expectations(services: list[Object], slices: list[Object]) -> list[Expectation]:
    """What must answer at each ClusterIP, by the API's objects. SCTP is left out, as a kernel may lack it."""
    found = []
    for service in services:
        spec, metadata = service["spec"], service["metadata"]
        if spec.get("type") == "ExternalName" or spec.get("clusterIP") in (None, "", "None"):
            continue
        mine = [
            s
            for s in slices
            if s["metadata"].get("namespace") == metadata["namespace"]
            and (s["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == metadata["name"]
        ]
        for address in spec["clusterIPs"]:
            family = "IPv6" if ":" in address else "IPv4"
            for port in spec["ports"]:
                proto = port.get("protocol", "TCP").lower()
                if proto == "sctp":
                    continue
                local = spec.get("internalTrafficPolicy") == "Local"
                pieces = [s for s in mine if s["addressType"] == family]
                endpoints = _ready(pieces, port.get("name") or "", node=CLIENT_NODE if local else None)
                target = f"[{address}]:{port['port']}" if family == "IPv6" else f"{address}:{port['port']}"
                name = f"{metadata['namespace']}/{metadata['name']}"
                scheduler = (metadata.get("annotations") or {}).get("ipvsproxy.io/scheduler", "rr")
                spread = scheduler == "rr" and not (
                    spec.get("sessionAffinity") == "ClientIP" or spec.get("trafficDistribution")
                )
                found.append(Expectation(name, target, proto, frozenset(endpoints), spread, local))
    return found


def _ready(slices: list[Object], port_name: str, node: str | None = None) -> set[str]:
    """Endpoints (on the node) that are ready; if none is, those that still serve while they terminate (KEP-1669)."""
    ready, fallback = set(), set()
    for piece in slices:
        for port in piece.get("ports") or []:
            if (port.get("name") or "") != port_name:
                continue
            for endpoint in piece.get("endpoints") or []:
                if node and endpoint.get("nodeName") != node:
                    continue
                conditions = endpoint.get("conditions") or {}
                address = endpoint["addresses"][0]
                text = f"[{address}]:{port['port']}" if ":" in address else f"{address}:{port['port']}"
                if conditions.get("ready", True):
                    ready.add(text)
                elif conditions.get("serving") and conditions.get("terminating"):
                    fallback.add(text)
    return ready or fallback


def _judge(each: Expectation, outcomes: list[Outcome]) -> str:
    """What is wrong with who answered; empty: nothing."""
    if each.service in _SILENT:
        return ""
    if not each.endpoints and each.local:
        return next((f"answered: {o}" for o in outcomes if isinstance(o, Answer)), "")
    if not each.endpoints:
        return "" if all(o == REFUSED for o in outcomes) else f"not refused: {outcomes[0]}"
    at = {o.at for o in outcomes if isinstance(o, Answer)}
    failures = [str(o) for o in outcomes if not isinstance(o, Answer)]
    if failures:
        return failures[0]
    good = at == each.endpoints if each.spread else at <= each.endpoints
    return "" if good else f"answered by {sorted(at)}, ready are {sorted(each.endpoints)}"


def _wrong_names(cluster: Cluster, services: list[Object]) -> list[str]:
    wanted: dict[tuple[str, str], set[str]] = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        name = f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local."
        if spec.get("type") == "ExternalName":
            wanted[name, "CNAME"] = {f"{spec['externalName'].rstrip('.')}."}
        elif spec.get("clusterIP") not in (None, "", "None"):
            wanted[name, "A"] = {ip for ip in spec["clusterIPs"] if ":" not in ip}
            wanted[name, "AAAA"] = {str(ip_address(ip)) for ip in spec["clusterIPs"] if ":" in ip}
    path = cluster.directory / "questions"
    path.write_text("".join(f"{name} {kind}\n" for name, kind in wanted))
    output = cluster.host("client").run(f"dig -r +noall +answer -f {path}").stdout
    answers: dict[tuple[str, str], set[str]] = {}
    for line in without_remarks(output):
        name, _, _, kind, content = line.split(None, 4)
        answers.setdefault((name, kind), set()).add(content)
    return [
        f"{name} {kind}: {sorted(answers.get((name, kind), ())) or 'no answer'}, not {sorted(answer)}"
        for (name, kind), answer in wanted.items()
        if answers.get((name, kind), set()) != answer
    ]


def _virtual_servers(text: str) -> dict[str, list[str]]:
    """`ipvsadm -Ln`'s virtual servers with the lines of their real servers."""
    blocks: dict[str, list[str]] = {}
    head = ""
    for line in text.splitlines()[3:]:
        if line.startswith("  ->"):
            blocks[head].append(line.rstrip())
        elif line.strip():
            head = line.rstrip()
            blocks[head] = []
    return blocks


def _counts(seen: Counter[str]) -> str:
    return ", ".join(f"{name} {seen[name]}" for name in sorted(seen))
