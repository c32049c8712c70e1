"""Firewall marks for the cluster-wide sets of Services with externalTrafficPolicy Local.

Knows: which bits a mark may use and how one is found for a service port. Must not know: virtual servers, nftables text.

A mark is 0x69 in the top byte, by which packets are recognised and cleaned after IPVS, and 24 bits of a hash. The
masquerade bit and bit 15 are always 0: a kubelet of former days drops what carries 0x8000 (its KUBE-MARK-DROP).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

from ipvsproxy.model import Element
from kubecore.model import Family, ObjectKey, Protocol

_TOP_BYTE = 0xFF000000
_TOP_VALUE = 0x69000000
_DROP_BIT = 0x8000


class PortIdentity(NamedTuple):
    """What a mark belongs to: one port of one Service in one family."""

    service: ObjectKey
    port: int
    protocol: Protocol
    family: Family


def recognition(masquerade_bit: int) -> tuple[int, int]:
    """(mask, value): a packet mark is one of ours if `mark & mask == value`."""
    free = ~(1 << masquerade_bit)
    return _TOP_BYTE & free, _TOP_VALUE & free


class Marks:
    """Marks by service port: the same one for as long as it is wanted, and again after a restart.

    Args:
        masquerade_bit: left 0 in every mark.
        known: claims → mark, as read from the table at start; a service port that claims one of them keeps its mark.
    """

    def __init__(self, masquerade_bit: int, known: Iterable[Element] = ()) -> None:
        self._free = ~((1 << masquerade_bit) | _DROP_BIT) & 0xFFFFFFFF
        self._mask, self._value = recognition(masquerade_bit)
        self._known: dict[tuple[str, tuple[str, ...]], int] = {(e.set, e.key): int(e.value, 16) for e in known}
        self._of: dict[PortIdentity, int] = {}
        self._holder: dict[int, PortIdentity] = {}

    @property
    def holders(self) -> Mapping[int, PortIdentity]:
        """Marks in use."""
        return self._holder

    def of(self, identity: PortIdentity, claims: Iterable[tuple[str, tuple[str, ...]]] = ()) -> int:
        """The mark of a service port, allocated on first use.

        Args:
            identity: the service port.
            claims: set and key of the elements that will carry the mark.
        """
        mark = self._of.get(identity)
        if mark is None:
            mark = self._choose(identity, claims)
            self._of[identity] = mark
            self._holder[mark] = identity
        return mark

    def release(self, identity: PortIdentity) -> None:
        """Give the mark back; harmless if there is none."""
        mark = self._of.pop(identity, None)
        if mark is not None:
            del self._holder[mark]

    def _choose(self, identity: PortIdentity, claims: Iterable[tuple[str, tuple[str, ...]]]) -> int:
        for claim in claims:
            mark = self._known.get(claim)
            if mark is not None and mark not in self._holder and mark & self._mask == self._value:
                return mark
        service, port, protocol, family = identity
        text = f"{service}:{port}/{protocol.value}/{family}"
        seed = int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")
        reserved = set(self._known.values())
        for step in range(1 << 22):
            mark = ((seed + step) & ~_TOP_BYTE | _TOP_VALUE) & self._free
            if mark not in self._holder and (mark not in reserved or step == 0):
                return mark
        raise OverflowError("no firewall mark is free")
