"""The loop on a fake kernel: adopting, order, draining, drift, failures, restarts."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from ipvsproxy import planner, planning, reconciler, serviceplan
from ipvsproxy.config import Config, NodePortAddresses
from ipvsproxy.dataplane import (
    AddRealServer,
    AddVip,
    AddVirtualServer,
    ChangeElements,
    DataplaneError,
    DeleteRealServer,
    DeleteVip,
    DeleteVirtualServer,
    EditRealServer,
    HostNetwork,
    Op,
)
from ipvsproxy.draining import ANSWERS_S
from ipvsproxy.kernel.fake import FakeDataPlane, Flow
from ipvsproxy.model import (
    ActualRealServer,
    ActualVirtualServer,
    Element,
    InterfaceAddress,
    RealServerConfig,
    RealServerCounters,
    RealServerKey,
    Scheduler,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.model import EndpointSlice, Protocol, Resource, Service, ServiceType, TrafficPolicy
from tests.builders import endpoint_slice, key, node, service
from tests.reconciling import HOST, NODE, World, world

WEB = VirtualServerKey(4, Protocol.TCP, "10.96.0.5", 80)
ONE, TWO = RealServerKey("10.244.0.1", 80), RealServerKey("10.244.0.2", 80)
OPEN = RealServerCounters(active=3)


def web(text: str = "10.244.0.1 10.244.0.2") -> tuple[Service, EndpointSlice]:
    return service("web", "10.96.0.5"), endpoint_slice("web", text, ":80")


def weights(it: World, server: VirtualServerKey = WEB) -> dict[str, int]:
    return {k.address: r.config.weight for k, r in it.fake.virtual_servers[server].real_servers.items()}


async def test_before_both_lists_are_complete_our_table_is_made_and_nothing_else() -> None:
    async with world() as it:
        it.put(*web())
        it.launch()
        it.list_all([Resource.SERVICES])
        await _rounds()
        assert (it.fake.done, it.fake.calls) == ([], ["read_host", "dump_elements", "load_table"])
        assert not any(element.set.startswith(("service", "vip", "mark")) for element in it.fake.elements)
        it.list_all([Resource.ENDPOINT_SLICES])
        await it.settle()
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 1}


async def test_services_are_planned_while_the_lists_are_on_their_way() -> None:
    """Those with endpoints: the others' come later, as a rule. When the lists are complete, programming is left."""
    async with world() as it:
        it.launch()
        await _rounds()
        it.put(*web(), service("bare", "10.96.0.6"))
        await _rounds()
        assert set(it.reconciler._planner.plans) == {key("web")}
        it.list_all()
        await it.settle()
        assert {k.address for k in it.fake.virtual_servers} == {"10.96.0.5", "10.96.0.6"}


async def test_a_node_that_is_told_after_its_services_changes_what_was_planned() -> None:
    exposed = service("web", "10.96.0.5", ":80@30080", type=ServiceType.NODE_PORT)
    async with world(config=Config(node_port_addresses=NodePortAddresses(primary=True))) as it:
        it.launch()
        await _rounds()
        it.put(exposed, web()[1])
        await _rounds()
        it.put(node(NODE, "192.0.2.10"))
        it.list_all()
        await it.settle()
        assert {(k.address, k.port) for k in it.fake.virtual_servers} == {("10.96.0.5", 80), ("192.0.2.10", 30080)}


async def test_the_node_is_eligible_while_the_lists_are_on_their_way() -> None:
    """What an earlier run left in the kernel serves: a load balancer need not turn away because the API is slow."""
    async with world() as it:
        it.launch()
        await _rounds()
        assert not it.health.check(it.clock.time()).node_eligible
        it.put(node(NODE, "192.0.2.10"), *web())
        await _rounds()
        assert it.health.check(it.clock.time()).node_eligible
        it.put(node(NODE, "192.0.2.10", taints=("ToBeDeletedByClusterAutoscaler",)))
        await _rounds()
        assert not it.health.check(it.clock.time()).node_eligible


