"""Addresses between canonical text and the kernel's bytes."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address


def pack(text: str) -> bytes:
    """4 or 16 bytes; the family is seen by the colon.

    Raises: ValueError if it is no address.
    """
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError as error:
        raise ValueError(f"{text!r} is not an IP address") from error


def unpack(raw: bytes) -> str:
    """Canonical text of 4 or 16 bytes, as the model spells it."""
    if len(raw) == 4:
        return socket.inet_ntoa(raw)
    text = socket.inet_ntop(socket.AF_INET6, raw)
    # inet_ntop writes what embeds an IPv4 address with dots (::ffff:1.2.3.4, ::1.2.3.4), which is not canonical.
    return str(IPv6Address(raw)) if "." in text else text


def family_number(text: str) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if ":" in text else socket.AF_INET
