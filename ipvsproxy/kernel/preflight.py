"""Is this kernel fit for the proxy, and making it so: modules, versions, schedulers, settings, timeouts.

Knows: what must be there and what to install where it is not. Must not know: Services. Called by `__main__` before
anything else; `--init-only` runs nothing but this.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import structlog

from ipvsproxy import nftables
from ipvsproxy.config import Config
from ipvsproxy.dataplane import AddVirtualServer, DataplaneError, DeleteVirtualServer, Unsupported
from ipvsproxy.kernel import sysctl
from ipvsproxy.kernel.host import Host
from ipvsproxy.kernel.ipvs import Ipvs, Timeouts, open_ipvs
from ipvsproxy.kernel.nft import Nft
from ipvsproxy.model import Scheduler, VirtualServerConfig, VirtualServerKey
from kubecore import log
from kubecore.model import Protocol

_log = structlog.get_logger()

_MODULES = ("ip_vs", "nf_conntrack", "dummy")
_OLDEST_NFT = (0, 9, 3)
"""Concatenated keys in verdict maps, and listings as JSON."""
_OLDEST_KERNEL = (5, 6)
"""Interval sets with concatenated keys (loadBalancerSourceRanges)."""
_PROBE_ADDRESS = "198.51.100.0"
"""TEST-NET-2 (RFC 5737): nobody's address, so a virtual server there meets no packet."""
_PROBE_PORTS = range(20000, 20010)


class Findings(NamedTuple):
    """What the checks found."""

    kernel: tuple[int, ...]
    schedulers: frozenset[Scheduler]
    """Those this kernel has or can load."""
    warnings: tuple[str, ...]
    """Works, but a person should know."""


async def check(config: Config) -> Findings:
    """Look whether everything needed is there; loads modules where that is permitted, else changes nothing.

    Raises: Unsupported, saying what to load or install; DataplaneError (EPERM) without CAP_NET_ADMIN.
    """
    await load_modules()
    kernel = kernel_version()
    warnings = []
    if kernel < _OLDEST_KERNEL:
        warnings.append(f"kernel {_dotted(kernel)} cannot do loadBalancerSourceRanges: {_dotted(_OLDEST_KERNEL)} can")
    if kernel < (4, 1):
        warnings.append(f"kernel {_dotted(kernel)} delays clients that reuse a port by a second: 5.9 does not")
    elif kernel < (5, 9):
        warnings.append(f"kernel {_dotted(kernel)} may send a reused port to an endpoint that drains: 5.9 does not")
    nft = Nft(nftables.FAMILY, nftables.TABLE)
    version = await nft.version()
    if version < _OLDEST_NFT:
        raise Unsupported(None, errno.EOPNOTSUPP, f"nft {_dotted(version)} is too old: install {_dotted(_OLDEST_NFT)}")
    ipvs = await open_ipvs()
    try:
        schedulers = await available_schedulers(ipvs)
        if config.ipvs.scheduler not in schedulers:
            known = ", ".join(sorted(s.value for s in schedulers))
            name = config.ipvs.scheduler.value
            detail = f"this kernel has no scheduler {name} (known: {known}): load module ip_vs_{name}"
            raise Unsupported(None, errno.ENOENT, detail)
    finally:
        ipvs.close()
    await nft.rehearse(nftables.load(config))
    return Findings(kernel, schedulers, tuple(warnings))


async def prepare(config: Config, findings: Findings, root: Path = Path("/proc/sys")) -> None:
    """Write every setting that differs, IPVS's timeouts, and make kube-ipvs0. What is right needs no privilege.

    Args:
        config: the settings wanted.
        findings: the kernel they are for.
        root: /proc/sys, or where it can be written.

    Raises: SysctlError; Unsupported without dummy devices; DataplaneError.
    """
    cores = os.cpu_count() or 1
    for setting in (
        *sysctl.ipvs_settings(config.ipvs, findings.kernel),
        *sysctl.forwarding6(root),
        *sysctl.conntrack_settings(config.conntrack, cores),
    ):
        sysctl.write(setting, root)
    ipvs = await open_ipvs()
    try:
        await set_timeouts(ipvs, wanted_timeouts(config))
    finally:
        ipvs.close()
    host = Host()
    try:
        await host.ensure_device()
        for setting in sysctl.device6(root):
            sysctl.write(setting, root)
    finally:
        host.close()


