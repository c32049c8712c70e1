"""Replies kept for their TTL: what may be kept, for how long, and what goes when room is short.

Knows RFC 2308 and RFC 8767. Must not know clocks (`now_s` comes in), sockets, the chain. The `cache` plugin drives it;
the hot path copies `Entry.prepared` out.

Time is counted in whole seconds: an entry stored during second n with TTL t is fresh until second n + t begins, and
every reply made out of it during one second is the same.

Two halves, successes and denials, so that a flood of names that do not exist cannot push out those that do. A denial
of the whole name (NXDOMAIN) is kept once for all types (RFC 2308 §5), and takes the name's addresses with it; a
success ends the denial. So A and AAAA never disagree about the existence of a name for longer than one reply.

Source: RFC 2308 (negative TTL), RFC 8767 (stale), RFC 9520 (failures), RFC 2181 §5.2 (one TTL for all).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec

from dnsserver import names
from dnsserver.corefile_model import CacheConfig, CacheLimits
from dnsserver.encode import COUNTS, OPTION_EXTENDED_ERROR, QR, RA, Packer, extended_error, pack_options
from dnsserver.message import RR, ExtendedError, Message, Prepared, QClass, QType, Question, Rcode

MAX_BYTES = 32 << 20
"""Of each half, whatever its capacity: a reply may have 64 KiB. 10,000 usual replies take about 8 MB."""
MAX_ENTRY_BYTES = MAX_BYTES // 64
MAX_STALE_FAILURE_S = 30
"""How long a failed renewal is not tried again (RFC 8767 §5)."""
MAX_ROTATIONS = 8
_ENTRY_BYTES = 700
_RECORD_BYTES = 260
"""What Python's objects take beside the bytes."""
_CHANCES = 8
"""Entries in use that are passed over before one has to go all the same."""
_EVERY_TYPE = b"\0\0"
_SOA_MINIMUM = slice(-4, None)
_RRSIG = 46


class Kind(Enum):
    """What a reply says, as far as keeping it goes."""

    SUCCESS = "success"
    NODATA = "nodata"
    NXDOMAIN = "nxdomain"
    FAILURE = "failure"
    """SERVFAIL or NOTIMP."""


class State(Enum):
    """How an entry that was found may be used."""

    FRESH = 0
    PREFETCH = 1
    """Fresh, but popular and about to expire: renew it behind the reply."""
    STALE = 2
    """Expired; to be served only under `serve_stale`."""


class Entry:
    """A reply that is kept. Its message has every TTL as it was when stored."""

    __slots__ = (
        "_served",
        "_wire",
        "expires_s",
        "hits",
        "kind",
        "last_hit_s",
        "message",
        "refreshing",
        "retry_s",
        "ttl_s",
        "used",
        "weight",
    )

    def __init__(self, message: Message, kind: Kind, ttl_s: int, now_s: float) -> None:
        self.message = message
        self.kind = kind
        self.ttl_s = ttl_s
        self.expires_s = int(now_s) + ttl_s
        self.weight = _weight(message)
        self.hits = 0
        self.last_hit_s = now_s
        self.used = False
        """Asked for since eviction last looked."""
        self.refreshing = False
        """A renewal is under way."""
        self.retry_s = 0.0
        """No renewal before."""
        self._served: tuple[int, Message] = (ttl_s, message)
        self._wire: _Wire | None = None

    def left_s(self, now_s: float) -> int:
        """Seconds left; 0 or less when expired."""
        return self.expires_s - int(now_s)

    def reply(self, ttl_s: int) -> Message:
        """The message with every TTL at `ttl_s`."""
        if self._served[0] != ttl_s:
            self._served = ttl_s, _with_ttl(self.message, ttl_s)
        return self._served[1]

    def prepared(self, lower: bytes, qtype: int, ttl_s: int) -> Prepared:
        """The reply to the lower-case question, every TTL at `ttl_s`, in the form the hot path copies out."""
        wire = self._wire
        if wire is None:
            wire = self._wire = _wire(self.message, lower, qtype)
        ttl = ttl_s.to_bytes(4, "big")
        return Prepared(wire.flags, wire.counts, tuple(ttl.join(pieces) for pieces in wire.rotations), wire.options)


class _Wire(NamedTuple):
    """A reply in wire form, cut where its TTLs go."""

    flags: int
    counts: bytes
    rotations: tuple[tuple[bytes, ...], ...]
    options: bytes


