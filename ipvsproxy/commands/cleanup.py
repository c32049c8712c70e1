"""`ipvsproxy cleanup`: takes away what is ours (and what kube-proxy's IPVS mode left), and nothing else."""

from __future__ import annotations

import argparse
import asyncio
import errno
from typing import TYPE_CHECKING

from ipvsproxy.commands.options import tell

if TYPE_CHECKING:
    from ipvsproxy.dataplane import DataPlane
    from ipvsproxy.model import VirtualServerKey

_DESCRIPTION = """\
Remove this proxy's virtual servers, routes, nftables table and device. Foreign virtual servers, addresses and tables
stay. May be repeated; what is not there is no error. Services stop working on this node until a proxy runs again.
Exit code: 0 nothing of ours is left, 1 something could not be removed.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "cleanup", help="remove what is ours from this node's kernel", description=_DESCRIPTION
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--kube-proxy",
        action="store_true",
        help="also what kube-proxy's IPVS mode left: its virtual servers, addresses, iptables chains and ipsets, "
        "IPv4 and IPv6",
    )
    which.add_argument(
        "--kube-proxy-rules",
        action="store_true",
        help="only kube-proxy's iptables chains and ipsets, which outlive it and no longer follow the cluster; for a "
        "node where `run` has taken over: everything of ours stays and works",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    from ipvsproxy.applier import describe  # noqa: PLC0415
    from ipvsproxy.dataplane import DataplaneError, Unsupported  # noqa: PLC0415
    from ipvsproxy.kernel.plane import KernelDataPlane  # noqa: PLC0415

    async def clean() -> list[str]:
        if args.kube_proxy_rules:
            return await _remove_kube_proxys_rules()
        done = []
        try:
            kernel = await KernelDataPlane.open()
        except Unsupported as error:
            # Without IPVS there can be no virtual server; say so, for it may be a mistake of the user's.
            tell(f"no virtual servers to remove: {describe(error)}")
            done = await _clean_up_without_ipvs(kube_proxy=args.kube_proxy)
        else:
            async with kernel as dataplane:
                done = await clean_up(dataplane, kube_proxy=args.kube_proxy)
        if args.kube_proxy:
            done += await _remove_kube_proxys_rules()
        return done

    try:
        done = asyncio.run(clean())
    except DataplaneError as error:
        tell(f"ipvsproxy: not everything could be removed: {describe(error)}; try again once that is put right")
        return 1
    for line in done or ["nothing to remove was there"]:
        print(line)
    return 0


async def clean_up(dataplane: DataPlane, *, kube_proxy: bool) -> list[str]:
    """Reconcile `dataplane` towards the empty state; returns what was removed, a line each.

    Idempotent. Foreign virtual servers stay.

    Raises: DataplaneError with the first operation that failed; repeat to go on.
    """
    from ipvsproxy.applier import Applier  # noqa: PLC0415
    from ipvsproxy.diff import diff  # noqa: PLC0415
    from ipvsproxy.ipvsadm import sort_key  # noqa: PLC0415
    from ipvsproxy.model import Desired  # noqa: PLC0415
    from ipvsproxy.picture import Picture  # noqa: PLC0415

    elements = await dataplane.dump_elements()
    servers, vips = await dataplane.dump_virtual_servers(), await dataplane.dump_vips()
    leftovers = await dataplane.dump_device_addresses()
    adopted: set[VirtualServerKey] = set()
    if kube_proxy:
        from ipvsproxy.takeover import left_by_kube_proxy  # noqa: PLC0415

        own = {a.address for a in (await dataplane.read_host()).addresses}
        adopted = left_by_kube_proxy(servers, leftovers, own)
    picture = Picture(servers, vips, elements or (), adopted)
    gone = sorted(picture.owned(), key=sort_key)
    applier = Applier(dataplane, picture, lambda _name, _outcome, _times: None)
    failures = await applier.apply(diff(Desired({}, {}, {}), picture))
    if failures:
        raise failures[0]
    done = [f"virtual server {key}" for key in gone] + [f"route to {vip}" for vip in sorted(vips)]
    if elements is not None:
        await dataplane.remove_table()
        done.append("nftables table")
    if kube_proxy and leftovers:
        await dataplane.release_addresses(leftovers)
        done += [f"address {address} of kube-ipvs0" for address in sorted(leftovers)]
        leftovers = set()
    if not leftovers:
        # With addresses of a kube-proxy's on it the device is still somebody's.
        await dataplane.remove_device()
    return done


async def _clean_up_without_ipvs(*, kube_proxy: bool) -> list[str]:
    """Remove routes, table and device, which stay when the module of IPVS is unloaded; returns what was removed.

    Raises: DataplaneError.
    """
    from ipvsproxy import nftables  # noqa: PLC0415
    from ipvsproxy.dataplane import DataplaneError, DeleteVip  # noqa: PLC0415
    from ipvsproxy.kernel.errors import error_for  # noqa: PLC0415
    from ipvsproxy.kernel.host import Host  # noqa: PLC0415
    from ipvsproxy.kernel.nft import Nft  # noqa: PLC0415
    from ipvsproxy.kernel.setelements import SetElements  # noqa: PLC0415

    host, sets = Host(), SetElements(nftables.TABLE)
    try:
        try:
            has_table = bool(await sets.learn())
        except DataplaneError as error:
            if error.errno != errno.EINVAL:  # what a kernel without nftables answers
                raise
            has_table = False
        ops = [DeleteVip(vip) for vip in sorted(await host.vips())]
        for index, failure in (await host.submit(ops)).items():
            raise error_for(ops[index], failure.errno, failure.detail)
        if has_table:
            await Nft(nftables.FAMILY, nftables.TABLE).remove()
        leftovers = sorted(a.address for a in await host.device_addresses())
        if kube_proxy or not leftovers:
            await host.remove_device()
    finally:
        host.close()
        sets.close()
    done = [f"route to {op.address}" for op in ops] + ["nftables table"] * has_table
    return done + [f"address {address} of kube-ipvs0" for address in leftovers if kube_proxy]


async def _remove_kube_proxys_rules() -> list[str]:
    from ipvsproxy.kernel.kubeproxy import remove_chains, remove_sets  # noqa: PLC0415

    done = [f"kube-proxy's {command} chains" for command in await remove_chains()]
    return done + [f"ipset {name}" for name in await remove_sets()]
