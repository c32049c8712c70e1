"""Our nftables table as text: its rules, transactions on its sets, and elements read back from a listing.

Knows: nft's syntax, what each rule is for and why at that hook. Must not know: Services, how nft is run (kernel/nft).
Rules are constant in number; Services only add elements. Checked against nft itself, and by packets.

A packet to a virtual server meets `input` (from outside, from pods) or `output` (the host's own) before IPVS looks at
it, goes through the chain its element names, and after IPVS leaves by `postrouting`. Replies never match: IPVS has
their connection. Established connections are never rejected: a Service that vanishes does not tear them.

What this table cannot do: a verdict of `accept` does not overrule a drop in somebody else's table (an INPUT policy
DROP stops node ports, a FORWARD policy DROP stops replies of pods); nftables has no such rule.

Source: nft(8), linux/netfilter_ipv4.h (hook priorities), ip_vs_core.c (its hooks).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from itertools import groupby
from typing import Any

from ipvsproxy import sets
from ipvsproxy.config import Config, LocalMode
from ipvsproxy.dataplane import ChangeElements
from ipvsproxy.marks import recognition
from ipvsproxy.model import Element

FAMILY = "inet"
TABLE = "ipvsproxy"

INPUT_PRIORITY = -10
"""Before everybody's filter rules at 0, and before IPVS at 98."""
OUTPUT_PRIORITY = -150
"""After conntrack at -200, before nat at -100 and IPVS at -99."""

_KEYS = {
    sets.SERVICE: "{addr} . inet_proto . inet_service : verdict",
    sets.MARK: "{addr} . inet_proto . inet_service : mark",
    sets.VIP: "{addr}",
    sets.RANGE: "{addr} . inet_proto . inet_service . {addr}",
    sets.HAIRPIN: "{addr} . {addr}",
    sets.CLUSTER: "{addr}",
    sets.ON_NODE: "{addr}",
    sets.SOURCE: "{addr}",
}
_GLOBAL_KEYS = {
    sets.HEALTH_PORT: "inet_service",
    sets.UPLINK: "ifname",
    sets.POD_LINK: "ifname",
    sets.TUNNEL: "ifname",
}
_INTERVALS = frozenset({sets.RANGE, sets.CLUSTER, sets.ON_NODE})
_MAPS = frozenset({sets.SERVICE, sets.MARK})
_INTERFACES = frozenset({sets.UPLINK, sets.POD_LINK, sets.TUNNEL})

COUNTERS = {
    "no_endpoint": "TCP to a Service without endpoints",
    "no_local_endpoint": "policy Local and no endpoint on this node",
    "outside_ranges": "not within loadBalancerSourceRanges",
    "not_a_service": "to a VIP, on a port that is no Service",
}
"""What is dropped or rejected, and why: the comments of the rules that count it. Named counters would need a module
of their own before 6.2 (nft_objref)."""

_VERDICTS = frozenset(f"goto {kind.value}" for kind in sets.Kind)
_SAFE = re.compile(r"[0-9A-Za-z_.:@/-]+")

