"""The servers that are compared: each started on loopback with a configuration made here, and stopped again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.dns_load import (
    EXTERNAL,
    EXTERNAL_NAMES,
    ZONE,
    cluster_addresses,
    family_of,
    on_cpu,
    query,
)

SERVER_CPU = 0
REPO = Path(__file__).resolve().parents[2]


@dataclass
class Peer:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def pids(self) -> list[int]:
        """It and its children."""
        return family_of(self.process.pid)


def free_port() -> int:
    """A port free for both UDP and TCP on loopback."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                udp.bind(tcp.getsockname())
                return int(tcp.getsockname()[1])


def available(program: str) -> str | None:
    """Where a Debian package has put its daemon."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def wait_for(port: int, name: str, *, timeout_s: float = 120.0, rcode: int = 0) -> float:
    """Seconds until the server answers for `name`."""
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        while time.monotonic() < began + timeout_s:
            with contextlib.suppress(OSError):
                sock.sendto(query(name, 1), ("127.0.0.1", port))
                reply = sock.recv(4096)
                if reply[3] & 15 == rcode and reply[6:8] != b"\0\0":
                    return time.monotonic() - began
            time.sleep(0.05)
    raise TimeoutError(f"no answer for {name} on port {port}")


@contextlib.contextmanager
def running(name: str, port: int, command: list[str], directory: Path, **env: str) -> Iterator[Peer]:
    """The server while it runs, on its processor."""
    with (directory / f"{name}.log").open("wb") as output:
        process = subprocess.Popen(
            [*on_cpu(SERVER_CPU), *command], stdout=output, stderr=output, cwd=REPO, env=os.environ | env
        )
    try:
        yield Peer(name, port, process)
    finally:
        for pid in reversed(family_of(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _external_records() -> Iterator[tuple[str, str]]:
    for i in range(EXTERNAL_NAMES):
        yield f"www-{i:05d}.site.{EXTERNAL}", f"198.51.{i >> 8 & 255}.{i & 255}"


def nsd(directory: Path) -> contextlib.AbstractContextManager[Peer]:
    """NSD with both zones."""
    port, home = free_port(), directory / "nsd"
    home.mkdir()
    for zone, records in ((ZONE, cluster_addresses()), (EXTERNAL, _external_records())):
        lines = [
            f"$ORIGIN {zone}.",
            f"@ 3600 SOA ns.{zone}. hostmaster.{zone}. 1 7200 1800 86400 3600",
            f"@ 3600 NS ns.{zone}.",
            "ns 3600 A 127.0.0.1",
            *(f"{name}. 3600 A {address}" for name, address in records),
        ]
        (home / zone).write_text("\n".join(lines) + "\n")
    (home / "nsd.conf").write_text(
        f"""server:
  ip-address: 127.0.0.1@{port}
  username: ""
  zonesdir: "{home}"
  database: ""
  pidfile: "{home}/pid"
  zonelistfile: "{home}/zones"
  xfrdfile: "{home}/xfrd"
  xfrdir: "{home}"
  server-count: 1
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: {ZONE}
zone:
  name: {EXTERNAL}
  zonefile: {EXTERNAL}
"""
    )
    return running("nsd", port, [available("nsd") or "nsd", "-d", "-c", str(home / "nsd.conf")], directory)


def unbound(directory: Path, upstream: int) -> contextlib.AbstractContextManager[Peer]:
    """Unbound with the cluster's names as local data, the rest forwarded."""
    port, conf = free_port(), directory / "unbound.conf"
    data = "\n".join(f'  local-data: "{name}. 30 A {address}"' for name, address in cluster_addresses())
    conf.write_text(
        f"""server:
  interface: 127.0.0.1@{port}
  username: ""
  chroot: ""
  directory: "{directory}"
  pidfile: "{directory}/unbound.pid"
  use-syslog: no
  num-threads: 1
  do-not-query-localhost: no
  module-config: "iterator"
  msg-cache-size: 64m
  rrset-cache-size: 64m
  minimal-responses: yes
  local-zone: "{ZONE}." static
{data}
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@{upstream}
"""
    )
    return running("unbound", port, [available("unbound") or "unbound", "-d", "-c", str(conf)], directory)


def dnsmasq(directory: Path, upstream: int) -> contextlib.AbstractContextManager[Peer]:
    """Dnsmasq with the cluster's names as host records, the rest forwarded."""
    port, conf = free_port(), directory / "dnsmasq.conf"
    records = "\n".join(f"host-record={name},{address},30" for name, address in cluster_addresses())
    conf.write_text(
        f"""port={port}
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
pid-file={directory}/dnsmasq.pid
user=root
cache-size=20000
neg-ttl=3600
server=127.0.0.1#{upstream}
local=/{ZONE}/
{records}
"""
    )
    return running("dnsmasq", port, [available("dnsmasq") or "dnsmasq", "-k", f"--conf-file={conf}"], directory)


COREFILE = """.:{port} {{
    errors
    ready 127.0.0.1:{ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus 127.0.0.1:{metrics}
    forward . 127.0.0.1:{upstream}
    cache 3600
    loop
    loadbalance
}}
"""


@dataclass
class Ours:
    """Where our server's endpoints are."""

    port: int
    ready: int
    metrics: int
    command: list[str]


def ours(directory: Path, upstream: int, *, workers: int = 1, clock: Path | None = None) -> Ours:
    """Our server, as kubeadm configures it, ready to be started; with a `clock` as `dns_lag`, which reports there."""
    port, ready, metrics = free_port(), free_port(), free_port()
    corefile = directory / f"Corefile-{port}"
    corefile.write_text(COREFILE.format(port=port, ready=ready, metrics=metrics, upstream=upstream))
    module = ["tests.bench.dns_lag", str(clock)] if clock else ["dnsserver"]
    command = [
        sys.executable, "-m", *module, "run", "--config", str(corefile), "--source", "cluster",
        "--listen", f"127.0.0.1:{port}", "--workers", str(workers),
    ]  # fmt: skip
    return Ours(port, ready, metrics, command)
