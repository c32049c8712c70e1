"""IPVS messages byte by byte, against linux/ip_vs.h, against pyroute2's decoder, and back."""

from __future__ import annotations

import struct
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.ipvs import ipvsmsg

from ipvsproxy.dataplane import (
    AddRealServer,
    AddVirtualServer,
    DeleteRealServer,
    DeleteVirtualServer,
    EditRealServer,
    EditVirtualServer,
)
from ipvsproxy.kernel.ipvs import Encoder, GenlOp, Service, decode_dest, decode_service
from ipvsproxy.kernel.netlink import attribute, attributes, numbered
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
from kubecore.model import Protocol
from tests.strategies_dataplane import (
    real_server_configs,
    real_server_keys,
    virtual_server_configs,
    virtual_server_keys,
)

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes below are of a little-endian machine")

WEB = VirtualServerKey(4, Protocol.TCP, "10.96.0.1", 443)
DNS6 = VirtualServerKey(6, Protocol.UDP, "fd00:96::a", 53)
MARK6 = VirtualServerKey(6, None, "", 0, 0x69000001)
STICKY = VirtualServerConfig(Scheduler.MH, ServiceFlag.SCHED_2, 10800)
POD = RealServerKey("10.244.1.5", 8443)
POD6 = RealServerKey("fd00:244::5", 5353)
TUNNEL = RealServerConfig(3, ForwardMethod.TUNNEL, 20, 10)

encode = Encoder(0x22)


def octets(listing: str) -> bytes:
    """The bytes of a listing: hex at the start of each line, words after two blanks."""
    return bytes.fromhex("".join(line.strip().partition("  ")[0] for line in listing.splitlines()))


GOLDEN: list[tuple[GenlOp, str]] = [
    (
        AddVirtualServer(WEB, STICKY),
        """
        68000000 2200 0100 00000000 00000000  104 bytes, the family's number, NLM_F_REQUEST, sequence set when sent
        01 01 0000                            IPVS_CMD_NEW_SERVICE, version 1
        5400 0100                             IPVS_CMD_ATTR_SERVICE
        0600 0100 0200 0000                   AF: AF_INET
        0600 0200 0600 0000                   PROTOCOL: TCP
        1400 0300 0a600001 00000000 00000000 00000000  ADDR: always 16 bytes
        0600 0400 01bb 0000                   PORT: network order
        0700 0600 6d6800 00                   SCHED_NAME: mh, with its zero, padded
        0c00 0700 11000000 ffffffff           FLAGS: persistent (0x1) and mh-port (0x10); mask: all
        0800 0800 302a0000                    TIMEOUT: 10800 s
        0800 0900 ffffffff                    NETMASK: one host
        """,
    ),
    (
        EditVirtualServer(DNS6, VirtualServerConfig(Scheduler.RR)),
        """
        68000000 2200 0100 00000000 00000000
        02 01 0000                            IPVS_CMD_SET_SERVICE
        5400 0100
        0600 0100 0a00 0000                   AF: AF_INET6
        0600 0200 1100 0000                   PROTOCOL: UDP
        1400 0300 fd000096 00000000 00000000 0000000a
        0600 0400 0035 0000
        0700 0600 727200 00                   SCHED_NAME: rr
        0c00 0700 00000000 ffffffff
        0800 0800 00000000
        0800 0900 80000000                    NETMASK: of IPv6 a prefix length, in host order
        """,
    ),
    (
        DeleteVirtualServer(MARK6),
        """
        28000000 2200 0100 00000000 00000000
        03 01 0000                            IPVS_CMD_DEL_SERVICE
        1400 0100
        0600 0100 0a00 0000                   AF
        0800 0500 01000069                    FWMARK: instead of protocol, address and port
        """,
    ),
    (
        AddRealServer(WEB, POD, TUNNEL),
        """
        8c000000 2200 0100 00000000 00000000
        05 01 0000                            IPVS_CMD_NEW_DEST
        3000 0100                             IPVS_CMD_ATTR_SERVICE: its key alone
        0600 0100 0200 0000
        0600 0200 0600 0000
        1400 0300 0a600001 00000000 00000000 00000000
        0600 0400 01bb 0000
        4800 0200                             IPVS_CMD_ATTR_DEST
        1400 0100 0af40105 00000000 00000000 00000000  ADDR
        0600 0200 20fb 0000                   PORT
        0600 0b00 0200 0000                   ADDR_FAMILY
        0800 0300 02000000                    FWD_METHOD: tunnel
        0800 0400 03000000                    WEIGHT
        0800 0500 14000000                    U_THRESH
        0800 0600 0a000000                    L_THRESH
        """,
    ),
    (
        DeleteRealServer(MARK6, POD6),
        """
        50000000 2200 0100 00000000 00000000
        07 01 0000                            IPVS_CMD_DEL_DEST
        1400 0100 0600 0100 0a00 0000 0800 0500 01000069
        2800 0200
        1400 0100 fd000244 00000000 00000000 00000005
        0600 0200 14e9 0000
        0600 0b00 0a00 0000
        """,
    ),
]


