"""Under load from dnsperf: a reload, a thousand changes, an outage of the API server and a SIGTERM lose no query."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.dns.running import Running, server
from tests.lab.apiserver import ApiServer

RATE = 2000
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(shutil.which("dnsperf") is None, reason="dnsperf is not installed (Debian package dnsperf)"),
]


def service(i: int, turn: int = 0) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"svc-{i}", "namespace": "default"},
        "spec": {"clusterIP": "None", "ports": [{"name": "p", "port": 80 + turn % 2, "protocol": "TCP"}]},
    }


def piece(i: int, turn: int = 0) -> dict[str, object]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"svc-{i}-x",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": f"svc-{i}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "p", "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": [f"10.{turn % 250}.{i}.{k + 1}"]} for k in range(4)],
    }


class Load:
    """dnsperf while something else happens."""

    def __init__(self, running: Running, directory: Path, seconds: int, mode: str) -> None:
        self.queries = directory / "queries"
        lines = [f"svc-{i}.default.svc.cluster.local {t}" for i in range(100) for t in ("A", "AAAA")]
        lines += [f"no-{i}.default.svc.cluster.local A" for i in range(20)]
        self.queries.write_text("\n".join(lines) + "\n")
        self.command = ["dnsperf", "-s", "127.0.0.1", "-p", str(running.port), "-d", str(self.queries), "-m", mode]
        self.command += ["-l", str(seconds), "-Q", str(RATE), "-c", "8", "-t", "3", "-e"]
        self.seconds = seconds

    async def __aenter__(self) -> Load:
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        await asyncio.sleep(0.5)
        return self

    async def __aexit__(self, *error: object) -> None:
        if error[0] is not None:
            self.process.kill()
        output, _ = await self.process.communicate()
        self.output = output.decode()

    def figure(self, label: str) -> int:
        match = re.search(label + r":\s+(\d+)", self.output)
        assert match, self.output
        return int(match[1])

    def check(self) -> None:
        assert self.figure("Queries lost") == 0, self.output
        assert self.figure("Queries completed") > RATE * self.seconds * 0.5, self.output
        codes = re.search(r"Response codes:\s+(.*)", self.output)
        assert codes
        assert set(re.findall(r"([A-Z]+) \d+", codes[1])) <= {"NOERROR", "NXDOMAIN"}, self.output


@pytest.mark.parametrize("mode", ["udp", "tcp"])
async def test_nothing_is_lost(tmp_path: Path, mode: str) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    async with ApiServer() as api:
        api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
        for i in range(100):
            api.put(service(i))
            api.put(piece(i))
        kubeconfig.write_text(api.kubeconfig())
        options = {"source": "cluster", "env": {"KUBECONFIG": str(kubeconfig)}, "wait": False, "lameduck": "5s"}
        with server(**options) as running:  # type: ignore[arg-type]
            await asyncio.to_thread(running.wait_ready)
            async with Load(running, tmp_path, 8, mode) as load:
                for turn in range(1, 1001):
                    api.put(piece(turn % 100, turn))
                    if turn % 10 == 0:
                        await asyncio.sleep(0.02)
                    if turn in {200, 600}:
                        text = re.sub(r"ttl \d+", f"ttl {turn // 10}", running.corefile.read_text())
                        running.corefile.write_text(text)
                        running.signal(signal.SIGUSR1)
                    if turn == 400:
                        await api.refuse()
                        await asyncio.sleep(0.5)
                        await api.listen()
            load.check()
            async with Load(running, tmp_path, 3, mode) as load:
                running.signal(signal.SIGTERM)
                began_s = time.monotonic()
            load.check()
            assert time.monotonic() - began_s < 5
            assert await asyncio.to_thread(running.end) == 0
            assert "dns.configuration.reloaded" in running.log
