"""The cluster's objects as immutable values, with only the fields the daemons use.

Knows: what each field means. Must not know: JSON, the API server, IPVS, DNS. Built by `decode` (API bytes) and `files`
(manifests); read by everyone.

Addresses are canonical text (`ipaddress.ip_address(x)` compressed, lower case): equal addresses are equal strings.
A new field costs memory on every node for every object: add it only with its first reader.

Source: Kubernetes API v1 and discovery.k8s.io/v1; KEP-1645 (ServiceImport).
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

import msgspec

Family = Literal[4, 6]


class Resource(Enum):
    """A kind of object that is watched; the value is the plural in the API server's paths."""

    SERVICES = "services"
    ENDPOINT_SLICES = "endpointslices"
    NODES = "nodes"
    NAMESPACES = "namespaces"
    PODS = "pods"
    SERVICE_CIDRS = "servicecidrs"
    SERVICE_IMPORTS = "serviceimports"


class Protocol(Enum):
    """Transport protocol of a port; the value is the API's spelling."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"

    # Enum's own hash is a Python function, and a protocol is part of every key; members are single: identity will do.
    __hash__ = object.__hash__


class ServiceType(Enum):
    """`Service.spec.type`."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class TrafficPolicy(Enum):
    """`externalTrafficPolicy` and `internalTrafficPolicy`."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class ObjectKey(NamedTuple):
    """Namespace and name; the namespace of a cluster-wide object is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """`ns/name`, or the name alone for a cluster-wide object."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Port(msgspec.Struct, frozen=True, gc=False):
    """One entry of `Service.spec.ports`."""

    name: str
    """Empty for the single unnamed port."""
    port: int
    protocol: Protocol = Protocol.TCP
    node_port: int = 0
    """0: none."""
    target_port: int | str = 0
    """Number or name; only the derivation of slices from Pods reads it. 0: same as port."""
    app_protocol: str = ""


class LoadBalancerIngress(msgspec.Struct, frozen=True, gc=False):
    """One entry of `Service.status.loadBalancer.ingress`."""

    ip: str = ""
    """Canonical address; empty where the load balancer is known by hostname."""
    hostname: str = ""
    ip_mode_proxy: bool = False
    """`ipMode: Proxy` (KEP-1860): the balancer forwards to node ports, so nodes must not claim the address."""


class Service(msgspec.Struct, frozen=True, gc=False):
    """A Service. Empty tuple or string: the field is absent."""

    namespace: str
    name: str
    uid: str = ""
    created_s: float = 0.0
    """`metadata.creationTimestamp` as Unix seconds; 0 where unknown (manifests)."""
    type: ServiceType = ServiceType.CLUSTER_IP
    cluster_ips: tuple[str, ...] = ()
    """Canonical addresses; empty for a headless Service and for ExternalName."""
    headless: bool = False
    """`clusterIP: None`."""
    ip_families: tuple[Family, ...] = ()
    """As given; empty where the API (or manifest) left it out."""
    ports: tuple[Port, ...] = ()
    selector: tuple[tuple[str, str], ...] = ()
    """Sorted pairs; only the derivation of slices from Pods reads it."""
    external_ips: tuple[str, ...] = ()
    external_name: str = ""
    ingress: tuple[LoadBalancerIngress, ...] = ()
    load_balancer_class: str = ""
    source_ranges: tuple[str, ...] = ()
    """`loadBalancerSourceRanges`, canonical CIDRs (host bits cleared); what does not parse was reported and dropped."""
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    affinity_timeout_s: int = 0
    """ClientIP session affinity; 0: none."""
    health_check_node_port: int = 0
    publish_not_ready: bool = False
    traffic_distribution: str = ""
    """`PreferSameZone` (also `PreferClose`), `PreferSameNode`; it acts through the hints of slices, so that only their
    derivation from Pods reads it."""
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted pairs."""
    annotations: tuple[tuple[str, str], ...] = ()
    """Sorted pairs; only those whose prefix is in `convert.KEPT_ANNOTATIONS`."""

    @property
    def key(self) -> ObjectKey:
        """Identity."""
        return ObjectKey(self.namespace, self.name)


class EndpointPort(msgspec.Struct, frozen=True, gc=False):
    """One entry of `EndpointSlice.ports`."""

    name: str | None
    """None where the API has null: such a port matches nothing."""
    port: int | None
    """None (or 0) means "all ports" in the API, which no consumer supports."""
    protocol: Protocol = Protocol.TCP
    app_protocol: str = ""


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One entry of `EndpointSlice.endpoints`, conditions with the API's defaults applied."""

    addresses: tuple[str, ...]
    """Canonical; the API allows several, consumers of IPVS use the first only."""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    hostname: str = ""
    node_name: str = ""
    zone: str = ""
    target_kind: str = ""
    target_name: str = ""
    target_uid: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()


