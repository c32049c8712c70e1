"""What the loop tells Prometheus: every figure counts what its name says, once."""

from __future__ import annotations

import asyncio
import errno

import msgspec

from ipvsproxy.dataplane import ChangeElements
from ipvsproxy.kernel.fake import Flow
from kubecore.model import EndpointSlice, Protocol, TrafficPolicy
from tests.builders import endpoint_slice, service
from tests.reconciling import World, world

WEB = service("web", "10.96.0.5")


def figure(it: World, name: str, **labels: str) -> float:
    value = it.registry.get_sample_value(f"kubeproxy_{name}", labels)
    assert value is not None, name
    return value


def piece(text: str, trigger_s: float = 0.0, suffix: str = "1") -> EndpointSlice:
    return msgspec.structs.replace(endpoint_slice("web", text, ":80", suffix=suffix), trigger_s=trigger_s)


async def test_changes_are_counted_when_they_arrive_and_pend_until_they_are_applied() -> None:
    async with world(WEB, piece("10.244.0.1")) as it:
        services = figure(it, "sync_proxy_rules_service_changes_total")
        slices = figure(it, "sync_proxy_rules_endpoint_changes_total")
        assert (services >= 1, slices >= 1) == (True, True), "the first list counts"
        it.put(piece("10.244.0.2"), piece("10.244.0.3", suffix="2"))
        await it.settle()
        assert figure(it, "sync_proxy_rules_endpoint_changes_total") == slices + 2
        assert figure(it, "sync_proxy_rules_service_changes_total") == services
        assert figure(it, "sync_proxy_rules_endpoint_changes_pending") == 0


async def test_what_cannot_be_applied_stays_pending() -> None:
    async with world(WEB, piece("10.244.0.1")) as it:
        it.fake.fail = lambda op: errno.ENOMEM if isinstance(op, ChangeElements) else 0
        it.put(service("new", "10.96.0.6"))
        for _ in range(50):
            await asyncio.sleep(0.005)
        assert figure(it, "sync_proxy_rules_service_changes_pending") == 1
        assert figure(it, "sync_proxy_rules_iptables_restore_failures_total", ip_family="IPv4") >= 1
        it.fake.fail = lambda op: 0
        await it.advance(60.0)
        assert figure(it, "sync_proxy_rules_service_changes_pending") == 0


async def test_programming_latency_is_measured_once_a_change() -> None:
    async with world(WEB, piece("10.244.0.1")) as it:
        count = "network_programming_duration_seconds_count"
        total = "network_programming_duration_seconds_sum"
        assert figure(it, count, ip_family="IPv4") == 0, "older than this process"
        it.put(piece("10.244.0.2", trigger_s=it.clock.time() - 0.5 + 1.0))
        await it.settle()
        assert figure(it, count, ip_family="IPv4") == 1
        await it.advance(1000.0)
        it.put(piece("10.244.0.3", trigger_s=it.clock.time() - 2.0, suffix="2"))
        await it.settle()
        assert figure(it, count, ip_family="IPv4") == 2, "the other slice did not change"
        assert figure(it, total, ip_family="IPv4") < 10.0
        it.put(msgspec.structs.replace(WEB, affinity_timeout_s=60))
        await it.settle()
        assert figure(it, count, ip_family="IPv4") == 2, "nor did any slice"


async def test_a_policy_without_a_local_endpoint_counts_in_its_family() -> None:
    gauge = "sync_proxy_rules_no_local_endpoints_total"
    local = service("web", "10.96.0.5", internal_policy=TrafficPolicy.LOCAL)
    async with world(local, piece("10.244.0.1@elsewhere")) as it:
        assert figure(it, gauge, ip_family="IPv4", traffic_policy="internal") == 1
        assert figure(it, gauge, ip_family="IPv6", traffic_policy="internal") == 0
        assert figure(it, gauge, ip_family="IPv4", traffic_policy="external") == 0
        it.put(piece(""))
        await it.settle()
        assert figure(it, gauge, ip_family="IPv4", traffic_policy="internal") == 0, "nobody has an endpoint"


async def test_flows_that_were_cut() -> None:
    dns = service("dns", "10.96.0.10", "53/UDP")
    pods = endpoint_slice("dns", "10.244.0.1 10.244.0.2", "53/UDP")
    async with world(dns, pods) as it:
        it.fake.flows = {Flow(Protocol.UDP, "10.96.0.10", 53, "10.244.0.1")}
        before = figure(it, "conntrack_reconciler_sync_duration_seconds_count", ip_family="IPv4")
        it.put(endpoint_slice("dns", "10.244.0.2", "53/UDP"))
        await it.settle()
        assert figure(it, "conntrack_reconciler_deleted_entries_total", ip_family="IPv4") == 1
        assert figure(it, "conntrack_reconciler_deleted_entries_total", ip_family="IPv6") == 0
        assert figure(it, "conntrack_reconciler_sync_duration_seconds_count", ip_family="IPv4") == before + 1