async def test_no_other_nodes_address_is_routed_because_nodes_are_listed_last() -> None:
    async with world() as it:
        it.put(service("web", "10.96.0.5", external_ips=("198.51.100.7", "192.0.2.11")), web()[1])
        it.launch()
        it.list_all([Resource.SERVICES, Resource.ENDPOINT_SLICES])
        await _rounds()
        assert it.fake.vips == {}
        it.put(node("node-b", "192.0.2.11"))
        it.list_all([Resource.NODES])
        await it.settle()
        assert {op.address for op in it.fake.done if isinstance(op, AddVip)} == {"10.96.0.5", "198.51.100.7"}


@pytest.mark.parametrize("external_ips", [(), ("198.51.100.7",)])
async def test_a_start_without_nodes_is_late_by_its_patience_at_most(
    monkeypatch: pytest.MonkeyPatch, external_ips: tuple[str, ...]
) -> None:
    monkeypatch.setattr(planning, "NODES_PATIENCE_S", 0.01 if external_ips else 3600.0)
    async with world() as it:
        it.put(service("web", "10.96.0.5", external_ips=external_ips), web()[1])
        it.launch()
        it.list_all([Resource.SERVICES, Resource.ENDPOINT_SLICES])
        await it.settle()
        assert set(it.fake.vips) == {"10.96.0.5", *external_ips}


async def _rounds() -> None:
    import asyncio

    for _ in range(50):
        await asyncio.sleep(0.001)


async def test_claims_come_before_virtual_servers_and_routes_last() -> None:
    async with world(*web()) as it:
        kinds = [type(op) for op in it.fake.done]
        assert kinds == [ChangeElements, AddVirtualServer, AddRealServer, AddRealServer, AddVip]
        assert it.fake.vips == {"10.96.0.5": ""}
        it.assert_picture_is_true()


async def test_the_api_server_and_dns_are_programmed_before_everything_else() -> None:
    many = [each for i in range(30) for each in (service(f"a{i}", f"10.96.1.{i}"),)]
    dns = service("kube-system/kube-dns", "10.96.0.10", "dns:53/UDP", labels="k8s-app=kube-dns")
    async with world(*many, dns, service("kubernetes", "10.96.0.1", "https:443")) as it:
        order = [op.key.address for op in it.fake.done if isinstance(op, AddVirtualServer)]
        assert order[:2] == ["10.96.0.1", "10.96.0.10"]
        routed = [op.address for op in it.fake.done if isinstance(op, AddVip)]
        assert routed[:2] == ["10.96.0.1", "10.96.0.10"]


async def test_an_unchanged_cluster_asks_nothing_of_the_kernel() -> None:
    async with world(*web()) as it:
        done, calls = len(it.fake.done), len(it.fake.calls)
        it.put(*web())
        it.reconciler._wake.set()
        await it.settle()
        assert (len(it.fake.done), len(it.fake.calls)) == (done, calls)


async def test_one_change_touches_one_virtual_server_and_dumps_nothing() -> None:
    others = [service(f"s{i}", f"10.97.0.{i}") for i in range(1, 100)]
    async with world(*web("10.244.0.1"), *others) as it:
        done, calls = len(it.fake.done), len(it.fake.calls)
        it.put(web()[1])
        await it.settle()
        assert it.fake.done[done:] == [AddRealServer(WEB, TWO, RealServerConfig())]
        assert it.fake.calls[calls:] == []


async def test_an_endpoint_with_connections_drains_and_goes_when_they_end() -> None:
    async with world(*web()) as it:
        it.fake.set_counters(WEB, TWO, OPEN)
        it.put(web("10.244.0.1")[1])
        await it.settle()
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 0}
        await it.advance(6)
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 0}
        it.fake.set_counters(WEB, TWO, RealServerCounters())
        await it.advance(6)
        assert weights(it) == {"10.244.0.1": 1}
        it.assert_picture_is_true()


async def test_an_endpoint_without_connections_goes_at_once() -> None:
    async with world(*web()) as it:
        it.put(web("10.244.0.1")[1])
        await it.settle()
        await it.advance(0.1)
        assert weights(it) == {"10.244.0.1": 1}


async def test_draining_ends_at_its_limit() -> None:
    async with world(*web()) as it:
        it.fake.set_counters(WEB, TWO, OPEN)
        it.put(web("10.244.0.1")[1])
        await it.settle()
        await it.advance(59)
        assert weights(it)["10.244.0.2"] == 0
        await it.advance(2)
        assert weights(it) == {"10.244.0.1": 1}


