"""A cluster as kubeadm makes it, in the API server stub: enough for real helm and kubectl to install and look around.

Workloads come up at once: a task plays the controllers that would set their status. No pod runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import yaml
from aiohttp import web

from tests.charts import protobuf
from tests.charts.helm import ROOT
from tests.lab.apiserver.cluster import Target
from tests.lab.apiserver.kinds import Kind
from tests.lab.apiserver.server import ApiServer

Object = dict[str, Any]
KUBE_PROXY_CONFIG = (ROOT / "tests/golden/proxy_kubeadm_config.yaml").read_text()
"""`config.conf` of kube-proxy's ConfigMap."""
_MERGE = "application/merge-patch+json"

KINDS = (
    Kind("apps", "v1", "Deployment", "deployments", namespaced=True, status=True, generation=True),
    Kind("apps", "v1", "DaemonSet", "daemonsets", namespaced=True, status=True, generation=True),
    Kind("", "v1", "Secret", "secrets", namespaced=True),
    Kind("", "v1", "ServiceAccount", "serviceaccounts", namespaced=True),
    Kind("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", namespaced=False),
    Kind("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", namespaced=True),
)

_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{cluster: {server: https://192.0.2.100:6443}, name: default}]
contexts: [{context: {cluster: default, user: default}, name: default}]
current-context: default
users: [{name: default, user: {tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token}}]
"""
COREFILE = """\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
"""


class KubeadmCluster(ApiServer):
    """The stub with the kinds of workloads, their scale, and what kubeadm leaves in a new cluster."""

    def __init__(self) -> None:
        super().__init__(bootstrap=True, service_cidrs=("10.96.0.0/12",))
        for kind in KINDS:
            self.registry.add(kind)
        for document in yaml.safe_load_all(_objects()):
            self.create(document)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/openapi/v2":  # an empty protobuf document: nothing is checked on the client's side
            return web.Response(content_type="application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        if request.path == "/openapi/v3":
            return web.json_response({"paths": {}})
        if "/secrets" in request.path and request.method in {"POST", "PUT", "DELETE"}:
            return await self._serve_secret(request)
        if request.content_type.startswith("application/apply-patch"):
            return await self._serve_apply(request)
        path = request.path.removesuffix("/scale")
        if path == request.path:
            return await super()._serve(request)
        namespace, plural, name = path.split("/")[-3:]
        kind, target = next(k for k in KINDS if k.plural == plural), Target(namespace, name)
        if request.method != "GET":
            asked = await request.json()
            self.patch(kind, target, _MERGE, {"spec": {"replicas": asked["spec"]["replicas"]}})
        found = self.shown(kind, self.get(kind, target).value)
        replicas = found["spec"].get("replicas", 1)
        scale = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": found["metadata"]}
        return web.json_response({**scale, "spec": {"replicas": replicas}, "status": {"replicas": replicas}})

    async def _serve_apply(self, request: web.Request) -> web.Response:
        """A server-side apply by an owner of everything in `spec`: its fields replace those that are there."""
        route = self._route(request)
        assert route is not None
        assert route.kind is not None
        new = yaml.safe_load(await request.read())
        old = self.find(route.kind, route.target.namespace, route.target.name)
        if old is None:
            return web.json_response(self.create_in(route.kind, route.target.namespace, new), status=201)
        merged = {**self.shown(route.kind, old.value), **new}
        for part in ("metadata", "spec"):
            merged[part] = {**old.value.get(part, {}), **new.get(part, {})}
        return web.json_response(self.put(merged))

    async def _serve_secret(self, request: web.Request) -> web.Response:
        """Writes of Secrets, which come in protobuf."""
        kind, body = KINDS[2], await request.read()
        if request.method == "DELETE":
            namespace, _, name = request.path.split("/")[-3:]
            self.delete(kind.kind, namespace, name)
            return web.json_response({"apiVersion": "v1", "kind": "Status", "status": "Success"})
        found = protobuf.secret(body)
        found["metadata"]["namespace"] = request.path.split("/")[4]
        return web.json_response(self.put(found), status=201 if request.method == "POST" else 200)

    @contextlib.asynccontextmanager
    async def with_controllers(self) -> AsyncIterator[None]:
        """Workloads come up while this is open."""
        task = asyncio.create_task(self._bring_up())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _bring_up(self) -> None:
        while True:
            nodes = self.objects("Node")
            for kind in KINDS[:2]:
                for found in self.objects(kind.kind):
                    status = _status(found, nodes)
                    if found.get("status") != status:
                        target = Target(found["metadata"]["namespace"], found["metadata"]["name"], "status")
                        self.patch(kind, target, _MERGE, {"status": status})
            await asyncio.sleep(0.05)


def _status(found: Object, nodes: list[Object]) -> Object:
    generation = found["metadata"].get("generation", 1)
    if found["kind"] == "Deployment":
        replicas = found["spec"].get("replicas", 1)
        names = ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")
        return {"observedGeneration": generation, **dict.fromkeys(names, replicas)}
    count = sum(_runs_on(found["spec"]["template"]["spec"], node["metadata"].get("labels") or {}) for node in nodes)
    names = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "numberAvailable")
    return {
        "observedGeneration": generation,
        "numberMisscheduled": 0,
        **dict.fromkeys((*names, "updatedNumberScheduled"), count),
    }


def _runs_on(spec: Object, labels: dict[str, str]) -> bool:
    if not (spec.get("nodeSelector") or {}).items() <= labels.items():
        return False
    required = (
        (spec.get("affinity") or {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    )
    terms = required["nodeSelectorTerms"] if required else []
    absent = [e["key"] for term in terms for e in term["matchExpressions"] if e["operator"] == "DoesNotExist"]
    return not any(key in labels for key in absent)


def _objects() -> str:
    config = yaml.safe_dump({"config.conf": KUBE_PROXY_CONFIG, "kubeconfig.conf": _KUBECONFIG})
    corefile = yaml.safe_dump({"Corefile": COREFILE})
    return f"""
apiVersion: v1
kind: Node
metadata: {{name: n1, labels: {{kubernetes.io/os: linux}}}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}]}}
---
apiVersion: v1
kind: Node
metadata: {{name: n2, labels: {{kubernetes.io/os: linux}}}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.2}}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: kube-proxy, namespace: kube-system, labels: {{app: kube-proxy}}}}
data: {_indented(config)}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: coredns, namespace: kube-system}}
data: {_indented(corefile)}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: kube-proxy, namespace: kube-system, labels: {{k8s-app: kube-proxy}}}}
spec:
  selector: {{matchLabels: {{k8s-app: kube-proxy}}}}
  updateStrategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: 1}}}}
  template:
    metadata: {{labels: {{k8s-app: kube-proxy}}}}
    spec:
      nodeSelector: {{kubernetes.io/os: linux}}
      containers: [{{name: kube-proxy, image: registry.k8s.io/kube-proxy:v1.36.0}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: coredns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{k8s-app: kube-dns}}}}
  strategy: {{type: RollingUpdate}}
  template:
    metadata: {{labels: {{k8s-app: kube-dns}}}}
    spec:
      containers: [{{name: coredns, image: registry.k8s.io/coredns/coredns:v1.13.1}}]
---
apiVersion: v1
kind: Service
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {{k8s-app: kube-dns, kubernetes.io/cluster-service: "true", kubernetes.io/name: CoreDNS}}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  selector: {{k8s-app: kube-dns}}
  ports:
  - {{name: dns, port: 53, targetPort: 53, protocol: UDP}}
  - {{name: dns-tcp, port: 53, targetPort: 53, protocol: TCP}}
  - {{name: metrics, port: 9153, targetPort: 9153, protocol: TCP}}
"""


def _indented(mapping: str) -> str:
    return "\n" + "".join(f"  {line}\n" for line in mapping.splitlines())
