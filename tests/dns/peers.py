"""Name servers from Debian packages (unbound, NSD, dnsmasq) on loopback ports, and servers that misbehave.

Each runs in the foreground with a configuration of its own in a temporary directory, and is stopped by its pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

START_TIMEOUT_S = 10.0

ZONE = """\
$ORIGIN example.test.
$TTL 300
@       300 IN SOA ns hostmaster 1 7200 1800 86400 60
        300 IN NS  ns
ns      300 IN A   192.0.2.53
www     300 IN A   192.0.2.80
www     300 IN AAAA 2001:db8::80
short   2 IN A 192.0.2.2
zero    0 IN A 192.0.2.3
many    300 IN A   192.0.2.101
many    300 IN A   192.0.2.102
many    300 IN A   192.0.2.103
alias   300 IN CNAME www
lost    300 IN CNAME nowhere
mail    300 IN MX  10 www
srv     300 IN SRV 0 5 443 www
text    300 IN TXT "some text" "more text"
big     300 IN TXT "{big}"
        300 IN TXT "{more}"
""".format(big="a" * 250, more='b" "'.join("b" * 240 for _ in range(8)))
"""What every real peer here serves."""


def free_port() -> int:
    """A port free for UDP and TCP on 127.0.0.1."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port")


def available(program: str) -> bool:
    """Whether a peer is installed."""
    return shutil.which(program) is not None or Path("/usr/sbin", program).exists()


@contextlib.contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[int]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            question = dns.message.make_query("example.test.", "SOA")
            while True:
                with contextlib.suppress(Exception):
                    dns.query.udp(question, "127.0.0.1", port=port, timeout=0.3)
                    break
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def nsd(directory: Path, zone: str = ZONE) -> Iterator[int]:
    """NSD, authoritative for example.test; its port."""
    port = free_port()
    (directory / "zone").write_text(zone)
    config = directory / "nsd.conf"
    config.write_text(
        f"""\
server:
    ip-address: 127.0.0.1@{port}
    username: ""
    chroot: ""
    zonesdir: "{directory}"
    database: ""
    pidfile: "{directory}/nsd.pid"
    xfrdfile: "{directory}/xfrd.state"
    zonelistfile: "{directory}/zone.list"
    xfrdir: "{directory}"
    server-count: 1
    hide-version: no
    rrl-ratelimit: 0
    rrl-whitelist-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: example.test
    zonefile: zone
"""
    )
    with _running(["nsd", "-d", "-c", str(config)], port, directory / "nsd.log") as running:
        yield running


@contextlib.contextmanager
def unbound(directory: Path, *, zone: str = ZONE, tls: Certificate | None = None, extra: str = "") -> Iterator[int]:
    """unbound, a resolver that has example.test as an auth-zone; its port (of TLS, with a certificate)."""
    port = free_port()
    tls_port = free_port() if tls else 0
    (directory / "zone").write_text(zone)
    lines = ""
    if tls:
        lines = f'''\
    tls-service-key: "{tls.key}"
    tls-service-pem: "{tls.chain}"
    tls-port: {tls_port}
    interface: 127.0.0.1@{tls_port}
'''
    config = directory / "unbound.conf"
    config.write_text(
        f"""\
server:
    interface: 127.0.0.1@{port}
{lines}    do-daemonize: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: "{directory}/unbound.pid"
    use-syslog: no
    num-threads: 1
    access-control: 127.0.0.0/8 allow
    do-not-query-localhost: no
    module-config: "iterator"
    local-zone: "test." nodefault
    rrset-roundrobin: no
{extra}
remote-control:
    control-enable: no
auth-zone:
    name: example.test
    zonefile: "{directory}/zone"
    for-upstream: yes
    for-downstream: yes
stub-zone:
    name: "."
    stub-addr: 127.0.0.1@1
"""
    )
    with _running(["unbound", "-d", "-p", "-c", str(config)], port, directory / "unbound.log"):
        yield tls_port or port