async def test_a_terminating_endpoint_that_serves_keeps_its_connections_however_long() -> None:
    async with world(*web()) as it:
        it.fake.set_counters(WEB, TWO, OPEN)
        it.put(web("10.244.0.1 10.244.0.2~")[1])
        await it.settle()
        await it.advance(3600)
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 0}


async def test_a_returning_endpoint_keeps_its_connections() -> None:
    async with world(*web()) as it:
        it.fake.set_counters(WEB, TWO, OPEN)
        it.put(web("10.244.0.1")[1])
        await it.settle()
        done = len(it.fake.done)
        it.put(web()[1])
        await it.settle()
        assert it.fake.done[done:] == [EditRealServer(WEB, TWO, RealServerConfig(1))]
        assert it.fake.virtual_servers[WEB].real_servers[TWO].counters == OPEN
        await it.advance(3600)
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 1}


async def test_udp_flows_of_a_dead_endpoint_are_cut_at_once() -> None:
    dns = service("dns", "10.96.0.10", "dns:53/UDP")
    async with world(dns, endpoint_slice("dns", "10.244.0.1 10.244.0.2", "dns:53/UDP")) as it:
        live = Flow(Protocol.UDP, "10.96.0.10", 53, "10.244.0.1")
        it.fake.flows = {live, Flow(Protocol.UDP, "10.96.0.10", 53, "10.244.0.2")}
        it.put(endpoint_slice("dns", "10.244.0.1", "dns:53/UDP"))
        await it.settle()
        assert weights(it, VirtualServerKey(4, Protocol.UDP, "10.96.0.10", 53)) == {"10.244.0.1": 1}
        assert it.fake.flows == {live}


@pytest.mark.parametrize("leaving", ["10.244.0.2!", "10.244.0.2~"], ids=["not ready", "terminating, serving"])
async def test_answers_under_way_from_a_udp_endpoint_that_is_still_there_arrive(leaving: str) -> None:
    dns = service("dns", "10.96.0.10", "dns:53/UDP")
    server = VirtualServerKey(4, Protocol.UDP, "10.96.0.10", 53)
    async with world(dns, endpoint_slice("dns", "10.244.0.1 10.244.0.2", "dns:53/UDP")) as it:
        live, going = (Flow(Protocol.UDP, "10.96.0.10", 53, pod) for pod in ("10.244.0.1", "10.244.0.2"))
        it.fake.flows = {live, going}
        it.put(endpoint_slice("dns", f"10.244.0.1 {leaving}", "dns:53/UDP"))
        await it.settle()
        assert (weights(it, server), it.fake.flows) == ({"10.244.0.1": 1, "10.244.0.2": 0}, {live, going})
        await it.advance(ANSWERS_S)
        assert (weights(it, server), it.fake.flows) == ({"10.244.0.1": 1}, {live})


async def test_a_udp_endpoint_that_goes_while_answers_are_under_way_is_cut_at_once() -> None:
    dns = service("dns", "10.96.0.10", "dns:53/UDP")
    server = VirtualServerKey(4, Protocol.UDP, "10.96.0.10", 53)
    async with world(dns, endpoint_slice("dns", "10.244.0.1 10.244.0.2", "dns:53/UDP")) as it:
        it.fake.flows = {Flow(Protocol.UDP, "10.96.0.10", 53, "10.244.0.2")}
        for text in ("10.244.0.1 10.244.0.2!", "10.244.0.1"):
            it.put(endpoint_slice("dns", text, "dns:53/UDP"))
            await it.settle()
        assert (weights(it, server), it.fake.flows) == ({"10.244.0.1": 1}, set())


async def test_deleting_a_service_unroutes_before_it_deletes() -> None:
    objects = web()
    async with world(*objects) as it:
        done = len(it.fake.done)
        it.delete(*objects)
        await it.settle()
        kinds = [type(op) for op in it.fake.done[done:]]
        assert kinds == [DeleteVip, DeleteVirtualServer, ChangeElements]
        assert (it.fake.virtual_servers, it.fake.vips, it.fake.elements & _claims(it)) == ({}, {}, set())


def _claims(it: World) -> set[Element]:
    return {e for e in it.fake.elements if e.set.startswith(("service", "vip"))}


