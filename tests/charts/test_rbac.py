"""The charts' roles are what the daemons need: enough to run, and not one permission more."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from ipvsproxy import events
from ipvsproxy.config import Config
from ipvsproxy.daemon import Daemon
from ipvsproxy.kernel.fake import FakeDataPlane
from ipvsproxy.model import Scheduler
from ipvsproxy.sources import WATCHED
from kubecore.access import load_access
from kubecore.api import ApiClient
from kubecore.reflector import Reflector
from tests.charts.helm import ROOT, Object, Rule, rules, template
from tests.lab.apiserver.definitions import SERVICE_IMPORTS
from tests.lab.apiserver.rbac import Policy
from tests.lab.apiserver.server import ApiServer

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "n1"},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]},
}


def stub(chart: str, values: Object) -> tuple[ApiServer, set[Rule]]:
    """An API server that permits what the chart's role says to its service account, and that role's rules.

    It has no streaming lists: with them nothing is listed, but older servers need the permission.
    """
    objects = template(chart, values)
    account = f"system:serviceaccount:kube-system:{objects.one('ServiceAccount', chart)['metadata']['name']}"
    return ApiServer(tokens={"secret": account}, policy=Policy.of(objects), bootstrap=True, watch_list=False), rules(
        objects, chart
    )


def used(server: ApiServer) -> set[Rule]:
    """What was asked for and granted; anything refused fails the test."""
    refused = [r for r in server.recorded if r.status in {401, 403}]
    assert refused == []
    return {Rule(r.asked.verb, r.asked.group, r.asked.resource) for r in server.recorded if r.asked.resource}


async def test_the_proxy_uses_every_rule_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MINIMUM_GAP_S", 0.0)  # so that a repeated event is patched at once
    server, granted = stub("ipvsproxy", {})
    async with server:
        server.create(NODE)
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(server.kubeconfig())
        client = ApiClient(load_access(kubeconfig=str(kubeconfig)), user_agent="ipvsproxy")
        daemon = Daemon(
            config=Config(healthz_bind=None, metrics_bind=None),
            node_name="n1",
            source=Reflector(client, WATCHED),
            client=client,
            dataplane=FakeDataPlane(),
            schedulers=frozenset(Scheduler),
            families=(4, 6),
        )
        stop = asyncio.Event()
        running = asyncio.create_task(daemon.run(stop))
        async with asyncio.timeout(20):
            await daemon.store.wait_listed(*(w.resource for w in WATCHED))
            daemon._record_start()  # the same event again
            while used(server) < granted:
                assert not running.done()
                await asyncio.sleep(0.05)
        stop.set()
        await running
        assert used(server) == granted


COREFILES: dict[str, Object] = {
    "the default": {},
    "pods verified": {
        "servers": [
            {
                "zones": [{"zone": "."}],
                "port": 53,
                "plugins": [
                    {"name": "health"},
                    {"name": "ready"},
                    {"name": "kubernetes", "parameters": "cluster.local", "configBlock": "pods verified"},
                    {"name": "autopath", "parameters": "@kubernetes"},
                    {"name": "forward", "parameters": ". 192.0.2.53"},
                ],
            }
        ]
    },
    "multicluster": {
        "servers": [
            {
                "zones": [{"zone": "."}],
                "port": 53,
                "plugins": [
                    {"name": "health"},
                    {"name": "ready"},
                    {
                        "name": "kubernetes",
                        "parameters": "cluster.local clusterset.local",
                        "configBlock": "multicluster clusterset.local",
                    },
                ],
            }
        ]
    },
}


@pytest.mark.parametrize("case", COREFILES)
async def test_the_dns_server_uses_every_rule_and_no_more(case: str, tmp_path: Path) -> None:
    values = COREFILES[case]
    server, granted = stub("dnsserver", values)
    text = template("dnsserver", values).one("ConfigMap", "dnsserver")["data"]["Corefile"]
    for plugin in ("health", "ready", "prometheus :9153"):  # on ports that are free here
        text = text.replace(f"    {plugin}", f"    {plugin.partition(' ')[0]} 127.0.0.1:{free_port()}")
    text = text.replace("lameduck 5s", "lameduck 0s")
    corefile, kubeconfig = tmp_path / "Corefile", tmp_path / "kubeconfig"
    corefile.write_text(text)
    async with server:
        server.create(SERVICE_IMPORTS)
        kubeconfig.write_text(server.kubeconfig())
        environ = {k: v for k, v in os.environ.items() if not k.startswith("KUBERNETES_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dnsserver", "run", "--config", str(corefile), "--listen", "127.0.0.1:0"),
            env={**environ, "KUBECONFIG": str(kubeconfig)},
            cwd=ROOT,
        )
        try:
            async with asyncio.timeout(30):
                while used(server) < granted:
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)  # for what it might want besides
            assert used(server) == granted
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
