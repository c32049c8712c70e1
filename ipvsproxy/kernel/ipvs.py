"""The IPVS side of generic netlink: bytes ↔ values, and a socket that speaks it.

Knows: every command and attribute of the protocol, and the kernel's quirks in them. Must not know: what is wanted or
ours. Called by plane and preflight.

Every attribute is stated; nothing is left to a default. The kernel parses without strictness, so a missing attribute
would silently be zero.

Source: linux/ip_vs.h (IPVS_CMD_*, IPVS_SVC_ATTR_*, IPVS_DEST_ATTR_*), linux/net/netfilter/ipvs/ip_vs_ctl.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from ipvsproxy.dataplane import (
    AddRealServer,
    AddVirtualServer,
    DeleteRealServer,
    DeleteVirtualServer,
    EditRealServer,
    EditVirtualServer,
    NotFound,
    Unsupported,
)
from ipvsproxy.kernel import addresses
from ipvsproxy.kernel.netlink import HEADER, REQUEST, Failure, Netlink, attribute, attributes, message
from ipvsproxy.model import (
    ActualRealServer,
    ForwardMethod,
    RealServerConfig,
    RealServerCounters,
    RealServerKey,
    Scheduler,
    ServiceFlag,
    TrafficCounters,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.model import Family, Protocol

NEW_SERVICE, SET_SERVICE, DEL_SERVICE, GET_SERVICE, NEW_DEST, SET_DEST, DEL_DEST, GET_DEST = range(1, 9)
SET_CONFIG, GET_CONFIG, _SET_INFO, GET_INFO = range(12, 16)
_VERSION = 1
NETLINK_GENERIC = 16

_CMD_SERVICE, _CMD_DEST, _CMD_TIMEOUT_TCP, _CMD_TIMEOUT_FIN, _CMD_TIMEOUT_UDP = 1, 2, 4, 5, 6
_AF, _PROTOCOL, _ADDRESS, _PORT, _FWMARK, _SCHED_NAME, _FLAGS, _TIMEOUT, _NETMASK, _STATS, _PE_NAME, _STATS64 = range(
    1, 13
)
(
    _D_ADDRESS,
    _D_PORT,
    _D_METHOD,
    _D_WEIGHT,
    _D_UPPER,
    _D_LOWER,
    _D_ACTIVE,
    _D_INACTIVE,
    _D_PERSISTENT,
    _D_STATS,
    _D_FAMILY,
    _D_STATS64,
) = range(1, 13)

_PERSISTENT, _HASHED = 0x1, 0x2
_ALL_FLAGS = 0xFFFFFFFF
_METHOD_MASK = 0x7

_AF_OF: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_ONE_HOST: dict[Family, int] = {4: 0xFFFFFFFF, 6: 128}
"""Persistence netmask: an address for IPv4, a prefix length in host order for IPv6."""
_NUMBER_OF = {
    Protocol.TCP: socket.IPPROTO_TCP,
    Protocol.UDP: socket.IPPROTO_UDP,
    Protocol.SCTP: socket.IPPROTO_SCTP,
}
_PROTOCOL_OF = {int(number): protocol for protocol, number in _NUMBER_OF.items()}
_SCHEDULER_OF = {scheduler.value.encode(): scheduler for scheduler in Scheduler if scheduler is not Scheduler.OTHER}

_GENL = struct.Struct("=BBH")
_HEAD = struct.Struct(HEADER.format + "BBH")  # nlmsghdr, genlmsghdr
_U16, _U32, _S32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=i"), struct.Struct("=Q")
_BE16 = struct.Struct("!H")
_U32_PAIR = struct.Struct("=II")

_SERVICE_KEY = struct.Struct("=HHH2x HHH2x HH16s HHH2x".replace(" ", ""))
_MARK_KEY = struct.Struct("=HHH2x HHI".replace(" ", ""))
_SERVICE_CONFIG = struct.Struct("=HHII HHI HHI".replace(" ", ""))
_DEST_ADDRESS = struct.pack("=HH", 20, _D_ADDRESS)
_DEST_PLACE = struct.Struct("=HHH2x HHH2x".replace(" ", ""))
_DEST_CONFIG = struct.Struct("=HHI HHi HHI HHI".replace(" ", ""))

GenlOp = AddVirtualServer | EditVirtualServer | DeleteVirtualServer | AddRealServer | EditRealServer | DeleteRealServer
GENL_OPS = (AddVirtualServer, EditVirtualServer, DeleteVirtualServer, AddRealServer, EditRealServer, DeleteRealServer)


class Timeouts(NamedTuple):
    """IPVS's own connection timeouts, in seconds. The defaults are the kernel's (ip_vs_proto_tcp.c, _udp.c)."""

    tcp_s: int = 900
    tcp_fin_s: int = 120
    udp_s: int = 300


class Info(NamedTuple):
    """IPVS_CMD_GET_INFO."""

    version: tuple[int, int, int]
    connection_table_size: int


class Service(NamedTuple):
    """A virtual server without its real servers, as read back."""

    key: VirtualServerKey
    config: VirtualServerConfig
    traffic: TrafficCounters


# -- to bytes


def pack_address(text: str) -> bytes:
    """16 bytes, as union nf_inet_addr has them.

    Raises: ValueError if it is no address.
    """
    return addresses.pack(text).ljust(16, b"\0")


@lru_cache(maxsize=64)  # operations come virtual server by virtual server
def pack_key(key: VirtualServerKey) -> bytes:
    """The attributes that identify a virtual server."""
    family = _AF_OF[key.family]
    if key.protocol is None:
        if not key.fwmark:
            raise ValueError("a virtual server needs a protocol or a firewall mark")
        return _MARK_KEY.pack(6, _AF, family, 8, _FWMARK, key.fwmark)
    if (":" in key.address) != (key.family == 6):
        raise ValueError(f"{key.address!r} is not an IPv{key.family} address")
    return _SERVICE_KEY.pack(
        6, _AF, family,
        6, _PROTOCOL, _NUMBER_OF[key.protocol],
        20, _ADDRESS, pack_address(key.address),
        6, _PORT, socket.htons(key.port),
    )  # fmt: skip


@lru_cache(maxsize=64)
def pack_config(family: Family, config: VirtualServerConfig) -> bytes:
    """The attributes of a virtual server's configuration, all of them."""
    if config.scheduler is Scheduler.OTHER:
        raise ValueError("the scheduler of a foreign virtual server cannot be set")
    flags = int(config.flags & ~ServiceFlag.FOREIGN) | (_PERSISTENT if config.persistence_s else 0)
    return attribute(_SCHED_NAME, config.scheduler.value.encode() + b"\0") + _SERVICE_CONFIG.pack(
        12, _FLAGS, flags, _ALL_FLAGS,
        8, _TIMEOUT, config.persistence_s,
        8, _NETMASK, _ONE_HOST[family],
    )  # fmt: skip


