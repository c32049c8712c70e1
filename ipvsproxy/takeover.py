"""Which virtual servers kube-proxy's IPVS mode left in a kernel. Pure; used at start and by `cleanup --kube-proxy`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_address, ip_network

from ipvsproxy.model import VirtualServerKey

NODE_PORTS = range(30000, 32768)
"""kube-apiserver's default --service-node-port-range."""


def left_by_kube_proxy(
    servers: Iterable[VirtualServerKey],
    device_addresses: Collection[str],
    own_addresses: Collection[str],
    excluded: Iterable[str] = (),
) -> set[VirtualServerKey]:
    """Virtual servers at addresses on kube-ipvs0, and node ports beside them; empty if the device has no addresses.

    Only a node with addresses on kube-ipvs0 has had a kube-proxy in IPVS mode, so a node port alone proves nothing.

    Args:
        servers: every virtual server in the kernel.
        device_addresses: addresses configured on kube-ipvs0.
        own_addresses: addresses of the node's other interfaces.
        excluded: CIDRs whose virtual servers kube-proxy was told to leave alone (`ipvs.excludeCIDRs`).
    """
    if not device_addresses:
        return set()
    networks = [ip_network(cidr) for cidr in excluded]
    return {
        key
        for key in servers
        if (key.address in device_addresses or (key.address in own_addresses and key.port in NODE_PORTS))
        and not any(ip_address(key.address) in network for network in networks)
    }
