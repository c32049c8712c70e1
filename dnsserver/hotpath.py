"""Replies that need no thought: a memo of datagrams, behind it a table of questions, behind that the server's resolver.

Knows which bytes of a query decide its reply, and for how long that reply holds. Must not know sockets, zones or
plugins: the server tells what a question's reply is (`Resolve`), and what changed. One HotPath serves one socket (or
all TCP connections of one address), so that each reply counts for the right transport and family.

Layers, by cost of a hit:

  memo     datagram[2:] -> reply[2:]. Flags, OPT, size and case are all in the key: a hit is right by construction. Only
           queries in lower case are let in, else any client that varies the case would flush it.
  recipes  for replies of which a few bytes move on: TTLs that count down, the serial that a denial shows. The reply is
           cut where those stand; a memo of its own is begun each second, or at each change of the cluster, and filled
           from the recipes as they are asked for.
  tables   the lowered question -> head and tail of the reply; the question goes between as it was asked. One table for
           each combination of what else changes a reply: RD, CD, DO, EDNS or none.
  resolve  the server's look-up in its zones and caches; None means that the chain of plugins has to see the query.

Both are bounded by generations: what nobody asked for during a whole generation is forgotten, so that a flood of random
names can neither push out what is in use nor take memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec

from dnsserver.kept import (
    AFTER_SERIAL,
    ENTRY_BYTES,
    SERIAL_AT,
    Denial,
    Entry,
    Fast,
    Lasting,
    Memo,
    Recipe,
    Ring,
    Rotation,
    recipe_of,
    serial_of,
)

GENERATION_BYTES = 20 << 20
"""Weight at which a generation ends; two are kept. 10,000 names asked in one form weigh about 6 MB."""
_MEMO_REPLY_BYTES = 4096
"""Of all rotations together, those of 16 IPv4 addresses; longer replies are put together each time."""
_FREED_A_TICK = 256
"""Entries of a dead generation given back at a time; all at once would hold the event loop for some ms."""
_SHAPES = 256

_RD, _AD, _CD, _DO = 0x0100, 0x0020, 0x0010, 0x8000
_ONE_QUESTION = b"\0\1\0\0\0\0\0\0"
_ONE_QUESTION_AND_OPT = b"\0\1\0\0\0\0\0\1"
_PLAIN_OPT_BYTES = 11
_CLASS_IN = b"\0\1"

DURATION_BOUNDS_S = tuple(0.00025 * 2**n for n in range(16))
"""Upper bounds of coredns_dns_request_duration_seconds."""


Resolve = Callable[[bytes, int, bool, bool], Fast | None]
"""By lower-case name, type (class is IN), DO and CD. None: not without the chain."""

Places = list[Any]
"""Where replies are kept: a dict, a key in it, the next dict, … . Flat, so that the garbage collector has one object to
look at for each tag."""


class _Variant(NamedTuple):
    """What beside the question decides about a reply, its size aside."""

    number: int
    rd: bool
    cd: bool
    do: bool
    edns: bool


_VARIANTS = tuple(_Variant(n, bool(n & 1), bool(n & 2), bool(n & 4), bool(n & 8)) for n in range(16))


class _Shape(msgspec.Struct, frozen=True, gc=False):
    """What the bytes around a question mean."""

    variant: _Variant
    limit: int
    """Bytes the reply may have, id not counted."""
    opt: bytes
    """The reply's OPT record up to its options; empty without EDNS."""


class _Generation:
    """What was asked for during one stretch of time."""

    __slots__ = ("index", "memo", "recipes", "tables", "weight")

    def __init__(self) -> None:
        self.memo: dict[bytes, Memo] = {}
        self.recipes: dict[bytes, Recipe | Denial] = {}
        self.tables: tuple[dict[bytes, Entry], ...] = tuple({} for _ in _VARIANTS)
        self.index: dict[bytes, Places] = {}
        """By tag."""
        self.weight = 0