_RULES = """
  chain input {{
    type filter hook input priority {input_priority}; policy accept;
    ct direction reply accept
    goto dispatch
  }}
  chain output {{
    type filter hook output priority {output_priority}; policy accept;
    ct direction reply accept
    goto dispatch
  }}
  chain dispatch {{
    ip daddr . meta l4proto . th dport vmap @service4
    ip6 daddr . meta l4proto . th dport vmap @service6
    ip daddr @vip4 goto stray
    ip6 daddr @vip6 goto stray
  }}
  chain stray {{
    meta l4proto {{ icmp, icmpv6 }} accept
    tcp dport @health_ports accept
    ct state new meta l4proto tcp counter reject with tcp reset comment "not_a_service"
    ct state new counter reject with icmpx port-unreachable comment "not_a_service"
  }}
  chain cluster_ip {{
    ct state established,related accept
    {cluster_ip}
  }}
  chain empty {{
    ct state new meta l4proto tcp counter reject with tcp reset comment "no_endpoint"
  }}
  chain no_local {{
    ct state new counter drop comment "no_local_endpoint"
  }}
  chain external {{
    ct state established,related accept
    fib saddr type local goto host
    {masquerade} accept
  }}
  chain external_local {{
    jump on_node
  }}
  chain external_no_local {{
    jump on_node
    ct state new counter drop comment "no_local_endpoint"
  }}
  chain ranged_empty {{
    jump within_ranges
    goto empty
  }}
  chain ranged_external {{
    jump within_ranges
    goto external
  }}
  chain ranged_external_local {{
    fib saddr type local jump within_ranges
    jump on_node
    jump within_ranges
  }}
  chain ranged_external_no_local {{
    fib saddr type local jump within_ranges
    jump on_node
    jump within_ranges
    ct state new counter drop comment "no_local_endpoint"
  }}
  chain within_ranges {{
    ip daddr . meta l4proto . th dport . ip saddr @range4 return
    ip6 daddr . meta l4proto . th dport . ip6 saddr @range6 return
    counter drop comment "outside_ranges"
  }}
  chain host {{
    ip saddr @source4 accept
    ip6 saddr @source6 accept
    {masquerade} accept
  }}
  chain on_node {{
    fib saddr type local goto to_cluster_wide
    {on_node}
    iifname @pod_links goto to_cluster_wide
    iifname @uplinks return
    ip saddr @on_node4 goto to_cluster_wide
    ip6 saddr @on_node6 goto to_cluster_wide
  }}
  chain to_cluster_wide {{
    meta mark set ip daddr . meta l4proto . th dport map @mark4 accept
    meta mark set ip6 daddr . meta l4proto . th dport map @mark6 accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr . ip daddr @hairpin4 masquerade fully-random
    ip6 saddr . ip6 daddr @hairpin6 masquerade fully-random
    meta mark & {bit} == {bit} masquerade fully-random
    meta mark & {mask} == {value} ip saddr != @source4 fib saddr type local masquerade fully-random
    meta mark & {mask} == {value} ip6 saddr != @source6 fib saddr type local masquerade fully-random
    oifname @tunnels ct original ip daddr @vip4 fib saddr type local masquerade fully-random
    oifname @tunnels ct original ip6 daddr @vip6 fib saddr type local masquerade fully-random
  }}
  chain clear_marks {{
    type filter hook postrouting priority srcnat + 10; policy accept;
    meta mark & {mask} == {value} meta mark set 0
    meta mark & {bit} == {bit} meta mark set meta mark & {not_bit}
  }}
"""
# input, output: a reply's destination port may equal a node port's, yet it is nobody's request.
# stray: ICMP errors, IPv6 neighbour discovery and echo are the kernel's to answer, never to be rejected.
# empty: IPVS refuses too, but by ICMP, which the kernel limits to a few a second for each client and which IPv6 sockets
# may miss; a reset always arrives. Other protocols are left to IPVS, for rejecting the host's own would be EPERM.
# cluster_ip, external: nat looks at a connection's first packet only, so only that needs the mark.
# ranged_*_local: loadBalancerSourceRanges restrict who may come through the load balancer. A pod of this node does not:
# it is sent to the cluster-wide set as if it had used the ClusterIP. The host itself must be within the ranges, as with
# kube-proxy.
# on_node: marks go on every packet, for IPVS may have forgotten a flow that conntrack still knows.
# to_cluster_wide: IPVS compares the whole mark, so the whole mark is set.
# postrouting: the host's own packets carry the node's address by the VIP's route. Another source of the host (a socket
# bound to docker0's address) is not known elsewhere; and what leaves by an overlay must carry the overlay's address, as
# it would if the endpoint were addressed directly, or the reply comes back another way (rp_filter, anti-spoofing).
# clear_marks: an encapsulated packet inherits its mark, and would be masqueraded a second time.


def load(config: Config, elements: Iterable[Element] = ()) -> str:
    """The transaction that makes our table anew with `elements`, whatever was there before, all at once.

    Raises: ValueError if a name in `config` or `elements` cannot be written in nft's language.
    """
    body = _body(config)
    marker = f"  chain {_marker(body)} {{\n  }}\n"
    declare = f"table {FAMILY} {TABLE}"
    lines = [declare, f"delete {declare}", f"{declare} {{\n{body}{marker}}}"]
    return "\n".join([*lines, transaction(ChangeElements(tuple(map(_with_known_chain, elements))))])


def transaction(op: ChangeElements) -> str:
    """Text for `nft -f -` that deletes and adds elements, all or none. Deletes come first: a replaced element has both.

    Raises: ValueError for an element that cannot be written safely.
    """
    lines = [*_element_lines("delete", op.delete), *_element_lines("add", op.add)]
    return "".join(f"{line}\n" for line in lines)


def mark_elements(elements: Iterable[Element]) -> list[Element]:
    """Those of `elements` that carry firewall marks, for `Marks` to go on with after a restart."""
    return [e for e in elements if e.set[:-1] == sets.MARK]


def is_current(listing: Mapping[str, Any], config: Config) -> bool:
    """Whether a listed table (`nft -j list table inet ipvsproxy`) has the rules that `load` would make."""
    marker = _marker(_body(config))
    return any(item.get("chain", {}).get("name") == marker for item in listing.get("nftables", ()))


