"""What the `kubernetes` and `k8s_external` directives say, as values: made by the Corefile parser, read by the zone.

Knows the options, their defaults and units. Must not know the Corefile's syntax, files, the API.

Zones are lower-case names in wire form: `names.zones_of` makes them, and expands CIDRs.

Source: cluster DNS options as operators know them from CoreDNS' `kubernetes` and `k8s_external` plugins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from kubecore.selectors import LabelSelector


class PodsMode(Enum):
    """Whether `a-b-c-d.NS.pod.ZONE` answers; the value is the Corefile's word."""

    DISABLED = "disabled"
    """Nothing below a namespace."""
    INSECURE = "insecure"
    """The address is echoed, whether a pod has it or not."""
    VERIFIED = "verified"
    """Only addresses of live pods in that namespace. Costs a watch of every pod."""


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """How to reach the API server. Empty: as the process finds itself (service account, else the usual kubeconfig)."""

    endpoint: str = ""
    tls: tuple[str, ...] = ()
    """Paths: certificate, key, CA; or CA alone; as the directive gave them."""
    kubeconfig: str = ""
    context: str = ""
    qps: float = 0.0
    """Requests a second; 0: unlimited."""
    burst: int = 0
    max_inflight: int = 0


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """The `kubernetes` directive."""

    zones: tuple[bytes, ...]
    """Forward and reverse, in the order written. The first forward one names what PTR records point to."""
    pods: PodsMode = PodsMode.DISABLED
    ttl_s: int = 5
    """0..3600. Of every record but `dns-version`; also how long a denial may be kept."""
    namespaces: frozenset[str] = frozenset()
    """Empty: all. Exclusive with `namespace_labels`."""
    namespace_labels: LabelSelector | None = None
    labels: LabelSelector | None = None
    """Filters Services, EndpointSlices and Pods."""
    ignore_empty_service: bool = False
    """A ClusterIP Service without ready endpoints is NXDOMAIN."""
    noendpoints: bool = False
    """EndpointSlices are not watched: headless and endpoint names do not exist."""
    endpoint_pod_names: bool = False
    """Endpoints without a hostname are named after their pod rather than their address."""
    zonal: bool = False
    """Headless Services answer for the endpoints of one topology zone: `TZ.pin._zone.SVC…`, `TZ.prefer._zone.SVC…`."""
    multicluster: tuple[bytes, ...] = ()
    """Those of `zones` whose Services are ServiceImports (KEP-1645) instead of the cluster's own."""
    fallthrough: tuple[bytes, ...] | None = None
    """Zones in which NXDOMAIN is passed to the next plugin; None: never; the root (b"\\0"): everywhere."""
    startup_timeout_s: float = 5.0
    """How long to wait for the first lists before serving without them."""
    api: ApiConfig = field(default_factory=ApiConfig)


@dataclass(frozen=True, slots=True)
class ExternalConfig:
    """The `k8s_external` directive: `SVC.NS.ZONE` for external addresses of the `kubernetes` directive's Services."""

    zones: tuple[bytes, ...]
    apex: str = "dns"
    """The label below which the zone's own names (`ns1.dns.ZONE`) live."""
    ttl_s: int = 5
    headless: bool = False
    """Headless Services without external addresses answer with their endpoints."""
    fallthrough: tuple[bytes, ...] | None = None