class HotPath:
    """The layers for one transport and family. See the module's words."""

    def __init__(self, resolve: Resolve, *, tcp: bool = False) -> None:
        self._resolve = resolve
        self._tcp = tcp
        self._shapes: dict[bytes, _Shape] = {}
        self._young = _Generation()
        self._old = _Generation()
        self._dying: list[dict[bytes, Any]] = []
        self._second = 0
        self._this_second: dict[bytes, Memo] = {}
        self._this_serial: dict[bytes, Memo] = {}
        self.durations = [0] * (len(DURATION_BOUNDS_S) + 1)
        """Replies by time taken: per bound of `DURATION_BOUNDS_S`, and beyond."""
        self.duration_sum_s = 0.0

    # -- answering

    def lookup(self) -> Callable[[bytes], Memo | None]:
        """The memo's look-up. Stale once a generation ends, but right until the event loop goes on."""
        return self._young.memo.get

    def lookup_timed(self) -> Callable[[bytes], Memo | None]:
        """The same for replies that are right for the rest of this second."""
        return self._this_second.get

    def lookup_denied(self) -> Callable[[bytes], Memo | None]:
        """The same for replies that show the serials of now."""
        return self._this_serial.get

    def reply_to(self, key: bytes) -> bytes | None:
        """The reply by any layer, or None. Key and reply are without the id."""
        entry = self._young.memo.get(key) or self._this_second.get(key) or self._this_serial.get(key)
        return self.miss(key) if entry is None else _take(entry)

    def miss(self, key: bytes) -> bytes | None:
        """The reply to a query the memos do not have; None if the chain has to see it, or it is no query at all."""
        recipe = self._young.recipes.get(key)
        if recipe is None and (recipe := self._old.recipes.pop(key, None)) is not None:
            self._keep_recipe(key, recipe)
        if recipe is not None:
            memo = self._memo_by(key, recipe)
            if memo is not None:
                return _take(memo)
            self._young.recipes.pop(key, None)
        # A zero byte within a label ends the name early here. Nothing cut off so is in a table: `_adds_up`.
        end = key.find(b"\0", 10) + 1
        split = end + 4
        shape = self._shapes.get(key[:10] + key[split:])
        if shape is None or not end or split > len(key):
            shape = self._learn(key[:10], key[split:]) if end and split <= len(key) else None
            if shape is None:
                return None
        variant = shape.variant
        name = key[10:end]
        lower = name.lower()
        question = lower + key[end:split]
        table = self._young.tables[variant.number]
        plain = lower == name
        entry = table.get(question)
        if entry is not None and entry.usual and not plain:
            shows = entry.shows
            tail = (
                entry.tail if shows is None else entry.tail[:SERIAL_AT] + serial_of(shows) + entry.tail[AFTER_SERIAL:]
            )
            reply = entry.head + key[10:split] + tail + shape.opt + entry.options
            if len(reply) <= shape.limit and len(reply) <= entry.limit:
                entry.cell.hits += 1
                return reply
        memo = self._old.memo.pop(key, None) if plain else None
        if entry is not None and entry.second is not None and entry.second != self._second:
            entry = None
        if entry is None and memo is None:
            entry = self._old.tables[variant.number].pop(question, None)
            if entry is None or (entry.second is not None and entry.second != self._second):
                entry = self._made(variant, question)
            if entry is None:
                return None
            if plain:
                memo = self._memo(shape, question, entry)
            if memo is None:
                self._keep(table, question, entry, entry.tails_bytes)
        elif plain:
            memo = memo or self._memo(shape, question, entry)
        if memo is not None:
            return _take(self._keep_memo(key, memo, entry, len(shape.opt)))
        if entry is None or (entry.lower_only and not plain):
            return None
        around = split + len(shape.opt) + len(entry.options)
        fitting = entry.fitting(min(shape.limit, entry.limit) - around)
        if fitting is None:
            return None
        head, tail = fitting
        reply = head + key[10:split] + tail + shape.opt + entry.options
        cell = entry.cell
        if head is not entry.head and entry.cell_of is not None:
            asked, do = entry.asked
            cell = entry.cell_of(asked, len(reply) + 2, do)
        cell.hits += 1
        return reply

    def _learn(self, head: bytes, rest: bytes) -> _Shape | None:
        """What a header (id aside) and the bytes behind the question say; None unless it is the plainest of queries."""
        flags = int.from_bytes(head[:2], "big")
        if flags & ~(_RD | _AD | _CD):
            return None
        limit, do, opt = 512, False, b""
        if rest or head[2:] != _ONE_QUESTION:
            if head[2:] != _ONE_QUESTION_AND_OPT or len(rest) != _PLAIN_OPT_BYTES or rest[:3] != b"\0\0\x29":
                return None
            ttl = int.from_bytes(rest[5:9], "big")
            if ttl & ~_DO or rest[9:] != b"\0\0":
                return None  # an extended RCODE, another version, unknown flags, or options
            do, opt = bool(ttl & _DO), rest[:9]
            limit = max(512, int.from_bytes(rest[3:5], "big"))
        number = bool(flags & _RD) | bool(flags & _CD) << 1 | do << 2 | bool(opt) << 3
        shape = _Shape(_VARIANTS[number], (65535 if self._tcp else limit) - 2, opt)
        if len(self._shapes) >= _SHAPES:
            self._shapes.clear()
        self._shapes[head + rest] = shape
        return shape

    @staticmethod
    def _memo(shape: _Shape, question: bytes, entry: Entry | None) -> Memo | None:
        """The whole reply (or all of them) to a query in lower case; None: too long, for the memo or for the client."""
        if entry is None or entry.ring is not None or entry.tails_bytes > _MEMO_REPLY_BYTES:
            return None
        replies = tuple(entry.head + question + tail + shape.opt + entry.options for tail in entry.tails)
        if len(replies[0]) > min(shape.limit, entry.limit):
            return None
        if len(replies) == 1:
            return Memo(replies[0], entry.cell, None, entry.tag)
        return Memo(b"", entry.cell, Rotation(replies, entry.cell), entry.tag)

    def _made(self, variant: _Variant, question: bytes) -> Entry | None:
        lower, kind = question[:-4], question[-4:]
        if kind[2:] != _CLASS_IN or not _adds_up(lower):
            return None
        fast = self._resolve(lower, int.from_bytes(kind[:2], "big"), variant.do, variant.cd)
        if fast is None:
            return None
        prepared = fast.prepared
        flags = prepared.flags | variant.rd * _RD | variant.cd * _CD
        counts, options = prepared.counts, b""
        if variant.edns:
            counts = counts[:4] + (int.from_bytes(counts[4:], "big") + 1).to_bytes(2, "big")
            options = len(prepared.options).to_bytes(2, "big") + prepared.options
        head = flags.to_bytes(2, "big") + b"\0\1" + counts
        asked = 12 + len(question) + variant.edns * _PLAIN_OPT_BYTES
        ring = Ring(prepared.tails, prepared.record_bytes) if prepared.rings else None
        longest = len(prepared.tails[0]) // 2 if ring else len(prepared.tails[0])
        replied = asked + longest + variant.edns * len(prepared.options)
        cell = fast.cell(asked, replied, variant.do)
        rotation = Rotation(prepared.tails, cell) if len(prepared.tails) > 1 and not ring else None
        limit = 65535 if self._tcp else fast.max_udp_bytes - 2
        size = sum(map(len, prepared.tails))
        second = self._second if cell.lasting is Lasting.UNTIL_SECOND else None
        countable = None
        if fast.counts_down:
            countable = sum(int.from_bytes(prepared.counts[at : at + 2], "big") for at in (0, 2, 4))
        return Entry(
            head,
            prepared.tails[0],
            options,
            cell,
            rotation,
            fast.tag,
            prepared.lower_only,
            limit,
            size,
            countable,
            fast.shows,
            second,
            ring,
            prepared.record_bytes,
            prepared.cuts,
            ring is None and rotation is None and second is None and not prepared.lower_only,
            (asked, variant.do),
            fast.cell if prepared.record_bytes or prepared.cuts else None,
        )

    # -- keeping and forgetting

    def _keep_memo(self, key: bytes, memo: Memo, entry: Entry | None, opt_bytes: int) -> Memo:
        """Keep a reply where it lasts as long as it is right; what to reply now."""
        if entry is not None and entry.shows is not None:
            at = len(memo.reply) + SERIAL_AT - opt_bytes - len(entry.options)
            weight = len(memo.reply) + ENTRY_BYTES
            denial = Denial(memo.reply[:at], memo.reply[at + 4 :], entry.shows, memo.cell, memo.tag, weight)
            self._keep_recipe(key, denial)
            memo = self._this_serial[key] = denial.memo()
        elif memo.cell.lasting is Lasting.UNTIL_SECOND:
            if entry is not None and entry.countable is not None:
                recipe = recipe_of(memo, entry.countable, self._second)
                if recipe is not None:
                    self._keep_recipe(key, recipe)
            self._this_second[key] = memo
        else:
            weight = sum(map(len, memo.rotation.choices)) if memo.rotation else len(memo.reply)
            self._keep(self._young.memo, key, memo, weight)
        return memo

    def _keep(self, table: dict[bytes, Any], key: bytes, value: Entry | Memo, weight: int) -> None:
        young = self._young
        if key not in table:  # else it replaces what was right a second ago
            young.weight += weight + 2 * len(key) + ENTRY_BYTES
        table[key] = value
        if value.cell.lasting is not Lasting.UNTIL_SECOND:
            _note(young.index, value.tag, table, key)
        if young.weight > GENERATION_BYTES:
            self._turn()

    def _keep_recipe(self, key: bytes, recipe: Recipe | Denial) -> None:
        young = self._young
        young.recipes[key] = recipe
        if isinstance(recipe, Denial):
            _note(young.index, recipe.tag, young.recipes, key)
        young.weight += recipe.weight
        if young.weight > GENERATION_BYTES:
            self._turn()

    def _memo_by(self, key: bytes, recipe: Recipe | Denial) -> Memo | None:
        """The reply of now; None if the recipe's time is over."""
        if isinstance(recipe, Denial):
            denial = self._this_serial[key] = recipe.memo()
            return denial
        memo = recipe.memo(self._second)
        if memo is not None:
            self._this_second[key] = memo
        return memo

    def _turn(self) -> None:
        """Begin a generation; the one before the last dies."""
        dead = self._old
        self._dying += [dead.memo, dead.recipes, dead.index, *dead.tables]
        self._old, self._young = self._young, _Generation()

    def tick(self, now_s: float) -> None:
        """Forget what is no longer right at `now_s`. Called before each batch."""
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._bury(self._this_second)
            self._this_second = {}
        if self._dying:
            self._free()

    def forget(self, tags: Collection[bytes]) -> None:
        """Drop every reply that carries one of these tags; denials show the zones' serials of now from here on."""
        for generation in (self._young, self._old):
            for tag in tags:
                places = generation.index.pop(tag, None)
                if places is not None:
                    for i in range(0, len(places), 2):
                        places[i].pop(places[i + 1], None)
        self._bury(self._this_serial)
        self._this_serial = {}

    def clear(self) -> None:
        """Forget everything: the configuration changed."""
        self._turn()
        self._turn()
        for passing in (self._this_second, self._this_serial):
            self._bury(passing)
        self._this_second, self._this_serial = {}, {}
        self._shapes.clear()

    def _bury(self, dead: dict[bytes, Any]) -> None:
        if dead:
            self._dying.append(dead)

    def _free(self) -> None:
        dying = self._dying[-1]
        for _ in range(min(_FREED_A_TICK, len(dying))):
            dying.popitem()
        if not dying:
            self._dying.pop()

    # -- figures

    def note_batch(self, answered: int, took_s: float) -> None:
        """Count `answered` replies that took `took_s` from the arrival of their batch to its departure."""
        self.durations[bisect_left(DURATION_BOUNDS_S, took_s)] += answered
        self.duration_sum_s += answered * took_s

    @property
    def entries(self) -> int:
        """Replies kept, all layers and generations."""
        return sum(len(g.memo) + len(g.recipes) + sum(map(len, g.tables)) for g in (self._young, self._old))


def _take(entry: Memo) -> bytes:
    if entry.rotation is not None:
        return entry.rotation.next_reply()
    entry.cell.hits += 1
    return entry.reply


def _note(index: dict[bytes, Places], tag: bytes, table: dict[bytes, Any], key: bytes) -> None:
    """Enter a place under a tag."""
    places = index.get(tag)
    if places is None:
        index[tag] = [table, key]
    else:
        places += (table, key)


def _adds_up(name: bytes) -> bool:
    """Whether a name's length bytes lead to its end (RFC 1035 §3.1), without compression."""
    at = 0
    while length := name[at]:
        at += 1 + length
        if length > 63 or at >= len(name):
            return False
    return at == len(name) - 1 <= 254
