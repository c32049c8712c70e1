"""Virtual servers in the notation of `ipvsadm -Sn`, byte for byte, in the order ipvsadm lists them.

Knows: ipvsadm(8)'s output. Must not know: where virtual servers come from. Used by `plan`, `diff` and tests; a test
compares it with the real program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from ipvsproxy.model import (
    ForwardMethod,
    PlannedVirtualServer,
    RealServerConfig,
    RealServerKey,
    Scheduler,
    ServiceFlag,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.model import Protocol

_OPTION = {Protocol.TCP: "-t", Protocol.UDP: "-u", Protocol.SCTP: "--sctp-service"}
_NUMBER = {None: 0, Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_METHOD = {
    ForwardMethod.MASQUERADE: "-m",
    ForwardMethod.LOCAL: "-l",
    ForwardMethod.TUNNEL: "-i",
    ForwardMethod.DIRECT_ROUTE: "-g",
    ForwardMethod.BYPASS: "-b",
}
_SCHEDULER_FLAGS = (
    (ServiceFlag.SCHED_1, "flag-1", "fallback"),
    (ServiceFlag.SCHED_2, "flag-2", "port"),
    (ServiceFlag.SCHED_3, "flag-3", ""),
)


def sort_key(key: VirtualServerKey) -> tuple[int, int, int, int, int]:
    """Ipvsadm's order: marks after addresses, IPv4 before IPv6, then protocol, address and port as numbers."""
    address = int(ip_address(key.address)) if key.address else 0
    return (key.fwmark, key.family, _NUMBER[key.protocol], address, key.port)


def service_text(key: VirtualServerKey) -> str:
    """`-t 10.96.0.1:443`, `-u [fd00::a]:53` or `-f 42 -6`."""
    if key.protocol is None:
        return f"-f {key.fwmark}" + (" -6" if key.family == 6 else "")
    return f"{_OPTION[key.protocol]} {host_port(key.address, key.port)}"


def server_line(key: VirtualServerKey, config: VirtualServerConfig) -> str:
    """`-A -t 10.96.0.10:53 -s rr -p 10800`."""
    line = f"-A {service_text(key)} -s {config.scheduler.value}"
    if config.persistence_s:
        line += f" -p {config.persistence_s}"
    if config.flags & ServiceFlag.ONE_PACKET:
        line += " -o"
    flags = [name for name in flag_names(config) if name != "ops"]
    return f"{line} -b {','.join(flags)}" if flags else line


def real_server_line(server: VirtualServerKey, key: RealServerKey, config: RealServerConfig) -> str:
    """`-a -t 10.96.0.10:53 -r 10.244.1.5:53 -m -w 1`."""
    target = f"-r {host_port(key.address, key.port)} {_METHOD[config.method]} -w {config.weight}"
    return f"-a {service_text(server)} {target}"


def flag_names(config: VirtualServerConfig) -> list[str]:
    """Names of the flags set, as ipvsadm takes them: "ops", "mh-port", "flag-3"."""
    named = config.scheduler if config.scheduler in {Scheduler.SH, Scheduler.MH} else None
    names = ["ops"] if config.flags & ServiceFlag.ONE_PACKET else []
    for flag, name, suffix in _SCHEDULER_FLAGS:
        if config.flags & flag:
            names.append(f"{named.value}-{suffix}" if named and suffix else name)
    return names


def lines(servers: Iterable[PlannedVirtualServer]) -> Iterator[str]:
    """The lines of `ipvsadm -Sn` for `servers`, without newlines."""
    for server in sorted(servers, key=lambda s: sort_key(s.key)):
        yield server_line(server.key, server.config)
        for key in sorted(server.real_servers, key=lambda r: (int(ip_address(r.address)), r.port)):
            yield real_server_line(server.key, key, server.real_server_config)


def host_port(address: str, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
