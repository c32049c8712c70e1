"""The process: start, operations endpoints, reload, lameduck, end; what it says when it cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dns.message
import dns.query
import pytest

from tests.dns.peers import free_port
from tests.dns.running import COREFILE, MANIFESTS, Running, server
from tests.lab.apiserver import ApiServer

WEB = "web.default.svc.cluster.local"
WEB_IS_THERE = "NOERROR 10.96.0.10"


def dnsserver(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "dnsserver", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


# -- operations endpoints


def test_plugins_count_under_the_address_that_is_served() -> None:
    """The Corefile's port is another one where the command line says so."""
    corefile = COREFILE.replace(".:{port} {{", ".:53 {{").replace(
        "loadbalance", "loadbalance\n    cache 30\n    whoami"
    )
    with server(corefile=corefile) as running:
        running.ask("www.example.org")
        label = f'server="dns://127.0.0.1:{running.port}"'
        assert running.metric(rf"coredns_cache_misses_total\{{{label}") == 1
        assert running.metric(r'coredns_\w+\{.*server="dns://:53"') == 0


def test_health_ready_and_metrics() -> None:
    with server(more="    cache 30\n    forward . 127.0.0.1:9\n") as running:
        assert running.get(running.health, "/health") == (200, "OK")
        assert running.get(running.ready, "/ready") == (200, "OK")
        for _ in range(3):
            assert running.ask(WEB) == WEB_IS_THERE
        assert running.ask(WEB, "AAAA", tcp=True) == "NOERROR"
        assert running.ask("no." + WEB) == "NXDOMAIN"
        assert running.metric(r'coredns_dns_requests_total\{.*proto="udp".*type="A"') == 4
        assert running.metric(r'coredns_dns_requests_total\{.*proto="tcp".*type="AAAA"') == 1
        assert running.metric(r'coredns_dns_responses_total\{.*rcode="NOERROR"') == 4
        assert running.metric(r'coredns_dns_responses_total\{.*rcode="NXDOMAIN"') == 1
        assert running.metric(r"coredns_dns_request_duration_seconds_count") == 5
        assert running.metric(r'coredns_dns_request_duration_seconds_bucket\{le="\+Inf"') == 5
        assert running.metric(r"coredns_dns_response_size_bytes_count") == 5
        assert running.metric(r'coredns_plugin_enabled\{name="kubernetes"') == 1
        assert running.metric(r"coredns_build_info") == 1
        assert running.metric(r"coredns_panics_total") == 0
        assert running.metric(r'kubecore_watch_listed\{resource="services"\}') == 1


def test_metrics_count_what_was_refused_at_the_door() -> None:
    with server() as running:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"\0\1\x28\0" + b"\0\1" + b"\0" * 6, ("127.0.0.1", running.port))
            sock.settimeout(2)
            assert sock.recv(100)[3] & 15 == 4
        assert running.metric(r'coredns_dns_responses_total\{.*rcode="NOTIMP".*zone="dropped"') == 1


def test_a_full_disk_under_the_logs_is_not_noticed_by_clients() -> None:
    with server(output="/dev/full", more="log\nforward . 127.0.0.1:1") as running:
        for _ in range(3):
            assert running.ask("web.default.svc.cluster.local") == "NOERROR 10.96.0.10"
        assert running.ask("www.example.org") == "SERVFAIL"
        assert running.process.poll() is None


def test_a_change_of_the_manifests_is_seen() -> None:
    with server() as running:
        assert running.ask(WEB) == WEB_IS_THERE
        file = running.manifests / "cluster.yaml"
        file.write_text(MANIFESTS.replace("10.96.0.10", "10.96.0.77"))
        running.wait(WEB, expected="NOERROR 10.96.0.77")
        file.write_text(MANIFESTS.replace("name: web", "name: other"))
        running.wait(WEB, expected="NXDOMAIN")
        assert running.ask("other.default.svc.cluster.local") == WEB_IS_THERE


