"""The file source: what the scenarios say, edits while it runs, and files that are broken or half written."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.types import EventDict

from kubecore import log
from kubecore.endpoints import merge_slices
from kubecore.files import FileSource, load
from kubecore.manifest import ManifestError
from kubecore.model import ObjectKey, Resource
from kubecore.snapshot import ClusterState
from kubecore.store import Store
from kubecore.watchproto import Watched
from tests.builders import key, slice_line

SCENARIOS = Path(__file__).parents[1] / "scenarios"


# -- the scenarios


def _forwarding(state: ClusterState) -> list[str]:
    """`ns/name 10.96.0.1:80/TCP @30080 -> 10.0.0.1:8080 …`: each service port and its ready endpoints."""
    lines = []
    for k, service in sorted(state.services.items()):
        merged = merge_slices(state.slices_of(k))
        for port in service.ports:
            where = service.cluster_ips[0] if service.cluster_ips else "headless"
            found = merged.get((4, port.name, port.protocol), {})
            targets = [f"{key.address}:{key.port}" for key, e in found.items() if e.ready]
            node_port = f" @{port.node_port}" if port.node_port else ""
            lines.append(" ".join([f"{k} {where}:{port.port}/{port.protocol.value}{node_port} ->", *targets]))
    return lines


@pytest.mark.parametrize(
    ("scenario", "lines"),
    [
        (
            "openshift",
            """
            test-loadbalancer/django-psql-example 172.30.7.213:8080/TCP @30927 -> 10.254.4.31:8080
            test-nodeport/django-psql-example 172.30.191.202:8080/TCP @32291 -> 10.254.4.30:8080 10.254.5.62:8080 10.254.5.63:8080
            test-services/django-psql-example 172.30.85.132:8080/TCP -> 10.254.4.24:8080 10.254.5.61:8080
            test-services/postgresql 172.30.194.95:5432/TCP -> 10.254.5.59:5432
            """,  # noqa: E501
        ),
        (
            "deep-dive",
            """
            default/deploy1 10.100.200.199:80/TCP -> 192.168.16.171:80 192.168.16.172:8080 192.168.16.173:80
            default/deploy1-5000 10.103.100.13:5000/TCP -> 192.168.16.171:80 192.168.16.172:80 192.168.16.173:80
            default/deploy1-nodeport 10.97.110.238:80/TCP @32000 -> 192.168.16.171:80 192.168.16.172:8080 192.168.16.173:80
            default/empty-headless headless:80/TCP ->
            default/kubernetes 10.96.0.1:443/TCP -> 10.0.2.15:6443
            default/my-headless-service headless:80/TCP -> 172.17.0.4:80 172.17.0.5:80 172.17.0.6:80
            default/my-lbs 10.110.153.149:5678/TCP @31434 ->
            default/my-non-headless-service 10.97.238.145:80/TCP -> 172.17.0.4:80 172.17.0.5:80 172.17.0.6:80
            default/my-service 10.99.12.62:443/TCP -> 140.82.118.4:443 216.58.207.131:443
            """,  # noqa: E501
        ),
        (
            "ingress",
            """
            kube-system/kube-dns 10.96.0.10:53/UDP -> 10.244.0.2:53 10.244.1.2:53
            kube-system/kube-dns 10.96.0.10:53/TCP -> 10.244.0.2:53 10.244.1.2:53
            kube-system/kube-dns 10.96.0.10:9153/TCP -> 10.244.0.2:9153 10.244.1.2:9153
            kube-system/traefik-ingress-service 10.96.7.7:80/TCP @30080 -> 192.168.50.11:80
            kube-system/traefik-ingress-service 10.96.7.7:8080/TCP @30088 -> 192.168.50.11:8080
            """,
        ),
    ],
)
def test_scenario(scenario: str, lines: str) -> None:
    state, problems = load(SCENARIOS / f"{scenario}.yaml")
    assert problems == ()
    assert state.is_listed(*Resource)
    assert _forwarding(state) == [line.strip() for line in lines.strip().splitlines()]


def test_all_scenarios_from_their_directory() -> None:
    state, problems = load(SCENARIOS)
    assert problems == ()
    singles = [load(file)[0] for file in sorted(SCENARIOS.glob("*.yaml"))]
    assert len(state.services) == sum(len(s.services) for s in singles)
    assert _forwarding(state) == sorted((x for s in singles for x in _forwarding(s)), key=_forwarding(state).index)


def test_openshift_names() -> None:
    state, _ = load(SCENARIOS / "openshift.yaml")
    assert state.services[key("test-services/minio")].external_name == "minio.ocp4.labs.semperti.local"
    [ingress] = state.services[key("test-loadbalancer/django-psql-example")].ingress
    assert ingress.ip == ""
    assert ingress.hostname.endswith(".elb.amazonaws.com")
    [piece] = state.slices_of(key("test-services/django-psql-example"))
    assert slice_line(piece) == (
        "web:8080/TCP: 10.254.4.24@worker0.ocp4.labs.semperti.local 10.254.5.61@worker2.ocp4.labs.semperti.local"
    )


def test_deep_dive_conditions_and_hostnames() -> None:
    state, _ = load(SCENARIOS / "deep-dive.yaml")
    assert [slice_line(s) for s in state.slices_of(key("deploy1"))] == [
        ":80/TCP: 192.168.16.171@k8smaster 192.168.16.173@k8smaster 192.168.16.174!@k8smaster",
        ":8080/TCP: 192.168.16.172@k8smaster",
    ]
    assert [slice_line(s) for s in state.slices_of(key("my-headless-service"))] == [
        "http:80/TCP: 172.17.0.4@k8smaster=web-0 172.17.0.5@k8smaster 172.17.0.6@k8smaster",
    ]
    assert [slice_line(s) for s in state.slices_of(key("my-non-headless-service"))] == [
        "http:80/TCP: 172.17.0.4@k8smaster 172.17.0.5@k8smaster 172.17.0.6@k8smaster",
    ]
    assert state.slices_of(key("empty-headless")) == ()


def test_ingress_policies() -> None:
    state, _ = load(SCENARIOS / "ingress.yaml")
    service = state.services[key("kube-system/traefik-ingress-service")]
    assert (service.health_check_node_port, service.affinity_timeout_s) == (31999, 600)
    assert service.source_ranges == ("192.168.50.0/24", "203.0.113.0/24")
    assert (service.external_policy.value, service.internal_policy.value) == ("Local", "Cluster")
    [piece] = state.slices_of(service.key)
    assert slice_line(piece) == "web:80/TCP,admin:8080/TCP: 192.168.50.11@node-b/zone-2 10.244.1.9~@node-a/zone-1"
    assert {n.name: n.zone for n in state.nodes.values()} == {"node-a": "zone-1", "node-b": "zone-2"}


# -- one shot


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere: No such file or directory; give a directory of manifests"):
        load(tmp_path / "nowhere")


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    """`plan --source <(kubectl get … -o yaml)` must not show an empty cluster."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ManifestError, match=r"pipe: neither a file nor a directory; give a directory of manifests"):
        load(tmp_path / "pipe", [])


