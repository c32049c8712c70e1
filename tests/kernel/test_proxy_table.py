"""The table's text against nft itself: every configuration loads, and what was put in is read back."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from ipvsproxy import nftables, sets
from ipvsproxy.config import Config, DetectLocal, LocalMode
from ipvsproxy.dataplane import ChangeElements
from ipvsproxy.model import Element, VirtualServerKey
from kubecore.model import Protocol

pytestmark = pytest.mark.kernel

TCP = VirtualServerKey(4, Protocol.TCP, "10.96.0.1", 443)
UDP6 = VirtualServerKey(6, Protocol.UDP, "fd00::1", 53)
SCTP = VirtualServerKey(4, Protocol.SCTP, "10.96.0.1", 443)
ELEMENTS = (
    *(sets.service(VirtualServerKey(4, Protocol.TCP, "10.96.0.2", 1 + i), kind) for i, kind in enumerate(sets.Kind)),
    sets.service(TCP, sets.Kind.CLUSTER_IP),
    sets.service(SCTP, sets.Kind.CLUSTER_IP),
    sets.service(UDP6, sets.Kind.RANGED_EXTERNAL),
    sets.mark(TCP, 0x69123456),
    sets.mark(UDP6, 0x69000001),
    sets.vip(4, "10.96.0.1"),
    sets.vip(6, "fd00::1"),
    sets.source_range(TCP, "10.0.0.0/8"),
    sets.source_range(TCP, "192.0.2.4/32"),
    sets.source_range(UDP6, "fd00::/64"),
    sets.source_range(UDP6, "fd00:1::1/128"),
    sets.hairpin(4, "10.244.0.5"),
    sets.hairpin(6, "fd00:244::5"),
    sets.prefix(sets.CLUSTER, 4, "0.0.0.0/0"),
    sets.prefix(sets.CLUSTER, 6, "::/0"),
    sets.prefix(sets.ON_NODE, 4, "10.244.0.0/24"),
    sets.source(4, "192.168.1.1"),
    sets.health_port(31999),
    sets.interface(sets.UPLINK, "eth0"),
    sets.interface(sets.TUNNEL, "flannel.1"),
    sets.interface(sets.POD_LINK, "veth-ab@12"),
)
CONFIGS = (
    Config(),
    Config(masquerade_all=True),
    Config(masquerade_bit=31),
    Config(masquerade_bit=0, detect_local=DetectLocal(mode=LocalMode.NODE_CIDR)),
    Config(detect_local=DetectLocal(mode=LocalMode.BRIDGE_INTERFACE, bridge_interface="cni0")),
    Config(detect_local=DetectLocal(mode=LocalMode.INTERFACE_NAME_PREFIX, interface_name_prefix="veth")),
)


def in_namespace(*scripts: str) -> list[dict[str, object]]:
    """Run nft scripts one after another in a new network namespace; the table as listed after each."""
    if not shutil.which("nft"):
        pytest.skip("nft is missing: apt-get install nftables")
    command = "".join(
        f"nft -f - <<'EOF' || exit 1\n{script}\nEOF\nnft -j list table inet ipvsproxy; echo\n" for script in scripts
    )
    done = subprocess.run(["unshare", "-rn", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_loads_and_reads_back(config: Config) -> None:
    script = nftables.load(config, ELEMENTS)
    first, again = in_namespace(script, script)
    for listing in (first, again):
        assert nftables.parse_elements(listing) == set(ELEMENTS)
        assert nftables.is_current(listing, config)
        assert not any(nftables.is_current(listing, other) for other in CONFIGS if other != config)


def test_a_transaction_replaces_and_narrows_at_once() -> None:
    change = ChangeElements(
        add=(
            sets.service(TCP, sets.Kind.EXTERNAL),
            sets.source_range(TCP, "10.1.0.0/16"),
            sets.mark(TCP, 0x69000077),
        ),
        delete=(
            sets.service(TCP, sets.Kind.CLUSTER_IP),
            sets.source_range(TCP, "10.0.0.0/8"),
            sets.mark(TCP, 0x69123456),
        ),
    )
    _, listing = in_namespace(nftables.load(Config(), ELEMENTS), nftables.transaction(change))
    assert nftables.parse_elements(listing) == set(ELEMENTS) - set(change.delete) | set(change.add)


def test_all_elements_can_go() -> None:
    _, listing = in_namespace(nftables.load(Config(), ELEMENTS), nftables.transaction(ChangeElements((), ELEMENTS)))
    assert nftables.parse_elements(listing) == set()


def test_a_claim_of_another_version_stays_a_claim() -> None:
    old = Element("service4", ("10.96.0.9", "tcp", "80"), "goto a_kind_of_yore")
    (listing,) = in_namespace(nftables.load(Config(), [old]))
    assert nftables.parse_elements(listing) == {old._replace(value="goto cluster_ip")}


@pytest.mark.parametrize("name", ['a"b', "a b", "a;b", "a}b", "e*", "a\\b", "a\nb"])
def test_what_cannot_be_said_safely_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        nftables.transaction(ChangeElements((sets.interface(sets.UPLINK, name),)))
    config = Config(detect_local=DetectLocal(mode=LocalMode.BRIDGE_INTERFACE, bridge_interface=name))
    with pytest.raises(ValueError, match="cannot be written"):
        nftables.load(config)


def test_rules_do_not_grow_with_services() -> None:
    few, many = nftables.load(Config(), ELEMENTS[:1]), nftables.load(Config(), ELEMENTS)
    assert few.partition("add element")[0] == many.partition("add element")[0]
