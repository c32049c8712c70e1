"""Records in zone-file notation, and the names of types, classes and response codes.

Knows presentation formats. Must not know messages or Kubernetes. Called by the Corefile parser,
`template`, `query`, logs and tests; never for a query that is merely answered.

dnslib reads and writes the data of most types. Those made of names, strings and addresses are ours: dnslib splits a
label at an escaped dot, leaves escapes within strings as they are, and takes `1::2::3` for an address.

Source: RFC 1035 §5.1, RFC 3597 (unknown types), RFC 3596, RFC 2782, RFC 8659 (CAA); the IANA registries for mnemonics.
"""

from __future__ import annotations

import difflib
import ipaddress
import struct
from collections.abc import Callable, Sequence
from typing import Any

import dnslib

from dnsserver import names
from dnsserver.message import RR

# The mnemonics in use, not only the types treated specially.
TYPES: dict[str, int] = {
    "A": 1, "NS": 2, "MD": 3, "MF": 4, "CNAME": 5, "SOA": 6, "MB": 7, "MG": 8, "MR": 9, "NULL": 10, "PTR": 12,
    "HINFO": 13, "MINFO": 14, "MX": 15, "TXT": 16, "RP": 17, "AFSDB": 18, "X25": 19, "ISDN": 20, "RT": 21, "SIG": 24,
    "KEY": 25,
    "PX": 26, "GPOS": 27, "AAAA": 28, "LOC": 29, "NXT": 30, "EID": 31, "NIMLOC": 32, "SRV": 33, "NAPTR": 35, "KX": 36,
    "CERT": 37, "DNAME": 39, "OPT": 41, "APL": 42, "DS": 43, "SSHFP": 44, "IPSECKEY": 45, "RRSIG": 46, "NSEC": 47,
    "DNSKEY": 48, "DHCID": 49, "NSEC3": 50, "NSEC3PARAM": 51, "TLSA": 52, "SMIMEA": 53, "HIP": 55, "NINFO": 56,
    "RKEY": 57, "TALINK": 58, "CDS": 59, "CDNSKEY": 60, "OPENPGPKEY": 61, "CSYNC": 62, "ZONEMD": 63, "SVCB": 64,
    "HTTPS": 65, "SPF": 99, "UINFO": 100, "UID": 101, "GID": 102, "UNSPEC": 103, "NID": 104, "L32": 105, "L64": 106,
    "LP": 107, "EUI48": 108, "EUI64": 109, "TKEY": 249, "TSIG": 250, "IXFR": 251, "AXFR": 252, "MAILB": 253,
    "MAILA": 254, "ANY": 255, "URI": 256, "CAA": 257, "AVC": 258, "DOA": 259, "AMTRELAY": 260, "TA": 32768,
    "DLV": 32769,
}  # fmt: skip
CLASSES: dict[str, int] = {"IN": 1, "CS": 2, "CH": 3, "HS": 4, "NONE": 254, "ANY": 255}
RCODES: dict[str, int] = {
    "NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5, "YXDOMAIN": 6,
    "YXRRSET": 7, "NXRRSET": 8, "NOTAUTH": 9, "NOTZONE": 10, "BADVERS": 16, "BADKEY": 17, "BADTIME": 18, "BADMODE": 19,
    "BADNAME": 20,
    "BADALG": 21, "BADTRUNC": 22, "BADCOOKIE": 23,
}  # fmt: skip
_RCODE_ALIASES = {"NOTIMPL": 4, "NOTIMPLEMENTED": 4, "SUCCESS": 0, "BADSIG": 16}
_TYPE_NAMES = {number: name for name, number in TYPES.items()}
_CLASS_NAMES = {number: name for name, number in CLASSES.items()}
_RCODE_NAMES = {number: name for name, number in RCODES.items()}


def type_name(number: int) -> str:
    """The mnemonic of a type; `TYPE65280` for one without."""
    return _TYPE_NAMES.get(number) or f"TYPE{number}"


