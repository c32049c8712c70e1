"""Kernels that lack a part: said at once, with what to load, by exit code 1. Booted for the purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.kernel.fixtures import refuse
from tests.lab.kernel.lab import GuestDiedError, Lab, NoKernelError
from tests.lab.kernel.net import Host, Result
from tests.proxy_daemon import IPVSPROXY

pytestmark = pytest.mark.kernel

SOURCE = Path(__file__).parent.parent / "scenarios" / "ingress.yaml"
CLUSTER = ("--source", str(SOURCE), "--node", "node-a")


@contextmanager
def node_without(*initcalls: str) -> Iterator[Host]:
    """A host in a kernel that does not start these of its built-in modules."""
    try:
        lab = Lab.start(kernel_arguments=[f"initcall_blacklist={','.join(initcalls)}"])
    except (NoKernelError, GuestDiedError) as error:
        refuse(str(error))
    with lab, lab.net() as net:
        yield net.host("node")


def said(node: Host, *arguments: str) -> Result:
    result = node.run([*IPVSPROXY, *arguments], check=False, timeout_s=20)
    assert "Traceback" not in result.stderr, result
    return result


def test_no_ipvs() -> None:
    with node_without("ip_vs_init") as node:
        for arguments in (("run", *CLUSTER), ("run", "--init-only"), ("diff", *CLUSTER)):
            result = said(node, *arguments)
            assert result.code == 1, arguments
            assert "this kernel has no IPVS: load module ip_vs" in result.stderr
        result = said(node, "cleanup")
        assert (result.code, "no IPVS" in result.stderr) == (0, True)
        planned = said(node, "plan", *CLUSTER, "--output", "ipvsadm")
        assert (planned.code, planned.lines[0]) == (0, "-A -t 10.96.0.10:53 -s rr"), "planning needs no kernel"
        assert node.run("nft list tables").stdout == ""


def test_no_nftables() -> None:
    with node_without("nf_tables_module_init") as node:
        result = said(node, "run", *CLUSTER)
        assert result.code == 1
        assert "cannot hold our nftables table: load modules nf_tables" in result.stderr
        assert node.run("sysctl -n net.ipv4.ip_forward").stdout == "0\n", "nothing was changed before the checks"


def test_no_fib_expression() -> None:
    with node_without("nft_fib_inet_module_init") as node:
        result = said(node, "run", *CLUSTER)
        assert result.code == 1
        assert "nft_fib_inet" in result.stderr
        assert "fib saddr type local" in result.stderr


def test_no_dummy_device() -> None:
    with node_without("dummy_init_module") as node:
        result = said(node, "run", *CLUSTER)
        assert result.code == 1
        assert "cannot make kube-ipvs0: load module dummy" in result.stderr
