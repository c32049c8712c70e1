"""Several workers behind one port: one picture of the cluster, one set of figures, and no worker that is missed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import pytest

from tests.dns.peers import free_port
from tests.dns.running import MANIFESTS, Running, server
from tests.lab.apiserver import ApiServer

WEB = "web.default.svc.cluster.local"
WEB_IS_THERE = "NOERROR 10.96.0.10"


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def answers(running: Running, name: str, count: int = 40) -> Counter[str]:
    """What many clients hear; their ports spread them over the workers."""
    return Counter(running.ask(name) for _ in range(count))


def serials(running: Running, count: int = 30) -> set[int]:
    found = set()
    for _ in range(count):
        query = dns.message.make_query("cluster.local", "SOA")
        reply = dns.query.udp(query, "127.0.0.1", port=running.port, timeout=2)
        found.add(reply.answer[0][0].serial)
    return found


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with server("--workers", "3", more="    chaos us\n") as found:
        yield found


def test_all_workers_answer_alike(running: Running) -> None:
    assert answers(running, WEB) == {WEB_IS_THERE: 40}
    assert answers(running, "no." + WEB) == {"NXDOMAIN": 40}
    assert running.ask(WEB, tcp=True) == WEB_IS_THERE
    assert len(serials(running)) == 1


def test_all_workers_take_part(running: Running) -> None:
    workers = children(running.process.pid)
    assert len(workers) == 3

    def used(pid: int) -> int:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])

    before = {pid: used(pid) for pid in workers}
    answers(running, WEB, 150)
    time.sleep(0.1)
    assert all(used(pid) > before[pid] for pid in workers)


def test_the_figures_of_all_are_shown_as_one(running: Running) -> None:
    def requests() -> float:
        return running.metric(r'coredns_dns_requests_total\{.*type="A"')

    before = requests()
    answers(running, WEB, 60)
    assert requests() - before == 60
    assert running.metric("dnsserver_workers ") == 3
    assert running.metric(r'coredns_plugin_enabled\{name="kubernetes"') == 1
    assert running.metric(r"coredns_dns_request_duration_seconds_count") == running.metric("coredns_dns_requests_total")


def test_a_change_reaches_all_at_once(running: Running) -> None:
    file = running.manifests / "cluster.yaml"
    for address in ("10.96.0.20", "10.96.0.30", "10.96.0.10"):
        file.write_text(MANIFESTS.replace("10.96.0.10", address))
        running.wait(WEB, expected=f"NOERROR {address}")
        time.sleep(0.2)  # a worker the kernel had not yet run is a few milliseconds behind
        assert answers(running, WEB) == {f"NOERROR {address}": 40}
        assert len(serials(running)) == 1


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(running: Running) -> None:
    restarts = running.metric("dnsserver_worker_restarts_total")
    requests = running.metric(r"coredns_dns_requests_total")
    shown = serials(running)
    victim = children(running.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    # Queries that meet its socket wait there for its successor.
    assert answers(running, WEB, 30) == {WEB_IS_THERE: 30}
    deadline_s = time.monotonic() + 10
    while running.metric("dnsserver_workers ") < 3 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert len(children(running.process.pid)) == 3
    assert victim not in children(running.process.pid)
    assert running.metric("dnsserver_worker_restarts_total") == restarts + 1
    assert running.metric(r"coredns_dns_requests_total") >= requests
    time.sleep(0.3)
    assert serials(running) == shown
    assert answers(running, WEB) == {WEB_IS_THERE: 40}
    file = running.manifests / "cluster.yaml"
    file.write_text(MANIFESTS.replace("10.96.0.10", "10.96.0.44"))
    running.wait(WEB, expected="NOERROR 10.96.0.44")
    assert answers(running, WEB) == {"NOERROR 10.96.0.44": 40}
    file.write_text(MANIFESTS)
    running.wait(WEB, expected=WEB_IS_THERE)


def test_a_worker_that_hangs_is_replaced(running: Running) -> None:
    victim = children(running.process.pid)[0]
    os.kill(victim, signal.SIGSTOP)
    deadline_s = time.monotonic() + 30
    while victim in children(running.process.pid) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert victim not in children(running.process.pid)
    running.wait(WEB, expected=WEB_IS_THERE)


def test_all_workers_reload_or_none(running: Running) -> None:
    good = running.corefile.read_text()
    running.corefile.write_text(good.replace("chaos us", "chaos others"))
    running.signal(signal.SIGUSR1)
    deadline_s = time.monotonic() + 10
    while "dns.configuration.reloaded" not in running.log and time.monotonic() < deadline_s:
        time.sleep(0.05)  # said once all of them have it
    found = Counter(running.ask("version.bind", "CH TXT") for _ in range(30))
    assert found == {'NOERROR "others"': 30}
    running.corefile.write_text("nonsense {")
    running.signal(signal.SIGUSR1)
    time.sleep(0.5)
    assert answers(running, WEB) == {WEB_IS_THERE: 40}
    assert running.metric("coredns_reload_failed_total") == 1
    running.corefile.write_text(good)
    running.signal(signal.SIGUSR1)
    running.wait("version.bind", "CH TXT", expected='NOERROR "us"')


def test_ports_may_change_while_queries_are_answered() -> None:
    with server("--workers", "2", listen=False) as running:
        old = running.port
        assert answers(running, WEB) == {WEB_IS_THERE: 40}
        running.port = free_port()
        running.corefile.write_text(running.corefile.read_text().replace(f".:{old}", f".:{old} .:{running.port}"))
        running.signal(signal.SIGUSR1)
        both, end_s = 0, time.monotonic() + 10
        new, running.port = running.port, old
        while time.monotonic() < end_s and both < 5:
            assert running.ask(WEB) == WEB_IS_THERE  # the old port never goes silent
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.2)
                sock.connect(("127.0.0.1", new))
                query = dns.message.make_query(WEB, "A").to_wire()
                try:
                    sock.send(query)
                    both += sock.recv(500)[3] & 15 == 0
                except OSError:
                    time.sleep(0.02)
        assert both == 5
        deadline_s = time.monotonic() + 10
        while len(children(running.process.pid)) > 2 and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert len(children(running.process.pid)) == 2
        assert answers(running, WEB) == {WEB_IS_THERE: 40}


def test_the_end_is_lameduck_then_exit_0() -> None:
    with server("--workers", "2", lameduck="1s") as running:
        workers = children(running.process.pid)
        running.signal(signal.SIGTERM)
        began_s = time.monotonic()
        while time.monotonic() < began_s + 0.8:
            assert running.ask(WEB) == WEB_IS_THERE
            assert running.get(running.ready, "/ready")[0] == 503
        assert running.end() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_with_their_supervisor() -> None:
    with server("--workers", "2") as running:
        workers = children(running.process.pid)
        running.process.kill()
        running.process.wait()
        deadline_s = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


async def test_there_is_one_watch_of_the_api_server(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    async with ApiServer() as api:
        api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
        kubeconfig.write_text(api.kubeconfig())
        options = {"source": "cluster", "env": {"KUBECONFIG": str(kubeconfig)}, "wait": False}
        with server("--workers", "3", **options) as running:  # type: ignore[arg-type]
            await asyncio.to_thread(running.wait, WEB, expected="NXDOMAIN")
            web = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}}
            api.put(web | {"spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}})
            await asyncio.to_thread(running.wait, WEB, expected=WEB_IS_THERE)
            await asyncio.sleep(0.2)  # a worker the kernel had not yet run is a few milliseconds behind
            assert await asyncio.to_thread(answers, running, WEB) == {WEB_IS_THERE: 40}
            assert re.search(r'"workers": 3', running.log)
        # One list and one watch, or both in one, and not one for each worker.
        assert 1 <= len([asked for _, asked in api.arrivals if asked.resource == "services"]) <= 2