@lru_cache(maxsize=64)
def _pack_dest_config(config: RealServerConfig) -> bytes:
    return _DEST_CONFIG.pack(
        8, _D_METHOD, config.method.value,
        8, _D_WEIGHT, config.weight,
        8, _D_UPPER, config.upper_threshold,
        8, _D_LOWER, config.lower_threshold,
    )  # fmt: skip


def _pack_dest_key(key: RealServerKey) -> bytes:
    return _DEST_ADDRESS + addresses.pack(key.address) + _pack_dest_place(key.port, six=":" in key.address)


@lru_cache(maxsize=1024)
def _pack_dest_place(port: int, *, six: bool) -> bytes:
    """What follows the address in a real server's key, an IPv4 address' padding to 16 bytes first."""
    place = _DEST_PLACE.pack(6, _D_PORT, socket.htons(port), 6, _D_FAMILY, _AF_OF[6 if six else 4])
    return place if six else bytes(12) + place


class Encoder:
    """Operations to complete messages, for the number that this boot gave the IPVS family."""

    def __init__(self, family_id: int) -> None:
        self.family_id = family_id

    def __call__(self, op: GenlOp, sequence: int = 0) -> bytes:
        """The messages of one operation, each with this sequence number.

        Raises: ValueError if a value cannot be expressed.
        """
        try:
            match op:
                case AddVirtualServer(key, config, real_servers, real_server_config):
                    dests = self._new_dests(key, real_servers, real_server_config, sequence)
                    return self._service(NEW_SERVICE, key, config, sequence) + dests
                case EditVirtualServer(key, config):
                    return self._service(SET_SERVICE, key, config, sequence)
                case DeleteVirtualServer(key):
                    return self.command(DEL_SERVICE, nested(_CMD_SERVICE, pack_key(key)), sequence)
                case AddRealServer(server, key, config):
                    return self._dest(NEW_DEST, server, key, config, sequence)
                case EditRealServer(server, key, config):
                    return self._dest(SET_DEST, server, key, config, sequence)
                case DeleteRealServer(server, key):
                    dest = nested(_CMD_DEST, _pack_dest_key(key))
                    return self.command(DEL_DEST, nested(_CMD_SERVICE, pack_key(server)) + dest, sequence)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"out of range: {error}") from error

    def command(self, command: int, payload: bytes = b"", sequence: int = 0) -> bytes:
        """A message of the family with these attributes."""
        return self._head(command, len(payload), sequence) + payload

    def _head(self, command: int, size: int, sequence: int) -> bytes:
        return _HEAD.pack(20 + size, self.family_id, REQUEST, sequence, 0, command, _VERSION, 0)

    def _service(self, command: int, key: VirtualServerKey, config: VirtualServerConfig, sequence: int) -> bytes:
        payload = nested(_CMD_SERVICE, pack_key(key) + pack_config(key.family, config))
        return self.command(command, payload, sequence)

    def _dest(
        self,
        command: int,
        server: VirtualServerKey,
        key: RealServerKey,
        config: RealServerConfig,
        sequence: int,
    ) -> bytes:
        dest = nested(_CMD_DEST, _pack_dest_key(key) + _pack_dest_config(config))
        return self.command(command, nested(_CMD_SERVICE, pack_key(server)) + dest, sequence)

    def _new_dests(
        self,
        server: VirtualServerKey,
        keys: Sequence[RealServerKey],
        config: RealServerConfig,
        sequence: int,
    ) -> bytes:
        """A message for each real server.

        Real servers of a virtual server differ in their address alone as a rule, so that what comes before and after
        it is the same in all messages.
        """
        if not keys:
            return b""
        family, port = _AF_OF[server.family], keys[0].port
        try:
            packed = [socket.inet_pton(family, key.address) for key in keys if key.port == port]
        except OSError:
            packed = []
        if len(packed) < len(keys):  # no rule without exception
            return b"".join([self._dest(NEW_DEST, server, key, config, sequence) for key in keys])
        tail = _pack_dest_place(port, six=server.family == 6) + _pack_dest_config(config)
        identity = nested(_CMD_SERVICE, pack_key(server))
        size = len(_DEST_ADDRESS) + len(packed[0]) + len(tail)
        head = self._head(NEW_DEST, len(identity) + 4 + size, sequence)
        head += identity + _NEST.pack(4 + size, _CMD_DEST) + _DEST_ADDRESS
        return head + (tail + head).join(packed) + tail


