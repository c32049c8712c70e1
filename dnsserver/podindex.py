"""Whose address it is, among pods.

Knows: that two pods may have one address (host network, or one going while another comes), and how to keep a hundred
thousand in little memory. Must not know which pods count, that is for its users: `zone` (names of live pods), `engine`
(what is known of a client).
"""

from __future__ import annotations

from kubecore.model import ObjectKey

_Owners = ObjectKey | tuple[ObjectKey, ...]
"""Nearly always one; a tuple around each would be a third of the memory."""


class PodIndex:
    """Pods by address. Keeps the tuples of addresses it is given, so that they are shared with the objects."""

    def __init__(self) -> None:
        self._addresses: dict[ObjectKey, tuple[str, ...]] = {}
        self._owners: dict[str, _Owners] = {}

    def put(self, key: ObjectKey, addresses: tuple[str, ...]) -> bool:
        """Take in which addresses a pod has now (none: it is gone, or does not count); whether that is a change."""
        had = self._addresses.pop(key, ())
        if addresses:
            self._addresses[key] = addresses
        if set(had) == set(addresses):
            return False
        for address in {*had} - {*addresses}:
            left = tuple(other for other in self.owners(address) if other != key)
            if left:
                self._owners[address] = left[0] if len(left) == 1 else left
            else:
                del self._owners[address]
        for address in {*addresses} - {*had}:
            held = self.owners(address)
            self._owners[address] = (*held, key) if held else key
        return True

    def owners(self, address: str) -> tuple[ObjectKey, ...]:
        """The pods with this address, in the order they came."""
        held = self._owners.get(address)
        if held is None:
            return ()
        return (held,) if isinstance(held, ObjectKey) else held
