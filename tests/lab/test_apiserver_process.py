"""The stub as a process, as end-to-end tests and the demo run it: manifests in, a kubeconfig out, faults over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubecore.access import load_access
from kubecore.api import ApiClient, ApiError
from kubecore.model import ObjectKey, Resource
from kubecore.reflector import Reflector
from kubecore.store import Store
from kubecore.watchproto import Watched

ROOT = Path(__file__).parents[2]
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: ["", discovery.k8s.io], resources: [services, endpointslices], verbs: [get, list, watch, patch]}]
"""


@pytest.fixture
async def kubeconfig(tmp_path: Path) -> AsyncIterator[Path]:
    """A stub with the deep-dive scenario, TLS, a token and a role."""
    path, role = tmp_path / "kubeconfig", tmp_path / "role.yaml"
    role.write_text(ROLE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.lab.apiserver", "--manifests", "tests/scenarios/deep-dive.yaml", "--controllers",
        "--tls", "--token", "secret=system:serviceaccount:kube-system:x", "--rbac", str(role),
        "--kubeconfig-out", str(path),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert (await process.stdout.readline()).startswith(b"serving https://127.0.0.1:")
    yield path
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await process.wait() == 0


async def test_a_client_finds_everything_and_survives_a_restart(kubeconfig: Path) -> None:
    store, web = Store(), ObjectKey("default", "deploy1")
    watched = [Watched(Resource.SERVICES), Watched(Resource.ENDPOINT_SLICES)]
    async with ApiClient(load_access(kubeconfig=str(kubeconfig), environ={}), user_agent="test/1") as api:
        task = asyncio.create_task(Reflector(api, watched, waits_s=(0.02, 0.2)).run(store))
        await asyncio.wait_for(store.wait_listed(Resource.SERVICES, Resource.ENDPOINT_SLICES), 10)
        assert store.state.services[web].cluster_ips
        assert [e for piece in store.state.slices_of(web) for e in piece.endpoints], "derived from the Pods"
        with pytest.raises(ApiError, match="403 Forbidden"):
            await api.request("GET", "/api/v1/nodes")
        await api.request("POST", "/_faults", {"action": "restart", "lose_history": True, "down_s": 0.2})
        async with asyncio.timeout(10):
            while store.figures[Resource.SERVICES].lists < 2:
                store.take_changes()
                await store.wait_changed()
        patch = {"metadata": {"labels": {"seen": "yes"}}}
        path = "/api/v1/namespaces/default/services/deploy1"
        await api.request("PATCH", path, patch, content_type="application/merge-patch+json")
        async with asyncio.timeout(10):
            while dict(store.state.services[web].labels).get("seen") != "yes":
                store.take_changes()
                await store.wait_changed()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