async def set_timeouts(ipvs: Ipvs, wanted: Timeouts) -> None:
    """Set the timeouts if they differ. Those that the kernel refuses are no reason not to serve: what it has, stays."""
    if await ipvs.timeouts() == wanted:
        return
    try:
        await ipvs.set_timeouts(wanted)
    except DataplaneError as error:
        _log.error(log.IPVS_TIMEOUTS_REFUSED, reason=error.detail, **wanted._asdict())
    else:
        _log.info(log.IPVS_TIMEOUTS_SET, **wanted._asdict())


def wanted_timeouts(config: Config) -> Timeouts:
    """As configured; what is not, is the kernel's default and not what an earlier run left."""
    default = Timeouts()
    return Timeouts(
        config.ipvs.tcp_timeout_s or default.tcp_s,
        config.ipvs.tcpfin_timeout_s or default.tcp_fin_s,
        config.ipvs.udp_timeout_s or default.udp_s,
    )


async def load_modules(names: Iterable[str] = _MODULES) -> None:
    """Load modules where that is possible; where it is not, the checks say what is missing."""
    for name in names:
        if _is_loaded(name):
            continue
        with contextlib.suppress(OSError):
            process = await asyncio.create_subprocess_exec(
                "modprobe", "-q", name, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
            await process.wait()


def _is_loaded(name: str) -> bool:
    """True for a module that is loaded, or built in and with parameters; one built in without is asked for in vain."""
    return Path(f"/sys/module/{name}").exists()


async def available_schedulers(ipvs: Ipvs, modules: Path = Path("/lib/modules")) -> frozenset[Scheduler]:
    """Schedulers this kernel has or can load.

    Read from the kernel's list of modules, so that nothing is loaded by looking. Where that list cannot be seen (a
    container without /lib/modules), or knows of none, each is tried on a virtual server that is deleted at once.
    """
    listed = listed_schedulers(modules)
    if listed:
        return listed
    return frozenset([s for s in Scheduler if s is not Scheduler.OTHER and await _probe(ipvs, s)])


def listed_schedulers(modules: Path = Path("/lib/modules")) -> frozenset[Scheduler]:
    """Those in this kernel's lists of loadable and built-in modules; none where the lists cannot be seen."""
    found: set[str] = set()
    for name in ("modules.dep", "modules.builtin"):
        with contextlib.suppress(OSError):
            found |= set(re.findall(r"/ip_vs_(\w+)\.ko", (modules / platform.release() / name).read_text()))
    return frozenset(s for s in Scheduler if s.value in found)


async def _probe(ipvs: Ipvs, scheduler: Scheduler) -> bool:
    """Whether a virtual server with this scheduler can be made."""
    for port in _PROBE_PORTS:
        key = VirtualServerKey(4, Protocol.TCP, _PROBE_ADDRESS, port)
        failures = await ipvs.submit([AddVirtualServer(key, VirtualServerConfig(scheduler))])
        if not failures:
            await ipvs.submit([DeleteVirtualServer(key)])
            return True
        if failures[0].errno == errno.ENOENT:
            return False
        if failures[0].errno != errno.EEXIST:  # else somebody's: take the next
            raise DataplaneError(None, failures[0].errno, f"probing scheduler {scheduler.value}: {failures[0].detail}")
    return False


def kernel_version(release: str | None = None) -> tuple[int, ...]:
    """(6, 1) of `6.1.0-18-amd64`."""
    match = re.match(r"(\d+)\.(\d+)", platform.release() if release is None else release)
    return (int(match[1]), int(match[2])) if match else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
