"""Domain names in wire form: to and from text, suffixes, and the reverse names of addresses.

Knows labels, limits, escapes, `in-addr.arpa` and `ip6.arpa`. Must not know messages, compression, Kubernetes. Every
other module of the server calls it.

A name is uncompressed wire form: length-prefixed labels and the root's zero byte. Length bytes are at most 63, below
the letters, so `bytes.lower()` on a whole name is its lower case (RFC 4343).

Source: RFC 1035 §2.3.4, §3.1, §5.1; RFC 3596 §2.5 (ip6.arpa); RFC 4343.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from kubecore.model import Family

ROOT = b"\0"
MAX_NAME_BYTES = 255
MAX_LABEL_BYTES = 63

IN_ADDR_ARPA = b"\x07in-addr\x04arpa\0"
IP6_ARPA = b"\x03ip6\x04arpa\0"

_ESCAPED = frozenset(b'."\\;()@$')
_HEX = b"0123456789abcdef"
_DIGITS = {b"%d" % value: value for value in range(256)}
_OCTETS = {str(n): n for n in range(256)}
_DECIMAL_LABELS = tuple(bytes((len(b"%d" % value),)) + b"%d" % value for value in range(256))


def from_text(text: str) -> bytes:
    r"""The absolute name written as `text` (case kept; the last dot may be missing; `\.` and `\DDD` escape).

    Raises:
        ValueError: an empty or too long label, a too long name, a broken escape, or text that is not ASCII.
    """
    if text in ("", "."):
        return ROOT
    if not text.isascii():
        raise ValueError(f"{text!r} is not ASCII; write internationalised names in their xn-- form")
    labels: list[bytes] = []
    label = bytearray()
    rest = iter(text)
    for char in rest:
        if char == ".":
            labels.append(bytes(label))
            label.clear()
        elif char == "\\":
            label.append(_unescape(rest, text))
        else:
            label.append(ord(char))
    if label:
        labels.append(bytes(label))
    return join(labels)


def _unescape(rest: Iterable[str], text: str) -> int:
    chars = iter(rest)
    first = next(chars, "")
    if not first.isdigit():
        if not first:
            raise ValueError(f"{text!r} ends in a backslash")
        return ord(first)
    digits = first + next(chars, "") + next(chars, "")
    if len(digits) != 3 or not digits.isdigit() or int(digits) > 255:
        raise ValueError(f"\\{digits} in {text!r} is no escape; write \\000 to \\255")
    return int(digits)


def to_text(name: bytes) -> str:
    """The name as text with its last dot, every special and unprintable byte escaped."""
    if name == ROOT:
        return "."
    return "".join(f"{label_text(label)}." for label in labels(name))


def label_text(label: bytes) -> str:
    """One label as text, escaped."""
    if label.isalnum():  # the usual case
        return label.decode("ascii")
    return "".join(
        f"\\{chr(byte)}" if byte in _ESCAPED else chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03d}" for byte in label
    )


def labels(name: bytes) -> list[bytes]:
    """The labels from left to right, without the root's."""
    found = []
    at = 0
    while length := name[at]:
        found.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return found


def join(parts: Iterable[bytes], suffix: bytes = ROOT) -> bytes:
    """The name of `parts` in front of `suffix`.

    Raises:
        ValueError: an empty label, one over 63 bytes, or a name over 255.
    """
    name = bytearray()
    for part in parts:
        if not 0 < len(part) <= MAX_LABEL_BYTES:
            raise ValueError(f"label {label_text(part)!r} has {len(part)} bytes; 1 to {MAX_LABEL_BYTES} are allowed")
        name.append(len(part))
        name += part
    name += suffix
    if len(name) > MAX_NAME_BYTES:
        raise ValueError(f"name has {len(name)} bytes; at most {MAX_NAME_BYTES} are allowed")
    return bytes(name)


def is_below(name: bytes, zone: bytes) -> bool:
    """Whether `name` is `zone` or below it. Both in the same case; a label that merely ends alike does not count."""
    if not name.endswith(zone):
        return False
    at, cut = 0, len(name) - len(zone)
    while at < cut:
        at += 1 + name[at]
    return at == cut