def class_name(number: int) -> str:
    """The mnemonic of a class; `CLASS42` for one without."""
    return _CLASS_NAMES.get(number) or f"CLASS{number}"


def rcode_name(number: int) -> str:
    """The mnemonic of a response code; `RCODE24` for one without."""
    return _RCODE_NAMES.get(number) or f"RCODE{number}"


def type_number(text: str) -> int:
    """The type called `text`, in any case.

    Raises:
        ValueError: no type is called that; names the nearest.
    """
    return _number(text, "TYPE", TYPES, 65535)


def class_number(text: str) -> int:
    """The class called `text`, in any case. Raises ValueError as `type_number`."""
    return _number(text, "CLASS", CLASSES, 65535)


def rcode_number(text: str) -> int:
    """The response code called `text`, in any case. Raises ValueError as `type_number`."""
    alias = _RCODE_ALIASES.get(text.upper())
    return alias if alias is not None else _number(text, "RCODE", RCODES, 4095)


def _number(text: str, prefix: str, known: dict[str, int], limit: int) -> int:
    word = text.upper()
    found = known.get(word)
    if found is not None:
        return found
    digits = word.removeprefix(prefix)
    if digits != word and digits.isascii() and digits.isdigit() and int(digits) <= limit:
        return int(digits)
    close = difflib.get_close_matches(word, known, n=1)
    raise ValueError(f"did you mean '{close[0]}'?" if close else f"write a mnemonic such as {next(iter(known))}")


# -- text to record


def from_text(line: str) -> RR:
    r"""The record written as `OWNER [TTL] [CLASS] TYPE DATA`; TTL and class in either order, missing ones 3600 and IN.

    The owner keeps its case. Unknown types take their data as `\# LENGTH HEX` (RFC 3597).

    Raises:
        ValueError: saying which part is wrong.
    """
    words = split_words(line)
    if len(words) < 3:
        raise ValueError(f"{line.strip()!r} is no record; write OWNER TTL CLASS TYPE DATA")
    owner = names.from_text(words[0][0])
    ttl_s, rclass = 3600, 1
    rest = words[1:]
    while rest and not rest[0][1]:
        word = rest[0][0].upper()
        if word.isdigit():
            ttl_s = int(word)
            if ttl_s > 0x7FFFFFFF:
                raise ValueError(f"TTL {word} is over 2147483647 (RFC 2181 §8)")
        elif word in ("IN", "CH", "HS", "CS"):
            rclass = CLASSES[word]
        else:
            break
        rest = rest[1:]
    if not rest:
        raise ValueError(f"{line.strip()!r} has no type")
    rtype = type_number(rest[0][0])
    return RR(owner, rtype, rclass, ttl_s, rdata_from_text(rtype, rest[1:]))


def split_words(line: str) -> list[tuple[str, bool]]:
    """The words of a zone-file line and whether each was quoted; a comment and parentheses are left out."""
    words: list[tuple[str, bool]] = []
    at, size = 0, len(line)
    while at < size:
        char = line[at]
        if char.isspace() or char in "()":
            at += 1
        elif char == ";":
            break
        elif char == '"':
            end = at + 1
            while end < size and line[end] != '"':
                end += 2 if line[end] == "\\" else 1
            if end >= size:
                raise ValueError(f"{line.strip()!r} has an unclosed quote")
            words.append((line[at + 1 : end], True))
            at = end + 1
        else:
            end = at
            while end < size and not line[end].isspace() and line[end] not in '();"':
                end += 2 if line[end] == "\\" else 1
            words.append((line[at:end], False))
            at = end
    return words


def rdata_from_text(rtype: int, words: Sequence[tuple[str, bool]]) -> bytes:
    """The wire form of a record's data.

    Raises:
        ValueError: the words do not fit the type.
    """
    texts = [text for text, _ in words]
    if texts[:1] == ["\\#"]:
        return _generic(texts[1:])
    parser = _PARSERS.get(rtype)
    if parser is None:
        kind = dnslib.RDMAP.get(type_name(rtype))
        if kind is None:
            raise ValueError(f"data of type {type_name(rtype)} must be written as \\# LENGTH HEX (RFC 3597)")
        return _by_dnslib(kind, rtype, texts)
    try:
        return parser(texts)
    except (struct.error, IndexError, OverflowError):
        raise ValueError(f"{' '.join(texts)!r} does not fit type {type_name(rtype)}") from None


