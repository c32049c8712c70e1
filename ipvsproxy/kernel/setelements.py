"""Elements of nftables sets and maps over netlink: one transaction is one message buffer, no process is started.

Knows: how nft's types are laid out in keys, and nf_tables' messages about elements. Must not know: which sets there are
(the kernel tells: every set carries its type), what they are for. Called by plane; rules are nft's (nft.py).

Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; nftables' include/datatype.h (numbers of types).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network, summarize_address_range
from itertools import pairwise
from typing import Any, NamedTuple

from ipvsproxy.dataplane import ChangeElements, NotFound
from ipvsproxy.kernel import rules
from ipvsproxy.kernel.addresses import pack, unpack
from ipvsproxy.kernel.conntrack import NETLINK_NETFILTER
from ipvsproxy.kernel.netlink import CREATE, NESTED, Failure, Netlink, attribute, attributes, elements_of, message
from ipvsproxy.model import Element

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
_GET_SET, _NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT = (_SUBSYSTEM << 8 | kind for kind in (10, 12, 13, 14))
_NFPROTO_INET = 1

_SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_DATA_TYPE = 2, 3, 4, 6
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_FLAGS, _ELEMENT_KEY_END = 1, 2, 3, 10
_VALUE, _VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_INTERVAL, _MAP = 0x4, 0x8
_INTERVAL_END = 0x1
_DATA_IS_VERDICT = 0xFFFFFF00
_VERDICTS = {"jump": -3, "goto": -4, "accept": 1, "drop": 0}
_VERDICT_NAMES = {code: name for name, code in _VERDICTS.items()}

_TYPE_BITS = 6  # a concatenation's type is its parts' types, so many bits each
_IPV4, _IPV6, _PROTOCOL, _SERVICE, _IFNAME = 7, 8, 12, 13, 41
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_ADDRESSES = (_IPV4, _IPV6)
_SIZE = {_IPV4: 4, _IPV6: 16, _PROTOCOL: 1, _SERVICE: 2, _IFNAME: 16}

_ATTRIBUTE = struct.Struct("=HH")
_DATA_HEAD = struct.Struct("=HHHH")
_BE32 = struct.Struct("!I")
_BE32_SIGNED = struct.Struct("!i")
_MARK = struct.Struct("=I")
_BODY_BYTES = 60000
"""Of elements in a message: the attribute that holds them has a 16-bit length."""
_HEADER = bytes([_NFPROTO_INET, 0, 0, 0])
_MESSAGE_HEAD = 20  # nlmsghdr and nfgenmsg


class SetType(NamedTuple):
    """A set as the kernel describes it."""

    name: str
    parts: tuple[int, ...]
    """nft's type numbers of the key's parts."""
    interval: bool
    is_map: bool
    verdicts: bool
    """A map whose data are verdicts; else they are marks."""

    @property
    def plain_interval(self) -> bool:
        """Intervals of one part: the kernel wants start and end as two elements, in an order only nft knows."""
        return self.interval and len(self.parts) == 1


class SetElements:
    """The elements of one table of family inet."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._link = Netlink(NETLINK_NETFILTER)
        self._link.allow_large_messages()
        self._reader = Netlink(NETLINK_NETFILTER)  # so that a long dump holds up no change
        self._types: dict[str, SetType] = {}
        self.port_id = self._link.port_id
        """Whose changes the monitor need not tell: our own."""

    async def rules(self) -> bytes | None:
        """A digest of the table's chains, rules and sets; None if there is no such table."""
        return await rules.digest(self._reader, self._table)

    def close(self) -> None:
        """Close the sockets."""
        self._link.close()
        self._reader.close()

    async def learn(self) -> dict[str, SetType]:
        """Ask the kernel for the table's sets; empty if there is no such table."""
        request = message(_GET_SET, 0, _HEADER + attribute(1, _name(self._table)))
        types: dict[str, SetType] = {}
        try:
            async for payloads in self._reader.dump(request):
                types.update((t.name, t) for t in map(_decode_set, payloads) if t is not None)
        except NotFound:
            pass
        self._types = types
        return types

    async def can_change(self, op: ChangeElements) -> bool:
        """Whether `change` is able to do it; nft has to otherwise."""
        if not self._types:
            await self.learn()
        known = self._types.get
        return all((t := known(e.set)) is not None and not t.plain_interval for e in (*op.delete, *op.add))

    async def change(self, op: ChangeElements) -> Failure | None:
        """Delete and add, in that order, all or none; what stopped it, naming the element.

        Raises: ValueError if an element does not fit its set.
        """
        parts = self._parts(op)
        if not parts:
            return None
        buffers = _transaction(parts)
        failures = await self._link.transact(buffers)
        if not failures:
            return None
        index, failure = failures[0]
        if not 0 < index <= len(parts):
            return failure
        verb = "delete" if index <= sum(p.kind == _DELETE_ELEMENT for p in parts) else "add"
        culprit = parts[index - 1].element_at(failure.offset)
        about = " . ".join(culprit.key) if culprit is not None else "an element"
        detail = f"{failure.detail}: {about} in `{verb} element inet {self._table} {parts[index - 1].name} …`"
        if failure.errno == errno.ENOENT and parts[index - 1].name not in await self.learn():
            detail = f"set {parts[index - 1].name} is gone"
        return Failure(failure.errno, detail)

    def encode(self, op: ChangeElements) -> list[bytes]:
        """The messages of `op`, begin and end included, without sequence numbers."""
        return _transaction(self._parts(op))

    def _parts(self, op: ChangeElements) -> list[_Part]:
        return [*self._messages(_DELETE_ELEMENT, op.delete), *self._messages(_NEW_ELEMENT, op.add)]

    async def dump(self) -> set[Element] | None:
        """Every element of every set; None if there is no such table.

        Raises: Interrupted.
        """
        types = await self.learn()
        if not types:
            return None
        found: set[Element] = set()
        for kind in types.values():
            body = attribute(_LIST_TABLE, _name(self._table)) + attribute(_LIST_SET, _name(kind.name))
            raw: list[dict[int, bytes]] = []
            async for payloads in self._reader.dump(message(_GET_ELEMENT, 0, _HEADER + body)):
                batch = [
                    attributes(item)
                    for payload in payloads
                    for item in elements_of(attributes(payload, 4).get(_LIST_ELEMENTS, b""))
                ]
                if kind.plain_interval:
                    raw += batch
                else:
                    found.update(_decode_element(kind, item) for item in batch)
            found.update(_decode_intervals(kind, raw))
        return found

    def _messages(self, verb: int, elements: Sequence[Element]) -> Iterator[_Part]:
        """The messages for `elements`, which are put in order of their sets."""
        head = attribute(_LIST_TABLE, _name(self._table))
        by_set: dict[str, list[Element]] = {}
        for element in elements:
            by_set.setdefault(element.set, []).append(element)
        for name in sorted(by_set):
            kind = self._types[name]
            part = _Part(verb, name, head + attribute(_LIST_SET, _name(name)))
            for element in by_set[name]:
                if part.size > _BODY_BYTES:
                    yield part
                    part = _Part(verb, name, part.head)
                part.add(element, _encode_element(kind, element, with_data=verb == _NEW_ELEMENT))
            yield part