def test_an_empty_directory_is_an_empty_cluster_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.yaml").write_text("[")
    (tmp_path / "below.yaml").mkdir()
    state, [hint] = load(tmp_path)
    assert state == ClusterState()
    assert "no manifests in it" in str(hint)


def test_a_broken_file_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    (tmp_path / "b.yml").write_text(_service("b", 80) + "---\n" + _service("bad", 99999))
    (tmp_path / "c.json").write_text('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}}')
    state, problems = load(tmp_path)
    assert [str(k) for k in state.services] == ["default/b"]
    assert [str(k) for k in state.namespaces] == ["c"]
    assert [(Path(p.file).name, p.line, p.field) for p in problems] == [
        ("a.yaml", 1, ""),
        ("b.yml", 21, "spec.ports[0].port"),
    ]


def test_of_two_definitions_the_later_file_holds(tmp_path: Path) -> None:
    (tmp_path / "20.yaml").write_text(_service("web", 81))
    (tmp_path / "10.yaml").write_text(_service("web", 80))
    state, [problem] = load(tmp_path)
    assert _ports(state) == {"web": 81}
    assert (Path(problem.file).name, problem.line) == ("10.yaml", 1)
    assert "also defined in" in problem.reason
    assert "20.yaml:1, which holds" in problem.reason


def test_only_what_is_watched(tmp_path: Path) -> None:
    shutil.copy(SCENARIOS / "deep-dive.yaml", tmp_path)
    state, _ = load(tmp_path, [Watched(Resource.SERVICES, field_selector="spec.clusterIP!=None")])
    assert key("deploy1") in state.services
    assert key("my-headless-service") not in state.services
    assert not state.pods
    assert not state.slices
    assert not state.is_listed(Resource.PODS)


def test_slices_are_derived_from_pods_that_are_not_watched() -> None:
    state, _ = load(SCENARIOS / "deep-dive.yaml", [Watched(Resource.ENDPOINT_SLICES)])
    assert len(state.slices_of(key("deploy1"))) == 2
    assert not state.pods


# -- while it runs


def _service(name: str, port: int, selector: str = "") -> str:
    """Ten lines of a Service."""
    return f"""apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: 10.96.0.{sum(name.encode()) % 250 + 1}
  selector: {{{selector}}}
  type: ClusterIP
  ports:
  - port: {port}
"""


def _pod(name: str, ip: str, ready: str = "True") -> str:
    return (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}}},"
        f" status: {{podIP: {ip}, conditions: [{{type: Ready, status: '{ready}'}}]}}}}\n"
    )


