"""Canonical text of IP addresses and CIDRs, so that equal addresses are equal strings.

Knows: the spellings the Kubernetes API lets through and what its own consumers read in them. Must not know: what an
address is for. Called by whatever reads addresses from objects, manifests or configuration.
"""

from __future__ import annotations

import ipaddress
import re

from kubecore.model import Family

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IS_CANONICAL_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}").fullmatch
_IS_DOTTED_QUAD = re.compile(r"[0-9]+(?:\.[0-9]+){3}").fullmatch


def canonical_ip(text: str) -> str | None:
    """Compressed lower-case text of an address, None if it is none.

    Leading zeros are decimal (`010.0.0.1` is 10.0.0.1) and an IPv4-mapped IPv6 address is the IPv4 address, both as the
    API server and kube-proxy read them; zone ids (`fe80::1%eth0`) are refused as they do.
    """
    if _IS_CANONICAL_IPV4(text) and text.isascii():
        return text
    try:
        if _IS_DOTTED_QUAD(text) and text.isascii():
            return str(ipaddress.IPv4Address(".".join(octet.lstrip("0") or "0" for octet in text.split("."))))
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    if address.scope_id is not None:
        return None
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else str(mapped)


def canonical_cidr(text: str) -> str | None:
    """Canonical network with host bits cleared, surrounding blanks ignored; None if it is none. A mask is a length."""
    head, slash, length = text.strip().partition("/")
    address = canonical_ip(head)
    if address is None or not slash or not (length.isascii() and length.isdecimal() and len(length) <= 3):
        return None
    if ":" in head and ":" not in address:  # ::ffff:a.b.c.d/n is read as a network of neither family
        return None
    try:
        return str(ipaddress.ip_network(f"{address}/{int(length)}", strict=False))
    except ValueError:
        return None


def family_of(canonical: str) -> Family:
    """4 or 6 for a canonical address or CIDR."""
    return 6 if ":" in canonical else 4
