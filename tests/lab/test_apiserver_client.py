"""The API client against the stub over real sockets: TLS, tokens that rotate, plugins, proxies, RBAC, writes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from kubecore.access import load_access
from kubecore.api import ApiClient, ApiError, ConnectionFailed, Exchange
from kubecore.model import Resource
from kubecore.reflector import Reflector
from kubecore.store import Store
from kubecore.throttle import Limits
from kubecore.watchproto import Watched
from tests.lab.apiserver import ApiServer, Asked, Authority, Fault, Policy
from tests.lab.apiserver.rbac import User
from tests.unit.test_access import plugin
from tests.watching import service

WATCHED = [Watched(Resource.SERVICES), Watched(Resource.NODES)]


def client(server: ApiServer, directory: Path, user: dict[str, Any] | None = None, **cluster: Any) -> ApiClient:
    """A client by way of a kubeconfig for the stub."""
    path = directory / "kubeconfig"
    path.write_text(server.kubeconfig(user, **cluster))
    return ApiClient(load_access(kubeconfig=str(path), environ={}), user_agent="test/1")


@contextlib.asynccontextmanager
async def following(api: ApiClient, *watched: Watched) -> AsyncIterator[Store]:
    """A store that a reflector feeds meanwhile."""
    store = Store()
    task = asyncio.create_task(Reflector(api, watched or WATCHED, waits_s=(0.02, 0.5)).run(store))
    try:
        yield store
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def eventually(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is anything
            await asyncio.sleep(0.01)


# -- what is told of requests


async def test_every_request_is_told_of(tmp_path: Path) -> None:
    told: list[Exchange] = []
    async with ApiServer() as server:
        (tmp_path / "kubeconfig").write_text(server.kubeconfig())
        access = load_access(kubeconfig=str(tmp_path / "kubeconfig"), environ={})
        async with ApiClient(access, user_agent="test/1", limits=Limits(qps=20, burst=1), observe=told.append) as api:
            await api.request("GET", "/version")
            with pytest.raises(ApiError):
                await api.request("POST", "/api/v1/namespaces/gone/events", {})
            await server.refuse()
            with pytest.raises(ConnectionFailed):
                await api.request("GET", "/version")
        assert [(e.method, e.status) for e in told] == [("GET", 200), ("POST", told[1].status), ("GET", 0)]
        assert told[1].status >= 400
        assert {e.host for e in told} == {server.url.removeprefix("http://")}
        assert told[0].waited_s < told[1].waited_s
        assert all(e.took_s > 0.0 for e in told)


# -- TLS


async def test_tls_with_the_kubeconfigs_authority(tmp_path: Path) -> None:
    async with ApiServer(tls=True, tokens={"t": "u"}) as server, client(server, tmp_path) as api:
        assert (await api.request("GET", "/version"))["major"] == "1"
        server.put(service("a"))
        async with following(api) as store:
            await store.wait_listed(Resource.SERVICES, Resource.NODES)
            assert len(store.state.services) == 1


@pytest.mark.parametrize(
    ("cluster", "complaint"),
    [
        ({"certificate-authority-data": "OTHER"}, "its certificate is not accepted"),
        ({"tls-server-name": "elsewhere.example"}, "its certificate is not accepted"),
    ],
)
async def test_a_server_that_is_not_who_it_should_be(tmp_path: Path, cluster: dict[str, str], complaint: str) -> None:
    async with ApiServer(tls=True) as server:
        config = yaml.safe_load(server.kubeconfig())
        if cluster.get("certificate-authority-data") == "OTHER":
            (tmp_path / "other.pem").write_text(Authority().pem)
            del config["clusters"][0]["cluster"]["certificate-authority-data"]
            cluster = {"certificate-authority": "other.pem"}
        config["clusters"][0]["cluster"].update(cluster)
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        access = load_access(kubeconfig=str(tmp_path / "kubeconfig"), environ={})
        async with ApiClient(access, user_agent="test/1") as api:
            with pytest.raises(ConnectionFailed, match=complaint):
                await api.request("GET", "/version")


async def test_a_server_name_of_its_own_and_no_verification(tmp_path: Path) -> None:
    async with ApiServer(tls=True, names=["api.internal"]) as server:
        named: dict[str, Any] = {"tls-server-name": "api.internal"}
        async with client(server, tmp_path, **named) as api:
            assert await api.request("GET", "/version")
        blind: dict[str, Any] = {"insecure-skip-tls-verify": True}
        async with client(server, tmp_path, **blind) as api:
            assert await api.request("GET", "/version")


@pytest.mark.parametrize("inline", [True, False])
async def test_a_client_certificate(tmp_path: Path, *, inline: bool) -> None:
    async with ApiServer(tls=True, tokens={"unused": "x"}) as server:
        assert server.authority is not None
        pair = server.authority.issue("system:node:n1", groups=["system:nodes"])
        user = {"client-certificate": "cert.pem", "client-key": "key.pem"}
        (tmp_path / "cert.pem").write_text(pair.chain_pem)
        (tmp_path / "key.pem").write_text(pair.key_pem)
        if inline:
            user = {f"{k}-data": base64.b64encode((tmp_path / v).read_bytes()).decode() for k, v in user.items()}
        async with client(server, tmp_path, user) as api:
            await api.request("GET", "/api/v1/nodes")
        assert server.recorded[-1].user == "system:node:n1"


async def test_certificates_replaced_on_disk_are_used_and_running_watches_go_on(tmp_path: Path) -> None:
    async with ApiServer(tls=True, tokens={"unused": "x"}) as server:
        assert server.authority is not None

        def write(name: str) -> None:
            assert server.authority is not None
            pair = server.authority.issue(name)
            (tmp_path / "cert.pem").write_text(pair.chain_pem)
            (tmp_path / "key.pem").write_text(pair.key_pem)

        write("first")
        async with (
            client(server, tmp_path, {"client-certificate": "cert.pem", "client-key": "key.pem"}) as api,
            following(api) as store,
        ):
            await store.wait_listed(Resource.SERVICES)
            write("second")
            await api.request("GET", "/api/v1/nodes")
            assert server.recorded[-1].user == "second"
            server.put(service("a"))
            await eventually(lambda: len(store.state.services) == 1)
            assert store.figures[Resource.SERVICES].failures == 0


# -- tokens


async def test_a_pods_token_is_read_again_when_it_is_replaced(tmp_path: Path) -> None:
    async with ApiServer(tls=True, tokens={"one": "system:serviceaccount:ns:sa"}) as server:
        assert server.authority is not None
        (tmp_path / "token").write_text("one")
        (tmp_path / "ca.crt").write_text(server.authority.pem)
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
        access = load_access(environ=environ, service_account=tmp_path)
        async with ApiClient(access, user_agent="test/1") as api, following(api) as store:
            await store.wait_listed(Resource.SERVICES)
            server.tokens = {"two": "system:serviceaccount:ns:sa"}
            server.break_connections()
            server.put(service("a"))
            await asyncio.sleep(0.1)
            assert not store.state.services, "the old token is refused"
            (tmp_path / "token").write_text("two\n")
            await eventually(lambda: len(store.state.services) == 1)
            assert store.figures[Resource.SERVICES].lists == 1, "resumed, not listed again"


async def test_a_plugin_is_asked_again_when_its_token_is_refused(tmp_path: Path) -> None:
    user = plugin(tmp_path, """give(token=f"token-{n}")""")
    async with ApiServer(tokens={"token-1": "a"}) as server, client(server, tmp_path, user) as api:
        assert await api.request("GET", "/api/v1/services")
        server.tokens = {"token-2": "a"}
        assert await api.request("GET", "/api/v1/services")
        assert (tmp_path / "runs").read_text() == "2"
        server.tokens = {"other": "a"}
        with pytest.raises(ApiError, match="401 Unauthorized"):
            await api.request("GET", "/api/v1/services")
        assert (tmp_path / "runs").read_text() == "3", "asked once more, not for ever"


async def test_a_plugin_that_fails_is_a_failed_connection_with_its_words(tmp_path: Path) -> None:
    user = plugin(tmp_path, "sys.exit('please log in')")
    async with ApiServer() as server, client(server, tmp_path, user) as api:
        with pytest.raises(ConnectionFailed, match="please log in"):
            await api.request("GET", "/version")


# -- connections


async def test_no_server_no_proxy_no_name(tmp_path: Path) -> None:
    server = ApiServer()
    await server.start()
    async with client(server, tmp_path) as api:
        await server.stop()
        with pytest.raises(ConnectionFailed, match=rf"http://127.0.0.1:{server.port}: "):
            await api.request("GET", "/version")
    own: dict[str, Any] = {"proxy-url": f"http://127.0.0.1:{server.port}"}
    async with client(server, tmp_path, **own) as api:
        with pytest.raises(ConnectionFailed, match="the proxy is not reachable"):
            await api.request("GET", "/version")


async def test_a_server_that_speaks_no_tls(tmp_path: Path) -> None:
    async with ApiServer() as server:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(server.kubeconfig().replace("http://", "https://"))
        async with ApiClient(load_access(kubeconfig=str(kubeconfig), environ={}), user_agent="test/1") as api:
            with pytest.raises(
                ConnectionFailed, match=r"no TLS connection: \[SSL.*: check that the server speaks https"
            ):
                await api.request("GET", "/version")


async def test_a_proxy_is_used_and_a_cidr_in_no_proxy_avoids_it(tmp_path: Path) -> None:
    through: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        through.append((await reader.readline()).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    environ = {"HTTP_PROXY": f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"}
    async with proxy, ApiServer() as server:
        (tmp_path / "kubeconfig").write_text(server.kubeconfig().replace("127.0.0.1", "192.0.2.1"))
        access = load_access(kubeconfig=str(tmp_path / "kubeconfig"), environ=environ)
        async with ApiClient(access, user_agent="test/1") as api:
            assert await api.request("GET", "/version") == {}
        assert through == [f"GET http://192.0.2.1:{server.port}/version HTTP/1.1\r\n"]
        spared = {**environ, "NO_PROXY": "192.0.2.0/24"}
        assert load_access(kubeconfig=str(tmp_path / "kubeconfig"), environ=spared).proxy is None


async def test_neither_netrc_nor_proxy_variables_interfere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with ApiServer(tokens={"t": "u"}) as server, client(server, tmp_path) as api:
        assert await api.request("GET", "/api/v1/nodes")


async def test_a_gateways_path_stays_in_front(tmp_path: Path) -> None:
    async with ApiServer() as server, client(server, tmp_path) as api:
        elsewhere = load_access(server=f"{server.url}/k8s/clusters/c1", environ={}, service_account=tmp_path)
        async with ApiClient(elsewhere, user_agent="test/1") as through:
            with pytest.raises(ApiError, match="404 NotFound"):
                await through.request("GET", "/version")
        assert server.recorded[-1].asked.path == "/k8s/clusters/c1/version"
        assert await api.request("GET", "/version")
        assert server.recorded[-1].user_agent == "test/1"


# -- RBAC

ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: watcher}
rules:
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [ours]
  verbs: [get]
- apiGroups: [""]
  resources: [nodes]
  resourceNames: [n1]
  verbs: [list, watch]
"""