async def test_a_restart_changes_nothing_in_a_kernel_that_is_right() -> None:
    async with world(*web()) as it:
        it.fake.set_counters(WEB, TWO, OPEN)
        done = len(it.fake.done)
        await it.restart()
        assert it.fake.done[done:] == []
        assert it.fake.virtual_servers[WEB].real_servers[TWO].counters == OPEN


async def test_a_restart_that_waits_for_the_lists_takes_nothing_away() -> None:
    async with world(*web()) as it:
        before, done = it.fake.elements, len(it.fake.done)
        await it.renew()
        it.launch()
        await _rounds()
        assert it.fake.calls[-1] == "load_table"
        assert (it.fake.elements, it.fake.done[done:]) == (before, [])


async def test_a_restart_hands_nothing_to_and_fro_between_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """The younger one comes first in the list, and in a portion of its own."""
    monkeypatch.setattr(reconciler, "START_PORTION", 1)
    rivals: list[Service | EndpointSlice] = [
        service("a-young", "10.96.0.6", ":53/UDP", external_ips=("198.51.100.1",), created_s=2.0),
        endpoint_slice("a-young", "10.244.0.1", ":53/UDP"),
        service("b-old", "10.96.0.7", ":53/UDP", external_ips=("198.51.100.1",), created_s=1.0),
        endpoint_slice("b-old", "10.244.0.2", ":53/UDP"),
    ]
    async with world(*rivals) as it:
        await it.renew()
        it.fake.done.clear()
        await it.start(*rivals)
        assert it.fake.done == []


async def test_a_table_lost_while_it_waits_for_the_lists_takes_no_claim_along() -> None:
    async with world() as it:
        await it.start(*web())
        await it.renew()
        it.launch()
        await _rounds()
        it.fake.drop_table()  # somebody's `nft flush ruleset`
        it.list_all()  # the Service has gone meanwhile
        await it.settle()
        assert it.fake.virtual_servers == {}
        assert it.fake.vips == {}
        it.assert_picture_is_true()


async def test_weights_and_schedulers_are_right_after_a_restart() -> None:
    async with world(*web()) as it:
        await it.stop()
        there = it.fake.virtual_servers[WEB]
        there.real_servers[TWO] = ActualRealServer(RealServerConfig(0), OPEN)
        there.real_servers[RealServerKey("10.244.9.9", 80)] = ActualRealServer(RealServerConfig(1), OPEN)
        it.fake.virtual_servers[WEB] = ActualVirtualServer(
            VirtualServerConfig(Scheduler.SH), there.real_servers, there.traffic
        )
        await it.restart()
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 1, "10.244.9.9": 0}
        assert it.fake.virtual_servers[WEB].config.scheduler is Scheduler.RR
        assert it.fake.virtual_servers[WEB].real_servers[TWO].counters == OPEN
        await it.advance(61)
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 1}


async def test_what_went_while_we_were_away_is_removed() -> None:
    objects = web()
    async with world(*objects, service("stays", "10.96.0.6")) as it:
        await it.stop()
        it.delete(*objects)
        await it.restart()
        assert {k.address for k in it.fake.virtual_servers} == {"10.96.0.6"}
        assert it.fake.vips == {"10.96.0.6": ""}
        it.assert_picture_is_true()


FOREIGN = VirtualServerKey(4, Protocol.TCP, "192.0.2.99", 443)


async def test_foreign_virtual_servers_are_never_touched() -> None:
    async with world() as it:
        foreign = ActualVirtualServer(VirtualServerConfig(Scheduler.WLC), {ONE: ActualRealServer(RealServerConfig(7))})
        it.fake.virtual_servers[FOREIGN] = foreign
        await it.start(*web())
        await it.advance(400)
        it.delete(*web())
        await it.settle()
        await it.restart()
        assert it.fake.virtual_servers == {FOREIGN: foreign}