def _ports(state: ClusterState) -> dict[str, int]:
    return {k.name: s.ports[0].port for k, s in state.services.items()}


def _addresses(state: ClusterState, name: str) -> list[str]:
    slices = state.slices_of(ObjectKey("default", name))
    return [e.addresses[0] for s in slices for e in s.endpoints if e.ready]


@contextlib.asynccontextmanager
async def _running(path: Path) -> AsyncIterator[tuple[Store, list[EventDict]]]:
    store = Store()
    with capture_logs() as logs:
        task = asyncio.create_task(FileSource(path, poll_s=0.01).run(store))
        try:
            yield store, logs
            assert not task.done()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files have no events
            await asyncio.sleep(0.005)


async def _looks(store: Store, count: int = 6) -> None:
    """Wait until the source has looked that often again."""
    goal = store.figures[Resource.SERVICES].requests + count
    await _until(lambda: store.figures[Resource.SERVICES].requests >= goal)


def _rejections(logs: list[EventDict]) -> list[EventDict]:
    return [e for e in logs if e["event"] == log.MANIFEST_FILE_REJECTED]


async def test_a_change_touches_the_services_concerned_only(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(_service("a", 80) + "---\n" + _service("b", 80))
    async with _running(tmp_path) as (store, _):
        await store.wait_listed(Resource.SERVICES)
        store.take_changes()
        (tmp_path / "a.yaml").write_text(_service("a", 80) + "---\n" + _service("b", 81))
        await _until(lambda: _ports(store.state) == {"a": 80, "b": 81})
        assert store.take_changes().services == {ObjectKey("default", "b")}
        (tmp_path / "a.yaml").touch()
        await _looks(store)
        assert not store.take_changes()


async def test_changes_of_one_file_come_in_one_go(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("---\n".join(_service(f"s{i}", 80) for i in range(20)))
    seen: list[set[int]] = []
    async with _running(tmp_path) as (store, _):
        await store.wait_listed(Resource.SERVICES)
        for port in (81, 82):
            file.write_text("---\n".join(_service(f"s{i}", port) for i in range(20)))
            store.take_changes()
            while set(_ports(store.state).values()) != {port}:
                async with asyncio.timeout(20):
                    await store.wait_changed()
                store.take_changes()
                seen.append(set(_ports(store.state).values()))
    assert seen == [{81}, {82}]


async def test_an_object_that_moves_to_another_file_is_never_missing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(_service("web", 80))
    async with _running(tmp_path) as (store, _):
        await store.wait_listed(Resource.SERVICES)
        store.take_changes()
        (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
        await _looks(store, 10)
        assert _ports(store.state) == {"web": 80}
        assert store.figures[Resource.SERVICES].deletes == 0


@pytest.mark.parametrize(
    ("broken", "line", "field"),
    [
        (_service("web", 81) + "---\nkind: [\n", 13, ""),
        (_service("web", 81) + "---\n" + _service("db", 99999), 21, "spec.ports[0].port"),
        (_service("web", 81).replace("port: 81", "port: '81'"), 10, "spec.ports[0].port"),
        (_service("web", 81) + "  externalIPs: [192.0.2.1]\n  type: ClusterIP\n", 12, "spec.type"),
    ],
    ids=["syntax", "range", "type", "duplicate key"],
)
async def test_a_broken_file_keeps_its_last_good_content(tmp_path: Path, broken: str, line: int, field: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(_service("web", 80))
    async with _running(tmp_path) as (store, logs):
        await store.wait_listed(Resource.SERVICES)
        file.write_text(broken)
        await _until(lambda: _rejections(logs))
        await _looks(store)
        [said] = _rejections(logs)
        assert (said["file"], said["line"], said["field"], said["log_level"]) == (str(file), line, field, "error")
        assert said["reason"]
        assert _ports(store.state) == {"web": 80}
        (tmp_path / "other.yaml").write_text(_service("other", 80))
        await _until(lambda: _ports(store.state) == {"web": 80, "other": 80})
        file.write_text(_service("web", 82))
        await _until(lambda: _ports(store.state) == {"web": 82, "other": 80})
        assert len(_rejections(logs)) == 1


async def test_a_file_is_read_when_its_writer_is_done(tmp_path: Path) -> None:
    """A writer that pauses for less than a look: the halves never show."""
    file = tmp_path / "a.yaml"
    file.write_text(_service("a", 80) + "---\n" + _service("b", 80))
    store, looks = Store(), asyncio.Queue[None]()
    gate = asyncio.Semaphore(0)

    async def sleep(_: float) -> None:
        looks.put_nowait(None)
        await gate.acquire()

    reading = FileSource(tmp_path, sleep=sleep)
    task = asyncio.create_task(reading.run(store))
    try:
        await looks.get()
        for half in (_service("a", 81)[:60], _service("a", 81), _service("a", 81) + "---\n" + _service("b", 81)):
            file.write_text(half)
            gate.release()
            await looks.get()
            assert _ports(store.state) == {"a": 80, "b": 80}
        gate.release()
        await looks.get()
        assert _ports(store.state) == {"a": 81, "b": 81}
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_slices_follow_pods_until_the_service_has_slices_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "svc.yaml").write_text(_service("web", 80, "app: web"))
    (tmp_path / "p1.yaml").write_text(_pod("p1", "10.0.0.1"))
    own = tmp_path / "slice.yaml"
    async with _running(tmp_path) as (store, _):
        await _until(lambda: _addresses(store.state, "web") == ["10.0.0.1"])
        (tmp_path / "p2.yaml").write_text(_pod("p2", "10.0.0.2"))
        await _until(lambda: _addresses(store.state, "web") == ["10.0.0.1", "10.0.0.2"])
        (tmp_path / "p1.yaml").write_text(_pod("p1", "10.0.0.1", ready="False"))
        await _until(lambda: _addresses(store.state, "web") == ["10.0.0.2"])
        own.write_text(
            "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, endpoints: [{addresses:"
            " [10.9.9.9]}], metadata: {name: web-own, labels: {kubernetes.io/service-name: web}}}",
        )
        await _until(lambda: _addresses(store.state, "web") == ["10.9.9.9"])
        own.unlink()
        await _until(lambda: _addresses(store.state, "web") == ["10.0.0.2"])
        (tmp_path / "svc.yaml").unlink()
        await _until(lambda: not store.state.slices)


async def test_a_mounted_config_map_is_swapped_at_once(tmp_path: Path) -> None:
    """The kubelet changes all files by renaming one symbolic link, `..data`."""
    for version, port in (("..v1", 80), ("..v2", 81)):
        (tmp_path / version).mkdir()
        for name in ("a", "b"):
            (tmp_path / version / f"{name}.yaml").write_text(_service(name, port))
    (tmp_path / "..data").symlink_to("..v1")
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")
    async with _running(tmp_path) as (store, _):
        await store.wait_listed(Resource.SERVICES)
        assert _ports(store.state) == {"a": 80, "b": 80}
        (tmp_path / "..data_tmp").symlink_to("..v2")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        shutil.rmtree(tmp_path / "..v1")
        await _until(lambda: _ports(store.state) == {"a": 81, "b": 81})
        assert store.figures[Resource.SERVICES].deletes == 0


async def test_a_single_file_may_be_replaced_and_even_vanish_for_a_while(tmp_path: Path) -> None:
    file = tmp_path / "cluster.manifest"
    file.write_text(_service("web", 80))
    async with _running(file) as (store, logs):
        await store.wait_listed(Resource.SERVICES)
        new = tmp_path / "new"
        new.write_text(_service("web", 81))
        new.replace(file)
        await _until(lambda: _ports(store.state) == {"web": 81})
        file.unlink()
        await _until(lambda: any(e["event"] == log.MANIFEST_PATH_UNREADABLE for e in logs))
        await _looks(store)
        assert _ports(store.state) == {"web": 81}
        file.write_text(_service("web", 82))
        await _until(lambda: _ports(store.state) == {"web": 82})
    assert [e["event"] for e in logs].count(log.MANIFEST_PATH_UNREADABLE) == 1
    assert [e["event"] for e in logs].count(log.MANIFEST_PATH_RESTORED) == 1


async def test_a_directory_that_comes_later(tmp_path: Path) -> None:
    directory = tmp_path / "later"
    async with _running(directory) as (store, logs):
        await _until(lambda: any(e["event"] == log.MANIFEST_PATH_UNREADABLE for e in logs))
        assert not store.state.is_listed(Resource.SERVICES)
        staging = tmp_path / "staging"
        staging.mkdir()
        (staging / "a.yaml").write_text(_service("web", 80))
        staging.rename(directory)
        await asyncio.wait_for(store.wait_listed(Resource.SERVICES), 20)
        assert _ports(store.state) == {"web": 80}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_an_unreadable_file_keeps_its_content(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(_service("web", 80))
    async with _running(tmp_path) as (store, logs):
        await store.wait_listed(Resource.SERVICES)
        file.chmod(0)
        await _until(lambda: _rejections(logs))
        assert _ports(store.state) == {"web": 80}