async def test_what_no_rule_allows_is_logged_with_the_rule_and_holds_up_nothing_else(tmp_path: Path) -> None:
    policy = Policy.of([yaml.safe_load(ROLE)])
    async with ApiServer(tokens={"t": "system:serviceaccount:ns:sa"}, policy=policy) as server:
        server.put(service("a"))
        with capture_logs() as logs:
            async with client(server, tmp_path) as api, following(api) as store:
                await store.wait_listed(Resource.SERVICES)
                await eventually(lambda: any(e["event"] == "watch.request.denied" for e in logs))
                assert not store.state.is_listed(Resource.NODES)
                policy.roles["ClusterRole", "", "watcher"][2].pop("resourceNames")
                await store.wait_listed(Resource.NODES)
        denied = next(e for e in logs if e["event"] == "watch.request.denied")
        assert (
            denied["remedy"]
            == "add to our ClusterRole: apiGroups: [''], resources: ['nodes'], verbs: ['list', 'watch']"
        )
        assert "system:serviceaccount:ns:sa" in denied["detail"]


async def test_every_request_is_recorded_in_rbacs_terms(tmp_path: Path) -> None:
    async with ApiServer() as server, client(server, tmp_path) as api:
        with pytest.raises(ApiError):
            await api.request("GET", "/api/v1/namespaces/kube-system/configmaps/ours")
        await api.request("GET", "/apis/discovery.k8s.io/v1/endpointslices")
        await api.request("GET", "/api/v1/nodes", query=[("fieldSelector", "metadata.name=n1")])
        lease = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}}
        await api.request("POST", "/apis/coordination.k8s.io/v1/namespaces/ns/leases", lease)
        assert [r.asked for r in server.recorded] == [
            Asked("get", "", "configmaps", "kube-system", "ours"),
            Asked("list", "discovery.k8s.io", "endpointslices"),
            Asked("list", "", "nodes", "", "n1"),
            Asked("create", "coordination.k8s.io", "leases", "ns"),
        ]


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        (Asked("list", "", "services"), True),
        (Asked("get", "", "services", "ns", "a"), False),
        (Asked("get", "", "configmaps", "ns", "ours"), True),
        (Asked("get", "", "configmaps", "ns", "theirs"), False),
        (Asked("watch", "", "nodes", "", "n1"), True),
        (Asked("watch", "", "nodes"), False),
        (Asked("list", "apps", "services"), False),
        (Asked("patch", "", "services/status", "ns", "a"), False),
    ],
)
def test_rules(asked: Asked, *, allowed: bool) -> None:
    assert Policy.of([yaml.safe_load(ROLE)]).allows(User("x"), asked) is allowed


