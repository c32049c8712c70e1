"""The charts, rendered by the real helm: accepted and refused values, Kubernetes' schemas, what every pod must have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dnsserver import corefile
from ipvsproxy.configfile import load_config
from tests.charts.cases import CASES, REFUSED
from tests.charts.helm import (
    CHARTS,
    KUBERNETES,
    NAMES,
    Object,
    Refused,
    Rendered,
    lint,
    notes,
    pod_specs,
    template,
    text,
)
from tools import charts

GOLDEN = Path(__file__).parent / "golden"
CUSTOM = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
"""Kinds whose schemas are the Prometheus operator's; what is needed of them is checked below."""
EVERY = [(chart, case) for chart in NAMES for case in CASES[chart]]


@cache
def rendered(chart: str, case: str, kubernetes: str = "1.36.0") -> Rendered:
    return template(chart, CASES[chart][case], kubernetes=kubernetes)


@cache
def _fits(document: str, version: str) -> bool:
    """Cached by the text: most objects are the same in most cases. Raises ValidationError."""
    kubernetes_validate.validate(yaml.safe_load(document), version, strict=True)
    return True


@pytest.fixture(autouse=True, scope="module")
def schemas_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
        yield


@pytest.mark.parametrize(("chart", "case"), EVERY)
def test_lint(chart: str, case: str) -> None:
    assert "0 chart(s) failed" in lint(chart, CASES[chart][case])


@pytest.mark.parametrize(("chart", "case"), EVERY)
def test_every_object_fits_the_schema_of_every_kubernetes(chart: str, case: str) -> None:
    for version in KUBERNETES:
        for document in rendered(chart, case, version if version == KUBERNETES[0] else "1.36.0"):
            if document["kind"] not in CUSTOM:
                assert _fits(yaml.safe_dump(document), version.removesuffix(".0"))


@pytest.mark.parametrize("chart", NAMES)
@pytest.mark.parametrize("version", [KUBERNETES[0], KUBERNETES[-1], "1.25.0"])
def test_the_version_of_kubernetes_changes_nothing(chart: str, version: str) -> None:
    assert template(chart, kubernetes=version) == rendered(chart, "defaults")


@pytest.mark.parametrize("chart", NAMES)
def test_an_old_kubernetes_is_refused(chart: str) -> None:
    with pytest.raises(Refused, match=r"requires kubeVersion: >=1\.25-0"):
        template(chart, kubernetes="1.24.0")


@pytest.mark.parametrize(("chart", "values", "complaint"), [(c, *case) for c in NAMES for case in REFUSED[c]])
def test_refused(chart: str, values: Object, complaint: str) -> None:
    with pytest.raises(Refused) as refused:
        template(chart, values)
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("chart", "case", "file"),
    [
        ("ipvsproxy", "defaults", "ipvsproxy-defaults.yaml"),
        ("ipvsproxy", "kube-proxy's ConfigMap and additions", "ipvsproxy-kube-proxy.yaml"),
        ("ipvsproxy", "monitored", "ipvsproxy-monitored.yaml"),
        ("dnsserver", "address", "dnsserver-defaults.yaml"),
        ("dnsserver", "CoreDNS' ConfigMap, joining", "dnsserver-join.yaml"),
        ("dnsserver", "node-local", "dnsserver-node-local.yaml"),
        ("dnsserver", "proportional autoscaler", "dnsserver-autoscaler.yaml"),
    ],
)
def test_golden(chart: str, case: str, file: str) -> None:
    """A change of what is rendered shows in review. UPDATE_GOLDEN=1 writes the files anew."""
    now = text(chart, CASES[chart][case])
    path = GOLDEN / file
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(now)
    assert now == path.read_text()


def test_readmes_schemas_and_dashboards_are_current() -> None:
    for chart in charts.CHARTS:
        for path, content in charts.files(chart).items():
            assert path.read_text() == content, f"{path} is not current: run python -m tools.charts"


