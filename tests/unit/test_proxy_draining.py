"""Specification sections 7 and 8: how real servers leave, and whose flows are cut."""

from __future__ import annotations

import pytest

from ipvsproxy.dataplane import (
    AddVirtualServer,
    ChangeElements,
    CutFlows,
    DeleteRealServer,
    DeleteVirtualServer,
    EditRealServer,
    EditVirtualServer,
    Op,
)
from ipvsproxy.diff import diff
from ipvsproxy.draining import ANSWERS_S, Draining, Stay, leaving
from ipvsproxy.model import (
    ActualRealServer,
    ActualVirtualServer,
    RealServerConfig,
    RealServerCounters,
    RealServerKey,
    VirtualServerConfig,
    VirtualServerKey,
)
from ipvsproxy.picture import Picture
from ipvsproxy.planner import Planner
from kubecore.model import KubeObject, Protocol, ServiceType, TrafficPolicy
from tests.builders import endpoint_slice, service
from tests.proxy import planned

WEB = VirtualServerKey(4, Protocol.TCP, "10.96.0.1", 80)
POD1, POD2 = RealServerKey("10.0.0.1", 80), RealServerKey("10.0.0.2", 80)
BUSY, IDLE = RealServerCounters(active=1), RealServerCounters()
TIME_WAIT = RealServerCounters(inactive=3)
TEMPLATE = RealServerCounters(persistent=1)


def programmed(*objects: KubeObject) -> Picture:
    """A kernel that has all of what these objects ask for."""
    picture = Picture()
    carry_out(diff(planned(*objects).desired, picture), picture)
    return picture


def carry_out(ops: list[Op], picture: Picture) -> list[Op]:
    done = []
    for op in ops:
        permitted = picture.permit(op)
        if permitted is not None:
            picture.apply(permitted)
            done.append(permitted)
    return done


def change(picture: Picture, planner: Planner) -> list[Op]:
    return [op for op in carry_out(diff(planner.desired, picture), picture) if not isinstance(op, ChangeElements)]


def test_a_tcp_endpoint_that_goes_is_quiesced_first() -> None:
    web = service("web", "10.96.0.1")
    picture = programmed(web, endpoint_slice("web", "10.0.0.1 10.0.0.2"))
    after = planned(web, endpoint_slice("web", "10.0.0.1"))
    assert change(picture, after) == [EditRealServer(WEB, POD2, RealServerConfig(weight=0))]
    assert leaving(after.desired, picture, WEB) == {POD2: Stay.GONE}


def test_why_a_real_server_stays() -> None:
    web = service("web", "10.96.0.1")
    text = "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4"
    picture = programmed(web, endpoint_slice("web", text))
    after = planned(web, endpoint_slice("web", "10.0.0.1 10.0.0.2~ 10.0.0.3!"))
    change(picture, after)
    stays = leaving(after.desired, picture, WEB)
    assert {k.address: v for k, v in stays.items()} == {
        "10.0.0.2": Stay.SERVING,
        "10.0.0.3": Stay.LISTED,
        "10.0.0.4": Stay.GONE,
    }


def test_a_returning_endpoint_keeps_its_connections() -> None:
    web = service("web", "10.96.0.1")
    picture = programmed(web, endpoint_slice("web", "10.0.0.1 10.0.0.2"))
    change(picture, planned(web, endpoint_slice("web", "10.0.0.1 10.0.0.2!")))
    back = planned(web, endpoint_slice("web", "10.0.0.1 10.0.0.2"))
    assert change(picture, back) == [EditRealServer(WEB, POD2, RealServerConfig(weight=1))]
    assert leaving(back.desired, picture, WEB) == {}


def test_the_last_terminating_endpoints_serve_again() -> None:
    web = service("web", "10.96.0.1")
    picture = programmed(web, endpoint_slice("web", "10.0.0.1 10.0.0.2"))
    change(picture, planned(web, endpoint_slice("web", "10.0.0.1 10.0.0.2~")))
    assert change(picture, planned(web, endpoint_slice("web", "10.0.0.1~ 10.0.0.2~"))) == [
        EditRealServer(WEB, POD2, RealServerConfig(weight=1))
    ]


def test_an_endpoint_that_terminates_is_not_added_to_drain() -> None:
    web = service("web", "10.96.0.1")
    picture = programmed(web, endpoint_slice("web", "10.0.0.1 10.0.0.2~"))
    assert list(picture.servers[WEB].real_servers) == [POD1]