class _Part:
    """One message of a transaction: elements of one set."""

    def __init__(self, kind: int, name: str, head: bytes) -> None:
        self.kind = kind
        self.name = name
        self.head = head
        self.size = 0
        self._items: list[bytes] = []
        self._elements: list[Element] = []

    def add(self, element: Element, encoded: bytes) -> None:
        self._elements.append(element)
        self._items.append(encoded)
        self.size += len(encoded)

    @property
    def encoded(self) -> bytes:
        body = self.head + attribute(_LIST_ELEMENTS | NESTED, b"".join(self._items))
        return message(self.kind, CREATE if self.kind == _NEW_ELEMENT else 0, _HEADER + body)

    def element_at(self, offset: int) -> Element | None:
        """The element whose attribute begins there in the message."""
        at = _MESSAGE_HEAD + len(self.head) + 4
        for element, item in zip(self._elements, self._items, strict=True):
            if at == offset:
                return element
            at += len(item)
        return None


# -- to bytes


def _transaction(parts: Sequence[_Part]) -> list[bytes]:
    border = bytes([0, 0]) + struct.pack("!H", _SUBSYSTEM)
    return [message(_BATCH_BEGIN, 0, border), *(p.encoded for p in parts), message(_BATCH_END, 0, border)]


def _encode_element(kind: SetType, element: Element, *, with_data: bool) -> bytes:
    name, key, value = element
    if len(key) != len(kind.parts):
        raise ValueError(f"{' . '.join(key)} does not fit set {name}")
    if kind.interval:
        ends = [_range(number, part) for number, part in zip(kind.parts, key, strict=True)]
        body = _data(_ELEMENT_KEY, _pack_key(kind, [start for start, _ in ends]))
        body += _data(_ELEMENT_KEY_END, _pack_key(kind, [end for _, end in ends]))
    else:
        body = _data(_ELEMENT_KEY, _pack_key(kind, key))
    if not kind.is_map:
        if value:
            raise ValueError(f"{name} is no map: {value!r} has no place in it")
    elif with_data:
        body += _pack_value(value, verdict=kind.verdicts)
    return _ATTRIBUTE.pack(4 + len(body), 1 | NESTED) + body  # every part of the body is padded


