"""API bytes to model: the API's defaults, what of a bad object survives, and what is said about the rest."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubecore.decode import (
    Added,
    Bookmark,
    Deleted,
    Error,
    MalformedBody,
    Modified,
    Skipped,
    Unknown,
    decode_endpoints,
    decode_list_page,
    decode_object,
    decode_watch_line,
)
from kubecore.manifest import parse_documents
from kubecore.model import (
    EndpointSlice,
    LoadBalancerIngress,
    Namespace,
    Node,
    ObjectKey,
    Pod,
    Port,
    Protocol,
    Resource,
    Service,
    ServiceCIDR,
    ServiceImport,
    ServiceType,
    TrafficPolicy,
)
from tests.builders import endpoint_text, slice_line
from tests.strategies import steady

_KINDS = {
    Resource.SERVICES: Service,
    Resource.ENDPOINT_SLICES: EndpointSlice,
    Resource.NODES: Node,
    Resource.NAMESPACES: Namespace,
    Resource.PODS: Pod,
    Resource.SERVICE_CIDRS: ServiceCIDR,
    Resource.SERVICE_IMPORTS: ServiceImport,
}


def _decoded(resource: Resource, text: str) -> tuple[Any, list[str]]:
    """The object of a YAML text, and `field: reason` of everything left out."""
    outcome = decode_object(resource, parse_documents(text, "test.yaml")[0].data)
    return outcome.object, [f"{s.field}: {s.reason}" for s in outcome.skipped]


def _service(spec: str, status: str = "{}") -> tuple[Any, list[str]]:
    return _decoded(Resource.SERVICES, f"{{metadata: {{name: web, namespace: ns}}, spec: {spec}, status: {status}}}")


# -- Service


def test_service_defaults() -> None:
    found, skipped = _service("{clusterIP: 10.0.0.1, ports: [{port: 80}], sessionAffinity: ClientIP}")
    assert skipped == []
    assert (found.type, found.cluster_ips, found.headless) == (ServiceType.CLUSTER_IP, ("10.0.0.1",), False)
    assert (found.ports[0].name, found.ports[0].protocol, found.ports[0].node_port) == ("", Protocol.TCP, 0)
    assert (found.affinity_timeout_s, found.external_policy) == (10800, TrafficPolicy.CLUSTER)


@pytest.mark.parametrize(
    ("spec", "cluster_ips", "headless"),
    [
        ("{clusterIP: None, clusterIPs: [None]}", (), True),
        ("{clusterIP: None}", (), True),
        ("{clusterIP: ''}", (), False),
        ("{clusterIPs: [10.0.0.1, 'FD00::0:1'], ipFamilies: [IPv4, IPv6]}", ("10.0.0.1", "fd00::1"), False),
        ("{type: ExternalName, externalName: a.example, clusterIP: 10.0.0.1}", (), False),
    ],
)
def test_cluster_ips(spec: str, cluster_ips: tuple[str, ...], headless: bool) -> None:
    found, _ = _service(spec)
    assert (found.cluster_ips, found.headless) == (cluster_ips, headless)


@pytest.mark.parametrize(
    ("mode", "is_proxy"),
    [("", False), (", ipMode: VIP", False), (", ipMode: Proxy", True), (", ipMode: Tunnel", True)],
)
def test_ip_mode(mode: str, is_proxy: bool) -> None:
    found, _ = _service("{}", f"{{loadBalancer: {{ingress: [{{ip: 192.0.2.1{mode}}}, {{hostname: lb.example}}]}}}}")
    assert found.ingress == (LoadBalancerIngress("192.0.2.1", "", is_proxy), LoadBalancerIngress("", "lb.example"))


def test_only_annotations_somebody_reads_are_kept() -> None:
    annotations = (
        "{ipvsproxy.io/scheduler: lc, kube-router.io/service.scheduler: mh, kubectl.kubernetes.io/last-applied: '{}'}"
    )
    found, _ = _decoded(Resource.SERVICES, f"{{metadata: {{name: web, annotations: {annotations}}}}}")
    assert [name for name, _ in found.annotations] == ["ipvsproxy.io/scheduler", "kube-router.io/service.scheduler"]


@pytest.mark.parametrize(
    ("spec", "left_out"),
    [
        ("{externalIPs: [192.0.2.1, nonsense]}", "spec.externalIPs[1]: 'nonsense' is no IP address"),
        (
            "{loadBalancerSourceRanges: [' 192.0.2.7/24', 192.0.2.0/40]}",
            "spec.loadBalancerSourceRanges[1]: '192.0.2.0/40' is no CIDR",
        ),
        ("{type: Teleport}", "spec.type: 'Teleport' is unknown; taken as ClusterIP"),
        ("{externalTrafficPolicy: Nearby}", "spec.externalTrafficPolicy: 'Nearby' is unknown; taken as Cluster"),
        (
            "{ports: [{port: 80}, {name: q, port: 81, protocol: QUIC}]}",
            "spec.ports[1].protocol: 'QUIC' is none of TCP, UDP, SCTP",
        ),
        ("{ipFamilies: [IPv4, IPv9]}", "spec.ipFamilies[1]: 'IPv9' is neither IPv4 nor IPv6"),
        ("{sessionAffinity: Cookie}", "spec.sessionAffinity: 'Cookie' is unknown; taken as None"),
    ],
)
def test_a_bad_part_is_left_out_and_the_service_stays(spec: str, left_out: str) -> None:
    found, skipped = _service(spec)
    assert found is not None
    assert skipped == [left_out]


@pytest.mark.parametrize(
    ("given", "timeout_s", "complaint"),
    [
        ("", 10800, ""),
        ("1", 1, ""),
        ("86400", 86400, ""),
        ("0", 10800, "0 is outside 1..86400; taken as 10800"),
        ("-5", 10800, "-5 is outside 1..86400; taken as 10800"),
        ("86401", 86400, "86401 is outside 1..86400; taken as 86400"),
        ("4294967296", 86400, "4294967296 is outside 1..86400; taken as 86400"),
    ],
)
def test_an_affinity_is_as_long_as_the_api_allows(given: str, timeout_s: int, complaint: str) -> None:
    """A manifest has met no API server; the kernel takes 32 bits."""
    config = f"{{clientIP: {{timeoutSeconds: {given or 'null'}}}}}"
    found, skipped = _service(f"{{sessionAffinity: ClientIP, sessionAffinityConfig: {config}}}")
    assert found.affinity_timeout_s == timeout_s
    field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    assert skipped == ([f"{field}: {complaint}"] if complaint else [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "{metadata: {name: web}, spec: {ports: [{port: 80}, {port: x}]}}",
            "spec.ports[1].port: Expected `int`, got `str`",
        ),
        ("{metadata: {name: web}, spec: {ports: [{port: 70000}]}}", "spec.ports[0].port: Expected `int` <= 65535"),
        ("{metadata: {name: web}, spec: {ports: [{name: http}]}}", "spec.ports[0].port: missing"),
        ("{metadata: {name: web}, spec: {ports: 80}}", "spec.ports: Expected `array | null`, got `int`"),
        (
            "{metadata: {name: web}, spec: {ports: [{port: 80, targetPort: 99999}]}}",
            "spec.ports[0].targetPort: 99999 is outside 1..65535",
        ),
        ("{metadata: {name: web}, spec: {clusterIP: ten}}", "spec.clusterIP: 'ten' is no IP address"),
        (
            "{metadata: {name: web}, spec: {clusterIPs: [10.0.0.1, 10.0.0.300]}}",
            "spec.clusterIPs[1]: '10.0.0.300' is no IP address",
        ),
        ("{metadata: {}, spec: {}}", "metadata.name: missing"),
        ("{spec: {}}", "metadata.name: missing"),
        ("{metadata: {name: Web_1}}", "metadata.name: 'Web_1' is no DNS label"),
        (
            "{metadata: {name: web, labels: {critical: true}}}",
            "metadata.labels[...]: Expected `str`, got `bool`",
        ),
    ],
)
def test_a_bad_service_is_skipped_with_the_field(text: str, why: str) -> None:
    assert _decoded(Resource.SERVICES, text) == (None, [why])


# -- EndpointSlice


def _slice(endpoints: str, more: str = "") -> tuple[Any, list[str]]:
    return _decoded(
        Resource.ENDPOINT_SLICES,
        "{metadata: {name: web-x, labels: {kubernetes.io/service-name: web, app: web}}, addressType: IPv4, "
        f"ports: [{{name: http, port: 80}}], endpoints: {endpoints}{more}}}",
    )


@pytest.mark.parametrize(
    ("conditions", "states"),
    [
        ("{}", (True, True, False)),
        ("{ready: null, serving: null, terminating: null}", (True, True, False)),
        ("{ready: false}", (False, True, False)),
        ("{ready: false, serving: true, terminating: true}", (False, True, True)),
    ],
)
def test_conditions(conditions: str, states: tuple[bool, bool, bool]) -> None:
    found, _ = _slice(f"[{{addresses: [10.0.0.1], conditions: {conditions}}}]")
    e = found.endpoints[0]
    assert (e.ready, e.serving, e.terminating) == states


def test_slice() -> None:
    hints = "hints: {forZones: [{name: z1}], forNodes: [{name: n1}]}"
    target = "targetRef: {kind: Pod, name: web-0, uid: u1}"
    found, skipped = _slice(f"[{{addresses: [010.0.0.1], nodeName: n1, zone: z1, hostname: a, {hints}, {target}}}]")
    assert skipped == []
    assert (found.service, found.labels) == ("web", (("app", "web"),))
    assert slice_line(found) == "http:80/TCP: 10.0.0.1@n1/z1=a"
    e = found.endpoints[0]
    assert (e.hint_zones, e.hint_nodes, e.target_kind, e.target_name) == (("z1",), ("n1",), "Pod", "web-0")


@pytest.mark.parametrize("text", ["null", "[]"])
def test_go_marshals_empty_lists_as_null(text: str) -> None:
    found, skipped = _slice(text)
    assert (found.endpoints, skipped) == ((), [])


def test_ports_without_name_or_number_are_kept_as_such() -> None:
    found, _ = _decoded(
        Resource.ENDPOINT_SLICES,
        "{metadata: {name: x}, addressType: IPv4,"
        " ports: [{port: 1}, {name: a}, {name: b, port: 0}, {name: '', port: 2}]}",
    )
    assert [(p.name, p.port) for p in found.ports] == [(None, 1), ("a", None), ("b", None), ("", 2)]


def test_bad_addresses() -> None:
    found, skipped = _slice(
        "[{addresses: [bad, 10.0.0.9]}, {addresses: [10.0.0.1, 'fd00::1']}, {addresses: []}, {addresses: [10.0.0.2]}]",
    )
    assert [endpoint_text(e) for e in found.endpoints] == ["10.0.0.1", "10.0.0.2"]
    assert skipped == [
        "endpoints[0].addresses[0]: 'bad' is no IPv4 address",
        "endpoints[1].addresses[1]: 'fd00::1' is no IPv4 address",
    ]


def test_slices_of_fqdns_are_dropped_in_silence_and_unknown_types_are_not() -> None:
    text = "{{metadata: {{name: x}}, addressType: {}, endpoints: [{{addresses: [example.com]}}]}}"
    assert _decoded(Resource.ENDPOINT_SLICES, text.format("FQDN")) == (None, [])
    assert _decoded(Resource.ENDPOINT_SLICES, text.format("IPX")) == (
        None,
        ["addressType: 'IPX' is none of IPv4, IPv6, FQDN"],
    )


def test_trigger_time_with_nanoseconds() -> None:
    note = "endpoints.kubernetes.io/last-change-trigger-time: '2024-01-02T03:04:05.123456789Z'"
    found, _ = _decoded(
        Resource.ENDPOINT_SLICES, f"{{metadata: {{name: x, annotations: {{{note}}}}}, addressType: IPv6}}"
    )
    assert found.trigger_s == pytest.approx(1704164645.123456, abs=1e-5)


# -- the others


def test_node() -> None:
    found, skipped = _decoded(
        Resource.NODES,
        """
        metadata: {name: node-a, deletionTimestamp: 2024-01-02T03:04:05Z, labels: {topology.kubernetes.io/zone: z1}}
        spec: {podCIDR: 10.1.0.0/24, taints: [{key: b, effect: NoSchedule}, {key: a, effect: NoSchedule}]}
        status:
          addresses:
          - {type: InternalIP, address: 192.168.0.1}
          - {type: InternalIP, address: 'FD00::1'}
          - {type: ExternalIP, address: 192.0.2.1}
          - {type: Hostname, address: a.example}
          - {type: InternalIP, address: soon}
        """,
    )
    assert found == Node(
        "node-a",
        ("192.168.0.1", "fd00::1"),
        ("192.0.2.1",),
        "a.example",
        zone="z1",
        pod_cidrs=("10.1.0.0/24",),
        taints=("a", "b"),
        deleting=True,
    )
    assert skipped == ["status.addresses[4].address: 'soon' is no IP address"]


def test_pod() -> None:
    found, _ = _decoded(
        Resource.PODS,
        """
        metadata: {name: web-0, namespace: ns, labels: {app: web}}
        spec:
          nodeName: node-a
          hostname: web-0
          subdomain: web
          containers: [{ports: [{containerPort: 80}, {name: http, containerPort: 8080}]}]
          initContainers:
          - {restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
          - {ports: [{name: setup, containerPort: 1}]}
        status:
          phase: Running
          podIP: 10.0.0.1
          podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]
          conditions: [{type: Initialized, status: 'True'}, {type: Ready, status: 'True'}]
        """,
    )
    assert (found.ips, found.ready, found.phase) == (("10.0.0.1", "fd00::1"), True, "Running")
    assert [(p.name, p.port) for p in found.container_ports] == [("http", 8080), ("metrics", 9090)]


@pytest.mark.parametrize(
    ("spec", "expected", "left_out"),
    [
        (
            "{type: ClusterSetIP, ips: [10.42.0.1, 'FD42::1'], ports: [{name: http, port: 80}, {port: 53}]}",
            {"ips": ("10.42.0.1", "fd42::1"), "ports": (Port("http", 80), Port("", 53))},
            [],
        ),
        ("{type: Headless, ports: [{name: http, port: 80}]}", {"headless": True, "ports": (Port("http", 80),)}, []),
        ("{type: Headless, ips: [10.42.0.1]}", {"headless": True}, []),
        ("null", {}, []),
        ("{type: Odd}", {}, ["spec.type: 'Odd' is unknown; taken as ClusterSetIP"]),
        ("{ips: [soon]}", {}, ["spec.ips[0]: 'soon' is no IP address"]),
        ("{ports: [{port: 1, protocol: X}]}", {}, ["spec.ports[0].protocol: 'X' is none of TCP, UDP, SCTP"]),
    ],
)
def test_service_import(spec: str, expected: dict[str, Any], left_out: list[str]) -> None:
    found, skipped = _decoded(Resource.SERVICE_IMPORTS, f"{{metadata: {{name: web, namespace: ns}}, spec: {spec}}}")
    assert (found, skipped) == (ServiceImport("ns", "web", **expected), left_out)


def test_a_slice_of_another_cluster() -> None:
    found, skipped = _decoded(
        Resource.ENDPOINT_SLICES,
        """
        metadata:
          name: web-east
          namespace: ns
          labels: {multicluster.kubernetes.io/service-name: web, multicluster.kubernetes.io/source-cluster: east}
        addressType: IPv4
        """,
    )
    assert (found.service, found.import_key, found.source_cluster) == ("", ObjectKey("ns", "web"), "east")
    assert skipped == []


def test_a_cluster_id_that_is_no_label_names_no_endpoints() -> None:
    label = "multicluster.kubernetes.io/source-cluster"
    labels = f"{{multicluster.kubernetes.io/service-name: web, {label}: a.b}}"
    found, skipped = _decoded(
        Resource.ENDPOINT_SLICES, f"{{metadata: {{name: x, namespace: ns, labels: {labels}}}, addressType: IPv4}}"
    )
    assert (found.service_import, found.source_cluster) == ("web", "")
    assert skipped == [f"metadata.labels.{label}: 'a.b' is no DNS label"]


def test_endpoints_are_read_for_mirroring() -> None:
    data = parse_documents(
        "{metadata: {name: web}, subsets: [{ports: [{port: 80}], addresses: [{ip: 10.0.0.1}, {ip: x}],"
        " notReadyAddresses: [{ip: 10.0.0.2}]}]}",
        "t.yaml",
    )[0].data
    key, found, skipped = decode_endpoints(data)
    assert key == ObjectKey("default", "web")
    assert found is not None
    assert [endpoint_text(e) for e in found.subsets[0].endpoints] == ["10.0.0.1", "10.0.0.2!"]
    assert found.subsets[0].ports[0].name == ""
    assert [s.field for s in skipped] == ["subsets[0].addresses[1].ip"]


# -- pages and watch lines


def _page(*items: Any, **metadata: Any) -> bytes:
    return json.dumps({"kind": "ServiceList", "metadata": metadata, "items": list(items)}).encode()


def test_page() -> None:
    good = {"metadata": {"name": "a", "namespace": "ns"}}
    page = decode_list_page(
        Resource.SERVICES, _page(good, resourceVersion="7", remainingItemCount=3, **{"continue": "token"})
    )
    assert [str(o.key) for o in page.items] == ["ns/a"]
    assert (page.resource_version, page.continue_token, page.remaining, page.skipped) == ("7", "token", 3, [])


def test_one_bad_object_does_not_stop_its_page() -> None:
    items = [
        {"metadata": {"name": "a", "namespace": "ns"}},
        {"metadata": {"name": "b", "namespace": "ns"}, "spec": {"ports": [{"port": 1}, {"port": "x"}]}},
        {"metadata": "nothing"},
        17,
        {"metadata": {"name": "c", "namespace": "ns"}},
    ]
    page = decode_list_page(Resource.SERVICES, _page(*items))
    assert [str(o.key) for o in page.items] == ["ns/a", "ns/c"]
    assert [(s.key and str(s.key), s.field) for s in page.skipped] == [
        ("ns/b", "spec.ports[1].port"),
        (None, "metadata"),
        (None, ""),
    ]


def test_empty_page_of_go() -> None:
    assert decode_list_page(Resource.PODS, b'{"metadata":{},"items":null}').items == []


def test_an_absurdly_nested_object_is_skipped_alone() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    line = b'{"type":"ADDED","object":{"metadata":{"name":"a","namespace":"ns"},"spec":{"ports":' + deep + b"}}}"
    try:
        item = decode_watch_line(Resource.SERVICES, line)
    except MalformedBody:
        return
    assert isinstance(item, Added)
    assert item.object is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"kind":"Status"}', b'{"items":5}', b"\xff"])
def test_what_is_no_list_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        decode_list_page(Resource.SERVICES, body)


def _line(kind: str, obj: Any) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode()


def test_watch_lines() -> None:
    meta = {"name": "a", "resourceVersion": "7"}
    key = ObjectKey("", "a")
    assert decode_watch_line(Resource.NAMESPACES, _line("ADDED", {"metadata": meta})) == Added(key, Namespace("a"), "7")
    assert isinstance(decode_watch_line(Resource.NAMESPACES, _line("MODIFIED", {"metadata": meta})), Modified)
    assert decode_watch_line(Resource.NAMESPACES, _line("DELETED", {"metadata": meta})) == Deleted(key, None, "7")
    bookmark = {"metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}}
    assert decode_watch_line(Resource.NAMESPACES, _line("BOOKMARK", bookmark)) == Bookmark("9", initial_events_end=True)
    status = {"code": 410, "reason": "Expired", "message": "too old", "details": {"retryAfterSeconds": 3}}
    assert decode_watch_line(Resource.NAMESPACES, _line("ERROR", status)) == Error(410, "Expired", "too old", 3)
    assert decode_watch_line(Resource.NAMESPACES, _line("SPARKLED", {})) == Unknown("SPARKLED")


def test_a_bad_object_in_a_watch_has_no_object_but_key_and_version() -> None:
    bad = {"metadata": {"name": "a", "namespace": "ns", "resourceVersion": "8"}, "spec": {"clusterIPs": "x"}}
    reason = "Expected `array | null`, got `str`"
    assert decode_watch_line(Resource.SERVICES, _line("MODIFIED", bad)) == Modified(
        ObjectKey("ns", "a"),
        None,
        "8",
        (Skipped(Resource.SERVICES, ObjectKey("ns", "a"), "spec.clusterIPs", reason),),
    )


@pytest.mark.parametrize("line", [b"", b"{", b'{"type":"ADDED"}', b'{"type":1,"object":{}}', b"[]"])
def test_what_is_no_watch_event_is_malformed(line: bytes) -> None:
    with pytest.raises(MalformedBody):
        decode_watch_line(Resource.SERVICES, line)


# -- anything at all

_field_names = st.sampled_from(
    "metadata name namespace labels annotations spec status ports port clusterIP clusterIPs loadBalancer ingress ip "
    "endpoints addresses addressType conditions ready podIPs containers taints key type protocol cidrs".split(),
)
_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
_scalars |= st.sampled_from(["IPv4", "10.0.0.1", "web", "None", "TCP"])
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_field_names, inner, max_size=5),
    max_leaves=20,
)


@steady
@given(st.sampled_from(Resource), _json)
def test_any_json_is_an_object_or_skipped_with_a_reason(resource: Resource, data: Any) -> None:
    named = {**data, "metadata": {"name": "a", "namespace": "ns"}} if isinstance(data, dict) else data
    body = json.dumps({"metadata": {}, "items": [named]}).encode()
    page = decode_list_page(resource, body)
    assert all(isinstance(item, _KINDS[resource]) for item in page.items)
    whole = [s for s in page.skipped if s.whole]
    is_fqdn = isinstance(named, dict) and named.get("addressType") == "FQDN"
    assert len(page.items) + len(whole) == 1 or is_fqdn
    assert all(s.reason for s in page.skipped)
    if isinstance(named, dict):
        again = decode_object(resource, named)
        assert [again.object] == page.items or not page.items


@steady
@given(st.sampled_from(Resource), st.binary(max_size=60))
def test_any_bytes_are_a_watch_item_or_malformed(resource: Resource, line: bytes) -> None:
    for decode in (decode_watch_line, decode_list_page):
        with contextlib.suppress(MalformedBody):
            decode(resource, line)