@little_endian
@pytest.mark.parametrize(("op", "listing"), GOLDEN, ids=lambda value: type(value).__name__)
def test_request(op: GenlOp, listing: str) -> None:
    assert encode(op).hex(" ", 4) == octets(listing).hex(" ", 4)


# What Linux 6.1 answered to IPVS_CMD_GET_SERVICE and _GET_DEST; the counters are put in by hand.
SERVICE_ANSWER = """
    01 01 0000  IPVS_CMD_NEW_SERVICE
    5401 0100
    0600 0100 0200 0000
    0600 0200 0600 0000
    1400 0300 0a600001 00000000 00000000 00000000
    0600 0400 01bb 0000
    0700 0600 6d6800 00
    0c00 0700 13000000 ffffffff  FLAGS: the kernel adds hashed (0x2)
    0800 0800 302a0000
    0800 0900 ffffffff
    6000 0a00  STATS
    0800 0100 07000000 0800 0200 08000000 0800 0300 09000000
    0c00 0400 0a00000000000000 0400 0b00 0c00 0500 0b00000000000000
    0800 0600 00000000 0800 0700 00000000 0800 0800 00000000 0800 0900 00000000 0800 0a00 00000000
"""
SERVICE_STATS64 = """
    a000 0c00  STATS64
    0c00 0100 0700000001000000 0400 0b00 0c00 0200 0800000000000000 0400 0b00 0c00 0300 0900000000000000
    0400 0b00 0c00 0400 0a00000000000000 0400 0b00 0c00 0500 0b00000000000000
    0400 0b00 0c00 0600 0000000000000000 0400 0b00 0c00 0700 0000000000000000 0400 0b00 0c00 0800 0000000000000000
    0400 0b00 0c00 0900 0000000000000000 0400 0b00 0c00 0a00 0000000000000000
"""
DEST_ANSWER = """
    05 01 0000  IPVS_CMD_NEW_DEST
    7c01 0200
    1400 0100 fd000244 00000000 00000000 00000005
    0600 0200 14e9 0000
    0800 0300 00000000
    0800 0400 ffff0000  WEIGHT
    0500 0d00 00 000000 0600 0e00 0000 0000 0600 0f00 0000 0000  TUN_TYPE, _PORT, _FLAGS
    0800 0500 00000000
    0800 0600 00000000
    0800 0700 03000000  ACTIVE_CONNS
    0800 0800 04000000  INACT_CONNS
    0800 0900 05000000  PERSIST_CONNS
    0600 0b00 0a00 0000
"""


@little_endian
def test_service_answer() -> None:
    wide = octets(SERVICE_ANSWER) + octets(SERVICE_STATS64)
    assert decode_service(wide) == Service(WEB, STICKY, TrafficCounters((1 << 32) + 7, 8, 9, 10, 11))


@little_endian
def test_service_answer_of_a_kernel_without_64_bit_counters() -> None:
    assert decode_service(octets(SERVICE_ANSWER)) == Service(WEB, STICKY, TrafficCounters(7, 8, 9, 10, 11))


@little_endian
def test_dest_answer() -> None:
    expected = ActualRealServer(RealServerConfig(65535), RealServerCounters(3, 4, 5))
    assert decode_dest(octets(DEST_ANSWER), 6) == (POD6, expected)


@little_endian
def test_dest_without_family_has_its_virtual_servers() -> None:
    without = octets(DEST_ANSWER).replace(octets("0600 0b00 0a00 0000"), b"")
    assert decode_dest(without, 6)[0] == POD6


@little_endian
@pytest.mark.parametrize(
    ("listing", "changed", "config"),
    [
        ("0800 0900 ffffffff", "0800 0900 ffffff00", STICKY.flags | ServiceFlag.FOREIGN),
        ("0700 0600 6d6800 00", "0700 0600 6d6800 00 0800 0b00 73697000", STICKY.flags | ServiceFlag.FOREIGN),
        ("0c00 0700 13000000", "0c00 0700 17000000", STICKY.flags | ServiceFlag.ONE_PACKET),
    ],
    ids=["persistence netmask", "persistence engine", "one packet"],
)
def test_what_somebody_else_set_is_seen(listing: str, changed: str, config: ServiceFlag) -> None:
    answer = octets(SERVICE_ANSWER).replace(octets(listing), octets(changed))
    decoded = decode_service(answer)
    assert decoded is not None
    assert decoded.config.flags == config


@little_endian
def test_protocols_that_no_service_has_are_passed_over() -> None:
    esp = octets(SERVICE_ANSWER).replace(octets("0600 0200 0600 0000"), octets("0600 0200 3200 0000"))
    assert decode_service(esp) is None