def test_bindings_decide_who_has_a_role() -> None:
    binding = {
        "kind": "RoleBinding", "metadata": {"name": "b", "namespace": "ns"},
        "roleRef": {"kind": "ClusterRole", "name": "watcher"},
        "subjects": [{"kind": "ServiceAccount", "name": "sa"}],
    }  # fmt: skip
    policy = Policy.of([yaml.safe_load(ROLE), binding])
    mine = User("system:serviceaccount:ns:sa")
    assert policy.allows(mine, Asked("list", "", "services", "ns"))
    assert not policy.allows(mine, Asked("list", "", "services"))
    assert not policy.allows(User("system:serviceaccount:other:sa"), Asked("list", "", "services", "ns"))


# -- writes


async def test_errors_carry_the_servers_status(tmp_path: Path) -> None:
    async with ApiServer() as server, client(server, tmp_path) as api:
        with pytest.raises(ApiError) as told:
            await api.request("DELETE", "/api/v1/namespaces/default/services/none")
        assert (told.value.status, told.value.reason) == (404, "NotFound")
        assert told.value.message == 'services "none" not found'


async def test_an_event_is_created_and_counted_up(tmp_path: Path) -> None:
    event = {
        "metadata": {"generateName": "web.", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "ipvsproxy", "reportingInstance": "n1",
        "action": "Sync", "reason": "Degraded", "type": "Warning", "note": "no endpoints",
        "regarding": {"kind": "Service", "namespace": "default", "name": "web"},
    }  # fmt: skip
    events = "/apis/events.k8s.io/v1/namespaces/default/events"
    async with ApiServer() as server, client(server, tmp_path) as api:
        created = await api.request("POST", events, event)
        series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}}
        name = created["metadata"]["name"]
        patched = await api.request("PATCH", f"{events}/{name}", series, content_type="application/merge-patch+json")
        assert patched["series"]["count"] == 2
        core = await api.request("GET", f"/api/v1/namespaces/default/events/{name}")
        assert (core["message"], core["involvedObject"]["name"]) == ("no endpoints", "web")
        with pytest.raises(ApiError, match="reportingInstance: Required value"):
            await api.request("POST", events, {**event, "reportingInstance": ""})


async def test_a_slow_answer_is_given_up(tmp_path: Path) -> None:
    async with ApiServer() as server, client(server, tmp_path) as api:
        server.faults.add(Fault("slow", "services", "list"))
        with pytest.raises(ConnectionFailed, match="no answer in time"):
            await api.request("GET", "/api/v1/services", timeout_s=0.1)