@contextlib.contextmanager
def dnsmasq(directory: Path, *arguments: str) -> Iterator[int]:
    """dnsmasq with records of its own for example.test; its port."""
    port = free_port()
    command = [
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        f"--port={port}",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        f"--pid-file={directory}/dnsmasq.pid",
        "--user=root",
        "--local=/example.test/",
        "--local-ttl=120",
        "--host-record=www.example.test,192.0.2.80,2001:db8::80",
        "--cname=alias.example.test,www.example.test",
        "--txt-record=text.example.test,some text",
        *arguments,
    ]
    with _running(command, port, directory / "dnsmasq.log") as running:
        yield running


class Certificate:
    """A key and certificate for a name and for 127.0.0.1, self-signed."""

    def __init__(self, directory: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        alternatives = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.chain = directory / "certificate.pem"
        self.key = directory / "key.pem"
        self.chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


# -- servers that misbehave

Behaviour = Callable[["Misbehaving", bytes, Callable[[bytes], None]], Awaitable[None]]
"""Given the server, a query and how to send a reply."""


class Misbehaving:
    """A server that does with each query what the test says, over UDP and TCP; it remembers what it was asked."""

    def __init__(self, behave: Behaviour) -> None:
        self.port = 0
        self.queries: list[bytes] = []
        self.streams = 0
        """TCP connections accepted."""
        self.sources: list[int] = []
        """Ports UDP queries came from."""
        self._behave = behave
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def spawn(self, query: bytes, send: Callable[[bytes], None]) -> None:
        """Act on one query."""
        self.queries.append(query)
        task = asyncio.ensure_future(self._behave(self, query, send))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One TCP connection."""
        self.streams += 1

        def send(reply: bytes) -> None:
            if reply == CLOSE:
                writer.close()
            else:
                writer.write(struct.pack("!H", len(reply)) + reply)

        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                self.spawn(await reader.readexactly(length), send)
        writer.close()

    async def close(self) -> None:
        """Forget what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


CLOSE = b""
"""As a reply over TCP: close the connection."""


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Misbehaving) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        transport = self._transport
        assert transport is not None
        self._server.sources.append(addr[1])
        self._server.spawn(data, lambda reply: transport.sendto(reply, addr))


@contextlib.asynccontextmanager
async def misbehaving(behave: Behaviour) -> AsyncIterator[Misbehaving]:
    """The server, listening on `port` of 127.0.0.1."""
    server = Misbehaving(behave)
    server.port = free_port()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Datagrams(server), local_addr=("127.0.0.1", server.port)
    )
    streams = await asyncio.start_server(server.serve_stream, "127.0.0.1", server.port)
    try:
        yield server
    finally:
        transport.close()
        streams.close()
        await server.close()


def reply_to(
    query: bytes, *answer: str, rcode: str = "NOERROR", flags: str = "", authority: tuple[str, ...] = ()
) -> bytes:
    """A correct reply, in zone-file lines; `flags` such as "TC AA"."""
    asked = dns.message.from_wire(query)
    reply = dns.message.make_response(asked, recursion_available=True)
    reply.set_rcode(dns.rcode.from_text(rcode))
    for word in flags.split():
        reply.flags |= dns.flags.from_text(word)
    for section, records in ((reply.answer, answer), (reply.authority, authority)):
        for record in records:
            name, ttl, rclass, rtype, data = record.split(None, 4)
            section.append(dns.rrset.from_text(name, int(ttl), rclass, rtype, data))
    return reply.to_wire(max_size=65535)


async def honest(server: Misbehaving, query: bytes, send: Callable[[bytes], None]) -> None:
    """Answers every A query with 192.0.2.1, at once."""
    name = dns.message.from_wire(query).question[0].name
    send(reply_to(query, f"{name} 300 IN A 192.0.2.1"))


async def silent(server: Misbehaving, query: bytes, send: Callable[[bytes], None]) -> None:
    """Takes queries and says nothing."""


def slow(delay_s: float, behave: Behaviour = honest) -> Behaviour:
    """Does as `behave`, later."""

    async def later(server: Misbehaving, query: bytes, send: Callable[[bytes], None]) -> None:
        await asyncio.sleep(delay_s)
        await behave(server, query, send)

    return later


def failing(rcode: str) -> Behaviour:
    """Replies with a response code and nothing else."""

    async def fail(server: Misbehaving, query: bytes, send: Callable[[bytes], None]) -> None:
        send(reply_to(query, rcode=rcode))

    return fail
