"""What one Service needs on this node: its virtual servers, routes, set elements, health check and complaints.

Knows: which addresses a Service answers on, which policy and which endpoints apply to each. Must not know: other
Services (the planner settles who holds a contested address), what the kernel has, nftables text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntFlag
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from zlib import crc32

import msgspec

from ipvsproxy import sets
from ipvsproxy.marks import Marks, PortIdentity
from ipvsproxy.model import (
    Element,
    HealthCheck,
    PlannedVirtualServer,
    Problem,
    RealServerKey,
    Scheduler,
    ServiceFlag,
    VirtualServerConfig,
    VirtualServerKey,
)
from ipvsproxy.scheduling import ONE_WAY, schedule, server_config
from ipvsproxy.sets import Kind
from ipvsproxy.site import Site, collapsed, is_special
from ipvsproxy.topology import Endpoints, categorise
from kubecore.addresses import family_of
from kubecore.endpoints import merge_slices
from kubecore.model import EndpointSlice, Family, ObjectKey, Port, Service, ServiceType, TrafficPolicy

LABEL_PROXY_NAME = "service.kubernetes.io/service-proxy-name"
LABEL_HEADLESS = "service.kubernetes.io/headless"

_NONE: frozenset[RealServerKey] = frozenset()


class Needs(IntFlag):
    """What of the node a plan was made from: it is made again when that changes."""

    NOTHING = 0
    NODE_PORTS = 1
    """The addresses that carry node ports."""
    LOCAL = 2
    """Which prefixes and addresses are the node's: there are endpoints on it."""
    ZONE = 4
    """Its zone: there are hints."""
    ADDRESSES = 8
    """Which addresses must not be claimed: there are external ones, or one was refused."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A virtual server that a Service asks for at an address, with the elements that belong to it alone."""

    server: PlannedVirtualServer
    elements: tuple[Element, ...]
    """The claim first."""
    allocated: bool = True
    """The API server gave this address and port to the Service; False: its author wrote it (externalIPs, ingress)."""


class ServicePlan(msgspec.Struct, frozen=True, gc=False):
    """All that one Service asks for. Equal plans need the same kernel."""

    key: ObjectKey
    created_s: float
    entries: tuple[Entry, ...] = ()
    """By address; in the order of the Service's ports, no address and port twice."""
    marked: tuple[PlannedVirtualServer, ...] = ()
    """By firewall mark: the cluster-wide sets of an externalTrafficPolicy Local."""
    cluster_ips: tuple[str, ...] = ()
    vips: tuple[str, ...] = ()
    """Addresses to be routed."""
    elements: tuple[Element, ...] = ()
    """Elements that other Services may need too."""
    health_check: HealthCheck | None = None
    problems: tuple[Problem, ...] = ()
    needs: Needs = Needs.NOTHING
    no_local_internal: tuple[Family, ...] = ()
    """Families with internalTrafficPolicy Local and no endpoint on this node, though elsewhere, for some port."""
    no_local_external: tuple[Family, ...] = ()


class _Targets(NamedTuple):
    """Real servers of one endpoint set."""

    wanted: tuple[RealServerKey, ...]
    draining: frozenset[RealServerKey]
    listed: frozenset[RealServerKey]


_NO_TARGETS = _Targets((), _NONE, _NONE)


class _Front(NamedTuple):
    """An address a Service answers on."""

    address: str
    port: int
    external: bool
    allocated: bool
    ranges: tuple[str, ...] | None
    """Prefixes that may reach it; None: anyone."""


def is_proxied(service: Service) -> bool:
    """Whether the Service is this proxy's business at all."""
    if service.headless or not service.cluster_ips or service.type is ServiceType.EXTERNAL_NAME:
        return False
    return not service.labels or LABEL_PROXY_NAME not in dict(service.labels)


def cluster_ips(service: Service) -> list[tuple[Family, str]]:
    """The ClusterIP of each family the Service has; without `ipFamilies` the first ClusterIP alone."""
    if not service.ip_families:
        return [(family_of(ip), ip) for ip in service.cluster_ips[:1]]
    return [(f, ip) for f, ip in zip(service.ip_families, service.cluster_ips, strict=False) if family_of(ip) == f]


