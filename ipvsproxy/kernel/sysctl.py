"""The kernel settings a proxy needs: which values, and writing those that differ.

Knows: the settings, why each, and what stands in the way when one cannot be written. Must not know: IPVS's netlink.
Called by preflight.

Source: linux/Documentation/networking/{ipvs-sysctl,ip-sysctl,nf_conntrack-sysctl}.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from ipvsproxy.config import Conntrack, Ipvs
from ipvsproxy.model import DEVICE
from kubecore import log

_log = structlog.get_logger()

_CONNTRACK_CEILING = 1 << 20
_HASH_SIZE = "/sys/module/nf_conntrack/parameters/hashsize"


class Setting(NamedTuple):
    """A file below /proc/sys (or an absolute path) and the value it is to hold."""

    name: str
    """With slashes: `net/ipv4/vs/conntrack`."""
    value: int
    missing: str = "load module ip_vs, which brings this file"
    """What to do where the file is not there."""
    at_least: bool = False
    """A larger value is as good."""
    optional: bool = False
    """Where the file is missing, belongs to another namespace or cannot be written, that is said and passed over."""


class SysctlError(Exception):
    """A setting cannot be made. The message names file, value and remedy."""


_NO_MODULE = "load module {}, which brings this file"
_NOT_WRITABLE = "run once with --init-only as a privileged container, or mount /proc/sys writable"


def ipvs_settings(ipvs: Ipvs, kernel: tuple[int, ...]) -> Iterator[Setting]:
    """What IPVS needs, on a kernel of this version."""
    missing = _NO_MODULE.format("ip_vs (of a kernel with CONFIG_IP_VS_NFCT)")
    yield Setting("net/ipv4/vs/conntrack", 1, missing)  # IPVS connections in conntrack: masquerade needs them there
    yield Setting("net/ipv4/vs/expire_nodest_conn", 1)  # forget a flow at once when its real server is gone
    yield Setting("net/ipv4/vs/expire_quiescent_template", 1)  # affinity ends when its real server has weight 0
    if (4, 1) <= kernel < (5, 9):
        # A reused port would wait a second for its old entry to expire, or stay with a draining endpoint (0 is the
        # lesser evil); 5.9 reschedules without that wait.
        yield Setting("net/ipv4/vs/conn_reuse_mode", 0)
    yield Setting("net/ipv4/ip_forward", 1)
    if ipvs.strict_arp:
        # Answer ARP only for addresses of the interface asked: MetalLB and the like announce a VIP from one node.
        yield Setting("net/ipv4/conf/all/arp_ignore", 1)
        yield Setting("net/ipv4/conf/all/arp_announce", 2)


def conntrack_settings(conntrack: Conntrack, cores: int) -> Iterator[Setting]:
    """The size and timeouts of connection tracking, as configured."""
    missing = _NO_MODULE.format("nf_conntrack")
    if conntrack.max_per_core:
        size = min(max(conntrack.max_per_core * cores, conntrack.min), _CONNTRACK_CEILING)
        # In a network namespace of its own the size is somebody else's to choose.
        yield Setting("net/netfilter/nf_conntrack_max", size, missing, optional=True)
        yield Setting(_HASH_SIZE, size // 4, at_least=True, optional=True)
    for name, value in (
        ("tcp_timeout_established", conntrack.tcp_established_timeout_s),
        ("tcp_timeout_close_wait", conntrack.tcp_close_wait_timeout_s),
        ("udp_timeout", conntrack.udp_timeout_s),
        ("udp_timeout_stream", conntrack.udp_stream_timeout_s),
        ("tcp_be_liberal", 1 if conntrack.tcp_be_liberal else None),
    ):
        if value:
            yield Setting(f"net/netfilter/nf_conntrack_{name}", value, missing)


def forwarding6(root: Path = Path("/proc/sys")) -> Iterator[Setting]:
    """IPv6 forwarding; nothing where there is no IPv6.

    A router ignores router advertisements unless accept_ra is 2: without that, a node that has its default route from
    them would lose it within minutes.
    """
    everywhere = root / "net/ipv6/conf/all/forwarding"
    if not everywhere.exists():
        return
    if everywhere.read_text().strip() != "1":
        for accept in sorted((root / "net/ipv6/conf").glob("*/accept_ra")):
            if accept.parent.name not in ("all", "lo") and accept.read_text().strip() == "1":
                yield Setting(str(accept.relative_to(root)), 2)
    yield Setting("net/ipv6/conf/all/forwarding", 1)


def device6(root: Path = Path("/proc/sys")) -> Iterator[Setting]:
    """IPv6 on kube-ipvs0, which takes no VIP route without it: new devices may have it off by default."""
    everywhere = root / "net/ipv6/conf/all/disable_ipv6"
    if everywhere.exists() and everywhere.read_text().strip() == "0":
        yield Setting(f"net/ipv6/conf/{DEVICE}/disable_ipv6", 0, optional=True)


def write(setting: Setting, root: Path = Path("/proc/sys")) -> bool:
    """Write a setting where it differs; True if it was written.

    Raises: SysctlError.
    """
    path = root / setting.name
    try:
        old = int(path.read_text().split()[0])
    except FileNotFoundError as error:
        if setting.optional:
            return False
        raise SysctlError(f"{path} is not there, wanted {setting.value}: {setting.missing}") from error
    except PermissionError as error:
        # hashsize is root's alone to read.
        if setting.optional:
            return False
        raise SysctlError(f"{path} cannot be read, wanted {setting.value}: {_NOT_WRITABLE}") from error
    if old == setting.value or (setting.at_least and old >= setting.value):
        return False
    if setting.optional and not path.stat().st_mode & 0o222:
        _log.warning(log.SYSCTL_NOT_OURS, file=str(path), value=old, wanted=setting.value)
        return False
    try:
        path.write_text(f"{setting.value}\n")
    except OSError as error:
        if setting.optional:
            _log.warning(log.SYSCTL_NOT_OURS, file=str(path), value=old, wanted=setting.value, error=error.strerror)
            return False
        reason = os.strerror(error.errno or 0)
        raise SysctlError(f"{path} is {old}, cannot write {setting.value} ({reason}): {_NOT_WRITABLE}") from error
    _log.info(log.SYSCTL_WRITTEN, file=str(path), old=old, new=setting.value)
    return True