def _range(number: int, part: str) -> tuple[str, str]:
    if "/" not in part or number not in _ADDRESSES:
        return part, part
    net = ip_network(part)
    return str(net.network_address), str(net.broadcast_address)


def _data(kind: int, value: bytes) -> bytes:
    size = len(value)
    padding = -size % 4
    return _DATA_HEAD.pack(8 + size + padding, kind | NESTED, 4 + size, _VALUE) + value + bytes(padding)


def _pack_key(kind: SetType, key: Sequence[str]) -> bytes:
    if len(kind.parts) == 1:
        return _pack_part(kind.parts[0], key[0])
    # Addresses are all different and need no padding; ports and protocols come again and again.
    return b"".join(
        [
            _pack_part(number, part) if number in _ADDRESSES else _pack_padded(number, part)
            for number, part in zip(kind.parts, key)  # noqa: B905 - as long as each other, seen by the caller
        ]
    )


@lru_cache(maxsize=4096)
def _pack_padded(number: int, part: str) -> bytes:
    raw = _pack_part(number, part)
    return raw + bytes(-len(raw) % 4)


def _pack_part(number: int, part: str) -> bytes:
    try:
        return _PACK[number](part)
    except (KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"{part!r} does not fit its place in a set's key") from error


def _sized(part: str, size: int) -> bytes:
    raw = pack(part)
    if len(raw) != size:
        raise ValueError(f"{part!r} is of the other address family")
    return raw


def _ifname(part: str) -> bytes:
    raw = part.encode()
    if not 0 < len(raw) < 16:
        raise ValueError(f"{part!r} is no interface name")
    return raw.ljust(16, b"\0")


_PACK: dict[int, Callable[[str], bytes]] = {
    _IPV4: lambda part: _sized(part, 4),
    _IPV6: lambda part: _sized(part, 16),
    _PROTOCOL: lambda part: bytes([_PROTOCOLS[part]]),
    _SERVICE: lambda part: int(part).to_bytes(2, "big"),
    _IFNAME: _ifname,
}


@lru_cache(maxsize=256)
def _pack_value(value: str, *, verdict: bool) -> bytes:
    if not verdict:
        return _data(_ELEMENT_DATA, _MARK.pack(int(value, 0)))
    verb, _, chain = value.partition(" ")
    if verb not in _VERDICTS:
        raise ValueError(f"{value!r} is no verdict")
    body = attribute(_VERDICT_CODE, _BE32_SIGNED.pack(_VERDICTS[verb]))
    if chain:
        body += attribute(_VERDICT_CHAIN, _name(chain))
    return attribute(_ELEMENT_DATA | NESTED, attribute(_VERDICT | NESTED, body))


def _name(text: str) -> bytes:
    return text.encode() + b"\0"