def _generic(texts: Sequence[str]) -> bytes:
    data = bytes.fromhex("".join(texts[1:]))
    if not texts or not texts[0].isdigit() or int(texts[0]) != len(data):
        raise ValueError(f"\\# {' '.join(texts)!r}: the length does not fit the data")
    return data


def _exactly(texts: Sequence[str], count: int) -> Sequence[str]:
    if len(texts) != count:
        raise ValueError(f"{' '.join(texts)!r} has {len(texts)} fields, expected {count}")
    return texts


def _string(text: str) -> bytes:
    """A character-string: a length byte and up to 255 bytes."""
    data = bytearray()
    rest = iter(text.encode())
    for byte in rest:
        if byte != 0x5C:
            data.append(byte)
            continue
        first = next(rest, None)
        if first is None:
            raise ValueError(f"{text!r} ends in a backslash")
        if not 0x30 <= first <= 0x39:
            data.append(first)
            continue
        digits = bytes((first, next(rest, 0), next(rest, 0)))
        if not digits.isdigit() or int(digits) > 255:
            raise ValueError(f"{text!r} has a broken \\DDD escape")
        data.append(int(digits))
    if len(data) > 255:
        raise ValueError(f"a string of {len(data)} bytes; at most 255 are allowed")
    return bytes((len(data),)) + data


class _Uncompressed(dict[Any, Any]):
    """A table of names that never has one: within a record's data nothing is to point elsewhere."""

    def __contains__(self, _: object) -> bool:
        return False


def _by_dnslib(kind: Any, rtype: int, texts: Sequence[str]) -> bytes:
    counted = _FIELDS.get(type_name(rtype))
    if counted is not None:
        _exactly(texts, counted)
    buffer = dnslib.DNSBuffer()
    buffer.names = _Uncompressed()
    try:
        kind.fromZone(list(texts)).pack(buffer)
    except (dnslib.DNSError, ValueError, IndexError, TypeError, AttributeError, struct.error):
        raise ValueError(f"{' '.join(texts)!r} does not fit type {type_name(rtype)}") from None
    return bytes(buffer.data)


_FIELDS = {"CAA": 3, "DS": 4, "NAPTR": 6, "RP": 2, "SSHFP": 3, "TLSA": 4}
"""How many words the data of a type has, where that is fixed: dnslib ignores what is too much."""


def _a(texts: Sequence[str]) -> bytes:
    return ipaddress.IPv4Address(_exactly(texts, 1)[0]).packed


def _aaaa(texts: Sequence[str]) -> bytes:
    return ipaddress.IPv6Address(_exactly(texts, 1)[0]).packed


def _name(texts: Sequence[str]) -> bytes:
    return names.from_text(_exactly(texts, 1)[0])


def _mx(texts: Sequence[str]) -> bytes:
    preference, exchange = _exactly(texts, 2)
    return struct.pack("!H", int(preference)) + names.from_text(exchange)


def _srv(texts: Sequence[str]) -> bytes:
    priority, weight, port, target = _exactly(texts, 4)
    return struct.pack("!HHH", int(priority), int(weight), int(port)) + names.from_text(target)


def _soa(texts: Sequence[str]) -> bytes:
    mname, rname, *numbers = _exactly(texts, 7)
    return names.from_text(mname) + names.from_text(rname) + struct.pack("!5I", *map(int, numbers))


def _txt(texts: Sequence[str]) -> bytes:
    if not texts:
        raise ValueError("a text record needs at least one string")
    return b"".join(map(_string, texts))


def _hinfo(texts: Sequence[str]) -> bytes:
    return b"".join(map(_string, _exactly(texts, 2)))