def is_external_local(service: Service) -> bool:
    """Whether traffic from outside may reach only endpoints on this node."""
    if service.external_policy is not TrafficPolicy.LOCAL:
        return False
    return service.type in {ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER} or bool(service.external_ips)


def plan(service: Service, slices: Sequence[EndpointSlice], site: Site, marks: Marks) -> ServicePlan | None:
    """What `service` needs on this node; None if it is not this proxy's business.

    Args:
        service: the Service.
        slices: its EndpointSlices, of any family and order.
        site: node and settings.
        marks: where a firewall mark is allocated if externalTrafficPolicy Local needs one.
    """
    return _Planning(service, slices, site, marks).result() if is_proxied(service) else None


class _Planning:
    """The steps of `plan`, which share what they collect."""

    def __init__(self, service: Service, slices: Sequence[EndpointSlice], site: Site, marks: Marks) -> None:
        self.service = service
        self.site = site
        self.marks = marks
        self.problems: list[Problem] = []
        self.entries: dict[VirtualServerKey, Entry] = {}
        self.marked: list[PlannedVirtualServer] = []
        self.vips: dict[str, None] = {}
        self.shared: dict[Element, None] = {}
        self.local_ready: dict[Family, set[str]] = {4: set(), 6: set()}
        self.needs = Needs.NOTHING
        self.no_local_internal: set[Family] = set()
        self.no_local_external: set[Family] = set()
        self.scheduler, self.flags = schedule(service, site, self.problems)
        self.rotation = crc32(service.name.encode(), site.seed)
        self.merged = merge_slices([s for s in slices if not s.labels or LABEL_HEADLESS not in dict(s.labels)])

    def result(self) -> ServicePlan:
        service = self.service
        external_local = is_external_local(service)
        families = []  # a VIP without a port would be reachable for nothing
        if service.ports:
            here = self.site.node.families
            families = [(f, ip) for f, ip in cluster_ips(service) if f in here and self._may_have(ip, "clusterIP")]
        for family, cluster_ip in families:
            externals = list(self._externals(family)) if service.ingress or service.external_ips else ()
            self._claim(cluster_ip, "clusterIP")
            for port in service.ports:
                endpoints = self.merged.get((family, port.name, port.protocol), {})
                fronts = [_Front(cluster_ip, port.port, external=False, allocated=True, ranges=None)]
                fronts += [f._replace(port=port.port) for f in externals]
                if port.node_port:
                    fronts += self._node_ports(family, port)
                self._plan_port(port, family, endpoints, fronts, external_local=external_local)
        health_check = self._health_check(external_local=external_local)
        return ServicePlan(
            key=service.key,
            created_s=service.created_s,
            entries=tuple(self.entries.values()),
            marked=tuple(self.marked),
            cluster_ips=tuple(ip for _, ip in families),
            vips=tuple(self.vips),
            elements=tuple(self.shared),
            health_check=health_check,
            problems=tuple(dict.fromkeys(self.problems)),
            needs=self.needs,
            no_local_internal=tuple(sorted(self.no_local_internal)),
            no_local_external=tuple(sorted(self.no_local_external)),
        )

    # -- where the Service answers

    def _externals(self, family: Family) -> Iterator[_Front]:
        """Ingress addresses before externalIPs: where both name one, the source ranges must hold."""
        service, additions = self.service, self.site.config.additions
        if additions.claim_load_balancer_ips:
            ranges = self._ranges(family) if service.ingress else None
            for ingress in service.ingress:
                if ingress.ip_mode_proxy or not ingress.ip or family_of(ingress.ip) != family:
                    continue
                if self._may_have(ingress.ip, "load balancer IP"):
                    self._claim(ingress.ip, "load balancer IP")
                    yield _Front(ingress.ip, 0, external=True, allocated=False, ranges=ranges)
        for address in service.external_ips:
            if family_of(address) != family or not self._may_have(address, "externalIP"):
                continue
            if not self._is_allowed(address):
                message = (
                    f"externalIP {address} is not within allowExternalIPs of the proxy's configuration: not served"
                )
                self.problems.append(Problem(service.key, "ExternalIPNotAllowed", message))
                continue
            self._claim(address, "externalIP")
            yield _Front(address, 0, external=True, allocated=False, ranges=None)

    def _node_ports(self, family: Family, port: Port) -> Iterator[_Front]:
        self.needs |= Needs.NODE_PORTS
        covered = self.site.config.additions.source_ranges_cover_node_ports
        ranges = self._ranges(family) if covered else None
        for address in self.site.node_ports[family]:
            yield _Front(address, port.node_port, external=True, allocated=True, ranges=ranges)

    def _ranges(self, family: Family) -> tuple[str, ...] | None:
        """Prefixes of that family; a /0 among them, or none of the family, means anyone."""
        own = [r for r in self.service.source_ranges if family_of(r) == family]
        if not own or any(r.endswith("/0") for r in own):
            return None
        return collapsed(own, family)

    def _may_have(self, address: str, what: str) -> bool:
        if is_special(address):
            message = f"{what} {address} is an address that every host has a use of its own for: not served"
            self.problems.append(Problem(self.service.key, "AddressNotUsable", message))
            return False
        return True

    def _is_allowed(self, address: str) -> bool:
        allowed = self.site.config.additions.allow_external_ips
        if allowed is None:
            return True
        ip = ip_address(address)
        return any(ip in ip_network(c) for c in allowed if family_of(c) == family_of(address))

    def _claim(self, address: str, what: str) -> None:
        """Route an address here, unless it is a node's or a gateway's: that machine would become unreachable."""
        site = self.site
        if what != "clusterIP":
            self.needs |= Needs.ADDRESSES
        if address not in site.unclaimable:
            self.vips[address] = None
            self.shared[sets.vip(family_of(address), address)] = None
            return
        self.needs |= Needs.ADDRESSES
        if address in site.own:
            whose = "an address of this node itself"
        else:
            whose = "the address of a gateway" if address in site.node.gateways else "another node's address"
        message = f"{what} {address} is {whose}: its ports are served where packets arrive, the address is not claimed"
        self.problems.append(Problem(self.service.key, "AddressNotClaimed", message))

    # -- who answers

    def _plan_port(
        self,
        port: Port,
        family: Family,
        endpoints: Endpoints,
        fronts: list[_Front],
        *,
        external_local: bool,
    ) -> None:
        site = self.site
        usable = categorise(endpoints, site.node.name, site.node.zone)
        if usable.hinted:
            self.needs |= Needs.ZONE
        self._note_local(family, endpoints)
        config = server_config(
            self.scheduler,
            self.flags,
            self.service.affinity_timeout_s,
            port.protocol,
            one_packet_udp=site.config.additions.one_packet_udp,
        )
        if config.flags & ServiceFlag.ONE_PACKET:
            self.problems.append(Problem(self.service.key, "AnswersLost", ONE_WAY))
        answering: dict[VirtualServerKey, _Front] = {}
        for front in fronts:
            key = VirtualServerKey(family, port.protocol, front.address, front.port)
            if key not in self.entries:
                answering.setdefault(key, front)  # one address by two ways (ingress and externalIP, say): the first
        external = any(f.external for f in answering.values())
        internal_local = self.service.internal_policy is TrafficPolicy.LOCAL
        cluster = local = _NO_TARGETS
        if not internal_local or external:
            cluster = self._targets(endpoints, usable.cluster)
        if internal_local or (external and external_local):
            local = self._targets(endpoints, usable.local)
        lacks_local = usable.exists and not usable.local
        mark = 0
        if external and external_local:
            mark = self._mark(port, family, answering, cluster, config)
            if lacks_local:
                self.no_local_external.add(family)
        if internal_local and lacks_local:
            self.no_local_internal.add(family)
        for key, front in answering.items():
            is_local = external_local if front.external else internal_local
            targets = local if is_local else cluster
            kind = _kind(front, is_local=is_local, lacks_local=lacks_local) if usable.exists else _empty(front)
            server = PlannedVirtualServer(key, config, targets.wanted, targets.draining, targets.listed, port.protocol)
            self.entries[key] = Entry(server, _elements(key, kind, front, mark), front.allocated)

    def _targets(self, endpoints: Endpoints, wanted: tuple[RealServerKey, ...]) -> _Targets:
        keys = wanted
        if len(keys) > 1:
            at = self.rotation % len(keys)
            keys = keys[at:] + keys[:at]
        if len(wanted) == len(endpoints):
            return _Targets(keys, _NONE, _NONE)
        chosen = set(keys)
        draining, listed = set[RealServerKey](), set[RealServerKey]()
        for key, e in endpoints.items():
            if key not in chosen:
                (draining if e.serving and e.terminating else listed).add(key)
        return _Targets(keys, frozenset(draining) if draining else _NONE, frozenset(listed) if listed else _NONE)

    def _mark(
        self,
        port: Port,
        family: Family,
        answering: dict[VirtualServerKey, _Front],
        cluster: _Targets,
        config: VirtualServerConfig,
    ) -> int:
        """Plan the virtual server by firewall mark that serves this node's own sources; returns its mark."""
        outer = [key for key, front in answering.items() if front.external]
        claims = [(e.set, e.key) for e in (sets.mark(key, 0) for key in outer)]
        mark = self.marks.of(PortIdentity(self.service.key, port.port, port.protocol, family), claims)
        key = VirtualServerKey(family, None, "", 0, mark)
        fronts = tuple((k.address, k.port) for k in outer)
        self.marked.append(
            PlannedVirtualServer(
                key,
                _without_templates(config, self.site),
                cluster.wanted,
                cluster.draining,
                cluster.listed,
                port.protocol,
                fronts,
            ),
        )
        return mark

    def _note_local(self, family: Family, endpoints: Endpoints) -> None:
        """Hairpins, health check count and pod prefixes come from the endpoints on this node, in any condition."""
        name, site = self.site.node.name, self.site
        for address, ready in [(key.address, e.ready) for key, e in endpoints.items() if e.node_name == name]:
            self.needs |= Needs.LOCAL
            if ready:
                self.local_ready[family].add(address)
            if address not in site.own and address not in site.node.primary:
                self.shared[sets.hairpin(family, address)] = None
                prefix = site.pod_prefix(address)
                if prefix is not None:
                    self.shared[sets.prefix(sets.ON_NODE, family, prefix)] = None

    def _health_check(self, *, external_local: bool) -> HealthCheck | None:
        service = self.service
        if service.type is not ServiceType.LOAD_BALANCER or not external_local:
            return None
        if not service.health_check_node_port:
            message = "externalTrafficPolicy is Local and healthCheckNodePort is 0: no load balancer can ask this node"
            self.problems.append(Problem(service.key, "NoHealthCheckNodePort", message))
            return None
        self.shared[sets.health_port(service.health_check_node_port)] = None
        # A pod of two families has an address of each: the families are counted apart.
        return HealthCheck(service.key, service.health_check_node_port, max(map(len, self.local_ready.values())))