_NEST = struct.Struct("=HH")


def nested(kind: int, payload: bytes) -> bytes:
    """An attribute of attributes; without NLA_F_NESTED, as every IPVS tool sends it."""
    return _NEST.pack(4 + len(payload), kind) + payload


# -- from bytes


def unpack_address(raw: bytes, family: int) -> str:
    """Canonical text of a union nf_inet_addr."""
    return addresses.unpack(raw[:16] if family == socket.AF_INET6 else raw[:4])


def decode_service(payload: bytes) -> Service | None:
    """A virtual server from IPVS_CMD_NEW_SERVICE; None for a protocol that no Service has (AH, ESP)."""
    found = attributes(attributes(payload, 4)[_CMD_SERVICE])
    af = _U16.unpack(found[_AF])[0]
    family: Family = 6 if af == socket.AF_INET6 else 4
    if _FWMARK in found:
        key = VirtualServerKey(family, None, "", 0, _U32.unpack(found[_FWMARK])[0])
    else:
        protocol = _PROTOCOL_OF.get(_U16.unpack(found[_PROTOCOL])[0])
        if protocol is None:
            return None
        key = VirtualServerKey(family, protocol, unpack_address(found[_ADDRESS], af), _BE16.unpack(found[_PORT])[0])
    raw_flags, _ = _U32_PAIR.unpack(found[_FLAGS])
    flags = ServiceFlag(raw_flags & ~(_PERSISTENT | _HASHED))
    if _PE_NAME in found or _U32.unpack(found[_NETMASK])[0] != _ONE_HOST[family]:
        flags |= ServiceFlag.FOREIGN
    config = VirtualServerConfig(
        _SCHEDULER_OF.get(found[_SCHED_NAME].rstrip(b"\0"), Scheduler.OTHER),
        flags,
        _U32.unpack(found[_TIMEOUT])[0] if raw_flags & _PERSISTENT else 0,
    )
    return Service(key, config, _traffic_of(found, _STATS64, _STATS))


