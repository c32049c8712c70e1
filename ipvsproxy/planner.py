"""The desired state of this node, kept up to date Service by Service.

Knows: how plans of single Services become one state, what depends on the node, and what comes first. Must not know: the
kernel, time. The reconciler owns one; `plan`, `diff` and `cleanup` make one of their own.

Same objects, node and settings give the same state, in whatever order and portions they were told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ipvsproxy.claims import Claim, Claims, Counted
from ipvsproxy.config import Config
from ipvsproxy.marks import Marks
from ipvsproxy.model import (
    Delta,
    Desired,
    Element,
    HealthCheck,
    PlannedVirtualServer,
    Problem,
    Scheduler,
    VirtualServerKey,
)
from ipvsproxy.nodeview import NodeView
from ipvsproxy.serviceplan import Entry, Needs, ServicePlan, plan
from ipvsproxy.site import ALL_SCHEDULERS, FAMILIES, Site
from kubecore.addresses import family_of
from kubecore.model import ObjectKey, Service
from kubecore.snapshot import ClusterState

KUBERNETES = ObjectKey("default", "kubernetes")
_DNS_LABEL = ("k8s-app", "kube-dns")


def priority(service: Service) -> int:
    """0: the API server, 1: cluster DNS, 2: the rest. A node without the first two cannot even start the others."""
    if service.key == KUBERNETES:
        return 0
    return 1 if _DNS_LABEL in service.labels else 2


def in_order(state: ClusterState, services: Iterable[ObjectKey]) -> list[ObjectKey]:
    """`services` by priority, then name; those that no longer exist come last."""
    known = state.services

    def rank(key: ObjectKey) -> tuple[int, ObjectKey]:
        service = known.get(key)
        return (priority(service) if service is not None else 3, key)

    return sorted(services, key=rank)


class Planner:
    """Desired state, Service by Service; the cost of an update is that of the Services named.

    Args:
        config: settings.
        node: this node as first known.
        schedulers: those this kernel has.
        known_marks: elements of the mark maps found in the kernel at start, so that marks outlive a restart.
    """

    def __init__(
        self,
        config: Config,
        node: NodeView,
        schedulers: frozenset[Scheduler] = ALL_SCHEDULERS,
        known_marks: Iterable[Element] = (),
    ) -> None:
        self.desired = Desired({}, {}, {})
        self._config = config
        self._schedulers = schedulers
        self._site = Site(node, config, schedulers)
        self._plans: dict[ObjectKey, ServicePlan] = {}
        self._claims = Claims()
        self._marked: dict[ObjectKey, list[VirtualServerKey]] = {}
        self._marks = Marks(config.masquerade_bit, known_marks)
        self._cluster_ips: dict[str, None] = {}
        self._counted_vips: Counted[str] = Counted(self.desired.vips)
        self._counted_elements: Counted[Element] = Counted(self.desired.elements)
        self._counted_ips: Counted[str] = Counted(self._cluster_ips)
        self._unsaid = Delta({}, {}, {}, {})
        """What no delta has told yet: the node's own elements."""
        self.failures: dict[ObjectKey, Exception] = {}
        """Services that planning failed for when last tried, by a mistake of ours; what was planned before holds."""
        for element in self._site.elements:
            self._want_element(element, self._unsaid)

    # -- reading

    @property
    def node(self) -> NodeView:
        """The node as last told."""
        return self._site.node

    def node_port_addresses(self) -> tuple[str, ...]:
        """Addresses that carry node ports, of both families."""
        return tuple(address for family in FAMILIES for address in self._site.node_ports[family])

    @property
    def plans(self) -> Mapping[ObjectKey, ServicePlan]:
        """What each Service asks for, whether it got it or not."""
        return self._plans

    def problems(self, service: ObjectKey) -> list[Problem]:
        """What is wrong with a Service on this node, lost addresses included; empty if all is well."""
        own = self._plans.get(service)
        if own is None:
            return []
        problems = list(own.problems)
        for entry in own.entries if self._claims.contested else ():
            holder = self._claims.holder(entry.server.key)
            if holder != service:
                message = f"{entry.server.key} belongs to Service {holder}, which comes first: not served for this one"
                problems.append(Problem(service, "AddressTaken", message))
        return problems

    def health_check(self, service: ObjectKey) -> HealthCheck | None:
        """The health check server a Service wants."""
        own = self._plans.get(service)
        return own.health_check if own else None

    def service_of(self, server: VirtualServerKey) -> ObjectKey | None:
        """The Service behind a virtual server; None for one that is not wanted."""
        if server.protocol is None:
            identity = self._marks.holders.get(server.fwmark)
            return identity.service if identity else None
        return self._claims.holder(server)

    @property
    def node_elements(self) -> tuple[Element, ...]:
        """Set elements that depend on the node alone."""
        return self._site.elements

    def asked_by(self, services: Iterable[ObjectKey]) -> Delta:
        """All that these Services ask for, and the node's own elements: what to program of plans made before."""
        delta = Delta({}, {}, {}, dict.fromkeys(self._site.elements))
        for key in services:
            own = self._plans.get(key)
            if own is None:
                continue
            delta.services[key] = None
            delta.vips.update(dict.fromkeys(own.vips))
            delta.elements.update(dict.fromkeys(own.elements))
            for entry in own.entries:
                delta.virtual_servers[entry.server.key] = None
                delta.elements.update(dict.fromkeys(entry.elements))
            for server in own.marked:
                delta.virtual_servers[server.key] = None
        return delta

    # -- writing

    def update(self, state: ClusterState, services: Iterable[ObjectKey]) -> Delta:
        """Plan `services` anew from `state`; returns what may differ now, the most important first."""
        delta, self._unsaid = self._unsaid, Delta({}, {}, {}, {})
        self._update(state, in_order(state, services), delta)
        taken = frozenset(ip for ip in self._site.own if ip in self._cluster_ips)
        if taken != self._site.taken:
            self._move(state, Site(self._site.node, self._config, self._schedulers, taken), delta)
        return delta

    def set_node(self, state: ClusterState, node: NodeView) -> Delta:
        """Take over a new picture of the node; plans anew only what was made from what differs."""
        delta, self._unsaid = self._unsaid, Delta({}, {}, {}, {})
        if node != self._site.node:
            taken = frozenset(a.address for a in node.addresses if a.address in self._cluster_ips)
            self._move(state, Site(node, self._config, self._schedulers, taken), delta)
        return delta

    def _move(self, state: ClusterState, new: Site, delta: Delta) -> None:
        old, self._site = self._site, new
        for element in new.elements:
            self._want_element(element, delta)
        for element in old.elements:
            self._drop_element(element, delta)
        if old.sources != new.sources:
            for vip, source in self.desired.vips.items():
                if source != new.sources[family_of(vip)]:
                    self.desired.vips[vip] = new.sources[family_of(vip)]
                    delta.vips[vip] = None
        if old.node.name != new.node.name or old.node.families != new.node.families:
            self._update(state, in_order(state, self._plans), delta)
            return
        needs = _differing(old, new)
        moved = old.unclaimable ^ new.unclaimable
        again = [k for k, p in self._plans.items() if p.needs & needs or (moved and not moved.isdisjoint(_asked(p)))]
        self._update(state, in_order(state, again), delta)

    def _update(self, state: ClusterState, services: Iterable[ObjectKey], delta: Delta) -> None:
        for key in services:
            service = state.services.get(key)
            try:
                new = None if service is None else plan(service, state.slices_of(key), self._site, self._marks)
            except Exception as error:  # the others are to be served nevertheless
                self.failures[key] = error
                continue
            if self.failures:
                self.failures.pop(key, None)
            old = self._plans.get(key)
            if new != old:
                self._replace(key, old, new, delta)

    def _replace(self, key: ObjectKey, old: ServicePlan | None, new: ServicePlan | None, delta: Delta) -> None:
        delta.services[key] = None
        affected = {key}
        kept = {e.server.key for e in new.entries} if new else set()
        if new:
            self._plans[key] = new
            for element in new.elements:
                self._want_element(element, delta)
            for vip in new.vips:
                self._want_vip(vip, delta)
            for ip in new.cluster_ips:
                if self._counted_ips.add(ip):
                    self._cluster_ips[ip] = None
            same = {e.server.key: e for e in old.entries} if old and old.created_s == new.created_s else {}
            for entry in new.entries:
                if same.get(entry.server.key) != entry:
                    before = self._claims.held(entry.server.key)
                    affected |= self._claims.put(Claim(new.created_s, key, entry))
                    self._settle(entry.server.key, before, delta)
        else:
            del self._plans[key]
        if old:
            for entry in old.entries:
                if entry.server.key not in kept:
                    before = self._claims.held(entry.server.key)
                    affected |= self._claims.take(entry.server.key, key)
                    self._settle(entry.server.key, before, delta)
            for ip in old.cluster_ips:
                if self._counted_ips.drop(ip):
                    del self._cluster_ips[ip]
            for vip in old.vips:
                self._drop_vip(vip, delta)
            for element in old.elements:
                self._drop_element(element, delta)
        for service in affected:
            delta.services[service] = None
            self._settle_marked(service, delta)
        if new is None or (old and old.marked):
            self._release_marks(old, new)

    def _settle(self, key: VirtualServerKey, before: Entry | None, delta: Delta) -> None:
        """Make the desired state at `key` what its holder wants."""
        after = self._claims.held(key)
        if after is before:
            return
        for element in before.elements if before else ():
            if after is None or element not in after.elements:
                self.desired.elements.pop(element, None)
                delta.elements[element] = None
        if after is None:
            self.desired.virtual_servers.pop(key, None)
        else:
            self.desired.virtual_servers[key] = after.server
            for element in after.elements:
                if element not in self.desired.elements:
                    self.desired.elements[element] = None
                    delta.elements[element] = None
        if before is None or after is None or before.server != after.server:
            delta.virtual_servers[key] = None

    def _settle_marked(self, service: ObjectKey, delta: Delta) -> None:
        """A virtual server by mark is wanted only while its Service holds an address that sets the mark."""
        own = self._plans.get(service)
        before = self._marked.pop(service, [])
        wanted = [s for s in own.marked if self._holds_front(service, s)] if own else []
        for server in wanted:
            if self.desired.virtual_servers.get(server.key) != server:
                self.desired.virtual_servers[server.key] = server
                delta.virtual_servers[server.key] = None
        keys = [s.key for s in wanted]
        for key in before:
            if key not in keys and self.desired.virtual_servers.pop(key, None) is not None:
                delta.virtual_servers[key] = None
        if keys:
            self._marked[service] = keys

    def _holds_front(self, service: ObjectKey, server: PlannedVirtualServer) -> bool:
        return any(
            self._claims.holder(VirtualServerKey(server.key.family, server.protocol, address, port)) == service
            for address, port in server.fronts
        )

    def _release_marks(self, old: ServicePlan | None, new: ServicePlan | None) -> None:
        kept = {s.key.fwmark for s in new.marked} if new else set()
        for server in old.marked if old else ():
            identity = self._marks.holders.get(server.key.fwmark)
            if identity is not None and server.key.fwmark not in kept:
                self._marks.release(identity)

    def _want_vip(self, vip: str, delta: Delta) -> None:
        if self._counted_vips.add(vip):
            self.desired.vips[vip] = self._site.sources[family_of(vip)]
            delta.vips[vip] = None

    def _drop_vip(self, vip: str, delta: Delta) -> None:
        if self._counted_vips.drop(vip):
            del self.desired.vips[vip]
            delta.vips[vip] = None

    def _want_element(self, element: Element, delta: Delta) -> None:
        if self._counted_elements.add(element):
            self.desired.elements[element] = None
            delta.elements[element] = None

    def _drop_element(self, element: Element, delta: Delta) -> None:
        if self._counted_elements.drop(element):
            self.desired.elements.pop(element, None)
            delta.elements[element] = None


def _differing(old: Site, new: Site) -> Needs:
    """What plans were made from that is not the same any more."""
    needs = Needs.NOTHING
    if old.node_ports != new.node_ports:
        needs |= Needs.NODE_PORTS
    if old.own != new.own or old.node.primary != new.node.primary or old.pod_prefixes != new.pod_prefixes:
        needs |= Needs.LOCAL
    if old.node.zone != new.node.zone:
        needs |= Needs.ZONE
    return needs


def _asked(own: ServicePlan) -> Iterable[str]:
    """Addresses a Service would have routed if it could."""
    return (e.server.key.address for e in own.entries)
