"""Commands on a real kernel: exit codes, complaints, and how few privileges they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import service
from tests.lab.kernel.net import Net
from tests.lab.kernel.outcomes import servers
from tests.proxy_daemon import IPVSPROXY, THIS, WITHOUT_CAPABILITIES, Site, backends, until

pytestmark = pytest.mark.kernel

VIP = "10.96.0.1:80"
# As in a container with `capabilities: {drop: [ALL], add: [NET_ADMIN]}`.
NET_ADMIN_ALONE = (
    "setpriv",
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=-all,+net_admin",
    "--no-new-privs",
)


@pytest.fixture
def site(net: Net, tmp_path: Path) -> Site:
    it = Site(net, tmp_path)
    it.put(THIS, service("web", "10.96.0.1 fd00:96::1", "80"), *backends("web", "p1 p2"))
    return it


def test_diff(site: Site) -> None:
    before = site.diff()
    assert before.code == 2
    assert any('"AddVirtualServer"' in line and VIP in line for line in before.lines), before
    assert site.node.ipvs_rules() == [], "it changes nothing"
    assert "ipvsproxy" not in site.node.run("nft list tables").stdout
    site.start()
    assert (site.diff().code, site.diff().stdout) == (0, "")
    assert site.stop() == 0
    site.node.run(f"ipvsadm -D -t {VIP}")
    after = site.diff()
    assert after.code == 2
    assert VIP in after.stdout
    refused = site.node.run([*WITHOUT_CAPABILITIES, *IPVSPROXY, "diff", *site.options()], check=False)
    assert refused.code == 1
    assert "CAP_NET_ADMIN" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_bad_configuration(site: Site) -> None:
    site.config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n"
        "kind: KubeProxyConfiguration\n"
        "mode: ipvs\n"
        "ipvs:\n"
        "  scheduler: fastest\n"
        "  syncPeriod: often\n"
    )
    for command, code in (("run", 2), ("diff", 1)):  # 2 of diff says "different"
        result = site.command(command, *site.options())
        assert result.code == code
        assert f"{site.config}:5: ipvs.scheduler" in result.stderr
        assert f"{site.config}:6: ipvs.syncPeriod" in result.stderr
        assert "Traceback" not in result.stderr
    assert site.command("run", "--no-such-flag").code == 2
    assert site.command("run", "--config", "/does/not/exist").code == 2


@pytest.mark.parametrize("command", ["run", "cleanup"])
def test_without_privileges(site: Site, command: str) -> None:
    options = site.options() if command == "run" else []
    result = site.node.run([*WITHOUT_CAPABILITIES, *IPVSPROXY, command, *options], check=False)
    assert result.code == 1
    assert "CAP_NET_ADMIN" in result.stderr
    assert "Traceback" not in result.stderr


def test_cleanup_without_nft_is_not_done(site: Site) -> None:
    site.start()
    assert site.stop() == 0
    result = site.node.run([*IPVSPROXY, "cleanup"], env={"PATH": "/nonexistent"}, check=False)
    assert result.code == 1
    assert "nft is not there: install package nftables; try again" in result.stderr
    assert site.command("cleanup").code == 0
    assert "ipvsproxy" not in site.node.run("nft list tables").stdout


def test_init_only_and_then_net_admin_alone(site: Site) -> None:
    """With /proc/sys read-only, as in a container."""
    result = site.command("run", "--init-only", *site.options())
    assert result.code == 0, result
    assert site.node.ipvs_rules() == []
    assert site.node.run(["cat", "/proc/sys/net/ipv4/vs/conntrack"]).stdout.strip() == "1"
    assert site.node.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip() == "1"
    assert site.node.run(["cat", "/proc/sys/net/ipv6/conf/all/forwarding"]).stdout.strip() == "1"
    read_only = ("unshare", "--mount", "sh", "-c", 'mount -o bind,ro /proc/sys /proc/sys && exec "$@"', "sh")
    site.start(prefix=(*read_only, *NET_ADMIN_ALONE))
    assert servers(site.client.connect(VIP, count=2)) == {"p1": 1, "p2": 1}
    site.put(*backends("web", "p2"))
    until(lambda: site.real_servers(f"-t {VIP}"), {"10.244.1.5:8080": 0, "10.244.2.5:8080": 1})
    assert site.stop() == 0


def test_a_read_only_proc_sys_without_init_names_the_setting(site: Site) -> None:
    read_only = ["unshare", "--mount", "sh", "-c", 'mount -o bind,ro /proc/sys /proc/sys && exec "$@"', "sh"]
    result = site.node.run([*read_only, *IPVSPROXY, "run", *site.options()], check=False)
    assert result.code == 1
    assert "net/ipv4/" in result.stderr.replace(".", "/")
    assert "--init-only" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_scheduler(site: Site) -> None:
    result = site.command("run", *site.options(), "--ipvs-scheduler", "nope")
    assert result.code == 2
    assert "rr" in result.stderr


def test_a_changed_configuration_ends_the_daemon(site: Site) -> None:
    daemon = site.start()
    site.config.write_text(site.config.read_text().replace("auditPeriod: 1s", "auditPeriod: 2s"))
    assert daemon.wait(15) == 0
    assert servers(site.client.connect(VIP, count=2)) == {"p1": 1, "p2": 1}


def test_a_taken_port_is_tried_again_or_ends_the_daemon(site: Site) -> None:
    blocker = site.node.serve(tcp=[10256])
    site.start()
    assert servers(site.client.connect(VIP, count=2)) == {"p1": 1, "p2": 1}
    blocker.close()
    until(lambda: site.get("http://127.0.0.1:10256/livez")[0], 200, 12)
    assert site.stop() == 0
    site.node.serve(tcp=[10249])
    result = site.command("run", *site.options(), "--bind-address-hard-fail")
    assert result.code == 1
    assert "10249" in result.stderr


def test_probes_and_metrics_on_one_port(site: Site) -> None:
    site.delete(THIS)
    site.start("--metrics-bind-address", "0.0.0.0:10256")
    assert site.get("http://127.0.0.1:10256/healthz")[0] == 503, "there is no Node, whoever asks"
    assert site.get("http://127.0.0.1:10256/livez")[0] == 200
    assert site.get("http://127.0.0.1:10256/proxyMode") == (200, "ipvs")


def test_profiling(site: Site) -> None:
    site.start("--profiling")
    status, body = site.get("http://127.0.0.1:10249/debug/pprof/profile?seconds=0.5&debug=1")
    assert (status, "function calls" in body) == (200, True), body
    assert site.get("http://127.0.0.1:10249/debug/pprof/goroutine")[0] == 200
    site.stop()
    site.start()
    assert site.get("http://127.0.0.1:10249/debug/pprof/")[0] == 404