def test_udp_to_an_endpoint_that_is_gone_is_cut_at_once() -> None:
    dns = service("dns", "10.96.0.1", "53/UDP")
    key = VirtualServerKey(4, Protocol.UDP, "10.96.0.1", 53)
    picture = programmed(dns, endpoint_slice("dns", "10.0.0.1 10.0.0.2", "53/UDP"))
    gone = planned(dns, endpoint_slice("dns", "10.0.0.1", "53/UDP"))
    assert diff(gone.desired, picture) == [
        DeleteRealServer(key, RealServerKey("10.0.0.2", 53)),
        CutFlows(Protocol.UDP, "10.96.0.1", 53, "10.0.0.2"),
    ]
    assert leaving(gone.desired, picture, key) == {}


def test_flows_of_all_that_is_gone_are_cut_together() -> None:
    """Each cut by itself would read the connection table from end to end."""
    services = [service(f"dns-{n}", f"10.96.0.{n}", "53/UDP") for n in (1, 2, 3)]
    slices = [endpoint_slice(f"dns-{n}", f"10.0.0.{n} 10.0.1.{n}", "53/UDP") for n in (1, 2, 3)]
    picture = programmed(*services, *slices)
    ops = diff(planned(*services[:2], endpoint_slice("dns-1", "", "53/UDP"), slices[1]).desired, picture)
    assert [type(op).__name__ for op in ops] == [
        "ChangeElements",  # dns-1 refuses now
        *["DeleteRealServer"] * 2,
        "DeleteVip",
        "DeleteVirtualServer",
        *["CutFlows"] * 3,
        "ChangeElements",
    ]


@pytest.mark.parametrize("text", ["10.0.0.1 10.0.0.2~", "10.0.0.1 10.0.0.2!"], ids=["terminating", "not ready"])
def test_udp_to_an_endpoint_that_is_still_there_gets_no_new_flow_and_is_cut_soon(text: str) -> None:
    dns = service("dns", "10.96.0.1", "53/UDP")
    key, second = VirtualServerKey(4, Protocol.UDP, "10.96.0.1", 53), RealServerKey("10.0.0.2", 53)
    picture = programmed(dns, endpoint_slice("dns", "10.0.0.1 10.0.0.2", "53/UDP"))
    after = planned(dns, endpoint_slice("dns", text, "53/UDP"))
    assert change(picture, after) == [EditRealServer(key, second, RealServerConfig(weight=0))]
    stays = leaving(after.desired, picture, key)
    assert stays == {second: Stay.ANSWERING}
    draining = Draining(grace_s=300, every_s=5)
    draining.track(key, stays, 100.0)
    assert draining.next_deadline_s() == 100.0 + ANSWERS_S
    assert draining.counted(key, {second: IDLE}, 100.0) == []
    assert draining.counted(key, {second: BUSY}, 100.0 + ANSWERS_S) == [second]


def test_flows_from_before_a_udp_service_are_cut_when_it_appears() -> None:
    """They bypass the Service: conntrack remembers that they went nowhere, or to its predecessor."""
    dns = planned(service("dns", "10.96.0.1", "53/UDP"), endpoint_slice("dns", "10.0.0.1", "53/UDP"))
    ops = diff(dns.desired, Picture())
    assert CutFlows(Protocol.UDP, "10.96.0.1", 53) in ops
    assert [op for op in ops if isinstance(op, AddVirtualServer) and op.real_servers]


def test_udp_behind_a_mark_is_cut_at_every_address() -> None:
    dns = service(
        "dns",
        "10.96.0.1",
        "53/UDP@30053",
        type=ServiceType.NODE_PORT,
        external_policy=TrafficPolicy.LOCAL,
        external_ips=("203.0.113.1",),
    )
    picture = programmed(dns, endpoint_slice("dns", "10.0.0.1@n1 10.0.0.2@n2", "53/UDP"))
    ops = diff(planned(dns, endpoint_slice("dns", "10.0.0.1@n1", "53/UDP")).desired, picture)
    assert {(op.address, op.port, op.real_server) for op in ops if isinstance(op, CutFlows)} == {
        ("10.96.0.1", 53, "10.0.0.2"),
        ("203.0.113.1", 53, "10.0.0.2"),
        ("192.168.1.1", 30053, "10.0.0.2"),
    }