def test_the_default_configuration_serves_on_the_address_given(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(MANIFESTS)
    port = free_port()
    command = [sys.executable, "-m", "dnsserver", "run", "--source", str(tmp_path), "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen([*command, "--listen", f"[::1]:{port}"], stderr=subprocess.DEVNULL) as process:
        try:
            for host in ("127.0.0.1", "::1"):
                for _ in range(100):
                    try:
                        query = dns.message.make_query(WEB, "A")
                        reply = dns.query.tcp(query, host, port=port, timeout=1)
                        break
                    except OSError:
                        time.sleep(0.1)
                assert reply.answer[0][0].to_text() == "10.96.0.10"
        finally:
            process.kill()


# -- reload


def test_reload_takes_a_good_configuration_and_keeps_a_bad_one_out() -> None:
    with server() as running:
        good = running.corefile.read_text()
        running.corefile.write_text(good.replace("ttl 30", "ttl 17"))
        running.signal(signal.SIGUSR1)
        deadline_s = time.monotonic() + 5
        while "dns.configuration.reloaded" not in running.log and time.monotonic() < deadline_s:
            time.sleep(0.05)
        reply = dns.query.udp(dns.message.make_query(WEB, "A"), "127.0.0.1", port=running.port, timeout=2)
        assert reply.answer[0].ttl == 17
        running.corefile.write_text(good.replace("kubernetes", "kubernets"))
        running.signal(signal.SIGUSR1)
        while "dns.configuration.rejected" not in running.log and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert "kubernets" in running.log
        assert running.ask(WEB) == WEB_IS_THERE
        assert running.metric("coredns_reload_failed_total") == 1


def test_reload_looks_at_the_file_by_itself() -> None:
    with server() as running:
        running.corefile.write_text(running.corefile.read_text().replace("errors", "errors\n    any"))
        running.wait(WEB, "ANY", expected='NOERROR "ANY obsoleted" "See RFC 8482"', timeout_s=15)


def test_reload_may_change_ports_and_zones() -> None:
    with server(listen=False) as running:
        old = running.port
        assert running.ask(WEB) == WEB_IS_THERE
        running.port = free_port()
        text = running.corefile.read_text()
        text = text.replace(f".:{old}", f".:{running.port}").replace("cluster.local", "other.test")
        running.corefile.write_text(text)
        running.signal(signal.SIGUSR1)
        running.wait("web.default.svc.other.test", expected=WEB_IS_THERE)
        assert running.ask(WEB) == "REFUSED"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", old))  # it is free again


# -- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_lameduck_goes_on_answering_then_ends_well(number: signal.Signals) -> None:
    with server(lameduck="1s") as running:
        running.signal(number)
        began_s = time.monotonic()
        while time.monotonic() < began_s + 0.8:
            assert running.ask(WEB) == WEB_IS_THERE
            assert running.ask(WEB, tcp=True) == WEB_IS_THERE
            assert running.get(running.health, "/health") == (200, "OK")
            assert running.get(running.ready, "/ready") == (503, "Shutting down")
        assert running.end() == 0
        assert 1.0 <= time.monotonic() - began_s < 4


def test_a_second_signal_hastens_the_end() -> None:
    with server(lameduck="60s") as running:
        running.signal(signal.SIGTERM)
        time.sleep(0.3)
        assert running.ask(WEB) == WEB_IS_THERE
        running.signal(signal.SIGTERM)
        assert running.end(5) == 0


# -- what goes wrong at the start


def test_a_bad_corefile_is_told_in_full(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n    eror\n    forward .\n    kubernetes {\n        pods maybe\n    }\n}\n")
    for command in (["check", str(path)], ["run", "--config", str(path), "--source", str(tmp_path)]):
        done = dnsserver(*command)
        assert done.returncode == 2
        for line in (2, 3, 5):
            assert f"{path}:{line}" in done.stderr
        assert "errors" in done.stderr  # the nearest word


def test_check_says_what_a_good_one_amounts_to(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(COREFILE.format(port=53, health=8080, ready=8181, metrics=9153, lameduck="5s", more=""))
    done = dnsserver("check", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "good, 1 server block" in done.stdout
    assert ".:53: reload ready health prometheus errors loadbalance kubernetes" in done.stdout


def test_a_missing_file_is_a_wrong_configuration() -> None:
    done = dnsserver("run", "--config", "/nowhere/Corefile")
    assert done.returncode == 2
    assert "/nowhere/Corefile" in done.stderr


def test_a_busy_port_is_said_with_its_remedy(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        done = dnsserver("run", "--source", str(tmp_path), "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "another process" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give rights away")
def test_no_right_to_a_low_port_names_the_capability(tmp_path: Path) -> None:
    low = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip()
    if low == "0":
        pytest.skip("every port is open to everyone here")
    without = ["setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service"]
    command = [sys.executable, "-m", "dnsserver", "run", "--source", str(tmp_path), "--listen", "127.0.0.1:53"]
    done = subprocess.run(
        [*without, *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "CAP_NET_BIND_SERVICE" in done.stderr


@pytest.mark.parametrize("listen", ["127.0.0.1", "nohost:53", "127.0.0.1:99999", "::1:x"])
def test_a_wrong_address_is_wrong_usage(listen: str) -> None:
    done = dnsserver("run", "--listen", listen)
    assert done.returncode == 2
    assert "--listen" in done.stderr


def test_no_way_to_the_api_server_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dnsserver", "run", "--listen", f"127.0.0.1:{free_port()}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("KUBE")} | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "kubeconfig" in done.stderr
    assert "Traceback" not in done.stderr


# -- without the API server


async def test_before_the_first_lists_cluster_names_fail_and_others_do_not(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    async with ApiServer() as api:
        kubeconfig.write_text(api.kubeconfig())
    more = "    forward . 127.0.0.1:9\n    chaos here\n"
    with server(source="cluster", env={"KUBECONFIG": str(kubeconfig)}, wait=False, more=more) as running:
        running.wait_answering()
        query = dns.message.make_query("version.bind", "TXT", "CH")
        reply = dns.query.udp(query, "127.0.0.1", port=running.port, timeout=2)
        assert reply.rcode() == 0
        query = dns.message.make_query(WEB, "A", use_edns=0)
        reply = dns.query.udp(query, "127.0.0.1", port=running.port, timeout=8)  # it waits for the lists at first
        assert reply.rcode() == 2
        assert [(int(o.code), o.text) for o in reply.options if o.otype == 15] == [
            (14, "the cluster has not been listed yet")
        ]
        assert running.get(running.ready, "/ready") == (503, "kubernetes")
        assert running.get(running.health, "/health") == (200, "OK")


def service(name: str, ip: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]},
    }


async def ask(running: Running, name: str) -> str:
    """`Running.ask`, while the API server in this process goes on."""
    return await asyncio.to_thread(running.ask, name)


async def until(running: Running, name: str, expected: str) -> None:
    """`Running.wait`, likewise."""
    await asyncio.to_thread(running.wait, name, expected=expected)


async def test_an_outage_of_the_api_server_is_not_noticed_by_clients(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    async with ApiServer() as api:
        api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
        api.put(service("web", "10.96.0.10"))
        kubeconfig.write_text(api.kubeconfig())
        with server(source="cluster", env={"KUBECONFIG": str(kubeconfig)}, wait=False) as running:
            await until(running, WEB, WEB_IS_THERE)
            await api.refuse()
            for _ in range(5):
                assert await ask(running, WEB) == WEB_IS_THERE
            assert running.get(running.ready, "/ready") == (200, "OK")
            assert running.metric(r'kubecore_watch_staleness_seconds\{resource="services"\}') > 0
            await api.listen()
            api.put(service("new", "10.96.0.11"))
            await until(running, "new.default.svc.cluster.local", "NOERROR 10.96.0.11")


async def test_a_snapshot_lets_it_start_while_the_api_server_is_away(tmp_path: Path) -> None:
    kubeconfig, snapshot = tmp_path / "kubeconfig", tmp_path / "state" / "snapshot"
    api = ApiServer()
    await api.start()
    api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    api.put(service("web", "10.96.0.10"))
    kubeconfig.write_text(api.kubeconfig())
    options = {"source": "cluster", "env": {"KUBECONFIG": str(kubeconfig)}, "wait": False}
    with server("--snapshot", str(snapshot), **options) as running:  # type: ignore[arg-type]
        await until(running, WEB, WEB_IS_THERE)
        running.signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.end) == 0
    assert snapshot.read_bytes().startswith(b"dnsserver-snapshot 1 ")
    await api.stop()
    with server("--snapshot", str(snapshot), **options) as running:  # type: ignore[arg-type]
        running.wait(WEB, expected=WEB_IS_THERE)
        assert running.get(running.ready, "/ready") == (503, "kubernetes")  # nobody has confirmed it yet
    for content in (b"", b"dnsserver-snapshot 9 00\n", snapshot.read_bytes()[:-5], b"\0" * 1000):
        snapshot.write_bytes(content)
        with server("--snapshot", str(snapshot), **options) as running:  # type: ignore[arg-type]
            running.wait_answering()
            assert "dns.snapshot.ignored" in running.log


def test_a_snapshot_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    target = tmp_path / "no-directory"
    target.write_text("a file where a directory should be")
    with server("--snapshot", str(target / "snapshot")) as running:
        running.signal(signal.SIGTERM)
        assert running.end() == 0
        assert "dns.snapshot.not_written" in running.log