def _wire(message: Message, lower: bytes, qtype: int) -> _Wire:
    options = pack_options((OPTION_EXTENDED_ERROR, extended_error(code, text)) for code, text in message.errors)
    rest = message.authority + message.additional
    rotations = tuple(_pieces(order + rest, lower, qtype) for order in _orders(message.answer))
    return _Wire(
        QR | (RA if message.ra else 0) | message.rcode & 15,
        COUNTS.pack(len(message.answer), len(message.authority), len(message.additional)),
        rotations,
        options,
    )


def _orders(answer: tuple[RR, ...]) -> list[tuple[RR, ...]]:
    """The answer with each of its addresses first in turn; what is no address keeps its place in front."""
    addresses = [rr for rr in answer if rr.type in (QType.A, QType.AAAA)]
    if len(addresses) < 2:
        return [answer]
    others = [rr for rr in answer if rr.type not in (QType.A, QType.AAAA)]
    turns = range(0, len(addresses), -(-len(addresses) // MAX_ROTATIONS))
    return [(*others, *addresses[turn:], *addresses[:turn]) for turn in turns]


def _pieces(records: tuple[RR, ...], lower: bytes, qtype: int) -> tuple[bytes, ...]:
    packer = Packer(Question(lower, lower, qtype))
    start = len(packer.data)
    cuts: list[int] = []
    for rr in records:
        at = len(packer.data)
        packer.record(rr)
        data = packer.data
        while 0 < data[at] < 0xC0:
            at += 1 + data[at]
        cuts.append(at + (6 if data[at] else 5))
    whole = bytes(packer.data)
    pieces = []
    for cut in cuts:
        pieces.append(whole[start:cut])
        start = cut + 4
    return (*pieces, whole[start:])


def _with_ttl(message: Message, ttl_s: int) -> Message:
    def changed(section: tuple[RR, ...]) -> tuple[RR, ...]:
        return tuple(RR(name, kind, rclass, ttl_s, rdata) for name, kind, rclass, _, rdata in section)

    return msgspec.structs.replace(
        message,
        answer=changed(message.answer),
        authority=changed(message.authority),
        additional=changed(message.additional),
    )


def _weight(message: Message) -> int:
    records = (*message.answer, *message.authority, *message.additional)
    # Message, message as served and wire form share most of it; rotations do not.
    return _ENTRY_BYTES + sum(2 * (_RECORD_BYTES + len(rr.rdata)) + len(rr.name) for rr in records)


# -- what may be kept


def kind_of(question: Question, message: Message) -> Kind | None:
    """What a reply to `question` says; None: it must not be kept."""
    if message.tc or not message.cacheable or question.qclass != QClass.IN:
        return None
    if question.qtype in (QType.AXFR, QType.IXFR):
        return None
    if message.rcode in (Rcode.SERVFAIL, Rcode.NOTIMP):
        return Kind.FAILURE
    has_soa = any(rr.type == QType.SOA for rr in message.authority)
    if message.rcode == Rcode.NXDOMAIN:
        return Kind.NXDOMAIN if has_soa and not message.answer else None
    if message.rcode != Rcode.NOERROR:
        return None
    if any(rr.type == question.qtype for rr in message.answer) or (message.answer and question.qtype == QType.ANY):
        return Kind.SUCCESS
    if has_soa:
        return Kind.NODATA
    # A chain of aliases that leads nowhere is a lost reply; name servers without an answer are a referral.
    referral = not message.answer and any(rr.type == QType.NS for rr in message.authority)
    return Kind.SUCCESS if referral else None


def ttl_of(kind: Kind, message: Message, wall_s: float) -> int:
    """Seconds a reply may be kept by its records; 0: not at all. Failures have none of their own.

    Args:
        kind: from `kind_of`.
        message: the reply.
        wall_s: seconds since 1970, for signatures.
    """
    records = (*message.answer, *message.authority, *message.additional)
    if not records:
        return 0
    ttl_s = min(rr.ttl for rr in records)
    for rr in records:
        if rr.type == QType.SOA and kind is not Kind.SUCCESS and len(rr.rdata) >= 22:
            ttl_s = min(ttl_s, int.from_bytes(rr.rdata[_SOA_MINIMUM], "big"))
        if rr.type == _RRSIG and len(rr.rdata) >= 18:
            # Serial arithmetic of 32 bits (RFC 4034 §3.1.5).
            left_s = int.from_bytes(rr.rdata[8:12], "big") - int(wall_s) & 0xFFFFFFFF
            ttl_s = min(ttl_s, 0 if left_s >= 1 << 31 else left_s)
    return ttl_s


class Evicted(NamedTuple):
    """What a store pushed out."""

    success: int = 0
    denial: int = 0


class _Half:
    """Entries by key, oldest first."""

    def __init__(self, limits: CacheLimits) -> None:
        self.limits = limits
        self.entries: dict[bytes, Entry] = {}
        self.weight = 0

    def put(self, key: bytes, entry: Entry) -> int:
        """Keep `entry`; how many others had to go."""
        self.drop(key)
        self.entries[key] = entry
        self.weight += entry.weight + len(key)
        evicted = 0
        while len(self.entries) > self.limits.capacity or self.weight > MAX_BYTES:
            self._evict()
            evicted += 1
        return evicted

    def drop(self, key: bytes) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.weight -= entry.weight + len(key)

    def _evict(self) -> None:
        """The oldest goes, but what was used since the last look gets another round."""
        for _ in range(_CHANCES):
            key = next(iter(self.entries))
            entry = self.entries[key]
            if not entry.used or len(self.entries) == 1:
                break
            entry.used = False
            del self.entries[key]
            self.entries[key] = entry
        self.drop(next(iter(self.entries)))


class Found(NamedTuple):
    """A look-up's result."""

    entry: Entry
    state: State


class Cache:
    """The replies of one server block."""

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._success = _Half(config.success)
        self._denial = _Half(config.denial)
        self._keep_stale_s = config.serve_stale.duration_s if config.serve_stale is not None else 0.0

    @property
    def sizes(self) -> tuple[int, int]:
        """Successes and denials kept."""
        return len(self._success.entries), len(self._denial.entries)

    @property
    def weight_bytes(self) -> int:
        """An estimate of the memory taken."""
        return self._success.weight + self._denial.weight

    def find(self, lower: bytes, qtype: int, *, do: bool, cd: bool, now_s: float) -> Found | None:
        """The entry for a question in class IN; None if there is none that may be used. Counts as a hit."""
        flags = _flags(do=do, cd=cd)
        key = lower + qtype.to_bytes(2, "big") + flags
        success = self._success.entries.get(key)
        if success is not None and success.left_s(now_s) > 0:
            return self._hit(success, now_s)
        denial_key = key
        denial = self._denial.entries.get(key)
        if denial is None or denial.left_s(now_s) <= 0:
            whole_key = lower + _EVERY_TYPE + flags
            whole = self._denial.entries.get(whole_key)
            if whole is not None and (denial is None or whole.left_s(now_s) > 0):
                denial, denial_key = whole, whole_key
        if denial is not None and denial.left_s(now_s) > 0:
            if self._prefers_stale(success, denial, now_s) and success is not None:
                return self._stale(success)
            return self._hit(denial, now_s)
        if denial is not None and not self._is_stale(denial, now_s):
            self._denial.drop(denial_key)
            denial = None
        if success is not None and not self._is_stale(success, now_s):
            self._success.drop(key)
            success = None
        candidates = [entry for entry in (success, denial) if entry is not None and entry.kind is not Kind.FAILURE]
        if not candidates:
            return None
        return self._stale(max(candidates, key=lambda entry: entry.expires_s))

    def _is_stale(self, entry: Entry, now_s: float) -> bool:
        """Whether an expired entry may still be served."""
        return 0 <= -entry.left_s(now_s) < self._keep_stale_s

    def _prefers_stale(self, success: Entry | None, denial: Entry, now_s: float) -> bool:
        """Whether an expired success goes before a fresh failure, or with `prefer_positive` before any denial."""
        stale = self._config.serve_stale
        if stale is None or success is None or not self._is_stale(success, now_s):
            return False
        return denial.kind is Kind.FAILURE or stale.prefer_positive

    def _hit(self, entry: Entry, now_s: float) -> Found:
        entry.used = True
        prefetch = self._config.prefetch
        if prefetch is None:
            return Found(entry, State.FRESH)
        if now_s - entry.last_hit_s > prefetch.duration_s:
            entry.hits = 0
        entry.hits += 1
        entry.last_hit_s = now_s
        due_s = max(1, -(-entry.ttl_s * prefetch.percentage // 100))
        due = entry.hits >= prefetch.amount and entry.left_s(now_s) <= due_s
        if due and not entry.refreshing and now_s >= entry.retry_s and entry.kind is not Kind.FAILURE:
            return Found(entry, State.PREFETCH)
        return Found(entry, State.FRESH)

    @staticmethod
    def _stale(entry: Entry) -> Found:
        entry.used = True
        return Found(entry, State.STALE)

    def store(
        self, question: Question, message: Message, *, do: bool, cd: bool, now_s: float, wall_s: float
    ) -> tuple[Entry | None, Evicted]:
        """Keep a reply: its entry, or None if it is not for keeping; and what it pushed out.

        The entry's message is the reply as it may be sent: all TTLs alike, not authoritative, and with the question's
        name in lower case.
        """
        kind = kind_of(question, message)
        if kind is None:
            return None, Evicted()
        half = self._success if kind is Kind.SUCCESS else self._denial
        if names.longest_suffix(question.lower, half.limits.disabled) is not None:
            return None, Evicted()
        if kind is Kind.FAILURE:
            ttl_s = int(self._config.servfail_s)
        else:
            ttl_s = ttl_of(kind, message, wall_s)
            if ttl_s:
                ttl_s = max(min(ttl_s, half.limits.ttl_s), half.limits.min_ttl_s)
        if ttl_s <= 0:
            return None, Evicted()
        stored = _with_ttl(recased(message, question.lower, question.lower), ttl_s)
        if kind is Kind.FAILURE:
            cached_error = (int(ExtendedError.CACHED_ERROR), "")
            stored = msgspec.structs.replace(stored, errors=stored.errors or (cached_error,))
        entry = Entry(msgspec.structs.replace(stored, aa=False), kind, ttl_s, now_s)
        if entry.weight > MAX_ENTRY_BYTES:
            return None, Evicted()
        return entry, self._put(question, entry, _flags(do=do, cd=cd))

    def _put(self, question: Question, entry: Entry, flags: bytes) -> Evicted:
        lower = question.lower
        key = lower + question.qtype.to_bytes(2, "big") + flags
        match entry.kind:
            case Kind.SUCCESS:
                self._denial.drop(key)
                self._denial.drop(lower + _EVERY_TYPE + flags)
                previous = self._success.entries.get(key)
                if previous is not None:
                    # A renewed name stays popular.
                    entry.hits, entry.last_hit_s = previous.hits, previous.last_hit_s
                return Evicted(success=self._success.put(key, entry))
            case Kind.NXDOMAIN:
                for qtype in {question.qtype, int(QType.A), int(QType.AAAA)}:
                    typed = lower + qtype.to_bytes(2, "big") + flags
                    self._denial.drop(typed)
                    if not self._keeps_for_stale(typed):
                        self._success.drop(typed)
                return Evicted(denial=self._denial.put(lower + _EVERY_TYPE + flags, entry))
            case Kind.NODATA:
                self._denial.drop(lower + _EVERY_TYPE + flags)
                if not self._keeps_for_stale(key):
                    self._success.drop(key)
                return Evicted(denial=self._denial.put(key, entry))
            case Kind.FAILURE:
                current = self._denial.entries.get(key)
                if current is not None and current.kind is not Kind.FAILURE and self._keep_stale_s:
                    return Evicted()  # the denial it could not renew is worth more
                return Evicted(denial=self._denial.put(key, entry))

    def _keeps_for_stale(self, key: bytes) -> bool:
        """Whether a success that was denied now is kept for `prefer_positive`, expired at once."""
        stale = self._config.serve_stale
        entry = self._success.entries.get(key)
        if stale is None or not stale.prefer_positive or entry is None:
            return False
        entry.expires_s = min(entry.expires_s, int(entry.last_hit_s))
        return True


def _flags(*, do: bool, cd: bool) -> bytes:
    return bytes((do | cd << 1,))


def recased(message: Message, lower: bytes, name: bytes) -> Message:
    """The message with the owner name `lower`, in whatever case it stands there, written as `name`."""

    def changed(section: tuple[RR, ...]) -> tuple[RR, ...]:
        if not any(rr.name != name and rr.name.lower() == lower for rr in section):
            return section
        return tuple(rr._replace(name=name) if rr.name.lower() == lower else rr for rr in section)

    answer = changed(message.answer)
    authority = changed(message.authority)
    additional = changed(message.additional)
    if answer is message.answer and authority is message.authority and additional is message.additional:
        return message
    return msgspec.structs.replace(message, answer=answer, authority=authority, additional=additional)
