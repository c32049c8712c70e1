"""Shapes of the API's JSON, reduced to the fields the daemons use; everything else is skipped unread by msgspec.

Knows: names and JSON types of fields, and the numeric ranges the API server enforces. Must not know: defaults and
meaning, which are `decode`'s. Every field may be absent or null, as Go marshals empty lists (`"endpoints": null`).

Source: Kubernetes API v1, discovery.k8s.io/v1, networking.k8s.io/v1, multicluster.x-k8s.io/v1alpha1.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
OptionalPortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Labels = dict[str, str]


class Wire(msgspec.Struct, rename="camel", gc=False):
    """Base of all shapes here: camelCase names, no cycles."""


class Meta(Wire):
    """`metadata`; only the annotations that `decode` keeps survive it."""

    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: Labels | None = None
    annotations: Labels | None = None


class Object(Wire):
    """What every object has."""

    metadata: Meta = msgspec.field(default_factory=Meta)


class ServicePort(Wire):
    """`Service.spec.ports[]`."""

    port: PortNumber
    name: str | None = None
    protocol: str | None = None
    target_port: int | str | None = None
    node_port: OptionalPortNumber | None = None
    app_protocol: str | None = None


class ClientIP(Wire):
    """`Service.spec.sessionAffinityConfig.clientIP`."""

    timeout_seconds: int | None = None


class AffinityConfig(Wire):
    """`Service.spec.sessionAffinityConfig`."""

    client_ip: ClientIP | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Wire):
    """`Service.spec`."""

    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ports: list[ServicePort] | None = None
    selector: Labels | None = None
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    external_name: str | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    load_balancer_class: str | None = None
    load_balancer_source_ranges: list[str] | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    health_check_node_port: OptionalPortNumber | None = None
    publish_not_ready_addresses: bool | None = None
    traffic_distribution: str | None = None


class Ingress(Wire):
    """`Service.status.loadBalancer.ingress[]`."""

    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None


class LoadBalancer(Wire):
    """`Service.status.loadBalancer`."""

    ingress: list[Ingress] | None = None


class ServiceStatus(Wire):
    """`Service.status`."""

    load_balancer: LoadBalancer | None = None


class Service(Object):
    """v1 Service."""

    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class TargetRef(Wire):
    """An ObjectReference."""

    kind: str | None = None
    name: str | None = None
    uid: str | None = None


class Conditions(Wire):
    """`EndpointSlice.endpoints[].conditions`."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Wire):
    """`EndpointSlice.endpoints[].hints.forZones[]` and `forNodes[]`."""

    name: str


class Hints(Wire):
    """`EndpointSlice.endpoints[].hints`."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(Wire):
    """`EndpointSlice.endpoints[]`."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    target_ref: TargetRef | None = None
    hints: Hints | None = None


class EndpointPort(Wire):
    """`EndpointSlice.ports[]` and `Endpoints.subsets[].ports[]`."""

    name: str | None = None
    port: OptionalPortNumber | None = None
    protocol: str | None = None
    app_protocol: str | None = None


class EndpointSlice(Object):
    """discovery.k8s.io/v1 EndpointSlice."""

    address_type: str | None = None
    ports: list[EndpointPort] | None = None
    endpoints: list[Endpoint] | None = None


class EndpointAddress(Wire):
    """`Endpoints.subsets[].addresses[]`."""

    ip: str
    hostname: str | None = None
    node_name: str | None = None
    target_ref: TargetRef | None = None


class Subset(Wire):
    """`Endpoints.subsets[]`."""

    addresses: list[EndpointAddress] | None = None
    not_ready_addresses: list[EndpointAddress] | None = None
    ports: list[EndpointPort] | None = None


class Endpoints(Object):
    """v1 Endpoints, the ancestor of EndpointSlice; only manifests bring it."""

    subsets: list[Subset] | None = None


class Taint(Wire):
    """`Node.spec.taints[]`."""

    key: str


class NodeSpec(Wire):
    """`Node.spec`."""

    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeAddress(Wire):
    """`Node.status.addresses[]`."""

    type: str
    address: str


class NodeStatus(Wire):
    """`Node.status`."""

    addresses: list[NodeAddress] | None = None


class Node(Object):
    """v1 Node."""

    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class Namespace(Object):
    """v1 Namespace."""


class ContainerPort(Wire):
    """`Pod.spec.containers[].ports[]`."""

    container_port: PortNumber
    name: str | None = None
    protocol: str | None = None


class Container(Wire):
    """`Pod.spec.containers[]` and `initContainers[]`; of the latter only sidecars (restartPolicy Always) serve."""

    ports: list[ContainerPort] | None = None
    restart_policy: str | None = None


class PodSpec(Wire):
    """`Pod.spec`."""

    node_name: str | None = None
    hostname: str | None = None
    subdomain: str | None = None
    host_network: bool | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodIP(Wire):
    """`Pod.status.podIPs[]`."""

    ip: str | None = None


class Condition(Wire):
    """`Pod.status.conditions[]`."""

    type: str
    status: str | None = None


class PodStatus(Wire):
    """`Pod.status`."""

    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[PodIP] | None = msgspec.field(default=None, name="podIPs")
    conditions: list[Condition] | None = None


class Pod(Object):
    """v1 Pod."""

    spec: PodSpec | None = None
    status: PodStatus | None = None


class ServiceCIDRSpec(Wire):
    """`ServiceCIDR.spec`."""

    cidrs: list[str] | None = None


class ServiceCIDR(Object):
    """networking.k8s.io/v1 ServiceCIDR."""

    spec: ServiceCIDRSpec | None = None


class ImportPort(Wire):
    """`ServiceImport.spec.ports[]`."""

    port: PortNumber
    name: str | None = None
    protocol: str | None = None


class ServiceImportSpec(Wire):
    """`ServiceImport.spec`."""

    type: str | None = None
    ips: list[str] | None = None
    ports: list[ImportPort] | None = None


class ServiceImport(Object):
    """multicluster.x-k8s.io/v1alpha1 ServiceImport."""

    spec: ServiceImportSpec | None = None


class ListMeta(Wire):
    """`metadata` of a list."""

    resource_version: str | None = None
    continue_: str | None = msgspec.field(default=None, name="continue")
    remaining_item_count: int | None = None


class WatchLine(Wire):
    """One line of a watch stream; the object is decoded once its kind is known."""

    type: str
    object: msgspec.Raw


class StatusDetails(Wire):
    """`Status.details`."""

    retry_after_seconds: int | None = None


class Status(Wire):
    """meta/v1 Status: what an ERROR event carries."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: StatusDetails | None = None