_PARSERS: dict[int, Callable[[Sequence[str]], bytes]] = {
    TYPES["A"]: _a,
    TYPES["AAAA"]: _aaaa,
    TYPES["CNAME"]: _name,
    TYPES["DNAME"]: _name,
    TYPES["NS"]: _name,
    TYPES["PTR"]: _name,
    TYPES["MX"]: _mx,
    TYPES["SRV"]: _srv,
    TYPES["SOA"]: _soa,
    TYPES["TXT"]: _txt,
    TYPES["SPF"]: _txt,
    TYPES["HINFO"]: _hinfo,
}


# -- record to text


def to_text(record: RR) -> str:
    """The record as a zone-file line, its fields separated by one space."""
    return (
        f"{names.to_text(record.name)} {record.ttl} {class_name(record.rclass)} {type_name(record.type)} "
        f"{rdata_to_text(record.type, record.rdata)}"
    )


def rdata_to_text(rtype: int, rdata: bytes) -> str:
    r"""A record's data as in a zone file; `\# LENGTH HEX` where the type is unknown or the data does not fit it."""
    formatter = _FORMATTERS.get(rtype)
    if formatter is not None:
        try:
            return formatter(rdata)
        except (IndexError, ValueError, struct.error):
            pass
    elif (kind := dnslib.RDMAP.get(type_name(rtype))) is not None:
        try:
            buffer = dnslib.DNSBuffer(rdata)
            text = repr(kind.parse(buffer, len(rdata)))
            if not buffer.remaining():
                return text
        except (dnslib.DNSError, IndexError, ValueError, struct.error):
            pass
    return f"\\# {len(rdata)} {rdata.hex()}".rstrip()


def name_end(data: bytes, at: int) -> int:
    """The position after the uncompressed name at `at`. Raises IndexError past the end."""
    while length := data[at]:
        at += 1 + length
    return at + 1


def _names_text(data: bytes, at: int, count: int) -> tuple[list[str], int]:
    found = []
    for _ in range(count):
        end = name_end(data, at)
        found.append(names.to_text(data[at:end]))
        at = end
    return found, at


def _name_text(data: bytes) -> str:
    return _names_text(data, 0, 1)[0][0]


def _soa_text(data: bytes) -> str:
    (mname, rname), at = _names_text(data, 0, 2)
    return " ".join((mname, rname, *map(str, struct.unpack("!5I", data[at:]))))


def _quoted(data: bytes) -> str:
    return '"' + "".join(
        f"\\{chr(b)}" if b in b'"\\' else chr(b) if 0x20 <= b < 0x7F else f"\\{b:03d}" for b in data
    ) + '"'  # fmt: skip


def _strings_text(data: bytes) -> str:
    found, at = [], 0
    while at < len(data):
        end = at + 1 + data[at]
        if end > len(data):
            raise IndexError
        found.append(_quoted(data[at + 1 : end]))
        at = end
    return " ".join(found)


def _mx_text(data: bytes) -> str:
    return f"{struct.unpack_from('!H', data)[0]} {_name_text(data[2:])}"


def _srv_text(data: bytes) -> str:
    return " ".join((*map(str, struct.unpack_from("!HHH", data)), _name_text(data[6:])))


_FORMATTERS: dict[int, Callable[[bytes], str]] = {
    TYPES["A"]: lambda data: str(ipaddress.IPv4Address(data)),
    TYPES["AAAA"]: lambda data: str(ipaddress.IPv6Address(data)),
    TYPES["CNAME"]: _name_text,
    TYPES["DNAME"]: _name_text,
    TYPES["NS"]: _name_text,
    TYPES["PTR"]: _name_text,
    TYPES["MX"]: _mx_text,
    TYPES["SRV"]: _srv_text,
    TYPES["SOA"]: _soa_text,
    TYPES["TXT"]: _strings_text,
    TYPES["SPF"]: _strings_text,
    TYPES["HINFO"]: _strings_text,
}
