"""The API server stub itself: as strict as the real one where a client can tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.lab.apiserver import ApiServer, Fault, Refusal
from tests.lab.apiserver.controllers import SliceController
from tests.lab.apiserver.kinds import KINDS
from tests.lab.apiserver.selectors import field_matcher, label_matcher
from tests.watching import service

SVC = "/api/v1/namespaces/default/services"


class Api:
    """Plain HTTP to a stub; answers as (status, body)."""

    def __init__(self, server: ApiServer, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http

    async def call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self.http.request(method, self.server.url + path, data=data, headers=headers) as response:
            return response.status, await response.json()

    async def ok(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        code, answer = await self.call(method, path, body, content_type)
        assert code in (200, 201), answer
        return answer

    async def refused(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> str:
        """The refusal in short: `409 Conflict: message`."""
        code, answer = await self.call(method, path, body, content_type)
        assert answer["kind"] == "Status", answer
        assert answer["code"] == code
        return f"{code} {answer['reason']}: {answer['message']}"

    def soon(self, changes: int) -> None:
        """Something else changes in a moment, and moves the version."""
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}}
        for i in range(changes):
            asyncio.get_running_loop().call_later(0.1, self.server.put, {**obj, "data": {"i": str(i)}})

    async def watch(self, path: str, lines: int) -> list[str]:
        """The first lines of a watch: `ADDED default/web`, `BOOKMARK`, `ERROR 410 Expired`."""
        found = []
        async with asyncio.timeout(5), self.http.get(self.server.url + path) as response:
            assert response.status == 200, await response.text()
            async for raw in response.content:
                found.append(_short(json.loads(raw)))
                if len(found) == lines:
                    break
        return found


def _short(event: Any) -> str:
    obj = event["object"]
    if event["type"] == "ERROR":
        return f"ERROR {obj['code']} {obj['reason']}"
    metadata = obj["metadata"]
    if event["type"] == "BOOKMARK":
        return "BOOKMARK" + (" END" if metadata.get("annotations") else "")
    return f"{event['type']} {metadata.get('namespace', '')}/{metadata['name']}"


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with ApiServer(bookmark_interval_s=0.1) as server, aiohttp.ClientSession() as http:
        yield Api(server, http)


def names(body: Any) -> list[str]:
    return [item["metadata"]["name"] for item in body["items"]]


# -- lists


async def test_pages_are_of_one_moment(api: Api) -> None:
    for name in "abcde":
        api.server.put(service(name))
    first = await api.ok("GET", f"{SVC}?limit=2")
    assert names(first) == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 3
    assert "kind" not in first["items"][0], "items of a list do not repeat their kind"
    api.server.delete("Service", "default", "d")
    api.server.put(service("bb"))
    api.server.put(service("e", 99))
    second = await api.ok("GET", f"{SVC}?limit=9&continue={first['metadata']['continue']}")
    assert names(second) == ["c", "d", "e"]
    assert second["items"][2]["spec"]["ports"][0]["port"] == 80
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in second["metadata"]
    assert names(await api.ok("GET", SVC)) == ["a", "b", "bb", "c", "e"]


async def test_a_compacted_continue_token_is_gone_but_comes_with_another(api: Api) -> None:
    for name in "abc":
        api.server.put(service(name))
    token = (await api.ok("GET", f"{SVC}?limit=1"))["metadata"]["continue"]
    api.server.put(service("d"))
    api.server.storage.compact()
    code, answer = await api.call("GET", f"{SVC}?limit=1&continue={token}")
    assert (code, answer["reason"]) == (410, "Expired")
    rest = await api.ok("GET", f"{SVC}?continue={answer['metadata']['continue']}")
    assert names(rest) == ["b", "c", "d"]


async def test_versions_in_lists(api: Api) -> None:
    old = api.server.put(service("a"))["metadata"]["resourceVersion"]
    api.server.put(service("b"))
    assert names(await api.ok("GET", f"{SVC}?resourceVersion={old}&resourceVersionMatch=Exact")) == ["a"]
    assert names(await api.ok("GET", f"{SVC}?resourceVersion={old}")) == ["a", "b"]
    assert names(await api.ok("GET", f"{SVC}?resourceVersion=0&limit=1")) == ["a", "b"], "the watch cache does not page"
    assert (await api.refused("GET", f"{SVC}?resourceVersion=99999")).startswith("504 Timeout: Timeout: Too large")
    assert (await api.refused("GET", f"{SVC}?resourceVersion=x")).startswith("500 ")
    assert (await api.refused("GET", f"{SVC}?resourceVersionMatch=Exact")).startswith("422 Invalid")
    api.server.storage.compact()
    assert (await api.refused("GET", f"{SVC}?resourceVersion={old}&resourceVersionMatch=Exact")).startswith(
        "410 Expired"
    )


async def test_one_namespace_or_all(api: Api) -> None:
    api.server.put(service("x/a"))
    api.server.put(service("y/b"))
    assert names(await api.ok("GET", "/api/v1/namespaces/x/services")) == ["a"]
    assert names(await api.ok("GET", "/api/v1/services")) == ["a", "b"]
    assert (await api.refused("GET", "/api/v1/services/a")).startswith("404")
    assert (await api.refused("GET", "/api/v1/namespaces/x/nodes")).startswith("404")


# -- selectors


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ("", {}, True),
        ("a=1", {"a": "1"}, True),
        ("a==1", {"a": "2"}, False),
        ("a!=1", {"a": "1"}, False),
        ("a!=1", {}, True),
        ("a", {"a": ""}, True),
        ("a", {}, False),
        ("!a", {}, True),
        ("!service.kubernetes.io/headless", {"service.kubernetes.io/headless": ""}, False),
        ("a in (1, 2)", {"a": "2"}, True),
        ("a in (1,2)", {}, False),
        ("a notin (1,2)", {"a": "1"}, False),
        ("a notin (1,2)", {}, True),
        ("a=1,b in (x,y),!c", {"a": "1", "b": "y"}, True),
        ("a=1,b in (x,y),!c", {"a": "1", "b": "y", "c": ""}, False),
    ],
)
def test_label_selectors(selector: str, labels: dict[str, str], *, matches: bool) -> None:
    assert label_matcher(selector)({"metadata": {"labels": labels}}) is matches


@pytest.mark.parametrize(
    ("kind", "selector", "obj", "matches"),
    [
        ("services", "spec.clusterIP!=None", {"spec": {"clusterIP": "None"}}, False),
        ("services", "spec.clusterIP!=None", {"spec": {}}, True),
        ("pods", "spec.nodeName=n1,status.phase=Up", {"spec": {"nodeName": "n1"}, "status": {"phase": "Up"}}, True),
        ("pods", "spec.nodeName=n1", {"spec": {"nodeName": "n2"}}, False),
        ("nodes", "metadata.name=n1", {"metadata": {"name": "n1"}}, True),
        ("configmaps", "metadata.name=a,metadata.namespace=b", {"metadata": {"name": "a", "namespace": "b"}}, True),
    ],
)  # fmt: skip
def test_field_selectors(kind: str, selector: str, obj: Any, *, matches: bool) -> None:
    chosen = next(k for k in KINDS if k.plural == kind)
    assert field_matcher(chosen, selector)(obj) is matches


async def test_bad_selectors_are_refused(api: Api) -> None:
    assert "unable to parse requirement" in await api.refused("GET", f"{SVC}?labelSelector=a%20b%20c")
    refusal = await api.refused("GET", f"{SVC}?fieldSelector=spec.ports%3D1")
    assert refusal.startswith("400 BadRequest")
    assert "field label not supported: spec.ports" in refusal


# -- watches


async def test_a_watch_from_a_version_tells_what_came_after_in_order(api: Api) -> None:
    version = api.server.put(service("a"))["metadata"]["resourceVersion"]
    api.server.put(service("b"))
    api.server.put(service("a", 81))
    api.server.delete("Service", "default", "b")
    assert await api.watch(f"{SVC}?watch=1&resourceVersion={version}", 3) == [
        "ADDED default/b", "MODIFIED default/a", "DELETED default/b",
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["", "&resourceVersion=0"])
async def test_a_watch_from_nowhere_begins_with_what_is_there(api: Api, version: str) -> None:
    api.server.put(service("a"))
    api.soon(2)
    assert await api.watch(f"{SVC}?watch=1&allowWatchBookmarks=1{version}", 2) == ["ADDED default/a", "BOOKMARK"]


async def test_where_the_version_does_not_move_there_is_no_bookmark(api: Api) -> None:
    version = api.server.put(service("a"))["metadata"]["resourceVersion"]
    query = f"?watch=1&allowWatchBookmarks=1&timeoutSeconds=1&resourceVersion={version}"
    assert await api.watch(SVC + query, 1) == []


async def test_a_watch_from_a_version_not_reached_yet_is_silent_until_it_is(api: Api) -> None:
    first = int(api.server.put(service("a"))["metadata"]["resourceVersion"])
    api.soon(4)
    query = f"?watch=1&allowWatchBookmarks=1&timeoutSeconds=2&resourceVersion={first + 3}"
    assert await api.watch(SVC + query, 1) == ["BOOKMARK"]


async def test_entering_a_selection_is_added_and_leaving_it_deleted(api: Api) -> None:
    version = api.server.put(service("a", shown="no"))["metadata"]["resourceVersion"]
    for shown in ("yes", "yes", "no"):
        api.server.put(service("a", 80 if shown == "no" else 81, shown=shown))
    api.server.put(service("a", 82, shown="yes"))
    api.server.put(service("a", 83, shown="yes"))
    assert await api.watch(f"{SVC}?watch=1&labelSelector=shown%3Dyes&resourceVersion={version}", 4) == [
        "ADDED default/a", "DELETED default/a", "ADDED default/a", "MODIFIED default/a",
    ]  # fmt: skip


async def test_a_streaming_list_is_marked_at_its_end(api: Api) -> None:
    api.server.put(service("a"))
    path = f"{SVC}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    assert await api.watch(path, 2) == ["ADDED default/a", "BOOKMARK END"]
    assert (await api.refused("GET", f"{SVC}?watch=1&sendInitialEvents=true")).startswith("422 Invalid")
    api.server.watch_list = False
    assert "unless the WatchList feature gate is enabled" in await api.refused("GET", path)


async def test_a_compacted_version_is_an_error_event(api: Api) -> None:
    version = api.server.put(service("a"))["metadata"]["resourceVersion"]
    api.server.put(service("b"))
    api.server.storage.compact()
    assert await api.watch(f"{SVC}?watch=1&resourceVersion={version}", 1) == ["ERROR 410 Expired"]


async def test_a_watch_ends_when_its_time_is_over(api: Api) -> None:
    async with asyncio.timeout(5), api.http.get(f"{api.server.url}{SVC}?watch=1&timeoutSeconds=1") as response:
        assert await response.read() == b""


# -- writes


async def test_a_service_gets_what_the_server_decides(api: Api) -> None:
    created = await api.ok(
        "POST", SVC, {"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}
    )
    spec, metadata = created["spec"], created["metadata"]
    assert {"uid", "creationTimestamp", "resourceVersion"} <= metadata.keys()
    assert spec["clusterIP"].startswith("10.96.")
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")
    assert (spec["sessionAffinity"], spec["internalTrafficPolicy"], spec["externalTrafficPolicy"]) == (
        "None", "Cluster", "Cluster",
    )  # fmt: skip
    port = spec["ports"][0]
    assert (port["protocol"], port["targetPort"]) == ("TCP", 80)
    assert 30000 <= port["nodePort"] < 32768


async def test_dual_stack_headless_and_external_name() -> None:
    async with ApiServer(service_cidrs=["10.96.0.0/16", "fd00:10:96::/112"]) as server:
        ports = [{"port": 80}]

        def spec(name: str, **fields: Any) -> Any:
            obj = {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name},
                "spec": {"ports": ports, **fields},
            }
            return server.create(obj)["spec"]

        both = spec("both", ipFamilyPolicy="PreferDualStack")
        assert both["ipFamilies"] == ["IPv4", "IPv6"]
        assert [":" in ip for ip in both["clusterIPs"]] == [False, True]
        assert spec("six", ipFamilies=["IPv6"])["clusterIP"].startswith("fd00:10:96::")
        assert spec("none", clusterIP="None")["clusterIPs"] == ["None"]
        assert "clusterIP" not in spec("ext", type="ExternalName", externalName="example.com")
        local = spec("lb", type="LoadBalancer", externalTrafficPolicy="Local")
        assert local["healthCheckNodePort"] in range(30000, 32768)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({}, "spec.ports: Required value"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port: Invalid value"),
        ({"ports": [{"port": 1, "protocol": "QUIC"}]}, 'spec.ports[0].protocol: Unsupported value: "QUIC"'),
        ({"ports": [{"port": 1}, {"port": 2}]}, "spec.ports[0].name: Required value"),
        ({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]}, "spec.ports[1]: Duplicate value"),
        ({"ports": [{"port": 1, "nodePort": 30000}]}, "may not be used when `type` is 'ClusterIP'"),
        ({"ports": [{"port": 1, "nodePort": 80}], "type": "NodePort"}, "not in the valid range"),
        ({"ports": [{"port": 1, "nodePort": 30999}], "type": "NodePort"}, "already allocated"),
        ({"ports": [{"port": 1}], "clusterIP": "10.96.0.77"}, "already allocated"),
        ({"type": "ExternalName"}, "spec.externalName: Required value"),
    ],
)
async def test_services_no_server_would_take(api: Api, spec: Any, problem: str) -> None:
    taken = {"type": "NodePort", "clusterIP": "10.96.0.77", "ports": [{"port": 1, "nodePort": 30999}]}
    await api.ok("POST", SVC, {"metadata": {"name": "taken"}, "spec": taken})
    refusal = await api.refused("POST", SVC, {"metadata": {"name": "web"}, "spec": spec})
    assert refusal.startswith("422 Invalid")
    assert problem in refusal


async def test_updates_know_their_version(api: Api) -> None:
    created = await api.ok("POST", SVC, {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}})
    path = f"{SVC}/web"
    created["spec"]["ports"][0]["port"] = 81
    updated = await api.ok("PUT", path, created)
    assert updated["metadata"]["resourceVersion"] != created["metadata"]["resourceVersion"]
    assert (await api.refused("PUT", path, created)).startswith(
        "409 Conflict: Operation cannot be fulfilled on services"
    )
    again = await api.ok("PUT", path, updated)
    assert again == updated, "an update that changes nothing is no new version"
    del updated["metadata"]["resourceVersion"], updated["spec"]["clusterIP"], updated["spec"]["clusterIPs"]
    assert (await api.ok("PUT", path, updated))["spec"]["clusterIP"] == created["spec"]["clusterIP"]
    updated["spec"]["clusterIP"] = "10.96.9.9"
    assert "may not change once set" in await api.refused("PUT", path, updated)
    assert (await api.refused("POST", SVC, {"metadata": {"name": "web"}})).startswith("409 AlreadyExists")
    assert (await api.refused("PUT", f"{SVC}/none", {"metadata": {"name": "none"}})).startswith("404 NotFound")


@pytest.mark.parametrize(
    ("content_type", "patch"),
    [
        ("application/merge-patch+json", {"metadata": {"labels": {"x": "y", "old": None}}}),
        ("application/strategic-merge-patch+json", {"metadata": {"labels": {"x": "y", "old": None}}}),
        ("application/json-patch+json", [
            {"op": "test", "path": "/metadata/labels/old", "value": "1"},
            {"op": "remove", "path": "/metadata/labels/old"}, {"op": "add", "path": "/metadata/labels/x", "value": "y"},
        ]),
    ],
)  # fmt: skip
async def test_patches(api: Api, content_type: str, patch: Any) -> None:
    api.server.put(service("web", old="1", kept="2"))
    patched = await api.ok("PATCH", f"{SVC}/web", patch, content_type)
    assert patched["metadata"]["labels"] == {"kept": "2", "x": "y"}


async def test_patches_that_fail(api: Api) -> None:
    api.server.put(service("web"))
    stale = {"metadata": {"resourceVersion": "1"}}
    assert (await api.refused("PATCH", f"{SVC}/web", stale, "application/merge-patch+json")).startswith("409")
    wrong = [{"op": "test", "path": "/spec/ports/0/port", "value": 1}]
    assert (await api.refused("PATCH", f"{SVC}/web", wrong, "application/json-patch+json")).startswith("422")
    assert (await api.refused("PATCH", f"{SVC}/web", {}, "text/plain")).startswith("415")


async def test_a_strategic_patch_merges_ports_by_their_number(api: Api) -> None:
    await api.ok(
        "POST",
        SVC,
        {"metadata": {"name": "web"}, "spec": {"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}},
    )
    patch = {"spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81, "$patch": "delete"}]}}
    patched = await api.ok("PATCH", f"{SVC}/web", patch, "application/strategic-merge-patch+json")
    assert patched["spec"]["ports"] == [{"name": "a", "port": 80, "protocol": "TCP", "targetPort": 8080}]


async def test_status_has_its_own_path(api: Api) -> None:
    await api.ok("POST", SVC, {"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
                               "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}})  # fmt: skip
    ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}, "spec": {"externalName": "ignored"}}
    before = await api.ok("PATCH", f"{SVC}/web", ingress, "application/merge-patch+json")
    assert before["status"] == {"loadBalancer": {}}
    after = await api.ok("PATCH", f"{SVC}/web/status", ingress, "application/merge-patch+json")
    assert after["status"] == ingress["status"]
    assert (await api.refused("GET", "/apis/coordination.k8s.io/v1/namespaces/default/leases/x/status")).startswith(
        "404"
    )


async def test_deletion_waits_for_finalizers(api: Api) -> None:
    obj = service("web")
    obj["metadata"]["finalizers"] = ["example.com/wait"]
    api.server.put(obj)
    marked = await api.ok("DELETE", f"{SVC}/web")
    assert marked["metadata"]["deletionTimestamp"]
    await api.ok("PATCH", f"{SVC}/web", {"metadata": {"finalizers": None}}, "application/merge-patch+json")
    assert (await api.refused("GET", f"{SVC}/web")).startswith("404")


async def test_deletion_with_preconditions_and_of_collections(api: Api) -> None:
    for name, app in (("a", "x"), ("b", "x"), ("c", "y")):
        api.server.put(service(name, app=app))
    assert (await api.refused("DELETE", f"{SVC}/a", {"preconditions": {"uid": "other"}})).startswith("409")
    await api.ok("DELETE", f"{SVC}?labelSelector=app%3Dx")
    assert names(await api.ok("GET", SVC)) == ["c"]


async def test_a_dry_run_changes_nothing(api: Api) -> None:
    body = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
    assert (await api.ok("POST", f"{SVC}?dryRun=All", body))["spec"]["clusterIP"]
    assert names(await api.ok("GET", SVC)) == []


async def test_leases_are_guarded_by_their_version(api: Api) -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    spec = {"holderIdentity": "n1", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"}
    lease = await api.ok("POST", leases, {"metadata": {"name": "l"}, "spec": spec})
    lease["spec"]["holderIdentity"] = "n2"
    await api.ok("PUT", f"{leases}/l", lease)
    assert (await api.refused("PUT", f"{leases}/l", lease)).startswith("409")
    del lease["metadata"]["resourceVersion"]
    assert "must be specified for an update" in await api.refused("PUT", f"{leases}/l", lease)
    lease["spec"]["renewTime"] = "yesterday"
    assert (await api.refused("POST", leases, {"metadata": {"name": "m"}, "spec": lease["spec"]})).startswith("422")


async def test_a_fresh_cluster_is_strict_about_namespaces_and_ranges() -> None:
    async with ApiServer(bootstrap=True) as server, aiohttp.ClientSession() as http:
        api = Api(server, http)
        assert names(await api.ok("GET", "/api/v1/services")) == ["kubernetes"]
        assert "kube-system" in names(await api.ok("GET", "/api/v1/namespaces"))
        assert names(await api.ok("GET", "/apis/networking.k8s.io/v1/servicecidrs")) == ["kubernetes"]
        body = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
        assert 'namespaces "x" not found' in await api.refused("POST", "/api/v1/namespaces/x/services", body)
        body["spec"]["clusterIP"] = "192.0.2.1"  # type: ignore[index]
        assert "not in the valid range" in await api.refused("POST", SVC, body)
        await api.ok("POST", "/api/v1/namespaces", {"metadata": {"name": "x"}})
        server.put(service("x/a"))
        await api.ok("DELETE", "/api/v1/namespaces/x")
        assert names(await api.ok("GET", "/api/v1/services")) == ["kubernetes"]


async def test_custom_resources_are_served_once_defined(api: Api) -> None:
    crd = {
        "metadata": {"name": "pools.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"kind": "Pool", "plural": "pools"},
                 "versions": [{"name": "v1", "served": True, "subresources": {"status": {}}}]},
    }  # fmt: skip
    await api.ok("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    await api.ok("POST", "/apis/example.com/v1/namespaces/default/pools", {"metadata": {"name": "p"}, "spec": {}})
    assert names(await api.ok("GET", "/apis/example.com/v1/pools")) == ["p"]


async def test_discovery_and_health(api: Api) -> None:
    for path in ("/healthz", "/livez", "/readyz", "/readyz/ping"):
        async with api.http.get(api.server.url + path) as response:
            assert (response.status, await response.text()) == (200, "ok")
    assert "v1" in (await api.ok("GET", "/api"))["versions"]
    groups = {g["name"] for g in (await api.ok("GET", "/apis"))["groups"]}
    assert {"discovery.k8s.io", "networking.k8s.io", "coordination.k8s.io", "events.k8s.io"} <= groups
    listed = {r["name"]: r for r in (await api.ok("GET", "/api/v1"))["resources"]}
    assert listed["services"]["shortNames"] == ["svc"]
    assert listed["services/status"]["verbs"] == ["get", "patch", "update"]
    for unknown in ("/nothing", "/apis/none.example/v1", "/api/v1/sheep"):
        assert (await api.refused("GET", unknown)).startswith("404 NotFound")


async def test_can_i(api: Api) -> None:
    review = {"spec": {"resourceAttributes": {"verb": "list", "resource": "services"}}}
    answer = await api.ok("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert answer["status"] == {"allowed": True}


# -- controllers


def _pod(name: str, ip: str, **labels: str) -> Any:
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


async def test_slices_follow_pods_and_endpoints() -> None:
    server = ApiServer()
    controller = SliceController(server)
    server.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                   "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}})  # fmt: skip

    def addresses() -> list[tuple[str, list[str]]]:
        controller.settle()
        slices = server.objects("EndpointSlice")
        return [
            (s["metadata"]["labels"]["kubernetes.io/service-name"], [e["addresses"][0] for e in s["endpoints"]])
            for s in slices
        ]

    assert addresses() == []
    server.put(_pod("a", "10.1.0.1", app="web"))
    server.put(_pod("b", "10.1.0.2", app="other"))
    assert addresses() == [("web", ["10.1.0.1"])]
    server.put(_pod("b", "10.1.0.2", app="web"))
    assert addresses() == [("web", ["10.1.0.1", "10.1.0.2"])]
    server.storage.compact()
    server.delete("Pod", "default", "a")
    assert addresses() == [("web", ["10.1.0.2"])]
    server.create(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}}
    )
    server.put({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
                "subsets": [{"addresses": [{"ip": "192.0.2.5"}], "ports": [{"port": 5432}]}]})  # fmt: skip
    assert addresses() == [("db", ["192.0.2.5"]), ("web", ["10.1.0.2"])]
    server.delete("Service", "default", "web")
    assert addresses() == [("db", ["192.0.2.5"])]


# -- faults


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ({"what": "status", "code": 500}, "500 InternalError"),
        ({"what": "status", "code": 429, "retry_after_s": 3}, "429 TooManyRequests"),
        ({"what": "gone"}, "410 Expired"),
    ],
)
async def test_faults_can_be_ordered_over_http(api: Api, fault: Any, outcome: str) -> None:
    code, answer = await api.call("POST", "/_faults", {**fault, "resource": "services", "times": 2})
    assert (code, len(answer["waiting"])) == (200, 1)
    assert names(await api.ok("GET", "/api/v1/nodes")) == []
    for _ in range(2):
        assert (await api.refused("GET", SVC)).startswith(outcome)
    assert names(await api.ok("GET", SVC)) == []
    assert (await api.call("POST", "/_faults", {"what": "nonsense"}))[0] == 400


async def test_a_connection_cut_in_the_middle_of_a_line(api: Api) -> None:
    api.server.put(service("a"))
    api.server.put(service("b"))
    api.server.faults.add(Fault("cut", "services", "watch", after=1))
    received = b""

    async def read() -> None:
        nonlocal received
        async with api.http.get(f"{api.server.url}{SVC}?watch=1") as response:
            async for chunk in response.content.iter_any():
                received += chunk

    with pytest.raises(aiohttp.ClientError):
        await read()
    assert received.count(b"\n") == 1
    assert received.split(b"\n")[1].startswith(b'{"type":"ADDED"')


async def test_a_restart_can_lose_the_history(api: Api) -> None:
    version = api.server.put(service("a"))["metadata"]["resourceVersion"]
    await api.server.restart()
    api.soon(1)
    assert (await api.watch(f"{SVC}?watch=1&allowWatchBookmarks=1&resourceVersion={version}", 1)) == ["BOOKMARK"]
    await api.server.restart(lose_history=True)
    assert (await api.watch(f"{SVC}?watch=1&resourceVersion={version}", 1)) == ["ERROR 410 Expired"]
    await api.server.refuse()
    with pytest.raises(aiohttp.ClientConnectionError):
        await api.ok("GET", SVC)


def test_objects_put_from_python_are_taken_as_they_are() -> None:
    server = ApiServer()
    odd = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "odd"}, "spec": {"ports": "none"}}
    assert server.put(odd)["spec"] == {"ports": "none"}
    with pytest.raises(ValueError, match="no such kind"):
        server.put({"apiVersion": "v9", "kind": "Service", "metadata": {"name": "x"}})
    with pytest.raises(Refusal, match="DNS-1035 label"):
        server.create(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "9lives"}, "spec": {"ports": [{"port": 1}]}}
        )