async def test_what_kube_proxy_left_is_taken_over_without_touching_its_connections() -> None:
    async with world() as it:
        stale = VirtualServerKey(4, Protocol.TCP, "10.96.0.77", 80)
        node_port = VirtualServerKey(4, Protocol.TCP, "192.0.2.10", 30077)
        it.fake.device_addresses = {"10.96.0.5", "10.96.0.77"}
        it.fake.virtual_servers = {
            WEB: ActualVirtualServer(VirtualServerConfig(), {ONE: ActualRealServer(RealServerConfig(), OPEN)}),
            stale: ActualVirtualServer(VirtualServerConfig(), {}),
            node_port: ActualVirtualServer(VirtualServerConfig(), {}),
            FOREIGN: ActualVirtualServer(VirtualServerConfig(), {}),
        }
        await it.start(*web())
        assert set(it.fake.virtual_servers) == {WEB, FOREIGN}
        assert it.fake.virtual_servers[WEB].real_servers[ONE].counters == OPEN
        assert it.fake.device_addresses == set()
        assert it.fake.vips == {"10.96.0.5": ""}


@pytest.mark.parametrize("harm", ["server", "real server", "weight", "route", "element", "table", "rules"])
async def test_drift_is_repaired(harm: str) -> None:
    async with world(*web()) as it:
        there = it.fake.virtual_servers[WEB].real_servers
        wanted = it.fake.elements
        match harm:
            case "server":
                del it.fake.virtual_servers[WEB]
            case "real server":
                del there[ONE]
            case "weight":
                there[ONE] = ActualRealServer(RealServerConfig(5))
            case "route":
                it.fake.vips.clear()
                it.fake.tell("route")
            case "element":
                await it.fake.apply([ChangeElements(delete=(next(e for e in wanted if e.set == "vip4"),))])
                it.fake.tell("nft")
            case "table":
                it.fake.drop_table()
                it.fake.tell("nft")
            case "rules":
                it.fake.altered = True
                it.fake.tell("nft")
        noticed_at_once = harm in {"route", "element", "table", "rules"}
        await _rounds()
        await it.advance(0 if noticed_at_once else 301)
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 1}
        assert it.fake.vips == {"10.96.0.5": ""}
        assert it.fake.elements == wanted
        assert not it.fake.altered
        it.assert_picture_is_true()


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("harm", ["real server", "weight", "foreign real server"])
async def test_drift_while_it_starts_is_repaired(harm: str, *, restarted: bool) -> None:
    """Between the reading (or the acknowledgement) of a virtual server and the end of the start."""
    async with world() as it:
        if restarted:
            await it.start(*web())
            await it.renew()
        it.put(*web(), service("api", "10.96.0.6"))
        it.list_all()
        it.launch()
        while it.reconciler.picture is None or WEB not in it.fake.virtual_servers:  # noqa: ASYNC110 - in the midst of it
            await asyncio.sleep(0)
        assert not it.reconciler.in_step.is_set()
        there = it.fake.virtual_servers[WEB].real_servers
        match harm:
            case "real server":
                del there[ONE]
            case "weight":
                there[ONE] = ActualRealServer(RealServerConfig(0))
            case "foreign real server":
                there[RealServerKey("198.51.100.1", 80)] = ActualRealServer(RealServerConfig())
        await it.settle()
        await it.advance(301)
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 1}
        it.assert_picture_is_true()


async def test_one_refused_service_does_not_hold_up_the_others_and_is_retried() -> None:
    async with world() as it:
        it.fake.fail = lambda op: errno.ENOBUFS if isinstance(op, AddVirtualServer) and op.key == WEB else 0
        it.put(*web(), service("other", "10.96.0.6"))
        it.list_all()
        it.launch()
        await _rounds()
        assert {k.address for k in it.fake.virtual_servers} == {"10.96.0.6"}
        assert set(it.fake.vips) == {"10.96.0.6"}
        assert set(it.health.degraded) == {"default/web"}
        assert not it.reconciler.in_step.is_set()
        it.fake.fail = lambda _: 0
        await it.advance(60)
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 1}
        assert it.health.degraded == {}


async def test_a_kernel_that_cannot_be_taken_on_makes_the_node_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_script: str) -> None:
        raise DataplaneError(None, errno.EIO, "out of order")

    async with world() as it:
        it.put(*web())
        it.list_all()
        with monkeypatch.context() as broken:
            broken.setattr(it.fake, "load_table", refuse)
            it.launch()
            await _rounds()
            assert it.health.degraded == {"kernel": "out of order"}
            it.clock.ahead_s += 120
            assert not it.health.check(it.clock.time()).healthy
        await it.settle()
        assert it.health.check(it.clock.time()).healthy
        assert it.health.degraded == {}


