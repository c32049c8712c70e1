"""One contract for the fake and the kernel: dataplane_cases, each on both."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ipvsproxy.dataplane import HostNetwork
from ipvsproxy.kernel.fake import FakeDataPlane
from ipvsproxy.kernel.plane import KernelDataPlane
from ipvsproxy.model import InterfaceAddress, Link
from tests.contract.dataplane_cases import CASES, NODE

if TYPE_CHECKING:
    from tests.lab.kernel.net import Net


@pytest.mark.parametrize("name", CASES)
async def test_fake(name: str) -> None:
    addresses = (InterfaceAddress("eth0", NODE[4], 24), InterfaceAddress("eth0", NODE[6], 64))
    await CASES[name](FakeDataPlane(HostNetwork(addresses, (Link("eth0", "dummy"),))))


async def run_on_kernel(name: str) -> None:
    """In the guest."""
    async with await KernelDataPlane.open() as plane:
        await CASES[name](plane)


@pytest.mark.kernel
@pytest.mark.parametrize("name", CASES)
def test_kernel(net: Net, name: str) -> None:
    node = net.host("node")
    lines = [f"address add {NODE[4]}/24 dev eth0", f"address add {NODE[6]}/64 dev eth0 nodad"]
    node.ip(["link add eth0 type dummy", *lines, "link set eth0 up"])
    node.call("tests.contract.test_dataplane:run_on_kernel", name)


def test_cases_are_coroutines() -> None:
    assert CASES
    assert all(asyncio.iscoroutinefunction(case) for case in CASES.values())
