"""Resource records as the cluster's zone needs them: one function a type, from values to an RR.

Knows rdata layouts. Must not know which records a Service has, or messages. Called by the zones.

Source: RFC 1035 §3.3, RFC 3596 §2.2 (AAAA), RFC 2782 (SRV).
"""

from __future__ import annotations

import ipaddress
import struct

from dnsserver.message import RR, QClass, QType

_SRV = struct.Struct("!HHH")
_SOA_TAIL = struct.Struct("!IIIII")

_A, _AAAA, _IN = int(QType.A), int(QType.AAAA), int(QClass.IN)

REFRESH_S, RETRY_S, EXPIRE_S = 7200, 1800, 86400


def address_type(address: str) -> int:
    """A or AAAA, whichever holds a canonical address."""
    return QType.AAAA if ":" in address else QType.A


def address(name: bytes, ttl_s: int, text: str) -> RR:
    """An A or AAAA record."""
    if ":" in text:
        return RR(name, _AAAA, _IN, ttl_s, ipaddress.IPv6Address(text).packed)
    return RR(name, _A, _IN, ttl_s, bytes(map(int, text.split("."))))


def srv(name: bytes, ttl_s: int, weight: int, port: int, target: bytes) -> RR:
    """An SRV record of priority 0."""
    return RR(name, QType.SRV, QClass.IN, ttl_s, _SRV.pack(0, weight, port) + target)


def cname(name: bytes, ttl_s: int, target: bytes) -> RR:
    """A CNAME record."""
    return RR(name, QType.CNAME, QClass.IN, ttl_s, target)


def ptr(name: bytes, ttl_s: int, target: bytes) -> RR:
    """A PTR record."""
    return RR(name, QType.PTR, QClass.IN, ttl_s, target)


def ns(name: bytes, ttl_s: int, target: bytes) -> RR:
    """An NS record."""
    return RR(name, QType.NS, QClass.IN, ttl_s, target)


def txt(name: bytes, ttl_s: int, text: bytes) -> RR:
    """A TXT record of one string of at most 255 bytes."""
    return RR(name, QType.TXT, QClass.IN, ttl_s, bytes((len(text),)) + text)


def soa(zone: bytes, ttl_s: int, serial: int, *, mname: bytes, rname: bytes, minimum_s: int) -> RR:
    """The SOA record of `zone`; `serial` is taken modulo 2^32."""
    timers = _SOA_TAIL.pack(serial & 0xFFFFFFFF, REFRESH_S, RETRY_S, EXPIRE_S, minimum_s)
    return RR(zone, QType.SOA, QClass.IN, ttl_s, mname + rname + timers)