# -- from bytes


def _decode_set(payload: bytes) -> SetType | None:
    """A named set; None for one that nft made within a rule."""
    found = attributes(payload, 4)
    name = found[_SET_NAME].rstrip(b"\0").decode()
    if name.startswith("__"):
        return None
    (number,) = _BE32.unpack(found[_SET_KEY_TYPE])
    parts = []
    while number:
        parts.append(number & (1 << _TYPE_BITS) - 1)
        number >>= _TYPE_BITS
    (flags,) = _BE32.unpack(found[_SET_FLAGS]) if _SET_FLAGS in found else (0,)
    verdicts = _SET_DATA_TYPE in found and _BE32.unpack(found[_SET_DATA_TYPE])[0] == _DATA_IS_VERDICT
    return SetType(name, tuple(reversed(parts)), bool(flags & _INTERVAL), bool(flags & _MAP), verdicts)


def _decode_element(kind: SetType, item: dict[int, bytes]) -> Element:
    start = attributes(item[_ELEMENT_KEY])[_VALUE]
    end = attributes(item[_ELEMENT_KEY_END])[_VALUE] if _ELEMENT_KEY_END in item else start
    key = []
    offset = 0
    for number in kind.parts:
        size = _SIZE.get(number, 4)
        first = _unpack_part(number, start[offset : offset + size])
        last = first if end is start else _unpack_part(number, end[offset : offset + size])
        key.append(first if first == last else _prefix(first, last))
        offset += (size + 3) & ~3
    return Element(kind.name, tuple(key), _decode_value(kind, item.get(_ELEMENT_DATA, b"")))


def _decode_value(kind: SetType, raw: bytes) -> str:
    if not kind.is_map:
        return ""
    found = attributes(raw)
    if not kind.verdicts:
        return f"{_MARK.unpack(found[_VALUE])[0]:#010x}"
    verdict = attributes(found[_VERDICT])
    (code,) = _BE32_SIGNED.unpack(verdict[_VERDICT_CODE])
    name = _VERDICT_NAMES.get(code, str(code))
    chain = verdict.get(_VERDICT_CHAIN, b"").rstrip(b"\0").decode()
    return f"{name} {chain}" if chain else name


def _unpack_part(number: int, raw: bytes) -> str:
    if number in _ADDRESSES:
        return unpack(raw)
    if number == _PROTOCOL:
        return _PROTOCOL_NAMES.get(raw[0], str(raw[0]))
    if number == _IFNAME:
        return raw.rstrip(b"\0").decode("utf-8", "replace")
    return str(int.from_bytes(raw, "big"))


def _prefix(first: str, last: str) -> str:
    """`first-last` as a prefix where it is one; a range of numbers as nft prints it."""
    if "." not in first and ":" not in first:
        return f"{first}-{last}"
    low, high = ip_address(first), ip_address(last)
    prefixes = list(summarize_address_range(low, high))
    return str(prefixes[0]) if len(prefixes) == 1 else f"{first}-{last}"


def _decode_intervals(kind: SetType, raw: Iterable[dict[int, bytes]]) -> Iterator[Element]:
    """Elements of a set of intervals of one part: a start, and an end that is the first value not in it."""
    if not kind.plain_interval:
        return
    edges: list[tuple[int, bool]] = []  # value, whether an interval starts there; an end sorts before a start
    for item in raw:
        flags = _BE32.unpack(item[_ELEMENT_FLAGS])[0] if _ELEMENT_FLAGS in item else 0
        edges.append((int.from_bytes(attributes(item[_ELEMENT_KEY])[_VALUE], "big"), not flags & _INTERVAL_END))
    number = kind.parts[0]
    size = _SIZE[number]
    edges.sort()
    top: list[Any] = [(1 << 8 * size, False)]
    for (start, is_start), (stop, _) in pairwise(edges + top):
        if is_start:
            first = _unpack_part(number, start.to_bytes(size, "big"))
            last = _unpack_part(number, (stop - 1).to_bytes(size, "big"))
            yield Element(kind.name, (first if first == last else _prefix(first, last),))