class EndpointSlice(msgspec.Struct, frozen=True, gc=False):
    """An EndpointSlice (discovery.k8s.io/v1) of address type IPv4 or IPv6; FQDN slices are not kept."""

    namespace: str
    name: str
    service: str
    """The label `kubernetes.io/service-name`; empty: belongs to no Service."""
    family: Family
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted pairs, without the service-name and managed-by labels; the dnsserver's `labels` option reads them."""
    trigger_s: float = 0.0
    """Annotation `endpoints.kubernetes.io/last-change-trigger-time` as Unix seconds; 0: absent."""
    service_import: str = ""
    """The label `multicluster.kubernetes.io/service-name`; empty: belongs to no ServiceImport."""
    source_cluster: str = ""
    """The label `multicluster.kubernetes.io/source-cluster`: the cluster the endpoints are in; empty: not said."""

    @property
    def key(self) -> ObjectKey:
        """Identity."""
        return ObjectKey(self.namespace, self.name)

    @property
    def service_key(self) -> ObjectKey:
        """The Service it belongs to."""
        return ObjectKey(self.namespace, self.service)

    @property
    def import_key(self) -> ObjectKey:
        """The ServiceImport it belongs to."""
        return ObjectKey(self.namespace, self.service_import)


class EndpointsSubset(msgspec.Struct, frozen=True, gc=False):
    """One entry of `Endpoints.subsets`: every endpoint listens on every port."""

    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    """One address each, `addresses` before `notReadyAddresses`; both families may occur."""


class Endpoints(msgspec.Struct, frozen=True, gc=False):
    """A v1 Endpoints object. Not watched: manifests may hold it, and slices are mirrored from it (KEP-752)."""

    namespace: str
    name: str
    """The Service's name."""
    subsets: tuple[EndpointsSubset, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted pairs."""
    trigger_s: float = 0.0
    """As in EndpointSlice."""
    leader_record: bool = False
    """It holds a leader election, not endpoints."""

    @property
    def key(self) -> ObjectKey:
        """Identity; equals that of its Service."""
        return ObjectKey(self.namespace, self.name)


class Node(msgspec.Struct, frozen=True, gc=False):
    """A Node."""

    name: str
    internal_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    hostname: str = ""
    zone: str = ""
    """Label `topology.kubernetes.io/zone`."""
    pod_cidrs: tuple[str, ...] = ()
    taints: tuple[str, ...] = ()
    """Taint keys, sorted."""
    deleting: bool = False
    """`metadata.deletionTimestamp` is set."""
    uid: str = ""

    @property
    def key(self) -> ObjectKey:
        """Identity."""
        return ObjectKey("", self.name)


class Namespace(msgspec.Struct, frozen=True, gc=False):
    """A Namespace."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted pairs; the dnsserver's `namespace_labels` option reads them."""

    @property
    def key(self) -> ObjectKey:
        """Identity."""
        return ObjectKey("", self.name)


class ContainerPort(msgspec.Struct, frozen=True, gc=False):
    """A named container port; what a Service's named targetPort resolves to."""

    name: str
    port: int
    protocol: Protocol = Protocol.TCP


class Pod(msgspec.Struct, frozen=True, gc=False):
    """A Pod."""

    namespace: str
    name: str
    uid: str = ""
    ips: tuple[str, ...] = ()
    """`status.podIPs` (or podIP), canonical."""
    phase: str = ""
    deleting: bool = False
    ready: bool = False
    """Condition Ready is True."""
    node_name: str = ""
    hostname: str = ""
    subdomain: str = ""
    host_network: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    container_ports: tuple[ContainerPort, ...] = ()
    """Named ports only, in the Pod's order."""

    @property
    def key(self) -> ObjectKey:
        """Identity."""
        return ObjectKey(self.namespace, self.name)


class ServiceCIDR(msgspec.Struct, frozen=True, gc=False):
    """A ServiceCIDR (networking.k8s.io/v1): the ranges ClusterIPs come from."""

    name: str
    cidrs: tuple[str, ...] = ()

    @property
    def key(self) -> ObjectKey:
        """Identity."""
        return ObjectKey("", self.name)


class ServiceImport(msgspec.Struct, frozen=True, gc=False):
    """A ServiceImport (multicluster.x-k8s.io/v1alpha1): a Service of the whole cluster set."""

    namespace: str
    name: str
    headless: bool = False
    """`spec.type: Headless`."""
    ips: tuple[str, ...] = ()
    """Canonical; empty for a headless one, and until one is allocated."""
    ports: tuple[Port, ...] = ()
    """Name, number and protocol."""
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted pairs."""

    @property
    def key(self) -> ObjectKey:
        """Identity; equals that of the Services it stands for."""
        return ObjectKey(self.namespace, self.name)


KubeObject = Service | EndpointSlice | Node | Namespace | Pod | ServiceCIDR | ServiceImport

RESOURCE_OF: dict[type[KubeObject], Resource] = {
    Service: Resource.SERVICES,
    EndpointSlice: Resource.ENDPOINT_SLICES,
    Node: Resource.NODES,
    Namespace: Resource.NAMESPACES,
    Pod: Resource.PODS,
    ServiceCIDR: Resource.SERVICE_CIDRS,
    ServiceImport: Resource.SERVICE_IMPORTS,
}


# Events: what a source (API server or files) tells the store. One order holds per resource, none between resources.


class ListStarted(msgspec.Struct, frozen=True, gc=False):
    """A full list of `resource` begins; objects not seen again before its `Listed` are gone."""

    resource: Resource


class Upsert(msgspec.Struct, frozen=True, gc=False):
    """`object` exists and looks like this now."""

    object: KubeObject


class Delete(msgspec.Struct, frozen=True, gc=False):
    """The object is gone; deleting what is not there is no error."""

    resource: Resource
    key: ObjectKey


class Listed(msgspec.Struct, frozen=True, gc=False):
    """The list begun by the last `ListStarted` is complete: the state of `resource` can be trusted."""

    resource: Resource


Event = ListStarted | Upsert | Delete | Listed
