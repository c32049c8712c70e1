"""The server as a process, for tests: `dnsserver run` on loopback ports, over manifests or an API server."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.query
import dns.rcode

from tests.dns.peers import free_port

START_TIMEOUT_S = 20.0

COREFILE = """\
.:{port} {{
    errors
    health 127.0.0.1:{health} {{
        lameduck {lameduck}
    }}
    ready 127.0.0.1:{ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus 127.0.0.1:{metrics}
{more}
    reload 2s 1s
    loadbalance
}}
"""

MANIFESTS = """\
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: ClusterIP
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports: [{name: http, port: 80, protocol: TCP}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, ports: [{name: pg, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: default, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: pg, port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.1.0.1], hostname: db-0}
- {addresses: [10.1.0.2], hostname: db-1}
- {addresses: [10.1.0.3], hostname: db-2}
"""


def big_headless(count: int, name: str = "big") -> str:
    """Manifests of a headless Service with many endpoints."""
    endpoints = "\n".join(f"- {{addresses: [10.{2 + i // 65536}.{i // 256 % 256}.{i % 256}]}}" for i in range(count))
    return f"""\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{clusterIP: None, ports: [{{name: p, port: 1}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: p, port: 1, protocol: TCP}}]
endpoints:
{endpoints}
"""


@dataclass
class Running:
    """A server process."""

    process: subprocess.Popen[bytes]
    directory: Path
    port: int
    health: int
    ready: int
    metrics_port: int
    host: str = "127.0.0.1"

    @property
    def corefile(self) -> Path:
        """What it was configured with."""
        return self.directory / "Corefile"

    @property
    def manifests(self) -> Path:
        """What it knows of the cluster."""
        return self.directory / "manifests"

    @property
    def log(self) -> str:
        """Everything it has written."""
        return (self.directory / "log").read_text()

    def ask(self, name: str, qtype: str = "A", *, tcp: bool = False, timeout_s: float = 3.0, **more: object) -> str:
        """Response code and the data of ANSWER, sorted: `NOERROR 10.0.0.1 10.0.0.2`."""
        rdclass, _, rdtype = qtype.rpartition(" ")  # `CH TXT`
        query = dns.message.make_query(name, rdtype, rdclass or "IN", **more)  # type: ignore[arg-type]
        over = dns.query.tcp if tcp else dns.query.udp
        reply = over(query, self.host, timeout=timeout_s, port=self.port)
        data = sorted(rdata.to_text() for rrset in reply.answer for rdata in rrset)
        return " ".join([dns.rcode.to_text(reply.rcode()), *data])

    def get(self, port: int, path: str) -> tuple[int, str]:
        """Status and text of an operations endpoint."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, pattern: str) -> float:
        """The sum of the samples whose line begins like this pattern."""
        _, text = self.get(self.metrics_port, "/metrics")
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(pattern, line))

    def wait(self, what: str, qtype: str = "A", *, expected: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Ask until the answer is as expected."""
        end_s, last = time.monotonic() + timeout_s, ""
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError, dns.exception.DNSException):
                last = self.ask(what, qtype, timeout_s=0.5)
                if last == expected:
                    return
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
            time.sleep(0.05)
        raise AssertionError(f"{what} {qtype}: {last!r} rather than {expected!r}\n{self.log}")

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for /ready."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError):
                if self.get(self.ready, "/ready")[0] == 200:
                    return
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
            time.sleep(0.05)
        raise AssertionError(f"not ready:\n{self.log}")

    def wait_answering(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for any reply at all."""
        end_s = time.monotonic() + timeout_s
        query = dns.message.make_query("id.server", "TXT", "CH")
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError, dns.exception.DNSException):
                dns.query.udp(query, self.host, timeout=0.3, port=self.port)
                return
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
            time.sleep(0.05)
        raise AssertionError(f"no reply:\n{self.log}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, timeout_s: float = 15.0) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(timeout_s)

    def rss_mb(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


@contextlib.contextmanager
def server(
    *arguments: str,
    manifests: str = MANIFESTS,
    more: str = "",
    corefile: str = COREFILE,
    lameduck: str = "0s",
    source: str = "",
    listen: bool = True,
    wait: bool = True,
    env: dict[str, str] | None = None,
    directory: Path | None = None,
    output: str = "",
) -> Iterator[Running]:
    """A running server; ready, unless told not to wait.

    Args:
        arguments: more of the command line.
        manifests: the cluster.
        more: directives for the server block.
        corefile: a whole configuration, with places for ports.
        lameduck: of the `health` directive.
        source: instead of manifests: `cluster`.
        listen: whether to give `--listen`.
        wait: whether to wait for /ready.
        env: added to the environment.
        directory: where to keep its files; default: a temporary one.
        output: the file it writes its lines to; default: one of its own.
    """
    with contextlib.ExitStack() as stack:
        home = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dnsserver-")))
        ports = {name: free_port() for name in ("port", "health", "ready", "metrics")}
        (home / "Corefile").write_text(corefile.format(**ports, lameduck=lameduck, more=more))
        (home / "manifests").mkdir(exist_ok=True)
        if manifests:
            (home / "manifests" / "cluster.yaml").write_text(manifests)
        command = [sys.executable, "-m", "dnsserver", "run", "--config", str(home / "Corefile")]
        command += ["--source", source or str(home / "manifests"), "--log-format", "json", *arguments]
        if listen:
            command += ["--listen", f"127.0.0.1:{ports['port']}"]
        lines = stack.enter_context((home / "log").open("wb"))
        if output:
            lines = stack.enter_context(Path(output).open("wb"))
        process = subprocess.Popen(command, stdout=lines, stderr=lines, env=os.environ | (env or {}))
        running = Running(process, home, ports["port"], ports["health"], ports["ready"], ports["metrics"])
        try:
            if wait:
                running.wait_ready()
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(8)
                    process.kill()
                    process.wait()