def parse_elements(listing: Mapping[str, Any]) -> set[Element]:
    """The elements in a listed table, as `sets` makes them; sets that are not ours are ignored."""
    names = {f"{name}{family}" for name in _KEYS for family in (4, 6)} | set(_GLOBAL_KEYS)
    found: set[Element] = set()
    for item in listing.get("nftables", ()):
        body = item.get("set") or item.get("map")
        if not body or body.get("name") not in names:
            continue
        is_map = "map" in item
        for raw in body.get("elem", ()):
            key, value = raw if is_map else (raw, None)
            found.add(Element(body["name"], _parse_key(key), _parse_value(value) if is_map else ""))
    return found


def _with_known_chain(element: Element) -> Element:
    """A claim of another version may name a chain there is no more; it stays a claim until it is planned anew."""
    if element.set[:-1] != sets.SERVICE or element.value in _VERDICTS:
        return element
    return element._replace(value=f"goto {sets.Kind.CLUSTER_IP.value}")


def _body(config: Config) -> str:
    return "".join([*_sets(), _rules(config)])


def _marker(body: str) -> str:
    """Name of an empty chain that tells by which rules the table was made."""
    return f"made_by_{blake2b(body.encode(), digest_size=8).hexdigest()}"


def _sets() -> Iterator[str]:
    for name, shape in _KEYS.items():
        kind = "map" if name in _MAPS else "set"
        flags = "\n    flags interval" if name in _INTERVALS else ""
        for family in (4, 6):
            yield f"  {kind} {name}{family} {{\n    type {shape.format(addr=f'ipv{family}_addr')}{flags}\n  }}\n"
    for name, shape in _GLOBAL_KEYS.items():
        yield f"  set {name} {{\n    type {shape}\n  }}\n"


def _rules(config: Config) -> str:
    bit = 1 << config.masquerade_bit
    mask, value = recognition(config.masquerade_bit)
    masquerade = f"meta mark set meta mark | {bit:#010x}"
    local = config.detect_local
    interfaces = {
        LocalMode.BRIDGE_INTERFACE: f'iifname "{_name(local.bridge_interface)}"',
        LocalMode.INTERFACE_NAME_PREFIX: f'iifname "{_name(local.interface_name_prefix)}*"',
    }
    by_interface = interfaces.get(local.mode)
    cluster_ip = ["fib saddr type local goto host", "ip saddr @cluster4 accept", "ip6 saddr @cluster6 accept"]
    if config.masquerade_all:
        cluster_ip = []
    elif by_interface:
        cluster_ip[1:] = [f"{by_interface} accept"]
    return _RULES.format(
        input_priority=INPUT_PRIORITY,
        output_priority=OUTPUT_PRIORITY,
        masquerade=masquerade,
        cluster_ip="\n    ".join([*cluster_ip, f"{masquerade} accept"]),
        on_node=f"{by_interface} goto to_cluster_wide" if by_interface else "",
        bit=f"{bit:#010x}",
        not_bit=f"{~bit & 0xFFFFFFFF:#010x}",
        mask=f"{mask:#010x}",
        value=f"{value:#010x}",
    )


def _element_lines(verb: str, elements: Iterable[Element]) -> Iterator[str]:
    for name, group in groupby(sorted(elements), key=lambda e: e.set):
        texts = ", ".join(_text(e, verb) for e in group)
        yield f"{verb} element {FAMILY} {TABLE} {_name(name)} {{ {texts} }}"


def _text(element: Element, verb: str) -> str:
    if element.set in _INTERFACES:
        key = f'"{_name(element.key[0])}"'
    else:
        key = " . ".join([_name(part) for part in element.key])
    if not element.value or verb == "delete":
        return key
    return f"{key} : {' '.join([_name(word) for word in element.value.split()])}"


def _name(text: str) -> str:
    """`text`, if it means itself in nft's language: no quotes, braces, wildcards or blanks."""
    if text and not _SAFE.fullmatch(text):
        raise ValueError(f"{text!r} cannot be written in an nftables rule")
    return text


def _parse_key(raw: Any) -> tuple[str, ...]:
    if isinstance(raw, dict) and "elem" in raw:  # an element with options of its own
        raw = raw["elem"]["val"]
    parts = raw["concat"] if isinstance(raw, dict) and "concat" in raw else [raw]
    return tuple(_parse_part(part) for part in parts)


def _parse_part(raw: Any) -> str:
    if isinstance(raw, dict):
        if "prefix" in raw:
            return sets.bare(f"{raw['prefix']['addr']}/{raw['prefix']['len']}")
        if "range" in raw:
            return "-".join(str(end) for end in raw["range"])
    return str(raw)


def _parse_value(raw: Any) -> str:
    if isinstance(raw, dict):
        for verdict in ("goto", "jump"):
            if verdict in raw:
                return f"{verdict} {raw[verdict]['target']}"
        return next(iter(raw), "")
    return f"{raw:#010x}" if isinstance(raw, int) else str(raw)