async def test_a_table_that_cannot_be_made_again_holds_up_no_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_script: str) -> None:
        raise DataplaneError(None, errno.EIO, "out of order")

    async with world(*web()) as it:
        with monkeypatch.context() as broken:
            broken.setattr(it.fake, "load_table", refuse)
            it.fake.drop_table()
            it.fake.tell("nft")
            await _rounds()
            assert it.health.degraded == {"kernel": "out of order"}
            it.put(endpoint_slice("web", "10.244.0.1 10.244.0.3", ":80"))
            await _rounds()
            assert weights(it) == {"10.244.0.1": 1, "10.244.0.3": 1}
            it.clock.ahead_s += 120
            assert not it.health.check(it.clock.time()).healthy
        await it.advance(60)
        assert it.health.degraded == {}
        assert it.difference() == []
        it.assert_picture_is_true()


async def test_degraded_names_what_fails_still() -> None:
    refused = {WEB, WEB._replace(address="10.96.0.6")}
    async with world() as it:
        it.fake.fail = lambda op: errno.ENOBUFS if isinstance(op, AddVirtualServer) and op.key in refused else 0
        it.put(*web(), service("other", "10.96.0.6"))
        it.list_all()
        it.launch()
        await _rounds()
        assert set(it.health.degraded) == {"default/web", "default/other"}
        refused.remove(WEB)
        it.clock.ahead_s += 60
        it.reconciler._wake.set()
        await _rounds()
        assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 1}
        assert set(it.health.degraded) == {"default/other"}


async def test_a_table_that_cannot_be_written_makes_the_node_unhealthy() -> None:
    async with world(*web()) as it:
        it.fake.fail = lambda op: errno.EIO if isinstance(op, ChangeElements) else 0
        it.put(service("late", "10.96.0.7"))
        await _rounds()
        it.put(*web("10.244.0.3"))
        await _rounds()
        assert weights(it)["10.244.0.3"] == 1, "what needs no table is done, and does not make up for it"
        it.clock.ahead_s += 120
        assert not it.health.check(it.clock.time()).healthy
        it.fake.fail = lambda _: 0
        await it.advance(60)
        assert it.health.check(it.clock.time()).healthy


async def test_a_service_somebody_else_added_meanwhile_is_adopted() -> None:
    async with world(*web()) as it:
        late = VirtualServerKey(4, Protocol.TCP, "10.96.0.7", 80)
        it.fake.virtual_servers[late] = ActualVirtualServer(VirtualServerConfig(Scheduler.WLC), {})
        it.put(service("late", "10.96.0.7"))
        await _rounds()
        await it.advance(60)
        assert it.fake.virtual_servers[late].config.scheduler is Scheduler.RR
        assert it.fake.vips == {"10.96.0.5": "", "10.96.0.7": ""}


async def test_an_address_of_the_node_that_appears_gets_its_node_ports() -> None:
    exposed = service("web", "10.96.0.5", ":80@30080", type=ServiceType.NODE_PORT)
    async with world(exposed, web()[1], node(NODE, "192.0.2.10")) as it:
        assert VirtualServerKey(4, Protocol.TCP, "192.0.2.10", 30080) in it.fake.virtual_servers
        it.fake.host = _with_address("198.51.100.4")
        it.fake.tell("address")
        await _rounds()
        await it.settle()
        assert VirtualServerKey(4, Protocol.TCP, "198.51.100.4", 30080) in it.fake.virtual_servers
        it.fake.host = HOST
        it.fake.tell("address")
        await _rounds()
        await it.settle()
        assert VirtualServerKey(4, Protocol.TCP, "198.51.100.4", 30080) not in it.fake.virtual_servers
        it.assert_picture_is_true()


async def test_a_single_change_overtakes_a_burst() -> None:
    crowd = [service(f"s{i:04}", f"10.97.{i // 250}.{i % 250 + 1}") for i in range(2000)]
    async with world(*web("10.244.0.1")) as it:
        it.put(*crowd)
        for _ in range(20):
            await _yield()
        assert 0 < len(it.fake.virtual_servers) < 2000
        it.put(web()[1])
        await it.settle()
        ops = it.fake.done
        change = next(i for i, op in enumerate(ops) if op == AddRealServer(WEB, TWO, RealServerConfig()))
        last = max(i for i, op in enumerate(ops) if isinstance(op, AddVirtualServer))
        assert change < last
        assert len(it.fake.virtual_servers) == 2001