def decode_dest(payload: bytes, family: Family) -> tuple[RealServerKey, ActualRealServer]:
    """A real server from IPVS_CMD_NEW_DEST, of a virtual server of `family`."""
    found = attributes(attributes(payload, 4)[_CMD_DEST])
    # Kernels before 3.18 do not say the family: it is the virtual server's.
    af = _U16.unpack(found[_D_FAMILY])[0] if _D_FAMILY in found else _AF_OF[family]
    key = RealServerKey(unpack_address(found[_D_ADDRESS], af), _BE16.unpack(found[_D_PORT])[0])
    number = _U32.unpack
    actual = ActualRealServer(
        _shared_config(
            _S32.unpack(found[_D_WEIGHT])[0],
            number(found[_D_METHOD])[0] & _METHOD_MASK,
            number(found[_D_UPPER])[0],
            number(found[_D_LOWER])[0],
        ),
        _shared_counters(number(found[_D_ACTIVE])[0], number(found[_D_INACTIVE])[0], number(found[_D_PERSISTENT])[0]),
        _traffic_of(found, _D_STATS64, _D_STATS),
    )
    return key, actual


# Most real servers look alike and idle ones count alike: one value for all of them saves memory and time.


@lru_cache(maxsize=256)
def _shared_config(weight: int, method: int, upper: int, lower: int) -> RealServerConfig:
    return RealServerConfig(weight, ForwardMethod(method), upper, lower)


@lru_cache(maxsize=256)
def _shared_counters(active: int, inactive: int, persistent: int) -> RealServerCounters:
    return RealServerCounters(active, inactive, persistent)


def _traffic_of(found: dict[int, bytes], wide: int, narrow: int) -> TrafficCounters:
    if wide in found:
        return _decode_traffic(found[wide], connections_wide=True)
    if narrow in found:  # before 4.1: connections and packets in 32 bits
        return _decode_traffic(found[narrow], connections_wide=False)
    return TrafficCounters()


@lru_cache(maxsize=1024)
def _decode_traffic(raw: bytes, *, connections_wide: bool) -> TrafficCounters:
    found = attributes(raw)
    count = _U64 if connections_wide else _U32
    connections, in_packets, out_packets = (count.unpack(found[i])[0] for i in (1, 2, 3))
    in_bytes, out_bytes = (_U64.unpack(found[i])[0] for i in (4, 5))
    return TrafficCounters(connections, in_packets, out_packets, in_bytes, out_bytes)


