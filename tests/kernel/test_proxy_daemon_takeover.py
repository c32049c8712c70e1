"""From kube-proxy to ours on a live node: what its IPVS mode leaves is made by hand, connections stay open, and
`cleanup --kube-proxy` removes all of it and nobody else's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kubecore.model import LoadBalancerIngress, Service, ServiceType
from tests.builders import service
from tests.lab.kernel.net import Net
from tests.lab.kernel.outcomes import REFUSED, Answer, servers
from tests.proxy_daemon import NODE, NODE6, PODS, THIS, Site, backends, until

pytestmark = pytest.mark.kernel

VIP, VIP6, LB = "10.96.0.1:80", "[fd00:96::1]:80", "203.0.113.1:80"
NODE_PORTS = tuple(f"{a}:30080" for a in (NODE, "10.244.1.1", f"[{NODE6}]", "[fd00:244:1::1]"))
STALE = ("10.96.0.66:80", f"{NODE}:30999", "[fd00:96::66]:80")
FOREIGN = "192.0.2.80:80"
BOUND = ("10.96.0.1", "203.0.113.1", "10.96.0.66", "fd00:96::1", "fd00:96::66")


def web() -> Service:
    return service(
        "web",
        "10.96.0.1 fd00:96::1",
        "80@30080",
        type=ServiceType.LOAD_BALANCER,
        ingress=(LoadBalancerIngress(ip="203.0.113.1"),),
    )


IPTABLES = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:THEIRS - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -s 192.0.2.9/32 -j THEIRS
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m set --match-set {loadbalancer} dst,dst -j KUBE-LOAD-BALANCER
-A KUBE-SERVICES ! -s {pods} -m set --match-set {cluster} dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -p tcp -m tcp --dport 30080 -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
*filter
:KUBE-IPVS-FILTER - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A INPUT -s 192.0.2.9/32 -j DROP
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set {cluster} dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {loadbalancer} dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set {addresses} dst -j REJECT
COMMIT
"""


def kube_proxy_was_here(site: Site) -> None:
    """What kube-proxy's IPVS mode has in the kernel for `web`, and for a Service that has been deleted meanwhile."""
    site.node.sysctl({"net.ipv4.vs.conntrack": "1", "net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"})
    lengths = {address: 128 if ":" in address else 32 for address in BOUND}
    bound = [f"address add {a}/{n} dev kube-ipvs0" for a, n in lengths.items()]
    site.node.ip(["link add kube-ipvs0 type dummy", *bound])
    rules = []
    for target in (VIP, LB, VIP6, *NODE_PORTS, *STALE, FOREIGN):
        pods = [f"[{PODS[p][1]}]" if "[" in target else PODS[p][0] for p in ("p1", "p2")]
        rules += [f"-A -t {target} -s rr", *(f"-a -t {target} -r {pod}:8080 -m -w 1" for pod in pods)]
    site.node.ipvs("\n".join(rules))
    sets = []
    for infix, family, vip, lb in (("", "inet", "10.96.0.1", "203.0.113.1"), ("6-", "inet6", "fd00:96::1", "")):
        sets += [
            f"create KUBE-{infix}CLUSTER-IP hash:ip,port family {family}",
            f"create KUBE-{infix}LOAD-BALANCER hash:ip,port family {family}",
            f"create KUBE-{infix}IPVS-IPS hash:ip family {family}",
            f"add KUBE-{infix}CLUSTER-IP {vip},tcp:80",
            f"add KUBE-{infix}IPVS-IPS {vip}",
        ]
        if lb:
            sets += [f"add KUBE-{infix}LOAD-BALANCER {lb},tcp:80", f"add KUBE-{infix}IPVS-IPS {lb}"]
    sets += ["create THEIRS hash:ip", "add THEIRS 192.0.2.7"]
    site.node.run(["ipset", "restore"], stdin="\n".join(sets) + "\n")
    for command, infix, cluster in (("iptables", "", "10.244.0.0/16"), ("ip6tables", "6-", "fd00:244::/32")):
        names = {"cluster": "CLUSTER-IP", "loadbalancer": "LOAD-BALANCER", "addresses": "IPVS-IPS"}
        text = IPTABLES.format(pods=cluster, **{key: f"KUBE-{infix}{name}" for key, name in names.items()})
        if command == "ip6tables":
            text = text.replace("192.0.2.9/32", "2001:db8:9::9/128")
        site.node.run([f"{command}-restore"], stdin=text)


