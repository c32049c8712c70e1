"""A minute of churn: clients loop through every way into a Service while its endpoints come and go gracefully."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.demo import api, objects
from tests.demo.cluster import Cluster
from tests.lab.kernel.outcomes import servers

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

CHURN_S = 60.0
ROUNDS = 10
"""At least so many, however busy the machine."""
STREAMS = (
    ("client", "10.96.20.1:80", "tcp"),
    ("client", "[fd00:10:96::20:1]:80", "tcp"),
    ("client", "10.96.20.1:9000", "udp"),
    ("outside", "192.168.50.10:30081", "tcp"),
    ("outside", "192.168.50.11:30081", "tcp"),
    ("outside", "203.0.113.81:80", "tcp"),
    ("outside", "[2001:db8::81]:80", "tcp"),
)
_STEP_S = 0.25


def test_no_connection_fails(cluster: Cluster) -> None:
    """Readiness comes and goes, pods are added, terminate and are gone: 0 failed connections."""
    streams = {
        stream: cluster.host(stream[0]).traffic(stream[1], proto=stream[2], interval_s=0.05) for stream in STREAMS
    }
    spare = objects.spare_pods()["web-4"]
    deadline = time.monotonic() + CHURN_S
    for rounds, pod in enumerate(itertools.cycle(("web-1", "web-2", "web-3"))):
        if time.monotonic() > deadline and rounds >= ROUNDS:
            break
        cluster.call(api.scale_up, spare, "10.96.20.1:80")
        cluster.call(api.set_ready, "demo", pod, False)
        time.sleep(_STEP_S)
        cluster.call(api.set_ready, "demo", pod, True)
        cluster.call(api.delete, "Pod", "demo", "web-4")
        time.sleep(_STEP_S)
        cluster.call(api.finish, "demo", "web-4")
    time.sleep(_STEP_S)
    reports = {stream: traffic.stop() for stream, traffic in streams.items()}
    assert {stream: report.failures for stream, report in reports.items()} == {stream: [] for stream in STREAMS}
    assert all(set(report.answers) == {"web-1", "web-2", "web-3", "web-4"} for report in reports.values())
    assert set(servers(cluster.host("client").connect("10.96.20.1:80", count=6))) == {"web-1", "web-2", "web-3"}