# -- the socket

_GENL_ID_CTRL, _CTRL_GETFAMILY = 16, 3
_CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 1, 2


class Ipvs:
    """IPVS of this network namespace. Make one with `open_ipvs`."""

    def __init__(self, link: Netlink, family_id: int) -> None:
        self.link = link
        self.encoder = Encoder(family_id)

    def close(self) -> None:
        """Close the socket; everything in the kernel stays."""
        self.link.close()

    async def submit(self, ops: Sequence[GenlOp]) -> dict[int, Failure]:
        """Do `ops` in order; what failed, by index."""
        return await self.link.submit(ops, self.encoder)

    async def services(self) -> AsyncIterator[list[Service]]:
        """Yields every virtual server of both families, a buffer of them at a time.

        Raises: Interrupted.
        """
        async for payloads in self.link.dump(self.encoder.command(GET_SERVICE)):
            yield [service for payload in payloads if (service := decode_service(payload)) is not None]

    async def service(self, key: VirtualServerKey) -> Service:
        """One virtual server.

        Raises: NotFound.
        """
        answers = await self.link.request(self.encoder.command(GET_SERVICE, nested(_CMD_SERVICE, pack_key(key))))
        service = decode_service(answers[0]) if answers else None
        if service is None:
            raise NotFound(None, errno.ESRCH, f"no virtual server {key}")
        return service

    async def dests(self, key: VirtualServerKey) -> dict[RealServerKey, ActualRealServer]:
        """The real servers of one virtual server; empty, too, if there is no such virtual server (the kernel's way)."""
        found: dict[RealServerKey, ActualRealServer] = {}
        request = self.encoder.command(GET_DEST, nested(_CMD_SERVICE, pack_key(key)))
        async for payloads in self.link.dump(request):
            found.update(decode_dest(payload, key.family) for payload in payloads)
        return found

    async def timeouts(self) -> Timeouts:
        """The connection timeouts in force."""
        found = attributes((await self.link.request(self.encoder.command(GET_CONFIG)))[0], 4)
        return Timeouts(
            *(_U32.unpack(found[kind])[0] for kind in (_CMD_TIMEOUT_TCP, _CMD_TIMEOUT_FIN, _CMD_TIMEOUT_UDP))
        )

    async def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set all three; the kernel takes 0 as "keep what is".

        Raises: DataplaneError(EINVAL) above 2**31 / HZ.
        """
        kinds = (_CMD_TIMEOUT_TCP, _CMD_TIMEOUT_FIN, _CMD_TIMEOUT_UDP)
        payload = b"".join(attribute(kind, _U32.pack(value)) for kind, value in zip(kinds, timeouts, strict=True))
        await self.link.request(self.encoder.command(SET_CONFIG, payload))

    async def info(self) -> Info:
        """IPVS's version and the size of its connection table."""
        found = attributes((await self.link.request(self.encoder.command(GET_INFO)))[0], 4)
        (version,) = _U32.unpack(found[1])
        return Info((version >> 16 & 0xFF, version >> 8 & 0xFF, version & 0xFF), _U32.unpack(found[2])[0])


async def open_ipvs() -> Ipvs:
    """A socket to the IPVS of this network namespace.

    Raises: Unsupported if the kernel has no IPVS and could not load it.
    """
    link = Netlink(NETLINK_GENERIC)
    payload = _GENL.pack(_CTRL_GETFAMILY, 1, 0) + attribute(_CTRL_FAMILY_NAME, b"IPVS\0")
    try:
        answers = await link.request(message(_GENL_ID_CTRL, 0, payload))
    except NotFound as error:
        link.close()
        remedy = "load module ip_vs (modprobe ip_vs; package linux-modules or kernel-modules has it)"
        raise Unsupported(None, error.errno, f"this kernel has no IPVS: {remedy}") from error
    return Ipvs(link, _U16.unpack(attributes(answers[0], 4)[_CTRL_FAMILY_ID])[0])
