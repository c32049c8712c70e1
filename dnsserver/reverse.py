"""Which Services have which address: the index behind PTR records, and which partial reverse names have one below.

Knows addresses and owners. Must not know records, zones, readiness. Written by `zone.apply`, read by look-ups.

Costs a dictionary entry an address, and a sorted number beside it that tells empty non-terminals (RFC 8020) from names
that do not exist, without looking at every address.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, MutableSequence

from dnsserver import names
from kubecore.model import Family, ObjectKey

_WIDTH: dict[Family, int] = {4: 32, 6: 128}
_STEP: dict[Family, int] = {4: 8, 6: 4}


class AddressIndex:
    """A multiset of (address, owner): the same owner may hold an address twice, by two slices."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[ObjectKey, ...]] = {}
        self._sorted: dict[Family, MutableSequence[int]] = {4: array("I"), 6: []}

    def __len__(self) -> int:
        """How many distinct addresses there are."""
        return len(self._owners)

    def owners(self, address: str) -> list[ObjectKey]:
        """Who holds a canonical address, sorted, each once."""
        return sorted(set(self._owners.get(address, ())))

    def covers(self, name: names.ReverseName) -> bool:
        """Whether an address begins with these bits: the name, or one below it, exists."""
        numbers = self._sorted[name.family]
        shift = _WIDTH[name.family] - name.bits
        at = bisect_left(numbers, name.prefix << shift)
        return at < len(numbers) and numbers[at] >> shift == name.prefix

    def add(self, address: str, owner: tuple[ObjectKey], touched: set[bytes] | None) -> None:
        """Record that `owner` (a 1-tuple, shared by all its addresses) holds `address`.

        Args:
            address: canonical; what is no address is ignored.
            owner: who.
            touched: gets the reverse names whose existence this changes; None: nobody asks.
        """
        held = self._owners.get(address)
        if held is not None:
            self._owners[address] = held + owner
            return
        try:
            family, value = names.address_int(address)
        except ValueError:
            return
        self._owners[address] = owner
        if touched is not None:
            touched.update(self._flips(family, value))
        insort(self._sorted[family], value)

    def discard(self, address: str, owner: tuple[ObjectKey], touched: set[bytes] | None) -> None:
        """Take back one `add`; one that never was is no error."""
        held = self._owners.get(address)
        if held is None or owner[0] not in held:
            return
        if len(held) > 1:
            at = held.index(owner[0])
            self._owners[address] = held[:at] + held[at + 1 :]
            return
        del self._owners[address]
        family, value = names.address_int(address)
        numbers = self._sorted[family]
        del numbers[bisect_left(numbers, value)]
        if touched is not None:
            touched.update(self._flips(family, value))

    def load(self, pairs: Iterable[tuple[str, tuple[ObjectKey]]]) -> None:
        """`add` many to an empty index, sorting once."""
        held = self._owners
        for address, owner in pairs:
            known = held.get(address)
            held[address] = owner if known is None else known + owner
        numbers: dict[Family, list[int]] = {4: [], 6: []}
        for address in list(held):
            try:
                family, value = names.address_int(address)
            except ValueError:
                del held[address]
                continue
            numbers[family].append(value)
        self._sorted = {4: array("I", sorted(numbers[4])), 6: sorted(numbers[6])}

    def _flips(self, family: Family, value: int) -> Iterator[bytes]:
        """Partial reverse names that exist by `value` alone (which is not among the sorted numbers)."""
        numbers = self._sorted[family]
        width, step = _WIDTH[family], _STEP[family]
        at = bisect_left(numbers, value)
        shared = max((width - (value ^ near).bit_length() for near in numbers[max(0, at - 1) : at + 1]), default=0)
        for bits in range(shared - shared % step + step, width, step):
            yield names.prefix_name(family, value >> (width - bits), bits)
