"""Which HTTP proxy, if any, leads to the API server: the environment's rules as Go programs read them.

Knows: HTTPS_PROXY, HTTP_PROXY and NO_PROXY, CIDRs included, which Python's own rules do not know. Must not know: the
process's environment (it is handed in) or sockets. Called by `access`.

Source: golang.org/x/net/http/httpproxy, which kubectl and every Kubernetes component follow.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """The proxy's URL for a request to `url`; None: go there directly."""
    target = urlsplit(url)
    name = f"{target.scheme}_proxy"
    proxy = environ.get(name.upper()) or environ.get(name) or ""
    host, port = target.hostname or "", target.port or _DEFAULT_PORTS.get(target.scheme, 0)
    if not proxy or _is_local(host) or excluded(host, port, environ.get("NO_PROXY") or environ.get("no_proxy") or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def excluded(host: str, port: int, no_proxy: str) -> bool:
    """Whether a NO_PROXY value names `host` (lower case name or address) and `port`.

    Entries, separated by commas: `*`; an address or CIDR; `example.com` (itself and below it); `.example.com` (only
    below it); each but a CIDR optionally with `:port`.
    """
    address = _address(host)
    for entry in (e.strip().lower() for e in no_proxy.split(",")):
        if entry == "*":
            return True
        if not entry:
            continue
        if "/" in entry:
            if address is not None and _within(address, entry):
                return True
            continue
        pattern, pattern_port = _split_port(entry)
        if pattern_port not in (None, port):
            continue
        listed = _address(pattern)
        if listed is not None:
            if listed == address:
                return True
            continue
        suffix = pattern.removeprefix("*")
        if host.endswith(suffix if suffix.startswith(".") else f".{suffix}") or host == suffix:
            return True
    return False


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _is_local(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _within(address: _Address, cidr: str) -> bool:
    try:
        network = ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        return False
    return address.version == network.version and address in network


def _split_port(entry: str) -> tuple[str, int | None]:
    """`host:port` in its parts; a bare IPv6 address has no port."""
    host, colon, port = entry.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.endswith("]")):
        return entry, None
    return host, int(port)
