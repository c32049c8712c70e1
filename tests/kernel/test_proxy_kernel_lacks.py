"""Kernels that lack a part: said at once, with what to load, by exit code 1. Booted for the purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubecore.model import KubeObject, ServiceType
from tests.builders import service
from tests.lab.kernel.fixtures import refuse
from tests.lab.kernel.lab import GuestDiedError, Lab, NoKernelError
from tests.lab.kernel.net import Host, Net, Result
from tests.proxy_daemon import IPVSPROXY, NODE, STARTED, THIS, WITHOUT_CAPABILITIES, backends, manifest

pytestmark = pytest.mark.kernel

SOURCE = Path(__file__).parent.parent / "scenarios" / "ingress.yaml"
CLUSTER = ("--source", str(SOURCE), "--node", "node-a")


@contextmanager
def node_without(*initcalls: str, arguments: tuple[str, ...] = ()) -> Iterator[Host]:
    """A host in a kernel that does not start these of its built-in modules, booted with these `arguments`."""
    blacklist = [f"initcall_blacklist={','.join(initcalls)}"] if initcalls else []
    try:
        lab = Lab.start(kernel_arguments=[*blacklist, *arguments])
    except (NoKernelError, GuestDiedError) as error:
        refuse(str(error))
    with lab, lab.net() as net:
        yield net.host("node")


def said(node: Host, *arguments: str) -> Result:
    result = node.run([*IPVSPROXY, *arguments], check=False, timeout_s=20)
    assert "Traceback" not in result.stderr, result
    return result


def test_no_ipvs() -> None:
    with node_without("ip_vs_init") as node:
        for arguments in (("run", *CLUSTER), ("run", "--init-only"), ("diff", *CLUSTER)):
            result = said(node, *arguments)
            assert result.code == 1, arguments
            assert "this kernel has no IPVS: load module ip_vs" in result.stderr
        result = said(node, "cleanup")
        assert (result.code, "no IPVS" in result.stderr) == (0, True)
        assert result.stdout == "nothing to remove was there\n"
        planned = said(node, "plan", *CLUSTER, "--output", "ipvsadm")
        assert (planned.code, planned.lines[0]) == (0, "-A -t 10.96.0.10:53 -s rr"), "planning needs no kernel"
        assert node.run("nft list tables").stdout == ""


def test_what_stays_when_ipvs_is_unloaded_is_cleaned_up() -> None:
    with node_without("ip_vs_init") as node:
        node.ip(["link add kube-ipvs0 type dummy", "link set kube-ipvs0 up"])
        node.ip(["route add local 10.96.0.1/32 dev kube-ipvs0 table local proto 87 metric 1024"])
        node.run("nft add table inet ipvsproxy")
        node.run("nft 'add set inet ipvsproxy vip4 { type ipv4_addr; }'")
        result = said(node, "cleanup")
        assert (result.code, result.lines) == (0, ["route to 10.96.0.1", "nftables table"]), result
        assert "10.96.0.1" not in node.run("ip route show table local").stdout
        assert "kube-ipvs0" not in node.run("ip link").stdout
        assert node.run("nft list tables").stdout == ""
        node.ip(["link add kube-ipvs0 type dummy", "addr add 10.96.0.1/32 dev kube-ipvs0"])
        assert said(node, "cleanup").lines == ["nothing to remove was there"], "the address is a kube-proxy's"
        assert "address 10.96.0.1 of kube-ipvs0" in said(node, "cleanup", "--kube-proxy").lines
        assert "kube-ipvs0" not in node.run("ip link").stdout
        result = node.run([*WITHOUT_CAPABILITIES, *IPVSPROXY, "cleanup"], check=False)
        assert (result.code, "CAP_NET_ADMIN" in result.stderr) == (1, True), result


def test_no_nftables() -> None:
    with node_without("nf_tables_module_init") as node:
        result = said(node, "run", *CLUSTER)
        assert result.code == 1
        assert "cannot hold our nftables table: load modules nf_tables" in result.stderr
        assert node.run("sysctl -n net.ipv4.ip_forward").stdout == "0\n", "nothing was changed before the checks"


def test_no_fib_expression() -> None:
    with node_without("nft_fib_inet_module_init") as node:
        result = said(node, "run", *CLUSTER)
        assert result.code == 1
        assert "nft_fib_inet" in result.stderr
        assert "fib saddr type local" in result.stderr


def test_no_dummy_device() -> None:
    with node_without("dummy_init_module") as node:
        result = said(node, "run", *CLUSTER)
        assert result.code == 1
        assert "cannot make kube-ipvs0: load module dummy" in result.stderr


def dual_stack(directory: Path) -> tuple[str, ...]:
    """Arguments for a node with a Service of both families."""
    web = service("web", "10.96.0.1 fd00:96::1", "80@30080", type=ServiceType.NODE_PORT)
    objects: list[KubeObject] = [web, THIS, *backends("web", "p1 p2")]
    for number, obj in enumerate(objects):
        (directory / f"{number}.json").write_text(json.dumps(manifest(obj)))
    return ("--source", str(directory), "--node", THIS.name)


def serves_ipv4_alone(node: Host, options: tuple[str, ...]) -> None:
    node.ip(["link add eth0 type dummy", "link set eth0 up", f"address add {NODE}/24 dev eth0"])
    daemon = node.popen([*IPVSPROXY, "run", *options])
    daemon.wait_for_log(STARTED, timeout_s=60)
    assert {line.split()[2] for line in node.ipvs_rules()} == {"10.96.0.1:80", f"{NODE}:30080"}
    health = json.loads(node.run("curl -s 127.0.0.1:10256/livez").stdout)
    assert set(health["status"]) == {"IPv4"}
    assert "degraded" not in health
    assert said(node, "diff", *options).code == 0
    assert daemon.stop() == 0
    assert said(node, "cleanup").code == 0
    assert node.ipvs_rules() == []


def test_no_ipv6(tmp_path: Path) -> None:
    with node_without(arguments=("ipv6.disable=1",)) as node:
        serves_ipv4_alone(node, dual_stack(tmp_path))


def test_ipv6_switched_off(net: Net, tmp_path: Path) -> None:
    off = dict.fromkeys(("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"), "1")
    serves_ipv4_alone(net.host("node", sysctls=off), dual_stack(tmp_path))


def test_ipv6_off_by_default(net: Net, tmp_path: Path) -> None:
    """Only for devices made from now on, and kube-ipvs0 is one."""
    node = net.host("node", sysctls={"net.ipv6.conf.default.disable_ipv6": "1"})
    daemon = node.popen([*IPVSPROXY, "run", *dual_stack(tmp_path)])
    daemon.wait_for_log(STARTED, timeout_s=60)
    assert "local fd00:96::1" in node.run("ip -6 route show table local proto 87").stdout
    assert daemon.stop() == 0
