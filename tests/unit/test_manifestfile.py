"""One manifest file: which objects it gives, and one sentence about everything else."""

from __future__ import annotations

import pytest

from kubecore.manifestfile import FileContent, read_file
from kubecore.model import Resource, Service
from kubecore.selectors import parse_selection

_HEAD = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"


def _read(text: str, name: str = "f.yaml") -> FileContent:
    return read_file(text, name, {})


def _objects(content: FileContent) -> list[str]:
    return [f"{kind.__name__} {key}" for kind, key in content.entries]


def test_documents_lists_and_lists_of_a_kind() -> None:
    content = _read(
        """
apiVersion: v1
kind: Namespace
metadata: {name: ns}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: n1}}
- apiVersion: v1
  kind: ServiceList
  items:
  - {metadata: {name: web, namespace: ns}, spec: {clusterIP: 10.0.0.1}}
  - {metadata: {name: db}, spec: {clusterIP: 10.0.0.2}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSliceList
items: [{metadata: {name: web-x}, addressType: IPv4}]
---
{apiVersion: v1, kind: PodList, items: null}
---
{apiVersion: v1, kind: Pod, metadata: {name: p}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: db}}
---
{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: main}, spec: {cidrs: [10.96.0.0/16]}}
""",
    )
    assert content.problems == ()
    assert _objects(content) == [
        "Namespace ns",
        "Node n1",
        "Service ns/web",
        "Service default/db",
        "EndpointSlice default/web-x",
        "Pod default/p",
        "Endpoints default/db",
        "ServiceCIDR main",
    ]


def test_json_list() -> None:
    item = '{"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "a"}}'
    text = f'{{"kind": "List", "apiVersion": "v1", "items": [{item}]}}'
    assert _objects(_read(text, "f.json")) == ["Namespace a"]


@pytest.mark.parametrize(
    ("spec", "sentences"),
    [
        ("{clusterIP: 10.0.0.1, ports: [{port: 80}]}", []),
        ("{clusterIP: None}", []),
        ("{type: ExternalName, externalName: a.example}", []),
        (
            "\n  clusterIP: 10.0.0.1\n  ports:\n  - port: 80\n    name: a\n  - name: b\n    port: '81'\n",
            ["10: error: spec.ports[1].port: Expected `int`, got `str`", "-> write a number without quotes"],
        ),
        (
            "\n  clusterIP: 10.0.0.1\n  externalIPs:\n  - 192.0.2.1\n  - here\n",
            [
                "8: warning: spec.externalIPs[1]: 'here' is no IP address",
                "-> write an address such as 10.96.0.10 or fd00::10",
            ],
        ),
        (
            "{ports: [{port: 80}]}",
            [
                "4: hint: spec.clusterIP: missing; nothing allocates an address here, so that the Service has none",
                "-> write an address, or None for a headless Service",
            ],
        ),
        (
            "{type: NodePort, clusterIP: 10.0.0.1, ports: [{port: 80}]}",
            [
                "4: hint: spec.ports[0].nodePort: missing; nothing allocates one here, so that it has no node port",
                "-> write one of 30000..32767",
            ],
        ),
        (
            "{clusterIP: 10.0.0.1, ports: [{name: a, port: 80}, {name: a, port: 80}, {port: 81}]}",
            [
                "4: error: spec.ports[1].name: 'a' is taken by a port before",
                "-> names differ",
                "4: error: spec.ports[1].port: 80/TCP is taken by a port before",
                "-> give each port its own number",
                "4: error: spec.ports[2].name: missing",
                "-> with several ports each needs a name",
            ],
        ),
        (
            "{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]}",
            ["4: error: spec.clusterIP: not the first of clusterIPs", "-> write the same address in both"],
        ),
        (
            "{clusterIPs: [10.0.0.1], ipFamilies: [IPv6]}",
            [
                "4: error: spec.ipFamilies: does not go with clusterIPs: IPv4",
                "-> name the families in the order of the addresses",
            ],
        ),
        (
            "{type: ExternalName}",
            ["4: error: spec.externalName: missing", "-> write the name the Service stands for"],
        ),
    ],
)
def test_services_written_by_hand(spec: str, sentences: list[str]) -> None:
    content = _read(f"{_HEAD}spec: {spec}")
    said = [
        line
        for p in content.problems
        for line in (f"{p.line}: {p.severity.value}: {p.field}: {p.reason}", f"-> {p.remedy}")
    ]
    assert said == sentences
    assert {p.object for p in content.problems} <= {"Service default/web"}
    refused = any(" error: " in s for s in sentences)
    assert _objects(content) == ([] if refused else ["Service default/web"])
    assert content.has_errors is refused


