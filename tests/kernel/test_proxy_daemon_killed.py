"""kill -9 in the middle of the first programming, again and again: the next start goes on from whatever is there."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.builders import service
from tests.lab.kernel.net import Net
from tests.lab.kernel.outcomes import servers
from tests.proxy_daemon import IPVSPROXY, THIS, Site, backends, manifest

pytestmark = pytest.mark.kernel

SERVICES = 3000
# Kills as soon as the kernel lists more than so many virtual and real servers; bash alone, for a fork is too slow.
KILLER = "lines=(); until [ ${#lines[@]} -gt %d ]; do mapfile -t lines < /proc/net/ip_vs; done; kill -KILL %d"


def test_killed_while_it_programs(net: Net, tmp_path: Path) -> None:
    site = Site(net, tmp_path)
    site.put(THIS, service("web", "10.96.0.1 fd00:96::1", "80@30080"), *backends("web", "p1 p2"))
    site.start()
    connections = [site.host(who).open("10.96.0.1:80") for who in ("client", "node", "p1")]
    before = [c.first for c in connections]
    site.kill()
    many = []
    for number in range(SERVICES):
        name = f"s{number}"
        many.append(manifest(service(name, f"10.97.{number >> 8}.{number & 255}", "80")))
        many.append(manifest(backends(name, "p1 p2")[0]))
    (site.manifests / "many.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": many}))
    counts = []
    for threshold in (30, 2000, 7000):
        daemon = site.node.popen([*IPVSPROXY, "run", *site.options()])
        site.node.run(KILLER % (threshold, daemon.pid))
        assert daemon.wait() == -signal.SIGKILL
        keys = site.servers()
        counts.append(len(keys))
        assert [c.ping() for c in connections] == before, counts
        unserved = site.vips() - {key.split()[1].rpartition(":")[0] for key in keys}
        assert unserved == set(), "a routed address without a virtual server would lead to the host's own daemons"
    assert counts[0] < SERVICES, "it was killed before it was done"
    site.start()
    assert len({key for key in site.servers() if key.startswith("-t 10.97.")}) == SERVICES
    assert site.diff().code == 0
    assert [c.ping() for c in connections] == before
    for vip in ("10.97.0.0:80", f"10.97.{(SERVICES - 1) >> 8}.{(SERVICES - 1) & 255}:80", "10.96.0.1:80"):
        assert servers(site.client.connect(vip, count=2)) == {"p1": 1, "p2": 1}, vip
