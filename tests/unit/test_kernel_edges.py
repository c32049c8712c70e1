"""What the kernel edges know without a kernel: settings and their errors, nft's complaints, routes' next hops."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import socket
import struct
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipvsproxy.config import Config, Conntrack, Ipvs
from ipvsproxy.dataplane import AddVirtualServer, AlreadyExists, DataplaneError, Interrupted, NotFound, Unsupported
from ipvsproxy.kernel import nft, preflight, rtnetlink, sysctl
from ipvsproxy.kernel.errors import error_for
from ipvsproxy.kernel.ipvs import Timeouts
from ipvsproxy.kernel.netlink import attribute
from ipvsproxy.kernel.sysctl import Setting, SysctlError
from ipvsproxy.model import Scheduler, VirtualServerConfig, VirtualServerKey
from kubecore.model import Protocol


def values(settings: object) -> dict[str, int]:
    return {s.name.rpartition("/")[2]: s.value for s in settings}  # type: ignore[attr-defined]


# -- settings


@pytest.mark.parametrize(
    ("kernel", "conn_reuse_mode"),
    [((3, 10), None), ((4, 1), 0), ((5, 8), 0), ((5, 9), None), ((6, 1), None)],
)
def test_conn_reuse_mode_by_kernel(kernel: tuple[int, ...], conn_reuse_mode: int | None) -> None:
    assert values(sysctl.ipvs_settings(Ipvs(), kernel)).get("conn_reuse_mode") == conn_reuse_mode


def test_arp_settings_only_if_strict() -> None:
    assert "arp_ignore" not in values(sysctl.ipvs_settings(Ipvs(), (6, 1)))
    strict = values(sysctl.ipvs_settings(Ipvs(strict_arp=True), (6, 1)))
    assert (strict["arp_ignore"], strict["arp_announce"]) == (1, 2)


@pytest.mark.parametrize(
    ("conntrack", "cores", "size"),
    [
        (Conntrack(), 2, 131072),
        (Conntrack(), 8, 262144),
        (Conntrack(), 64, 1048576),
        (Conntrack(max_per_core=1000, min=0), 3, 3000),
        (Conntrack(max_per_core=0), 8, None),
    ],
    ids=["at least the minimum", "per core", "at most 2^20", "small", "0 leaves it alone"],
)
def test_conntrack_size(conntrack: Conntrack, cores: int, size: int | None) -> None:
    made = values(sysctl.conntrack_settings(conntrack, cores))
    assert made.get("nf_conntrack_max") == size
    assert made.get("hashsize") == (None if size is None else size // 4)


def test_conntrack_timeouts_that_are_not_configured_are_left_alone() -> None:
    made = values(sysctl.conntrack_settings(Conntrack(tcp_close_wait_timeout_s=None, udp_timeout_s=30), 1))
    assert made["nf_conntrack_tcp_timeout_established"] == 86400
    assert made["nf_conntrack_udp_timeout"] == 30
    assert "nf_conntrack_tcp_timeout_close_wait" not in made
    assert "nf_conntrack_tcp_be_liberal" not in made


def sysctls(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_forwarding_keeps_routes_from_router_advertisements(tmp_path: Path) -> None:
    conf = {"all": "1", "default": "1", "lo": "1", "eth0": "1", "eth1": "0", "eth2": "2"}
    files = {f"net/ipv6/conf/{device}/accept_ra": value for device, value in conf.items()}
    root = sysctls(tmp_path, {**files, "net/ipv6/conf/all/forwarding": "0"})
    assert [(s.name, s.value) for s in sysctl.forwarding6(root)] == [
        ("net/ipv6/conf/default/accept_ra", 2),
        ("net/ipv6/conf/eth0/accept_ra", 2),
        ("net/ipv6/conf/all/forwarding", 1),
    ]
    sysctls(tmp_path, {"net/ipv6/conf/all/forwarding": "1"})  # it is a router already: as somebody wanted it
    assert [s.name for s in sysctl.forwarding6(root)] == ["net/ipv6/conf/all/forwarding"]


def test_no_forwarding_without_ipv6(tmp_path: Path) -> None:
    assert list(sysctl.forwarding6(tmp_path)) == []


@pytest.mark.parametrize(
    ("there", "setting", "after"),
    [
        ("0", Setting("a", 1), "1"),
        ("1", Setting("a", 1), "1"),
        ("5000", Setting("a", 4000), "4000"),
        ("5000", Setting("a", 4000, at_least=True), "5000"),
        ("3000", Setting("a", 4000, at_least=True), "4000"),
        ("4 16 32", Setting("a", 4), "4 16 32"),
    ],
)
def test_only_what_differs_is_written(tmp_path: Path, there: str, setting: Setting, after: str) -> None:
    root = sysctls(tmp_path, {"a": there})
    with capture_logs() as logs:
        assert sysctl.write(setting, root) == (there != after)
    assert (root / "a").read_text() == f"{after}\n"
    assert [entry["event"] for entry in logs] == (["ipvsproxy.sysctl.written"] if there != after else [])


def test_a_missing_file_is_an_error_that_says_what_to_load(tmp_path: Path) -> None:
    with pytest.raises(SysctlError, match=r"/net/b is not there, wanted 1: load module ip_vs$"):
        sysctl.write(Setting("net/b", 1, "load module ip_vs"), tmp_path)
    assert not sysctl.write(Setting("net/b", 1, optional=True), tmp_path)


def test_a_file_that_cannot_be_written_is_an_error_with_file_value_and_remedy(tmp_path: Path) -> None:
    class Unwritable(type(tmp_path)):  # type: ignore[misc]
        def write_text(self, *_: object, **__: object) -> int:
            raise OSError(errno.EROFS, "Read-only file system")

    root = Unwritable(sysctls(tmp_path, {"a": "0"}))
    with pytest.raises(SysctlError, match=r"/a is 0, cannot write 1 \(Read-only file system\): .*--init-only"):
        sysctl.write(Setting("a", 1, "load module ip_vs"), root)


def test_what_only_root_may_read_is_passed_over_where_it_is_optional(tmp_path: Path) -> None:
    class Unreadable(type(tmp_path)):  # type: ignore[misc]
        def read_text(self, *_: object, **__: object) -> str:
            raise PermissionError(errno.EACCES, "Permission denied")

    root = Unreadable(tmp_path)
    assert not sysctl.write(Setting("a", 1, optional=True), root)
    with pytest.raises(SysctlError, match=r"/a cannot be read, wanted 1: .*--init-only"):
        sysctl.write(Setting("a", 1), root)


def test_another_namespaces_setting_is_left_alone_and_said(tmp_path: Path) -> None:
    root = sysctls(tmp_path, {"a": "65536"})
    (root / "a").chmod(0o444)
    with capture_logs() as logs:
        assert not sysctl.write(Setting("a", 131072, optional=True), root)
    assert [(entry["event"], entry["value"], entry["wanted"]) for entry in logs] == [
        ("ipvsproxy.sysctl.left_alone", 65536, 131072)
    ]


def test_timeouts_that_are_not_configured_are_the_kernels() -> None:
    assert preflight.wanted_timeouts(Config()) == Timeouts(900, 120, 300)
    assert preflight.wanted_timeouts(Config(ipvs=Ipvs(udp_timeout_s=10))) == Timeouts(900, 120, 10)


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.0-18-amd64", (6, 1)), ("4.18.0-513.el8", (4, 18)), ("5.9", (5, 9)), ("odd", ())],
)
def test_kernel_version(release: str, version: tuple[int, ...]) -> None:
    assert preflight.kernel_version(release) == version


def test_schedulers_are_read_from_the_modules_there_are(tmp_path: Path) -> None:
    here = tmp_path / platform.release()
    here.mkdir()
    (here / "modules.dep").write_text(
        "kernel/net/netfilter/ipvs/ip_vs_rr.ko.xz: kernel/net/netfilter/ipvs/ip_vs.ko.xz\n"
        "kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/net/netfilter/nf_conntrack.ko.xz\n"
    )
    (here / "modules.builtin").write_text("kernel/net/netfilter/ipvs/ip_vs_wlc.ko\n")
    assert preflight.listed_schedulers(tmp_path) == {Scheduler.RR, Scheduler.WLC}
    assert preflight.listed_schedulers(tmp_path / "nothing") == frozenset()


# -- nft's complaints

SCRIPT = "delete element inet ipvsproxy vip4 { 10.96.0.9 }\nadd element inet ipvsproxy vip4 { 10.96.0.1, 10.96.0.2 }\n"


@pytest.mark.parametrize(
    ("complaint", "number", "detail"),
    [
        (
            "/dev/stdin:1:38-46: Error: Could not process rule: No such file or directory\ndelete element …\n",
            errno.ENOENT,
            "nft: No such file or directory: '10.96.0.9' in `delete element inet ipvsproxy vip4 …`",
        ),
        (
            "-:2:46-54: Error: interval overlaps with an existing one\nadd element …\n",
            errno.EEXIST,
            "nft: interval overlaps with an existing one: '10.96.0.2' in `add element inet ipvsproxy vip4 …`",
        ),
        (
            "Error: No such file or directory\nlist table inet ipvsproxy\n",
            errno.ENOENT,
            "nft: No such file or directory",
        ),
        (
            "/dev/stdin:9:1-2: Error: syntax error, unexpected newline\n",
            errno.EINVAL,
            "nft: syntax error, unexpected newline",
        ),
        ("netlink: Error: cache initialization failed: Operation not permitted\n", errno.EINVAL, None),
        ("", errno.EINVAL, "nft: no reason given"),
    ],
    ids=["element", "nft's own", "command line", "elsewhere", "unknown shape", "silence"],
)
def test_complaints_name_the_element(complaint: str, number: int, detail: str | None) -> None:
    code, said = nft.explain(SCRIPT, complaint)
    assert code == number
    assert detail is None or said == detail


async def test_an_nft_that_cannot_be_started_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fork(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fork)
    with pytest.raises(DataplaneError, match="nft cannot be started: Cannot allocate memory"):
        await nft.Nft("inet", "t").run("table inet t\n")


async def test_an_nft_that_hangs_is_ended_and_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "nft"
    hanging.write_text("#!/bin/sh\nexec sleep 100\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(nft, "TIME_LIMIT_S", 0.1)
    started: list[int] = []
    with pytest.raises(DataplaneError, match="nft did not end within") as raised:
        await nft.Nft("inet", "t", started.append).run("table inet t\n")
    assert raised.value.errno == errno.ETIMEDOUT
    await asyncio.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


# -- errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EEXIST, AlreadyExists),
        (errno.ENOENT, NotFound),
        (errno.ESRCH, NotFound),
        (errno.EOPNOTSUPP, Unsupported),
        (errno.ENOBUFS, Interrupted),
        (errno.EINTR, Interrupted),
        (errno.EPERM, DataplaneError),
    ],
)
def test_errors_by_number(code: int, kind: type[DataplaneError]) -> None:
    assert type(error_for(None, code)) is kind


def test_a_missing_scheduler_is_no_missing_virtual_server() -> None:
    op = AddVirtualServer(VirtualServerKey(4, Protocol.TCP, "10.96.0.1", 80), VirtualServerConfig(Scheduler.OVF))
    error = error_for(op, errno.ENOENT)
    assert isinstance(error, Unsupported)
    assert str(error) == "no scheduler 'ovf': load module ip_vs_ovf"
    assert isinstance(error_for(op, errno.ESRCH), NotFound)


# -- next hops


def route(family: int, *parts: bytes, kind: int = 1) -> bytes:
    return struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 3, 0, kind, 0) + b"".join(parts)


def hop(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack("=HBBi", 8 + len(body), 0, 0, 2) + body


def gateway(text: str) -> bytes:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return attribute(5, socket.inet_pton(family, text))


VIA6 = attribute(18, struct.pack("=H", socket.AF_INET6) + socket.inet_pton(socket.AF_INET6, "fd00::1"))


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (route(socket.AF_INET, gateway("192.168.50.1")), ["192.168.50.1"]),
        (route(socket.AF_INET6, gateway("fd00::1")), ["fd00::1"]),
        (route(socket.AF_INET, VIA6), ["fd00::1"]),
        (
            route(socket.AF_INET, attribute(9, hop(gateway("10.0.0.1")) + hop(VIA6) + hop(gateway("10.0.0.2")))),
            ["10.0.0.1", "fd00::1", "10.0.0.2"],
        ),
        (route(socket.AF_INET), []),
        (route(socket.AF_INET, gateway("192.168.50.1"), kind=7), []),
        (route(socket.AF_INET, attribute(9, b"\0" * 8)), []),
    ],
    ids=["IPv4", "IPv6", "IPv4 via IPv6", "multipath", "connected", "unreachable", "malformed"],
)
def test_gateways(payload: bytes, found: list[str]) -> None:
    assert list(rtnetlink.decode_gateways(payload)) == found


def address(flags: int, text: str = "fd00::1") -> bytes:
    return struct.pack("=BBBBI", socket.AF_INET6, 64, flags & 0xFF, 0, 2) + attribute(
        1, socket.inet_pton(socket.AF_INET6, text)
    )


@pytest.mark.parametrize(
    ("flags", "usable"),
    [(0x80, True), (0x40, False), (0x40 | 0x08, False), (0x08, False), (0x40 | 0x04, True)],
    ids=["permanent", "tentative", "duplicate", "failed", "optimistic"],
)
def test_addresses_in_duplicate_detection(flags: int, usable: bool) -> None:
    assert rtnetlink.decode_address(address(flags)).usable is usable
