"""What is kept of a reply, in the forms that the hot path keeps it in, and how each makes the reply's bytes.

Knows where in a reply the bytes stand that change while the rest stays: TTLs, a denial's serial, the records whose turn
it is, what is cut off for a client that takes less. Must not know when something is kept, or forgotten: the hot path
does. Called by it; the server says with `Fast` what there is to keep, and counts with `Cell`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from dnsserver.message import Cuts, Prepared

ENTRY_BYTES = 400
"""What an entry takes beside its bytes: objects, slots in dicts, index."""
SERIAL_AT = -20
"""Where a denial's tail has the serial: the tail ends with the SOA record, and that with serial, refresh, retry, expire
and minimum (RFC 1035 §3.3.13)."""
AFTER_SERIAL = SERIAL_AT + 4

_TC = 0x0200


class Lasting(Enum):
    """How long a reply stays right."""

    UNTIL_CHANGED = 0
    """Until its tag is among those that `HotPath.forget` is told."""
    UNTIL_SERIAL = 1
    """The same, but for the serial: it is a denial, and shows the zone's as it is when asked."""
    UNTIL_SECOND = 2
    """Until the clock's second ends: its TTLs count down."""


class HasSerial(Protocol):
    """What a denial is from: a zone."""

    serial: int


class Cell:
    """Counts replies that are alike in every respect the metrics tell apart."""

    __slots__ = ("hits", "lasting")

    def __init__(self, lasting: Lasting) -> None:
        self.hits = 0
        self.lasting = lasting


class Fast(NamedTuple):
    """What the server says of a question: a reply that is the same for every client."""

    prepared: Prepared
    tag: bytes
    """What `forget` will name when the reply changes."""
    cell: Callable[[int, int, bool], Cell]
    """The counter for (bytes of the query, bytes of the reply, DO)."""
    max_udp_bytes: int = 65535
    """The server block's own limit."""
    counts_down: bool = False
    """Only with UNTIL_SECOND: later seconds change nothing but the TTLs, which all are alike, until they reach 0."""
    shows: HasSerial | None = None
    """Only with UNTIL_SERIAL, and then always: whose serial the SOA record has that the tail ends with."""


class Rotation:
    """Replies (or tails) that take turns."""

    __slots__ = ("at", "cell", "choices")

    def __init__(self, choices: tuple[bytes, ...], cell: Cell) -> None:
        self.choices = choices
        self.cell = cell
        self.at = 0

    def next_reply(self) -> bytes:
        """The next in turn, counted."""
        self.cell.hits += 1
        choice = self.choices[self.at]
        self.at = (self.at + 1) % len(self.choices)
        return choice


class Ring:
    """Records of one size that take turns at being first. Each of `orders` holds them all, twice over."""

    __slots__ = ("at", "count", "orders", "record_bytes")

    def __init__(self, orders: tuple[bytes, ...], record_bytes: int) -> None:
        self.orders = orders
        self.record_bytes = record_bytes
        self.count = len(orders[0]) // record_bytes // 2
        self.at = 0

    def next_records(self, most: int) -> bytes:
        """The next in turn and those behind it, at most so many."""
        turn, which = divmod(self.at, len(self.orders))
        self.at += 1
        start = turn % self.count * self.record_bytes
        return self.orders[which][start : start + min(most, self.count) * self.record_bytes]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """Of a table: a reply without id, question and OPT. A Struct, because its fields are read faster than a tuple's."""

    head: bytes
    tail: bytes
    options: bytes
    """Length of the OPT record's options and they; empty without EDNS."""
    cell: Cell
    rotation: Rotation | None
    """Of the tails."""
    tag: bytes
    lower_only: bool
    limit: int
    """Bytes, id not counted, however much the client takes."""
    tails_bytes: int
    """Of all tails."""
    countable: int | None
    """How many records it has, if their TTLs count down together."""
    shows: HasSerial | None
    second: int | None
    """In which alone it is right; None: longer."""
    ring: Ring | None
    """Instead of tails."""
    record_bytes: int
    cuts: Cuts | None
    usual: bool
    """Has one tail, that is right for a while and for any case: needs none of `fitting` where it is short enough."""
    asked: tuple[int, bool]
    """Bytes of the query, DO."""
    cell_of: Callable[[int, int, bool], Cell] | None
    """For replies that are cut: `Fast.cell`."""

    def fitting(self, room: int) -> tuple[bytes, bytes] | None:
        """The head and a tail of at most `room` bytes, cut if need be; None if there is none."""
        ring = self.ring
        if ring is not None:
            most = room // ring.record_bytes
            if most >= ring.count:
                return self.head, ring.next_records(most)
            return (self._truncated(most), ring.next_records(most)) if most > 0 else None
        if self.shows is not None:
            tail = self.tail[:SERIAL_AT] + serial_of(self.shows) + self.tail[AFTER_SERIAL:]
        elif self.rotation is not None:
            tail = self.rotation.choices[self.rotation.at]
            self.rotation.at = (self.rotation.at + 1) % len(self.rotation.choices)
        else:
            tail = self.tail
        if len(tail) <= room:
            return self.head, tail
        if self.record_bytes:
            most = room // self.record_bytes
            return (self._truncated(most), tail[: most * self.record_bytes]) if most > 0 else None
        if self.cuts is None:
            return None
        kept = bisect_right(self.cuts.ends, room)
        if not kept:
            return None
        answers = int.from_bytes(self.head[4:6], "big")
        short = tail[: self.cuts.ends[kept - 1]]
        if kept < answers:
            return self._truncated(kept), short
        additionals = (self.cuts.additionals[kept - answers - 1] if kept > answers else 0) + bool(self.options)
        return self.head[:8] + additionals.to_bytes(2, "big"), short

    def _truncated(self, answers: int) -> bytes:
        """The head of a reply with so many records of ANSWER and nothing behind them but OPT (RFC 2181 §9)."""
        flags, opts = int.from_bytes(self.head[:2], "big") | _TC, int(bool(self.options))
        return b"".join(n.to_bytes(2, "big") for n in (flags, 1, answers, 0, opts))

    @property
    def tails(self) -> tuple[bytes, ...]:
        """All of them."""
        return self.rotation.choices if self.rotation else (self.tail,)