@pytest.mark.parametrize(
    ("ports", "sentences"),
    [
        ("[{name: '', port: 80}, {name: b, port: 81}]", []),
        (
            "[{port: 80}, {name: b}]",
            [
                "5: hint: ports[0].name: missing; such a port belongs to no port of a Service",
                "5: hint: ports[1].port: missing; such a port leads nowhere",
            ],
        ),
    ],
)
def test_slices_written_by_hand(ports: str, sentences: list[str]) -> None:
    head = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\n"
    content = _read(f"{head}ports: {ports}\n")
    assert [f"{p.line}: {p.severity.value}: {p.field}: {p.reason}" for p in content.problems] == sentences
    assert all(p.remedy for p in content.problems)
    assert _objects(content) == ["EndpointSlice default/s"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "a: 1",
            (
                "f.yaml:1: error: apiVersion: missing; begin the object with, for example,"
                " apiVersion: v1 and kind: Service"
            ),
        ),
        ("- 1", "f.yaml:1: error: not a Kubernetes object; write a mapping with apiVersion and kind"),
        (
            "apiVersion: v1\nkind: 7",
            "f.yaml:2: error: kind: not a text; begin the object with, for example, apiVersion: v1 and kind: Service",
        ),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n",
            (
                "f.yaml:1: error: EndpointSlice: apiVersion: discovery.k8s.io/v1beta1 is no version of EndpointSlice"
                " that is read; write apiVersion: discovery.k8s.io/v1"
            ),
        ),
        (
            "apiVersion: serving.knative.dev/v1\nkind: Service\n",
            "f.yaml:1: note: serving.knative.dev/v1 Service: objects of this kind are not used",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: apps/v1\nkind: Deployment\n",
            "f.yaml:1: note: apps/v1 Deployment: objects of this kind are not used",
        ),
        ("apiVersion: v1\nkind: List\nitems: 5\n", "f.yaml:3: error: items: not a list"),
        (
            (
                "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n"
                "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n"
            ),
            (
                "f.yaml:3: warning: Namespace a: defined before in line 1 of this file; this definition holds;"
                " remove one of them"
            ),
        ),
        ("a: [", "f.yaml:1: error: not YAML: did not find expected node content"),
    ],
)
def test_what_is_said_about_the_rest(text: str, sentence: str) -> None:
    assert [str(p) for p in _read(text).problems] == [sentence]


def test_items_of_a_list_know_their_lines() -> None:
    item = "- {apiVersion: v1, kind: Namespace, metadata: {name: %s}}\n"
    content = _read("apiVersion: v1\nkind: List\nitems:\n" + item % "a" + "# a comment\n" + item % "b")
    assert [(key.name, entry.line) for (_, key), entry in content.entries.items()] == [("a", 4), ("b", 6)]


def test_one_bad_object_does_not_stop_the_others() -> None:
    good = "{apiVersion: v1, kind: Namespace, metadata: {name: %s}}\n---\n"
    content = _read(good % "a" + f"{_HEAD}spec: {{ports: 1}}\n---\n" + good % "b")
    assert _objects(content) == ["Namespace a", "Namespace b"]
    [problem] = content.problems
    assert (problem.line, problem.field, problem.resource) == (6, "spec.ports", Resource.SERVICES)


def test_families_are_filled_in_from_the_addresses() -> None:
    content = _read(f"{_HEAD}spec: {{clusterIPs: ['fd00::1', 10.0.0.1]}}")
    [entry] = content.entries.values()
    assert isinstance(entry.object, Service)
    assert entry.object.ip_families == (6, 4)


def test_selections_mark_what_is_wanted() -> None:
    label = "service.kubernetes.io/service-proxy-name"
    text = (
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.0.0.1}}\n---\n"
        f"{{apiVersion: v1, kind: Service, metadata: {{name: b, labels: {{{label}: x}}}}, spec: {{clusterIP: None}}}}\n"
    )
    content = read_file(text, "f.yaml", {Resource.SERVICES: parse_selection(labels=f"!{label}")})
    assert [(key.name, entry.selected) for (_, key), entry in content.entries.items()] == [("a", True), ("b", False)]