@little_endian
def test_unknown_scheduler() -> None:
    twos = octets(SERVICE_ANSWER).replace(octets("0700 0600 6d6800 00"), octets("0900 0600 74776f7300 000000"))
    decoded = decode_service(twos)
    assert decoded is not None
    assert decoded.config.scheduler is Scheduler.OTHER


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (AddVirtualServer(WEB._replace(address="fd00::1"), STICKY), "'fd00::1' is not an IPv4 address"),
        (AddVirtualServer(WEB._replace(port=70000), STICKY), "out of range"),
        (AddVirtualServer(MARK6._replace(fwmark=0), STICKY), "a protocol or a firewall mark"),
        (AddVirtualServer(WEB, VirtualServerConfig(Scheduler.OTHER)), "scheduler of a foreign virtual server"),
        (AddVirtualServer(WEB, VirtualServerConfig(persistence_s=-1)), "out of range"),
        (EditRealServer(WEB, RealServerKey(POD.address, -1), TUNNEL), "out of range"),
        (EditRealServer(WEB, POD, RealServerConfig(1 << 31)), "out of range"),
    ],
    ids=["family", "port", "mark", "scheduler", "timeout", "real server port", "weight"],
)
def test_what_cannot_be_expressed(op: GenlOp, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        encode(op)


def pyroute2_reads(message: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """(service, dest) attributes as pyroute2's decoder sees them."""
    decoded = ipvsmsg(message)
    decoded.decode()
    nested = [decoded.get_attr(name) for name in ("IPVS_CMD_ATTR_SERVICE", "IPVS_CMD_ATTR_DEST")]
    return tuple(dict(n["attrs"]) if n else {} for n in nested)  # type: ignore[return-value]


@given(virtual_server_keys, virtual_server_configs)
def test_pyroute2_reads_the_same_service(key: VirtualServerKey, config: VirtualServerConfig) -> None:
    service, _ = pyroute2_reads(encode(AddVirtualServer(key, config)))
    assert service["IPVS_SVC_ATTR_AF"] == (10 if key.family == 6 else 2)
    assert service["IPVS_SVC_ATTR_SCHED_NAME"] == config.scheduler.value
    assert service["IPVS_SVC_ATTR_TIMEOUT"] == config.persistence_s
    if key.protocol is None:
        assert service["IPVS_SVC_ATTR_FWMARK"] == key.fwmark
    else:
        assert service["IPVS_SVC_ATTR_PORT"] == key.port
        assert service["IPVS_SVC_ATTR_PROTOCOL"] == {"TCP": 6, "UDP": 17, "SCTP": 132}[key.protocol.value]


@given(virtual_server_keys, virtual_server_configs)
def test_a_request_decodes_to_what_it_asks_for(key: VirtualServerKey, config: VirtualServerConfig) -> None:
    assert decode_service(encode(AddVirtualServer(key, config))[16:]) == Service(key, config, TrafficCounters())


@given(virtual_server_keys, real_server_keys(4) | real_server_keys(6), real_server_configs)
def test_pyroute2_reads_the_same_dest(server: VirtualServerKey, key: RealServerKey, config: RealServerConfig) -> None:
    _, dest = pyroute2_reads(encode(AddRealServer(server, key, config)))
    assert dest["IPVS_DEST_ATTR_PORT"] == key.port
    assert dest["IPVS_DEST_ATTR_WEIGHT"] == config.weight
    assert dest["IPVS_DEST_ATTR_FWD_METHOD"] == config.method.value
    assert dest["IPVS_DEST_ATTR_U_THRESH"] == config.upper_threshold
    assert dest["IPVS_DEST_ATTR_L_THRESH"] == config.lower_threshold


@given(
    virtual_server_keys,
    st.lists(real_server_keys(4) | real_server_keys(6), max_size=5).map(tuple),
    real_server_configs,
    st.integers(0, (1 << 32) - 1),
)
def test_a_virtual_server_with_real_servers_is_a_message_each(
    server: VirtualServerKey, keys: tuple[RealServerKey, ...], config: RealServerConfig, sequence: int
) -> None:
    alone = [encode(AddVirtualServer(server, STICKY)), *(encode(AddRealServer(server, key, config)) for key in keys)]
    together = encode(AddVirtualServer(server, STICKY, keys, config), sequence)
    assert together == b"".join(numbered(message, sequence) for message in alone)


@given(st.binary(max_size=64))
def test_reading_attributes_never_fails(data: bytes) -> None:
    assert all(isinstance(value, bytes) for value in attributes(data).values())


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=9), max_size=5))
def test_attributes_come_back(wanted: dict[int, bytes]) -> None:
    assert attributes(b"".join(attribute(kind, value) for kind, value in wanted.items())) == wanted


def test_every_message_states_its_length() -> None:
    for op, _ in GOLDEN:
        message = encode(op)
        assert struct.unpack_from("=I", message)[0] == len(message)
        assert len(message) % 4 == 0