class Memo(msgspec.Struct, frozen=True, gc=False):
    """Of the memo: a reply without its id."""

    reply: bytes
    cell: Cell
    rotation: Rotation | None
    """Where replies take turns; `reply` is then none of them."""
    tag: bytes


class Recipe(msgspec.Struct, frozen=True, gc=False):
    """Replies without their ids, cut where their TTLs stand."""

    rotations: tuple[tuple[bytes, ...], ...]
    ends_at: int
    """The second in which the TTLs are 0."""
    cell: Cell
    tag: bytes
    weight: int

    def memo(self, second: int) -> Memo | None:
        """The reply of that second; None if its time is over."""
        left = self.ends_at - second
        if left <= 0:
            return None
        ttl = left.to_bytes(4, "big")
        if len(self.rotations) == 1:
            return Memo(ttl.join(self.rotations[0]), self.cell, None, self.tag)
        replies = tuple(ttl.join(pieces) for pieces in self.rotations)
        return Memo(b"", self.cell, Rotation(replies, self.cell), self.tag)


class Denial(msgspec.Struct, frozen=True, gc=False):
    """A denial without its id, cut where the serial stands."""

    before: bytes
    after: bytes
    shows: HasSerial
    cell: Cell
    tag: bytes
    weight: int

    def memo(self) -> Memo:
        """The reply as of now."""
        return Memo(self.before + serial_of(self.shows) + self.after, self.cell, None, self.tag)


def recipe_of(memo: Memo, records: int, second: int) -> Recipe | None:
    """How to make `memo` again in later seconds; None if its TTLs are not alike or not above 0."""
    replies = memo.rotation.choices if memo.rotation else (memo.reply,)
    rotations = []
    ttl = b""
    for reply in replies:
        start, pieces = 0, []
        for cut in _ttl_offsets(reply, records):
            ttl = ttl or reply[cut : cut + 4]
            if reply[cut : cut + 4] != ttl:
                return None
            pieces.append(reply[start:cut])
            start = cut + 4
        rotations.append((*pieces, reply[start:]))
    left = int.from_bytes(ttl, "big")
    if not left:
        return None
    weight = 2 * sum(map(len, replies)) + 2 * ENTRY_BYTES
    return Recipe(tuple(rotations), second + left, memo.cell, memo.tag, weight)


def _ttl_offsets(reply: bytes, records: int) -> Iterator[int]:
    """Where the TTLs of the first so many records of a reply without its id stand (RFC 1035 §4.1.3)."""
    at = reply.index(0, 10) + 5  # behind the question
    for _ in range(records):
        while 0 < reply[at] < 0xC0:
            at += 1 + reply[at]
        at += 2 if reply[at] else 1
        yield at + 4
        at += 10 + int.from_bytes(reply[at + 8 : at + 10], "big")


def serial_of(zone: HasSerial) -> bytes:
    """The zone's serial as it stands in a SOA record."""
    return zone.serial.to_bytes(4, "big")
