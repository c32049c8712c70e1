"""Which pods have an address, whatever order they come and go in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dnsserver.podindex import PodIndex
from kubecore.model import ObjectKey

KEYS = [ObjectKey("a", "x"), ObjectKey("a", "y"), ObjectKey("b", "x")]
ADDRESSES = ["10.0.0.1", "10.0.0.2", "fd00::1"]
CHANGES = st.tuples(st.sampled_from(KEYS), st.lists(st.sampled_from(ADDRESSES), max_size=3).map(tuple))


@given(st.lists(CHANGES, max_size=20))
def test_it_knows_what_each_pod_was_last_given(changes: list[tuple[ObjectKey, tuple[str, ...]]]) -> None:
    index, last = PodIndex(), dict.fromkeys(KEYS, frozenset[str]())
    for key, addresses in changes:
        assert index.put(key, addresses) == (last[key] != frozenset(addresses))
        last[key] = frozenset(addresses)
        for address in ADDRESSES:
            owners = index.owners(address)
            assert set(owners) == {k for k in KEYS if address in last[k]}
            assert len(set(owners)) == len(owners)
