"""What the cluster's zone says to a question: a message, or whom to ask instead.

Knows response codes, denials, aliases, fallthrough. Must not know sockets, time, which plugin comes next. The
`kubernetes` plugin calls `answer` and acts on what it gets; the hot path calls `prepare` once and copies the result out
from then on.

Source: RFC 1034 §3.6.2 (aliases), RFC 2308 (denials carry the SOA), RFC 6604 (response code of a chain), RFC 8020, RFC
8914.
"""

from __future__ import annotations

from array import array
from itertools import groupby
from typing import NamedTuple

from dnsserver import names
from dnsserver.encode import AA, COUNTS, OPTION_EXTENDED_ERROR, QR, Packer, extended_error, pack_options
from dnsserver.lookup import Kind, Reason, find, soa
from dnsserver.message import RR, Cuts, ExtendedError, Message, Prepared, QClass, QType, Question, Rcode
from dnsserver.zone import Zone

MAX_ALIASES = 10
"""CNAMEs followed for one question."""
MAX_ROTATIONS_BYTES = 16384
"""All rotations of a prepared answer together: those of 30 IPv4 addresses. More addresses are kept as rings."""
RING_ORDERS = 4
"""Orders that a ring of this many addresses or fewer is kept in; one of twice as many in half as many …"""
RING_ORDERS_UP_TO = 256
MAX_TAIL_BYTES = 65535
"""Longer fits in no message: one record more is kept, to see that there was more. But of addresses all take turns."""
SHORT_TAIL_BYTES = 128
"""With a name of 255 bytes, a header and an OPT record with an extended error in front, this fits in 512 bytes."""

_REASONS_TOLD = frozenset({Reason.NO_READY_ENDPOINTS, Reason.BAD_ALIAS})
"""Told to clients as extended errors; the rest is every search path's daily misses."""


class Reply(NamedTuple):
    """The zone's own, complete answer."""

    message: Message
    reason: Reason = Reason.NONE


class Fallthrough(NamedTuple):
    """The name does not exist here, and the configuration passes it on."""

    message: Message
    """What to say if nobody comes next."""
    reason: Reason


class NeedsTarget(NamedTuple):
    """The name is an alias of one the zone does not hold: ask for `target`, then `finish`."""

    aliases: tuple[RR, ...]
    target: bytes


Outcome = Reply | Fallthrough | NeedsTarget


def answer(zone: Zone, question: Question) -> Outcome | None:
    """The answer of `zone`; None: the name is not in it. Never raises. Aliases within the zone are followed.

    Only class IN (and ANY) has data; others are refused.
    """
    cut = zone.cut(question.lower)
    if cut is None:
        return None
    if question.qclass not in (QClass.IN, QClass.ANY):
        return Reply(Message(rcode=Rcode.REFUSED, cacheable=False))
    aliases: list[RR] = []
    seen = {question.lower}
    current = question
    while True:
        found = find(zone, current, cut)
        match found.kind:
            case Kind.DATA:
                return Reply(own_message(answer=(*aliases, *found.answer), additional=found.additional))
            case Kind.NODATA:
                return Reply(own_message(answer=tuple(aliases), authority=(soa(zone, current.name[cut:]),)))
            case Kind.NXDOMAIN:
                message = _denial(zone, tuple(aliases), current.name[cut:], found.reason)
                if not _falls_through(zone, current.lower):
                    return Reply(message, found.reason)
                if aliases:
                    return NeedsTarget(tuple(aliases), current.name)
                return Fallthrough(message, found.reason)
            case Kind.ALIAS:
                aliases += found.answer
                if question.qtype in (QType.CNAME, QType.ANY):
                    return Reply(own_message(answer=tuple(aliases)))
                lower = found.target.lower()
                if lower in seen or len(aliases) > MAX_ALIASES:
                    errors = ((int(ExtendedError.OTHER), "alias loop"),)
                    return Reply(own_message(rcode=Rcode.SERVFAIL, answer=tuple(aliases), errors=errors))
                cut = zone.cut(lower)
                if cut is None:
                    return NeedsTarget(tuple(aliases), found.target)
                seen.add(lower)
                current = Question(found.target, lower, question.qtype, question.qclass)


def finish(needs: NeedsTarget, reply: Message | None) -> Message:
    """The whole answer once the target was asked for; None: nobody answered.

    ANSWER is the alias, then what it led to; the response code and a denial's SOA are those of the last name (RFC
    6604).
    """
    if reply is None:
        errors = ((int(ExtendedError.NO_REACHABLE_AUTHORITY), "the alias' target could not be looked up"),)
        return own_message(rcode=Rcode.SERVFAIL, answer=needs.aliases, errors=errors)
    rcode = reply.rcode if reply.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN) else Rcode.SERVFAIL
    return own_message(
        rcode=rcode,
        answer=needs.aliases + reply.answer,
        authority=tuple(rr for rr in reply.authority if rr.type == QType.SOA),
        errors=reply.errors,
        tc=reply.tc,
    )


def own_message(
    *,
    rcode: int = Rcode.NOERROR,
    answer: tuple[RR, ...] = (),
    authority: tuple[RR, ...] = (),
    additional: tuple[RR, ...] = (),
    errors: tuple[tuple[int, str], ...] = (),
    tc: bool = False,
) -> Message:
    """A message of our own zone: authoritative, and never to be kept in a cache."""
    return Message(
        rcode=rcode,
        answer=answer,
        authority=authority,
        additional=additional,
        aa=True,
        tc=tc,
        errors=errors,
        cacheable=False,
    )