@pytest.fixture
def site(net: Net, tmp_path: Path) -> Site:
    it = Site(net, tmp_path)
    kube_proxy_was_here(it)
    it.put(THIS, web(), *backends("web", "p1 p2"))
    return it


def device_addresses(site: Site) -> set[str]:
    text = site.node.run("ip -o address show dev kube-ipvs0", check=False).stdout
    return {line.split()[3].partition("/")[0] for line in text.splitlines()} - {""}


def test_taken_over_beside_open_connections(site: Site) -> None:
    targets = (VIP, VIP6, LB, f"{NODE}:30080", f"[{NODE6}]:30080")
    # The loops have ports of their own: two connections from one port through two virtual servers to the same pod are
    # one to the kernel, and the first of them would be cut.
    site.client.run("sysctl -w net.ipv4.ip_local_port_range='20000 29999'")
    open_ones = [site.host(who).open(target) for target in targets for who in ("client", "node", "p1")]
    before = [c.first for c in open_ones]
    assert all(isinstance(outcome, Answer) for outcome in before), list(map(str, before))
    site.client.run("sysctl -w net.ipv4.ip_local_port_range='30000 60999'")
    loops = {t: site.client.traffic(t, interval_s=0.01) for t in (VIP, VIP6, f"{NODE}:30080")}
    site.start()
    assert [c.ping() for c in open_ones] == before
    for target, loop in loops.items():
        report = loop.stop()
        assert report.failures == [], (target, report)
        assert report.count > 20
    assert {a for a in device_addresses(site) if not a.startswith("fe80")} == set(), "routes stand in their place"
    assert site.vips() == {"10.96.0.1", "203.0.113.1"}
    assert site.vips(6) == {"fd00:96::1"}
    assert site.servers() == {f"-t {t}" for t in (VIP, VIP6, LB, *NODE_PORTS, FOREIGN)}, "the stale ones are gone"
    for who in ("client", "node", "p1"):
        for target in targets:
            assert servers(site.host(who).connect(target, count=2)) == {"p1": 1, "p2": 1}, (who, target)
    assert [c.ping() for c in open_ones] == before
    assert site.diff().code == 0


def test_a_takeover_that_was_killed_is_finished_by_the_next_start(site: Site) -> None:
    """Our table exists already, and kube-proxy's stale virtual servers still do."""
    site.start()
    site.kill()
    site.node.ip(["address add 10.96.0.66/32 dev kube-ipvs0"])
    site.node.ipvs("-A -t 10.96.0.66:80 -s rr")
    site.start()
    until(lambda: "-t 10.96.0.66:80" in site.servers(), False, 3)
    assert "10.96.0.66" not in device_addresses(site)
    assert f"-t {FOREIGN}" in site.servers()


def test_kube_proxys_rules_go_while_ours_runs(site: Site) -> None:
    """They no longer follow the cluster: a port that a Service gets after kube-proxy's end is refused by its filter."""
    connections = [site.host(who).open(target) for target in (VIP, VIP6, LB) for who in ("client", "node", "p1")]
    before = [c.first for c in connections]
    site.start()
    changed = service("web", "10.96.0.1 fd00:96::1", "a:80@30080,b:81", type=ServiceType.LOAD_BALANCER)
    site.put(changed, *backends("web", "p1 p2", "a:8080,b:8080"))
    until(lambda: "-t 10.96.0.1:81" in site.servers(), True)
    assert site.client.connect("10.96.0.1:81") == [REFUSED], "not by us"
    for _ in range(2):
        result = site.command("cleanup", "--kube-proxy-rules")
        assert (result.code, result.stderr) == (0, ""), result
        assert site.node.run("ipset list -n").lines == ["THEIRS"]
        assert "KUBE-" not in site.node.run("iptables-save; ip6tables-save").stdout
    for target in (VIP, VIP6, "10.96.0.1:81", "[fd00:96::1]:81"):
        for who in ("client", "node", "p1"):
            assert servers(site.host(who).connect(target, count=2)) == {"p1": 1, "p2": 1}, (who, target)
    assert [c.ping() for c in connections[:6]] == before[:6]
    assert site.diff().code == 0


def test_exclude_cidrs_are_not_taken_over(site: Site) -> None:
    site.start("--ipvs-exclude-cidrs", "10.96.0.64/26,fd00:96::66/128")
    assert site.servers() == {f"-t {t}" for t in (VIP, VIP6, LB, *NODE_PORTS, FOREIGN, STALE[0], STALE[2])}
    assert servers(site.client.connect(VIP, count=2)) == {"p1": 1, "p2": 1}