async def _yield() -> None:
    import asyncio

    await asyncio.sleep(0)


async def test_problems_are_reported_once() -> None:
    odd = service("web", "10.96.0.5", annotations="ipvsproxy.io/scheduler=fastest")
    async with world(odd, web()[1]) as it:
        assert [(str(k), p.reason) for k, p in it.problems] == [("default/web", "UnknownScheduler")]
        it.put(endpoint_slice("web", "10.244.0.3", ":80"))
        await it.settle()
        assert len(it.problems) == 1


async def test_a_table_of_an_older_version_is_replaced_and_its_claims_are_honoured() -> None:
    objects = web()
    async with world(*objects) as it:
        await it.stop()
        it.delete(*objects)
        it.fake.calls.clear()
        await it.restart()
        assert "load_table" in it.fake.calls
        assert it.fake.virtual_servers == {}


def test_ops_have_names_for_people() -> None:
    from ipvsproxy.applier import subject

    ops: list[tuple[Op, str]] = [
        (AddVirtualServer(WEB, VirtualServerConfig()), "10.96.0.5:80/TCP"),
        (DeleteRealServer(WEB, ONE), "10.96.0.5:80/TCP -> 10.244.0.1:80"),
        (AddVip("10.96.0.5"), "10.96.0.5"),
    ]
    assert [subject(op) for op, _ in ops] == [text for _, text in ops]


def test_key_helper_reads_namespaces() -> None:
    assert key("kube-system/kube-dns").namespace == "kube-system"


async def test_a_health_check_port_that_was_taken_is_tried_again() -> None:
    with socket.socket(socket.AF_INET6) as holder:
        holder.bind(("::", 0))  # both families
        holder.listen()
        port = holder.getsockname()[1]
        balancer = service(
            "web",
            "10.96.0.5",
            type=ServiceType.LOAD_BALANCER,
            external_policy=TrafficPolicy.LOCAL,
            health_check_node_port=port,
        )
        async with world(balancer) as it:
            servers = it.reconciler._around.health_servers
            assert servers.ports == {}
            holder.close()
            await it.advance(31.0)
            assert servers.ports == {balancer.key: port}
            assert not servers.incomplete


def _broken_for(name: str) -> Callable[..., Any]:
    """Planning that fails for one Service."""

    def plan(service: Service, *others: Any) -> Any:
        if service.name == name:
            raise ValueError("boom")
        return serviceplan.plan(service, *others)

    return plan


def _with_address(address: str) -> HostNetwork:
    return HostNetwork((*HOST.addresses, InterfaceAddress("eth1", address, 24)), HOST.links, HOST.gateways)


async def test_a_service_that_cannot_be_planned_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours of the same portion are served, and it is named until it can be planned."""
    async with world(service("z", "10.96.0.99")) as it:
        with monkeypatch.context() as patch:
            patch.setattr(planner, "plan", _broken_for("b"))
            it.put(*(service(name, f"10.96.0.{i}") for i, name in enumerate("abc", 1)))
            await _rounds()
            assert {k.address for k in it.fake.virtual_servers} == {"10.96.0.99", "10.96.0.1", "10.96.0.3"}
            assert it.health.check(0.0).degraded == {"default/b": "cannot be planned: boom"}
        it.put(service("b", "10.96.0.4"))
        await it.settle()
        assert it.health.check(0.0).degraded == {}
        assert len(it.fake.virtual_servers) == 4


async def test_a_service_that_cannot_be_planned_for_a_changed_node_stands_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ended the process before, and so each one after it."""
    exposed = [service(n, f"10.96.0.{i}", f":80@3008{i}", type=ServiceType.NODE_PORT) for i, n in enumerate("ab", 1)]
    async with world(*exposed, node(NODE, "192.0.2.10")) as it:
        with monkeypatch.context() as patch:
            patch.setattr(planner, "plan", _broken_for("a"))
            it.fake.host = _with_address("198.51.100.4")
            it.fake.tell("address")
            await _rounds()
            await it.settle()
            assert it.health.check(0.0).degraded == {"default/a": "cannot be planned: boom"}
            assert {k.port for k in it.fake.virtual_servers if k.address == "198.51.100.4"} == {30082}


