"""Puts the node-local address on a dummy interface of its own: `local_address.py DEVICE ADDRESS`. May be repeated."""

import ipaddress
import sys

from pyroute2 import IPRoute

device, address = sys.argv[1], ipaddress.ip_address(sys.argv[2])
with IPRoute() as ip:
    if not ip.link_lookup(ifname=device):
        ip.link("add", ifname=device, kind="dummy")
    index = ip.link_lookup(ifname=device)[0]
    ip.addr("replace", index=index, address=str(address), prefixlen=address.max_prefixlen)
    ip.link("set", index=index, state="up")
print(f"{address} is on {device}")