def _without_templates(config: VirtualServerConfig, site: Site) -> VirtualServerConfig:
    """What stands in for persistence behind a firewall mark: a hash of the client's address.

    A persistent virtual server by mark sends packets to the port they came for, whatever port its real server has
    (ip_vs_core.c, ip_vs_sched_persist: `dport = dst_port`), so that a node port would end at a closed port.
    """
    if not config.persistence_s:
        return config
    if Scheduler.SH not in site.schedulers:
        return VirtualServerConfig(config.scheduler, config.flags)
    return VirtualServerConfig(Scheduler.SH, ServiceFlag.SCHED_1)


def _kind(front: _Front, *, is_local: bool, lacks_local: bool) -> Kind:
    if not front.external:
        return Kind.NO_LOCAL if is_local and lacks_local else Kind.CLUSTER_IP
    kind = Kind.EXTERNAL
    if is_local:
        kind = Kind.EXTERNAL_NO_LOCAL if lacks_local else Kind.EXTERNAL_LOCAL
    return kind if front.ranges is None else sets.ranged(kind)


def _empty(front: _Front) -> Kind:
    return Kind.EMPTY if front.ranges is None else sets.ranged(Kind.EMPTY)


def _elements(key: VirtualServerKey, kind: Kind, front: _Front, mark: int) -> tuple[Element, ...]:
    claim = sets.service(key, kind)
    if not front.external:
        return (claim,)
    ranges = [sets.source_range(key, r) for r in front.ranges or ()]
    return (claim, *([sets.mark(key, mark)] if mark else ()), *ranges)
