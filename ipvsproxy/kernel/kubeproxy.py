"""What kube-proxy's IPVS mode leaves behind besides virtual servers and addresses: iptables chains and ipsets.

Knows: their names (specification sections 9 and 10) and how to take them away without touching anybody else's rules.
Used by `cleanup --kube-proxy` only: the running proxy uses neither iptables nor ipset.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Iterable

from pyroute2 import AsyncIPSet
from pyroute2.netlink.exceptions import NetlinkError

from ipvsproxy.dataplane import DataplaneError

CHAINS = frozenset(
    {
        "KUBE-SERVICES",
        "KUBE-POSTROUTING",
        "KUBE-FORWARD",
        "KUBE-NODE-PORT",
        "KUBE-LOAD-BALANCER",
        "KUBE-PROXY-FIREWALL",
        "KUBE-SOURCE-RANGES-FIREWALL",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        "KUBE-MARK-MASQ",
        "KUBE-PROXY-CANARY",
    }
)
"""Chains of kube-proxy's IPVS mode. KUBE-MARK-DROP and KUBE-KUBELET-CANARY are the kubelet's."""

NAT_CHAINS = CHAINS | {"KUBE-FIREWALL"}
"""Up to Kubernetes 1.26 nat has one more, for source ranges; the chain of the same name in filter is the kubelet's."""

SET_PREFIX = "KUBE-"
TABLES = ("nat", "filter", "mangle")
COMMANDS = ("iptables", "ip6tables")
VARIANTS = tuple(f"{command}-{kind}" for kind in ("legacy", "nft") for command in COMMANDS)
"""Each has tables of its own in the kernel; kube-proxy's image chooses one, whichever is called iptables here."""


def undo_script(saved: str) -> str:
    """Input for `iptables-restore --noflush` that removes kube-proxy's chains and the jumps to them from `saved`.

    Args:
        saved: output of iptables-save.

    Returns: the script; empty if nothing of kube-proxy's is there.
    """
    script: list[str] = []
    table, theirs = "", CHAINS
    chains: list[str] = []
    jumps: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            table, chains, jumps = line[1:], [], []
            theirs = NAT_CHAINS if table == "nat" else CHAINS
        elif line.startswith(":") and line[1:].split(" ", 1)[0] in theirs:
            chains.append(line[1:].split(" ", 1)[0])
        elif line.startswith("-A "):
            words = line.split()
            if words[1] not in theirs and words[-1] in theirs and words[-2] in {"-j", "-g"}:
                jumps.append(f"-D {line[3:]}")
        elif line == "COMMIT" and chains:
            # Declaring a chain empties it; only then may it, and what it jumps to, be deleted.
            script += [f"*{table}", *(f":{c} - [0:0]" for c in chains), *jumps, *(f"-X {c}" for c in chains), "COMMIT"]
    return "\n".join([*script, ""]) if script else ""


async def remove_chains() -> list[str]:
    """Remove kube-proxy's iptables chains of both families; returns the commands that changed something.

    A command that is not installed is left out: its rules, should there be any, are out of reach from here.

    Raises: DataplaneError with the command's words.
    """
    changed = []
    for command in (*COMMANDS, *VARIANTS):
        if shutil.which(f"{command}-save") is None:
            continue
        try:
            saved = await _run(f"{command}-save")
        except DataplaneError:
            if command in COMMANDS:
                raise
            continue  # a kernel without such tables
        script = undo_script(saved)
        if script:
            await _run(f"{command}-restore", "--noflush", "--wait", stdin=script)
            changed.append(command)
    return changed


async def remove_sets() -> list[str]:
    """Destroy kube-proxy's ipsets of both families (`KUBE-...`, `KUBE-6-...`); returns their names.

    Raises: DataplaneError if one is still in use: its iptables rule has to go first.
    """
    try:
        async with AsyncIPSet() as ipset:
            names = sorted({name for name in _names([m async for m in await ipset.list()]) if _is_kube_proxys(name)})
            for name in names:
                await ipset.destroy(name)
    except NetlinkError as error:
        if error.code in {errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP}:
            return []  # no ipset in this kernel, so none of kube-proxy's
        raise DataplaneError(None, error.code, f"ipset: {error}") from error
    except OSError as error:
        if error.errno in {errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}:
            return []
        raise DataplaneError(None, error.errno or errno.EIO, f"ipset: {error}") from error
    return names


def _is_kube_proxys(name: str) -> bool:
    return name.startswith(SET_PREFIX)


def _names(messages: Iterable[object]) -> Iterable[str]:
    for message in messages:
        name = message.get_attr("IPSET_ATTR_SETNAME")  # type: ignore[attr-defined]  # pyroute2 is untyped
        if name:
            yield str(name)


async def _run(*argv: str, stdin: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, complaint = await process.communicate(stdin.encode())
    if process.returncode:
        raise DataplaneError(None, errno.EIO, f"{argv[0]}: {complaint.decode('utf-8', 'replace').strip()}")
    return out.decode()