@pytest.mark.parametrize("ours_ran", [False, True], ids=["before", "after ours ran"])
def test_cleanup_of_both(site: Site, ours_ran: bool) -> None:
    if ours_ran:
        site.start()
        assert site.stop() == 0
    first = site.command("cleanup", "--kube-proxy")
    assert first.code == 0, first
    assert "ipset KUBE-6-CLUSTER-IP" in first.stdout
    for _ in range(2):
        # Ours never ran: its node ports are recognised by the addresses on the device.
        assert site.servers() == {f"-t {FOREIGN}"}
        assert device_addresses(site) == set()
        assert "kube-ipvs0" not in site.node.run("ip link").stdout
        assert site.vips() == site.vips(6) == set()
        assert site.node.run("ipset list -n").lines == ["THEIRS"]
        for command in ("iptables-save", "ip6tables-save"):
            saved = site.node.run(command).stdout
            assert "KUBE-" not in saved
            assert "-j THEIRS" in saved
            assert saved.count("-A ") == 2, saved
        assert "ipvsproxy" not in site.node.run("nft list tables").stdout
        again = site.command("cleanup", "--kube-proxy")
        assert (again.code, again.stderr) == (0, ""), again


def test_cleanup_tells_kube_proxys_firewall_chain_from_the_kubelets(site: Site) -> None:
    """Up to Kubernetes 1.26 kube-proxy has a nat chain of the name that the kubelet's chain has in filter."""
    kubelets = (
        "*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n*nat\n:KUBE-MARK-DROP - [0:0]\nCOMMIT\n"
    )
    for command, infix in (("iptables", ""), ("ip6tables", "6-")):
        kube_proxys = f"""\
*nat
:KUBE-FIREWALL - [0:0]
-A KUBE-LOAD-BALANCER -m set --match-set KUBE-{infix}LOAD-BALANCER dst,dst -j KUBE-FIREWALL
-A KUBE-FIREWALL -m set --match-set KUBE-{infix}CLUSTER-IP dst,dst -j RETURN
-A KUBE-FIREWALL -j KUBE-MARK-DROP
COMMIT
"""
        site.node.run([f"{command}-restore", "--noflush"], stdin=kubelets + kube_proxys)
    result = site.command("cleanup", "--kube-proxy")
    assert (result.code, result.stderr) == (0, ""), result
    assert site.node.run("ipset list -n").lines == ["THEIRS"]
    for command in ("iptables-save", "ip6tables-save"):
        assert "KUBE-" not in site.node.run(f"{command} -t nat").stdout.replace(":KUBE-MARK-DROP", "")
        assert "-A INPUT -j KUBE-FIREWALL" in site.node.run(f"{command} -t filter").lines


def test_cleanup_finds_the_rules_of_either_iptables(site: Site) -> None:
    """On a node whose `iptables` writes nftables rules, a kube-proxy may have written legacy ones, or the reverse."""
    if not shutil.which("iptables-legacy"):
        pytest.skip("no iptables-legacy on this machine")
    jump = "*nat\n:KUBE-SERVICES - [0:0]\n:THEIRS - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A PREROUTING -j THEIRS\n"
    for command, infix in (("iptables", ""), ("ip6tables", "6-")):
        rule = f"-A KUBE-SERVICES -m set --match-set KUBE-{infix}CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n"
        for kind in ("legacy", "nft"):
            site.node.run([f"{command}-{kind}-restore", "--noflush"], stdin=jump + rule)
    result = site.command("cleanup", "--kube-proxy")
    assert result.code == 0, result
    assert site.node.run("ipset list -n").lines == ["THEIRS"]
    for command in ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"):
        saved = site.node.run(f"{command} -t nat").stdout
        assert ("KUBE-" in saved, "-A PREROUTING -j THEIRS" in saved) == (False, True), saved


def test_cleanup_of_ours_alone_leaves_kube_proxys(site: Site) -> None:
    before = site.servers(), device_addresses(site), site.node.run("iptables-save | grep -v '^#\\|^:'").stdout
    result = site.command("cleanup")
    assert result.code == 0, result
    after = site.servers(), device_addresses(site), site.node.run("iptables-save | grep -v '^#\\|^:'").stdout
    assert after == before