def test_a_service_that_goes_takes_its_virtual_server_along() -> None:
    web = service("web", "10.96.0.1")
    picture = programmed(web, endpoint_slice("web", "10.0.0.1"))
    assert DeleteVirtualServer(WEB) in change(picture, planned())
    assert not picture.servers


def test_weights_and_schedulers_are_always_compared() -> None:
    web, eps = service("web", "10.96.0.1"), endpoint_slice("web", "10.0.0.1 10.0.0.2")
    picture = programmed(web, eps)
    picture.apply(EditRealServer(WEB, POD1, RealServerConfig(weight=0)))
    picture.apply(EditVirtualServer(WEB, VirtualServerConfig(persistence_s=5)))
    assert change(picture, planned(web, eps)) == [
        EditVirtualServer(WEB, VirtualServerConfig()),
        EditRealServer(WEB, POD1, RealServerConfig(weight=1)),
    ]


def test_foreign_virtual_servers_stay() -> None:
    theirs = VirtualServerKey(4, Protocol.TCP, "198.51.100.1", 80)
    picture = Picture(
        {theirs: ActualVirtualServer(VirtualServerConfig(), {POD1: ActualRealServer(RealServerConfig())})}
    )
    assert diff(planned().desired, picture) == [
        ChangeElements(tuple(planned().desired.elements), ()),
    ]


# -- the state machine


def test_drained_goes_at_once_busy_waits() -> None:
    draining = Draining(grace_s=30, every_s=5)
    draining.track(WEB, {POD1: Stay.GONE, POD2: Stay.GONE}, now_s=100)
    assert draining.due(100) == [WEB], "a newcomer is looked at without waiting for a poll"
    assert draining.counted(WEB, {POD1: IDLE, POD2: BUSY}, 100) == [POD1]
    assert draining.due(104) == []
    assert draining.next_deadline_s() == 105
    assert draining.counted(WEB, {POD2: TIME_WAIT}, 105) == []
    assert draining.counted(WEB, {POD2: TEMPLATE}, 110) == [POD2], "a persistence template is no connection"
    assert draining.next_deadline_s() is None


def test_the_limit_counts_from_the_endpoints_end() -> None:
    draining = Draining(grace_s=30, every_s=5)
    draining.track(WEB, {POD1: Stay.LISTED}, now_s=0)
    assert draining.counted(WEB, {POD1: BUSY}, 1000) == [], "no limit while the endpoint exists"
    draining.track(WEB, {POD1: Stay.GONE}, now_s=1000)
    assert draining.counted(WEB, {POD1: BUSY}, 1029) == []
    assert draining.next_deadline_s() == 1030
    assert draining.counted(WEB, {POD1: BUSY}, 1030) == [POD1]


def test_the_limit_does_not_start_anew_with_every_change() -> None:
    draining = Draining(grace_s=30, every_s=5)
    draining.track(WEB, {POD1: Stay.GONE}, now_s=0)
    draining.track(WEB, {POD1: Stay.GONE, POD2: Stay.GONE}, now_s=20)
    assert draining.counted(WEB, {POD1: BUSY, POD2: BUSY}, 30) == [POD1]


def test_what_still_serves_stays_without_connections() -> None:
    draining = Draining(grace_s=30, every_s=5)
    draining.track(WEB, {POD1: Stay.SERVING}, now_s=0)
    assert draining.next_deadline_s() is None, "nothing to wake up for"
    assert draining.counted(WEB, {POD1: IDLE}, 500) == []
    draining.track(WEB, {POD1: Stay.GONE}, now_s=500)
    assert draining.counted(WEB, {POD1: IDLE}, 500) == [POD1]


def test_what_came_back_is_forgotten() -> None:
    draining = Draining(grace_s=30, every_s=5)
    draining.track(WEB, {POD1: Stay.GONE}, now_s=0)
    draining.track(WEB, {}, now_s=1)
    assert list(draining) == []
    assert draining.counted(WEB, {POD1: IDLE}, 2) == []


def test_gone_from_the_kernel_is_finished() -> None:
    draining = Draining(grace_s=30, every_s=5)
    draining.track(WEB, {POD1: Stay.LISTED}, now_s=0)
    assert draining.counted(WEB, {}, 0) == [POD1]