@pytest.mark.parametrize("chart", NAMES)
def test_every_value_is_documented(chart: str) -> None:
    source = (CHARTS / chart / "values.yaml").read_text()
    documented = {value.path for value in charts.values(source)}

    def undocumented(node: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        if path in documented:
            return []
        if not isinstance(node, dict):
            return [path]
        return [found for name, inner in node.items() for found in undocumented(inner, (*path, name))]

    assert undocumented(yaml.safe_load(source), ()) == []


# -- what must hold for whatever is rendered


@pytest.mark.parametrize(("chart", "case"), EVERY)
def test_labels(chart: str, case: str) -> None:
    for document in rendered(chart, case):
        labels = document["metadata"]["labels"]
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance"} <= labels.keys()
        if "helm.sh/hook" not in document["metadata"].get("annotations", {}):
            wanted = {f"app.kubernetes.io/{name}" for name in ("version", "component", "managed-by", "part-of")}
            assert {*wanted, "helm.sh/chart"} <= labels.keys()


@pytest.mark.parametrize(("chart", "case"), EVERY)
def test_selectors_find_their_pods_and_no_others(chart: str, case: str) -> None:
    objects = rendered(chart, case)
    templates = {
        o["metadata"]["name"]: o["spec"]["template"] for o in objects if o["kind"] in {"Deployment", "DaemonSet"}
    }
    for document in objects:
        if document["kind"] in {"Deployment", "DaemonSet"}:
            selector = document["spec"]["selector"]["matchLabels"]
            selected = [n for n, t in templates.items() if selector.items() <= t["metadata"]["labels"].items()]
            assert selected == [document["metadata"]["name"]]
        selector = document["spec"].get("selector", {}) if document["kind"] == "Service" else {}
        if selector and CASES[chart][case].get("deployment", {}).get("enabled", True):
            selected = [n for n, t in templates.items() if selector.items() <= t["metadata"]["labels"].items()]
            assert len(selected) == 1, f"Service {document['metadata']['name']} selects {selected}"


@pytest.mark.parametrize(("chart", "case"), EVERY)
def test_least_privilege(chart: str, case: str) -> None:
    objects = rendered(chart, case)
    for name, spec in pod_specs(objects):
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert "automountServiceAccountToken" in spec, name
        assert not spec.get("hostPID")
        assert not spec.get("hostIPC")
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            if container["image"] in {"side:1", "first:1"}:
                continue  # the user's own
            context = container["securityContext"]
            where = f"{name}/{container['name']}"
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["readOnlyRootFilesystem"] is True, where
            assert context["capabilities"]["drop"] == ["ALL"], where
            assert not context.get("privileged"), where
            allowed = {
                "ipvsproxy": {"NET_ADMIN"},
                "settings": {"NET_ADMIN"} | ({"SYS_MODULE"} if case == "modules" else set()),
                "cleanup": {"NET_ADMIN"},
                "address": {"NET_ADMIN"},
                "dnsserver": {"NET_BIND_SERVICE"} if spec.get("hostNetwork") else set(),
            }.get(container["name"], set())
            assert set(context["capabilities"].get("add", ())) == allowed, where
            if not spec.get("hostNetwork"):
                assert spec["securityContext"]["runAsNonRoot"] is True, where
                assert spec["securityContext"]["runAsUser"] == 65532, where
    assert not any("secrets" in rule.get("resources", ()) for o in objects for rule in o.get("rules") or ())
    assert not any("*" in (*rule["verbs"], *rule["resources"]) for o in objects for rule in o.get("rules") or ())


@pytest.mark.parametrize(("chart", "case"), EVERY)
def test_what_is_mounted_is_there(chart: str, case: str) -> None:
    objects = rendered(chart, case)
    maps = {o["metadata"]["name"] for o in objects if o["kind"] == "ConfigMap"}
    given = {v for key, v in CASES[chart][case].items() if key in {"existingConfigMap", "kubeconfigConfigMap"}}
    for name, spec in pod_specs(objects):
        volumes = {v["name"]: v for v in spec.get("volumes", ())}
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            for mount in container.get("volumeMounts", ()):
                assert mount["name"] in volumes, f"{name}/{container['name']}: {mount['name']}"
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps | given
        mounted = {
            m["name"] for c in (*spec.get("initContainers", ()), *spec["containers"]) for m in c.get("volumeMounts", ())
        }
        assert set(volumes) <= mounted | ({"config"} if "cleanup" in case else set()), f"{name}: mounted by nobody"


@pytest.mark.parametrize(("chart", "case"), EVERY)
def test_configuration_files_are_good(chart: str, case: str) -> None:
    for document in rendered(chart, case):
        data = document.get("data", {}) if document["kind"] == "ConfigMap" else {}
        if "config.yaml" in data:
            load_config(data["config.yaml"], "config.yaml", {})
        if "additions.yaml" in data:
            load_config(None, "", {}, (data["additions.yaml"], "additions.yaml"))
        if "Corefile" in data:
            config = corefile.load(data["Corefile"], env={"KUBE_DNS_SERVICE_HOST": "10.96.0.10"})
            assert all(block.keys for block in config.blocks)


@pytest.mark.parametrize(("chart", "case"), [(c, n) for c, n in EVERY if "monitored" in n])
def test_monitors(chart: str, case: str) -> None:
    objects = rendered(chart, case)
    labels = [spec["metadata"]["labels"] for spec in _templates(objects)]
    ports = {p["name"] for _, s in pod_specs(objects) for c in s["containers"] for p in c.get("ports", ())}
    monitors = [o for o in objects if o["kind"] in {"ServiceMonitor", "PodMonitor"}]
    assert len(monitors) == 1
    spec = monitors[0]["spec"]
    assert monitors[0]["apiVersion"] == "monitoring.coreos.com/v1"
    assert spec["namespaceSelector"] == {"matchNames": ["kube-system"]}
    selector = spec["selector"]["matchLabels"]
    if monitors[0]["kind"] == "PodMonitor":
        assert [e["port"] for e in spec["podMetricsEndpoints"]] == ["metrics"]
        assert "metrics" in ports
        assert all(selector.items() <= found.items() for found in labels)
    else:
        service = next(o for o in objects if o["kind"] == "Service" and o["spec"].get("clusterIP") == "None")
        assert selector.items() <= service["metadata"]["labels"].items()
        assert [e["port"] for e in spec["endpoints"]] == [p["name"] for p in service["spec"]["ports"]]


def _templates(objects: Rendered) -> list[Object]:
    return [o["spec"]["template"] for o in objects if o["kind"] in {"Deployment", "DaemonSet"}]


# -- single promises


def test_a_changed_configuration_rolls_the_pods() -> None:
    def checksum(objects: Rendered, kind: str) -> str:
        return str(objects.one(kind)["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    for chart, kind, values in (
        ("ipvsproxy", "DaemonSet", {"config": {"ipvs": {"scheduler": "lc"}}}),
        ("dnsserver", "Deployment", {"clusterDomain": "other.example"}),
    ):
        before = rendered(chart, "defaults")
        assert checksum(before, kind) != checksum(template(chart, values), kind)
        assert checksum(before, kind) == checksum(template(chart, {"podLabels": {"a": "b"}}), kind)


def test_a_field_that_kubernetes_does_not_know_yet_is_left_out() -> None:
    assert "trafficDistribution" not in rendered("dnsserver", "dual stack", "1.29.0").one("Service", "kube-dns")["spec"]
    assert "trafficDistribution" in rendered("dnsserver", "dual stack", "1.30.0").one("Service", "kube-dns")["spec"]


def test_the_service_is_what_addons_and_kubelets_know() -> None:
    service = rendered("dnsserver", "address").one("Service", "kube-dns")
    assert service["metadata"]["namespace"] == "kube-system"
    labels = service["metadata"]["labels"]
    assert labels["k8s-app"] == "kube-dns"
    assert labels["kubernetes.io/cluster-service"] == "true"
    assert labels["kubernetes.io/name"] == "CoreDNS"
    spec = service["spec"]
    assert spec["clusterIP"] == "10.96.0.10"
    assert spec["selector"] == {"k8s-app": "kube-dns"}
    assert [(p["name"], p["port"], p["protocol"]) for p in spec["ports"]] == [
        ("dns", 53, "UDP"),
        ("dns-tcp", 53, "TCP"),
        ("metrics", 9153, "TCP"),
    ]


def test_joining_makes_no_service_and_keeps_the_label() -> None:
    objects = rendered("dnsserver", "CoreDNS' ConfigMap, joining")
    assert [o["metadata"]["name"] for o in objects if o["kind"] == "Service"] == ["dnsserver-test"]
    deployment = objects.one("Deployment")["spec"]["template"]
    assert deployment["metadata"]["labels"]["k8s-app"] == "kube-dns"
    volume = next(v for v in deployment["spec"]["volumes"] if v["name"] == "config")
    assert volume["configMap"] == {"name": "coredns"}
    mount = next(m for m in deployment["spec"]["containers"][0]["volumeMounts"] if m["name"] == "config")
    assert mount["mountPath"] == "/etc/coredns"


def test_the_default_corefile_is_kubeadms() -> None:
    ours = corefile.load(rendered("dnsserver", "defaults").one("ConfigMap")["data"]["Corefile"])
    assert ours.digest == corefile.load(corefile.DEFAULT).digest


def test_pods_are_watched_only_where_they_are_verified() -> None:
    def resources(case: str) -> set[str]:
        rules = rendered("dnsserver", case).one("ClusterRole")["rules"]
        return {r for rule in rules for r in rule["resources"]}

    assert "pods" not in resources("defaults")
    assert "pods" in resources("own servers")
    assert "pods" in resources("pods of an existing Corefile")


@pytest.mark.parametrize(
    ("case", "host", "port"),
    [
        ("defaults", "127.0.0.1", 10256),
        ("other ports", "127.0.0.1", 20256),
        ("one address", "192.0.2.7", 10256),
    ],
)
def test_probes_ask_where_the_proxy_listens(case: str, host: str, port: int) -> None:
    container = rendered("ipvsproxy", case).one("DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: (get["host"], get["port"]) for name, get in paths.items()} == dict.fromkeys(paths, (host, port))
    assert {name: get["path"] for name, get in paths.items()} == {
        "startup": "/livez",
        "liveness": "/livez",  # /healthz also fails while the node is being drained: no reason to restart
        "readiness": "/healthz",
    }
    assert f"--healthz-bind-address={'0.0.0.0' if case == 'defaults' else host}:{port}" in container["args"]


def test_probes_ask_where_the_plugins_listen() -> None:
    container = rendered("dnsserver", "own servers").one("Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": 18080}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": 18181}
    ports = {(p["containerPort"], p.get("protocol", "TCP")) for p in container["ports"]}
    assert {(1053, "UDP"), (1053, "TCP"), (53, "UDP"), (53, "TCP"), (19153, "TCP")} <= ports


def test_the_api_servers_address_reaches_the_daemon() -> None:
    for chart, kind in (("ipvsproxy", "DaemonSet"), ("dnsserver", "Deployment")):
        container = rendered(chart, "address of the API server").one(kind)["spec"]["template"]["spec"]["containers"][0]
        env = {e["name"]: e.get("value") for e in container["env"]}
        assert (env["KUBERNETES_SERVICE_HOST"], env["KUBERNETES_SERVICE_PORT"]) == ("192.0.2.1", "6443")


@pytest.mark.parametrize("chart", NAMES)
def test_notes_print_the_next_command(chart: str) -> None:
    said = notes(chart)
    assert re.search(rf"kubectl -n kube-system rollout status \w+/{chart}\n", said)
    assert f"helm -n kube-system test {chart}" in said


def test_notes_warn_of_a_proxy_that_needs_a_proxy() -> None:
    assert "WARNING" in notes("ipvsproxy")
    for case in ("kube-proxy's ConfigMap", "kube-proxy's kubeconfig", "address of the API server"):
        assert "WARNING" not in notes("ipvsproxy", CASES["ipvsproxy"][case])
    assert "helm -n kube-system uninstall ipvsproxy" in notes("ipvsproxy", CASES["ipvsproxy"]["cleanup"])
