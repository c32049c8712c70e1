"""ServiceImports from an API server: none defined yet, not permitted, and there."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import yaml
from structlog.testing import capture_logs

from dnsserver import names
from dnsserver.config import KubernetesConfig
from dnsserver.source import watched
from kubecore import log
from kubecore.model import ObjectKey, Resource
from tests.dns.running import COREFILE, Running, server
from tests.lab.apiserver import ApiServer, Policy
from tests.lab.apiserver.definitions import SERVICE_IMPORTS
from tests.lab.test_apiserver_client import client, eventually, following

SETTINGS = KubernetesConfig(
    zones=(names.from_text("cluster.local"), names.from_text("clusterset.local")),
    multicluster=(names.from_text("clusterset.local"),),
)
IN_SET = "default.svc.clusterset.local"
IMPORTED: dict[str, Any] = {
    "apiVersion": "multicluster.x-k8s.io/v1alpha1",
    "kind": "ServiceImport",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"type": "ClusterSetIP", "ips": ["10.42.0.1"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
}


def test_they_are_watched_only_where_configured() -> None:
    assert Resource.SERVICE_IMPORTS in {w.resource for w in watched([SETTINGS])}
    assert Resource.SERVICE_IMPORTS not in {w.resource for w in watched([KubernetesConfig(zones=SETTINGS.zones)])}


async def test_without_their_definition_there_are_none_and_they_come_with_it(tmp_path: Path) -> None:
    async with ApiServer() as api:
        with capture_logs() as logs:
            async with client(api, tmp_path) as requests, following(requests, *watched([SETTINGS])) as store:
                await store.wait_listed(Resource.SERVICES, Resource.SERVICE_IMPORTS)
                assert store.state.service_imports == {}
                api.create(SERVICE_IMPORTS)
                api.create(IMPORTED)
                await eventually(lambda: store.state.service_imports)
                assert store.state.service_imports[ObjectKey("default", "web")].ips == ("10.42.0.1",)
    (told, *_) = [entry for entry in logs if entry["event"] == log.WATCH_RESOURCE_MISSED]
    assert told["log_level"] == "warning"
    assert told["remedy"].startswith("install the CustomResourceDefinition of ServiceImports")


RULES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: dns}
rules:
- {apiGroups: [""], resources: [services, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
"""
TWO_ZONES = COREFILE.replace("in-addr.arpa ip6.arpa {{", "clusterset.local {{\n        multicluster clusterset.local")
TWO_ZONES = TWO_ZONES.replace("        fallthrough in-addr.arpa ip6.arpa\n", "")


async def test_the_clusters_own_names_do_not_depend_on_them(tmp_path: Path) -> None:
    """The role of another time, without them: ready all the same, and an error says what to add."""
    policy = Policy.of([yaml.safe_load(RULES)])
    async with ApiServer(policy=policy, tokens={"t": "dns"}, bootstrap=True) as api:
        api.create(SERVICE_IMPORTS)
        api.create(IMPORTED)
        (tmp_path / "kubeconfig").write_text(api.kubeconfig())
        environ = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "KUBERNETES_SERVICE_HOST": ""}
        # The process is waited for in threads, so that the API server, which lives in this loop, can answer it.
        with contextlib.ExitStack() as stack:
            running = server("--workers", "2", source="cluster", corefile=TWO_ZONES, env=environ)
            run = await asyncio.to_thread(stack.enter_context, running)
            await asyncio.to_thread(_denied, run)
            api.policy = None
            await asyncio.to_thread(run.wait, f"web.{IN_SET}", expected="NOERROR 10.42.0.1", timeout_s=40.0)
            assert await asyncio.to_thread(run.ask, f"gone.{IN_SET}") == "NXDOMAIN"
            api.delete("ServiceImport", "default", "web")
            await asyncio.to_thread(run.wait, f"web.{IN_SET}", expected="NXDOMAIN")


def _denied(run: Running) -> None:
    assert run.ask("gone.default.svc.cluster.local") == "NXDOMAIN"
    assert run.ask("kubernetes.default.svc.cluster.local") == "NOERROR 10.96.0.1"
    assert run.ask(f"web.{IN_SET}") == "SERVFAIL"
    requests = "coredns_kubernetes_rest_client_requests_total"
    assert run.metric(requests + r'{code="200",host="127.0.0.1:\d+",method="GET"}') >= 3
    assert run.metric(requests + r'{code="403",host="127.0.0.1:\d+",method="GET"}') >= 1
    for name in ("request_duration_seconds", "rate_limiter_duration_seconds"):
        series = f'coredns_kubernetes_rest_client_{name}_count{{host="127.0.0.1:\\d+",verb="GET"}}'
        assert run.metric(series) >= 4
    assert "resources: ['serviceimports'], verbs: ['list', 'watch']" in run.log
