"""Checks and settings before the start, in a kernel."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from ipvsproxy.config import Config, Ipvs
from ipvsproxy.kernel import preflight
from ipvsproxy.model import Scheduler

if TYPE_CHECKING:
    from tests.lab.kernel.net import Net

pytestmark = pytest.mark.kernel


async def guest_prepare(config: dict[str, int]) -> list[object]:
    settings = Config(ipvs=Ipvs(**config))  # type: ignore[arg-type]
    findings = await preflight.check(settings)
    await preflight.prepare(settings, findings)
    return [sorted(s.value for s in findings.schedulers), list(findings.warnings)]


def test_settings_and_schedulers(net: Net) -> None:
    node = net.host("node", sysctls={"net.ipv6.conf.default.accept_ra": "1"})
    node.ip(["link add eth0 type dummy"])
    schedulers, warnings = node.call(guest_prepare, {"strict_arp": True, "udp_timeout_s": 10})
    assert schedulers == sorted(s.value for s in Scheduler if s is not Scheduler.OTHER)
    assert warnings == []
    wanted = {
        "net.ipv4.vs.conntrack": "1",
        "net.ipv4.vs.expire_nodest_conn": "1",
        "net.ipv4.vs.expire_quiescent_template": "1",
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.all.arp_ignore": "1",
        "net.ipv4.conf.all.arp_announce": "2",
        "net.ipv6.conf.all.forwarding": "1",
        "net.ipv6.conf.eth0.accept_ra": "2",  # a default route from router advertisements survives forwarding
        "net.netfilter.nf_conntrack_tcp_timeout_established": "86400",
        "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "3600",
    }
    assert node.run(["sysctl", "-n", *wanted]).lines == list(wanted.values())
    assert "900 120 10" in node.run("ipvsadm -l --timeout").stdout
    assert node.ipvs_rules() == []  # probing left nothing
    # A later run without that setting goes back to the kernel's default.
    node.call(guest_prepare, {})
    assert "900 120 300" in node.run("ipvsadm -l --timeout").stdout


def test_timeouts_that_the_kernel_refuses_are_no_reason_not_to_serve(net: Net) -> None:
    """Beyond 2**31 jiffies, whose length is the kernel's own."""
    node = net.host("node")
    node.call(guest_prepare, {"tcp_timeout_s": 2**31 - 1})
    assert "900 120 300" in node.run("ipvsadm -l --timeout").stdout
    node.run("ip link show kube-ipvs0")


def test_probing_leaves_the_virtual_servers_of_others(net: Net) -> None:
    node = net.host("node")
    theirs = ["-A -t 198.51.100.0:20000 -s lc"]
    node.ipvs("\n".join(theirs))
    schedulers, _ = node.call(guest_prepare, {})
    assert len(schedulers) == 13
    assert node.ipvs_rules() == theirs


def test_nft_is_missing(net: Net) -> None:
    node = net.host("node")
    script = (
        "import asyncio; from ipvsproxy.config import Config; from ipvsproxy.kernel import preflight\n"
        "asyncio.run(preflight.check(Config()))"
    )
    result = node.run([sys.executable, "-c", script], env={"PATH": "/nonexistent"}, check=False)
    assert result.code == 1
    assert (
        result.stderr.splitlines()[-1] == "ipvsproxy.dataplane.Unsupported: nft is not there: install package nftables"
    )
