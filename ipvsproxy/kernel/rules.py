"""What rules a table has, as a digest: whether somebody altered ours, without starting nft.

Knows: what of nf_tables' messages is rules and what only counts or numbers them. Must not know: our rules. Called by
plane, right after loading the table and in each audit.

Source: linux/netfilter/nf_tables.h (NFTA_CHAIN_*, NFTA_RULE_*, NFTA_EXPR_*).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import blake2b

from ipvsproxy.dataplane import NotFound
from ipvsproxy.kernel.netlink import Netlink, attribute, attributes, elements_of, message

_GET_CHAIN, _GET_RULE, _GET_SET = 0x0A04, 0x0A07, 0x0A0A  # subsystem nftables, NFT_MSG_GETCHAIN and so on
_INET = bytes([1, 0, 0, 0])
_TABLE = 1  # of every message
_CHAIN_PARTS = (3, 4, 5, 7, 10)  # name, hook, policy, type, flags; not handle, use, counters
_RULE_CHAIN, _RULE_EXPRESSIONS = 2, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_SET_PARTS = (2, 3, 4, 5, 6, 7)  # name, flags, types and lengths of key and data
_COUNTING = frozenset({b"counter\0"})
"""Expressions whose data change as packets pass."""


async def digest(link: Netlink, table: str) -> bytes | None:
    """Equal for equal chains, rules in their order, and sets of a table of family inet; None if it has no chain.

    Elements do not count, nor what counters counted.

    Raises: Interrupted.
    """
    name = table.encode() + b"\0"
    found = blake2b(digest_size=16)
    there = False
    async for chain in _dump(link, _GET_CHAIN, name):
        there = True
        found.update(_pick(chain, _CHAIN_PARTS))
    async for rule in _dump(link, _GET_RULE, name):
        found.update(b"\nrule " + rule[_RULE_CHAIN])
        for raw in elements_of(rule.get(_RULE_EXPRESSIONS, b"")):
            expression = attributes(raw)
            kind = expression[_EXPRESSION_NAME]
            found.update(kind if kind in _COUNTING else kind + expression.get(_EXPRESSION_DATA, b""))
    async for entry in _dump(link, _GET_SET, name):
        found.update(b"\nset " + _pick(entry, _SET_PARTS))
    return found.digest() if there else None


async def _dump(link: Netlink, kind: int, table: bytes) -> AsyncIterator[dict[int, bytes]]:
    """What there is of a kind in the table; the kernel filters by table for some kinds only."""
    try:
        async for payloads in link.dump(message(kind, 0, _INET + attribute(_TABLE, table))):
            for payload in payloads:
                found = attributes(payload, 4)
                if found.get(_TABLE) == table:
                    yield found
    except NotFound:
        return


def _pick(found: dict[int, bytes], kinds: tuple[int, ...]) -> bytes:
    return b"".join(attribute(kind, found[kind]) for kind in kinds if kind in found)
