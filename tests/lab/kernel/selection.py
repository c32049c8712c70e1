"""Which kernel tests run on: the host's own where it has IPVS and nftables, else the lab's user-mode Linux.

`KERNEL_LAB=host` or `KERNEL_LAB=uml` decides instead. Probes for real, in namespaces that vanish. Called by `lab`.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import build

Mode = Literal["host", "uml"]
TOOLS = {
    "ip": "iproute2",
    "ipvsadm": "ipvsadm",
    "nft": "nftables",
    "conntrack": "conntrack",
    "bash": "bash",
    "mount": "mount",
}
"""Commands every guest needs, with their Debian packages."""
_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"

# Each line is one ability; the first to fail names what the host's kernel lacks.
_PROBES = (
    ("dummy devices", "ip link add probe0 type dummy"),
    ("veth pairs", "ip link add probe1 type veth peer name probe2"),
    ("IPVS", "ipvsadm -A -t 198.18.0.1:80 -s rr"),
    ("IPVS for IPv6", "ipvsadm -A -t [fd00::1]:80 -s mh"),
    ("IPVS for SCTP", "ipvsadm -A --sctp-service 198.18.0.1:80 -s wrr"),
    ("nftables", "nft 'add table inet probe; add chain inet probe c { type nat hook postrouting priority 100; }'"),
    ("nftables masquerade", "nft add rule inet probe c masquerade"),
    ("nftables fib and ct expressions", "nft add rule inet probe c fib daddr type local ct mark 1 accept"),
)


@dataclass(frozen=True)
class Choice:
    """The kernel to use, or why there is none."""

    mode: Mode | None
    kernel: Path | None
    """User-mode Linux's path; None for the host's kernel."""
    reason: str
    """Why this one, or what is lacking and the remedy."""


def search_path() -> str:
    """PATH with the directories of system commands, which an ordinary user's lacks."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SBIN}"


def choose(mode: str | None = None) -> Choice:
    """The kernel to run on; builds nothing. A Choice without mode says in `reason` what to do.

    Args:
        mode: `host` or `uml`; None takes KERNEL_LAB, and without that whichever works.

    Raises:
        ValueError: mode is something else.
    """
    wanted = mode or os.environ.get("KERNEL_LAB") or None
    if wanted not in (None, "host", "uml"):
        raise ValueError(f"KERNEL_LAB={wanted}: must be host or uml")
    if missing := sorted({package for tool, package in TOOLS.items() if not shutil.which(tool, path=search_path())}):
        return Choice(None, None, f"commands are missing; remedy: apt-get install {' '.join(missing)}")
    lacking = host_lacks() if wanted != "uml" else "KERNEL_LAB=uml"
    if lacking is None:
        return Choice("host", None, "the host's kernel has IPVS and nftables")
    if wanted == "host":
        return Choice(None, None, f"KERNEL_LAB=host, but {lacking}")
    kernel = build.cached_kernel()
    if kernel is None:
        return Choice(None, None, f"{lacking}, and no lab kernel is built; remedy: make kernel")
    return Choice("uml", kernel, lacking)


@functools.cache
def host_lacks() -> str | None:
    """What keeps tests from the host's own kernel; None when nothing does."""
    if os.geteuid() != 0:
        return "the host's kernel needs root"
    script = "\n".join(f"{command} >/dev/null 2>&1 || {{ echo '{ability}'; exit 1; }}" for ability, command in _PROBES)
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "sh", "-c", script],
            env={**os.environ, "PATH": search_path()},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the host's kernel could not be probed: {error}"
    if done.returncode == 0:
        return None
    return f"the host's kernel lacks {done.stdout.strip() or 'namespaces: ' + done.stderr.strip()}"


def kernel_required() -> bool:
    """True where a missing kernel must fail tests instead of skipping them (CI=true)."""
    return os.environ.get("CI", "").lower() in ("true", "1", "yes")
