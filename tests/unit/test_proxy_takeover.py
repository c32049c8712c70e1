"""Which virtual servers a kube-proxy in IPVS mode has left."""

from __future__ import annotations

import pytest

from ipvsproxy.model import VirtualServerKey
from ipvsproxy.takeover import left_by_kube_proxy
from kubecore.model import Protocol

BOUND = {"10.96.0.1", "fd00:96::1"}
OWN = {"192.0.2.10"}


def tcp(address: str, port: int) -> VirtualServerKey:
    return VirtualServerKey(6 if ":" in address else 4, Protocol.TCP, address, port)


@pytest.mark.parametrize(
    ("server", "excluded", "left"),
    [
        (tcp("10.96.0.1", 80), "", True),
        (tcp("fd00:96::1", 80), "", True),
        (tcp("10.96.0.2", 80), "", False),  # not bound to the device: somebody else's
        (tcp("192.0.2.10", 30080), "", True),
        (tcp("192.0.2.10", 80), "", False),
        (tcp("192.0.2.11", 30080), "", False),
        (tcp("10.96.0.1", 80), "10.96.0.0/16", False),
        (tcp("192.0.2.10", 30080), "192.0.2.10/32", False),
        (tcp("fd00:96::1", 80), "10.96.0.0/16", True),
        (tcp("fd00:96::1", 80), "fd00:96::/64", False),
        (VirtualServerKey(4, None, "", 0, fwmark=7), "", False),
    ],
)
def test_left_by_kube_proxy(server: VirtualServerKey, excluded: str, left: bool) -> None:
    found = left_by_kube_proxy([server], BOUND, OWN, excluded.split())
    assert found == ({server} if left else set())


def test_a_device_without_addresses_proves_nothing() -> None:
    assert left_by_kube_proxy([tcp("192.0.2.10", 30080)], (), OWN) == set()