def longest_suffix(name: bytes, zones: Iterable[bytes]) -> bytes | None:
    """The longest of `zones` that `name` is in; None if there is none."""
    best: bytes | None = None
    for zone in zones:
        if (best is None or len(zone) > len(best)) and is_below(name, zone):
            best = zone
    return best


# -- addresses


class ReverseName(NamedTuple):
    """A name below `in-addr.arpa` or `ip6.arpa`: the leading bits of an address."""

    family: Family
    prefix: int
    """The leading bits as a number, right-aligned."""
    bits: int
    """How many there are: a multiple of 8 (IPv4) or 4 (IPv6); 32 or 128 for a whole address."""

    @property
    def address(self) -> str | None:
        """The address in canonical text; None for a part of one."""
        if self.family == 4:
            if self.bits != 32:
                return None
            value = self.prefix
            return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
        return str(ipaddress.IPv6Address(self.prefix)) if self.bits == 128 else None


def parse_reverse(lower: bytes) -> ReverseName | None:
    """What a lower-case name says of an address; None if it is no reverse name or no address could be below it."""
    if is_below(lower, IN_ADDR_ARPA):
        parts = labels(lower[: len(lower) - len(IN_ADDR_ARPA)] + ROOT)
        if len(parts) > 4:
            return None
        prefix = 0
        for part in reversed(parts):
            octet = _DIGITS.get(part)
            if octet is None:
                return None
            prefix = prefix << 8 | octet
        return ReverseName(4, prefix, 8 * len(parts))
    if is_below(lower, IP6_ARPA):
        parts = labels(lower[: len(lower) - len(IP6_ARPA)] + ROOT)
        if len(parts) > 32 or any(len(part) != 1 or part not in _HEX for part in parts):
            return None
        return ReverseName(6, int(b"".join(reversed(parts)) or b"0", 16), 4 * len(parts))
    return None


def address_int(address: str) -> tuple[Family, int]:
    """Family and number of a canonical address.

    Raises:
        ValueError: it is no address.
    """
    if ":" in address:
        return 6, int(ipaddress.IPv6Address(address))
    try:  # a tenth of what IPv4Address takes, for every address of a changed Service
        first, second, third, fourth = map(_OCTETS.__getitem__, address.split("."))
    except KeyError:
        raise ValueError(f"{address!r} is no address") from None
    return 4, first << 24 | second << 16 | third << 8 | fourth


def reverse_name(address: str) -> bytes:
    """The name whose PTR record describes a canonical address.

    Raises:
        ValueError: it is no address.
    """
    family, value = address_int(address)
    return prefix_name(family, value, 32 if family == 4 else 128)


def prefix_name(family: Family, prefix: int, bits: int) -> bytes:
    """The reverse name of the first `bits` bits of an address (a multiple of 8 for IPv4, of 4 for IPv6)."""
    if family == 4:
        return b"".join(_DECIMAL_LABELS[prefix >> shift & 255] for shift in range(0, bits, 8)) + IN_ADDR_ARPA
    return b"".join(b"\x01%x" % (prefix >> shift & 15) for shift in range(0, bits, 4)) + IP6_ARPA


def is_reverse(lower: bytes) -> bool:
    """Whether a lower-case name lies in one of the two reverse trees."""
    return is_below(lower, IN_ADDR_ARPA) or is_below(lower, IP6_ARPA)


def zones_of(text: str) -> tuple[bytes, ...]:
    """The zones a configuration means by `text`, lower case: a name, or a CIDR as the reverse zones that cover it.

    A prefix off the octet (IPv4) or nibble (IPv6) boundary becomes all zones of the next: `10.0.0.0/17` is 128 zones.

    Raises:
        ValueError: neither a name nor a CIDR.
    """
    if "/" not in text:
        return (from_text(text).lower(),)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is neither a domain name nor a CIDR such as 10.96.0.0/12") from None
    family: Family = 4 if network.version == 4 else 6
    step = 8 if family == 4 else 4
    bits = -(-network.prefixlen // step) * step
    first = int(network.network_address) >> (network.max_prefixlen - bits)
    return tuple(prefix_name(family, first + i, bits) for i in range(1 << (bits - network.prefixlen)))