async def test_a_pass_that_failed_is_none_that_was_done() -> None:
    """The alert on changes that are not applied rests on it."""
    async with world(*web()) as it:

        def shown(name: str, **labels: str) -> float:
            value = it.registry.get_sample_value(f"kubeproxy_sync_proxy_rules_{name}", labels)
            assert value is not None
            return value

        done_s = shown("last_timestamp_seconds", ip_family="IPv4")
        it.fake.fail = lambda op: errno.EIO if isinstance(op, ChangeElements) else 0
        it.clock.ahead_s += 1000
        it.put(service("late", "10.96.0.7"))
        await _rounds()
        assert shown("last_timestamp_seconds", ip_family="IPv4") == done_s
        it.put(*web("10.244.0.3"))
        await _rounds()
        assert not it.reconciler.in_step.is_set()
        assert shown("service_changes_pending") > 0
        it.fake.fail = lambda _: 0
        await it.advance(60)
        assert shown("last_timestamp_seconds", ip_family="IPv4") > done_s + 900
        assert shown("service_changes_pending") == 0


async def test_an_address_that_goes_to_another_local_service_leaves_no_virtual_server_by_mark() -> None:
    """Its element gets another mark; the old mark's virtual server was nobody's then, and stayed."""

    def balanced(name: str, number: int, age_s: float) -> Service:
        return service(
            name,
            f"10.96.0.{number}",
            external_ips=("203.0.113.7",),
            external_policy=TrafficPolicy.LOCAL,
            created_s=age_s,
        )

    async with world(balanced("young", 1, 200.0), endpoint_slice("young", "10.244.0.1", ":80")) as it:
        (before,) = [k for k in it.fake.virtual_servers if k.fwmark]
        it.put(balanced("old", 2, 100.0), endpoint_slice("old", "10.244.0.2", ":80"))
        await it.settle()
        marked = [k for k in it.fake.virtual_servers if k.fwmark]
        assert len(marked) == 1
        assert marked != [before]
        it.assert_picture_is_true()


class _SlowKernel(FakeDataPlane):
    """One of its reads takes its time: what it found is told late."""

    def __init__(self, slow: str) -> None:
        super().__init__(HOST)
        self.has_read, self.may_tell = asyncio.Event(), asyncio.Event()
        self.may_tell.set()
        read = getattr(self, slow)

        async def slowly() -> Any:
            found = await read()
            self.has_read.set()
            await self.may_tell.wait()
            return found

        setattr(self, slow, slowly)


@pytest.mark.parametrize("slow", ["fingerprints", "dump_keys", "dump_vips", "dump_elements"])
async def test_changes_go_on_while_an_audit_reads_and_are_no_drift_to_it(slow: str) -> None:
    kernel = _SlowKernel(slow)
    it = World(fake=kernel)
    gone = (service("gone", "10.96.0.7"), endpoint_slice("gone", "10.244.0.7", ":80"))
    try:
        await it.start(*web(), *gone)
        for round_ in range(2):  # the first audit reads everything, the second compares fingerprints
            kernel.has_read.clear()
            kernel.may_tell.clear()
            it.clock.ahead_s += 400
            it.reconciler._wake.set()
            await asyncio.wait_for(kernel.has_read.wait(), 5)
            new = service(f"new-{round_}", f"10.96.1.{round_}"), endpoint_slice(f"new-{round_}", "10.244.0.9", ":80")
            it.put(*new, web("10.244.0.1 10.244.0.3")[1])
            it.delete(*gone)
            await _rounds()
            assert f"10.96.1.{round_}" in it.fake.vips
            assert "10.96.0.7" not in it.fake.vips
            assert weights(it) == {"10.244.0.1": 1, "10.244.0.2": 0, "10.244.0.3": 1}
            done = len(it.fake.done)
            kernel.may_tell.set()
            await it.settle()
            await _rounds()
            assert it.fake.done[done:] == [DeleteRealServer(WEB, TWO)], "it was drained"
            assert it.difference() == []
            it.assert_picture_is_true()
            it.put(*web(), *gone)
            await it.settle()
        assert it.registry.get_sample_value("ipvsproxy_drift_repaired_total") == 0
    finally:
        kernel.may_tell.set()
        await it.stop()