def unsynced_error() -> tuple[int, str]:
    """Why absence is not believed before the first lists."""
    return int(ExtendedError.NOT_READY), "the cluster has not been listed yet"


_NO_IMPORTS = (int(ExtendedError.NOT_READY), "the ServiceImports have not been listed yet")


def _denial(zone: Zone, aliases: tuple[RR, ...], apex: bytes, reason: Reason) -> Message:
    authority = (soa(zone, apex),)
    if not zone.is_synced(apex.lower()):
        error = unsynced_error() if not zone.synced else _NO_IMPORTS
        return own_message(rcode=Rcode.SERVFAIL, answer=aliases, authority=authority, errors=(error,))
    told = ((int(ExtendedError.OTHER), reason.value),) if reason in _REASONS_TOLD else ()
    return own_message(rcode=Rcode.NXDOMAIN, answer=aliases, authority=authority, errors=told)


def _falls_through(zone: Zone, lower: bytes) -> bool:
    zones = zone.config.fallthrough
    return zones is not None and names.longest_suffix(lower, zones) is not None


# -- the hot path


def prepare(zone: Zone, question: Question) -> Prepared | None:
    """The reply to `question` in the form the hot path copies out; None: this one must be answered in full each time.

    None too for names outside the zone, aliases that lead outside, fallthrough, and before the first lists. What it
    returns holds until `Zone.apply` reports the question's `Zone.tag`.
    """
    cut = zone.cut(question.lower)
    if cut is None:
        return None
    # Upper case left of the zone: what the API spells in lower case cannot be mistaken for (and made a pointer into)
    # the question's text, which takes any case the client likes.
    lower = question.lower
    name = lower[:cut].upper() + lower[cut:]
    outcome = answer(zone, question._replace(name=name))
    if not isinstance(outcome, Reply):
        return None
    message = outcome.message
    if message.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN) or _leads_elsewhere(message, name):
        return None
    tail, cuts = _tail(question._replace(name=name), message)
    count = len(message.answer)
    tails: tuple[bytes, ...] = (tail,)
    record_bytes, rings = 0, False
    if count > 1 and question.qtype in (QType.A, QType.AAAA):
        record_bytes, rings = len(tail) // count, len(tail) * count > MAX_ROTATIONS_BYTES
        tails = _rings(tail, count) if rings else tuple(_rotations(tail, count))
    options = pack_options((OPTION_EXTENDED_ERROR, extended_error(code, text)) for code, text in message.errors)
    return Prepared(
        flags=QR | AA | message.rcode,
        counts=COUNTS.pack(count, len(message.authority), len(message.additional)),
        tails=tails,
        options=options,
        lower_only=any(rr.type == QType.SRV for rr in message.answer),
        record_bytes=record_bytes,
        rings=rings,
        cuts=cuts if len(tails) == 1 and len(tail) > SHORT_TAIL_BYTES else None,
    )


def _tail(question: Question, message: Message) -> tuple[bytes, Cuts | None]:
    """What stands behind the question, and where it may end earlier; None where AUTHORITY is in the way."""
    packer = Packer(question)
    start = len(packer.data)
    ends, additionals = array("I"), array("I")
    for rr in message.answer:
        packer.record(rr)
        ends.append(len(packer.data) - start)
        if ends[-1] > MAX_TAIL_BYTES and question.qtype not in (QType.A, QType.AAAA):
            return bytes(packer.data[start:]), Cuts(ends, additionals)
    for rr in message.authority:
        packer.record(rr)
    for _, group in groupby(message.additional, key=lambda rr: (rr.name, rr.type)):
        members = list(group)
        for rr in members:
            packer.record(rr)
        ends.append(len(packer.data) - start)
        additionals.append((additionals[-1] if additionals else 0) + len(members))
        if ends[-1] > MAX_TAIL_BYTES:
            break
    return bytes(packer.data[start:]), Cuts(ends, additionals) if message.answer and not message.authority else None


def _leads_elsewhere(message: Message, name: bytes) -> bool:
    """Whether the answer holds records of another name: an alias was followed, whose changes have another tag."""
    return any(rr.name != name or rr.type == QType.CNAME for rr in message.answer)


def _rotations(tail: bytes, count: int) -> list[bytes]:
    """As many orders as records, each with another one first and the others shuffled behind it.

    Shuffled, so that no address inherits the load of its neighbour that does not answer.
    """
    pieces = _pieces(tail, count)
    return [
        pieces[first] + b"".join(_shuffled(pieces[first + 1 :] + pieces[:first], first * 2654435761 + count))
        for first in range(count)
    ]


def _rings(tail: bytes, count: int) -> tuple[bytes, ...]:
    """Some orders of the records, each twice over. More than one for the reason that rotations are shuffled."""
    pieces = _pieces(tail, count)
    orders = max(1, RING_ORDERS * RING_ORDERS_UP_TO // max(count, RING_ORDERS_UP_TO))
    return tuple(b"".join(_shuffled(pieces, seed)) * 2 for seed in range(orders))


def _pieces(tail: bytes, count: int) -> list[bytes]:
    size = len(tail) // count
    return [tail[at : at + size] for at in range(0, len(tail), size)]


def _shuffled(pieces: list[bytes], seed: int) -> list[bytes]:
    """In another order, always the same for a seed: by a linear congruential generator."""
    order = pieces.copy()
    for i in range(len(order) - 1, 0, -1):
        seed = (seed * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        j = (seed >> 33) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order
