"""Specification sections 1, 2, 5 and 22: which virtual servers and VIPs a Service gets."""

from __future__ import annotations

import pytest

from ipvsproxy.config import Additions, Config, Ipvs, NodePortAddresses
from ipvsproxy.model import Scheduler
from kubecore.model import LoadBalancerIngress, Node, Service, ServiceType
from tests.builders import endpoint_slice, service
from tests.proxy import cluster, elements, expect, planned, reasons, shown, view, vips

NODE_PORT = ServiceType.NODE_PORT
LOAD_BALANCER = ServiceType.LOAD_BALANCER


def test_cluster_ip() -> None:
    web = service("web", "10.96.0.1", "80")
    plan = planned(web, endpoint_slice("web", "10.244.1.1 10.244.1.2", "8080"))
    assert shown(plan) == expect("""
        -A -t 10.96.0.1:80 -s rr
        -a -t 10.96.0.1:80 -r 10.244.1.1:8080 -m -w 1
        -a -t 10.96.0.1:80 -r 10.244.1.2:8080 -m -w 1
    """)
    assert plan.desired.vips == {"10.96.0.1": "192.168.1.1"}


def test_a_virtual_server_without_endpoints_refuses_clients() -> None:
    plan = planned(service("web", "10.96.0.1", "80"))
    assert shown(plan) == ["-A -t 10.96.0.1:80 -s rr"]
    assert vips(plan) == {"10.96.0.1"}


def test_protocols_and_ports() -> None:
    dns = service("dns", "10.96.0.10", "dns:53/UDP,dns-tcp:53,sig:2905/SCTP")
    assert shown(
        planned(dns, endpoint_slice("dns", "10.244.1.1", "dns:1053/UDP,dns-tcp:1054,sig:2905/SCTP"))
    ) == expect("""
        -A -t 10.96.0.10:53 -s rr
        -a -t 10.96.0.10:53 -r 10.244.1.1:1054 -m -w 1
        -A -u 10.96.0.10:53 -s rr
        -a -u 10.96.0.10:53 -r 10.244.1.1:1053 -m -w 1
        -A --sctp-service 10.96.0.10:2905 -s rr
        -a --sctp-service 10.96.0.10:2905 -r 10.244.1.1:2905 -m -w 1
    """)


def test_dual_stack() -> None:
    web = service("web", "10.96.0.1 fd00:96::1", "80@30080", type=NODE_PORT)
    plan = planned(
        web,
        endpoint_slice("web", "10.244.1.1", "8080", suffix="4"),
        endpoint_slice("web", "fd00:244::1", "8080", suffix="6"),
    )
    assert shown(plan) == expect("""
        -A -t 10.96.0.1:80 -s rr
        -a -t 10.96.0.1:80 -r 10.244.1.1:8080 -m -w 1
        -A -t 192.168.1.1:30080 -s rr
        -a -t 192.168.1.1:30080 -r 10.244.1.1:8080 -m -w 1
        -A -t [fd00:1::1]:30080 -s rr
        -a -t [fd00:1::1]:30080 -r [fd00:244::1]:8080 -m -w 1
        -A -t [fd00:96::1]:80 -s rr
        -a -t [fd00:96::1]:80 -r [fd00:244::1]:8080 -m -w 1
    """)
    assert plan.desired.vips == {"10.96.0.1": "192.168.1.1", "fd00:96::1": "fd00:1::1"}


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("headless", {"cluster_ips": "None"}),
        ("no address yet", {"cluster_ips": ""}),
        ("ExternalName, even with an address", {"type": ServiceType.EXTERNAL_NAME}),
        ("another proxy's", {"labels": "service.kubernetes.io/service-proxy-name=other"}),
        ("another proxy's, label empty", {"labels": "service.kubernetes.io/service-proxy-name="}),
        ("no port", {"port_list": ""}),
    ],
)
def test_not_this_proxys_business(what: str, fields: dict[str, object]) -> None:
    web = service("web", **{"cluster_ips": "10.96.0.1", **fields}, external_ips=("192.0.2.1",))  # type: ignore[arg-type]
    plan = planned(web, endpoint_slice("web", "10.244.1.1"))
    assert shown(plan) == [], what
    assert vips(plan) == set()


def test_families_of_the_service_not_of_its_addresses() -> None:
    """Without a ClusterIP of a family nothing of that family exists, external addresses and node port included."""
    web = service("web", "10.96.0.1", "80@30080", type=LOAD_BALANCER, external_ips=("2001:db8::1",))
    assert [line.split()[2] for line in shown(planned(web))] == ["10.96.0.1:80", "192.168.1.1:30080"]
    old = service("web", "10.96.0.1 fd00::1", "80", ip_families=())
    assert vips(planned(old)) == {"10.96.0.1"}


def test_a_node_without_ipv6_serves_the_other_family_alone() -> None:
    web = service("web", "10.96.0.1 fd00:96::1", "80@30080", type=LOAD_BALANCER, external_ips=("2001:db8::1",))
    old = view("eth0=192.168.1.1/24", families=(4,))
    plan = planned(web, node=old)
    assert [line.split()[2] for line in shown(plan)] == ["10.96.0.1:80", "192.168.1.1:30080"]
    assert vips(plan) == {"10.96.0.1"}
    plan.set_node(cluster(web), view("eth0=192.168.1.1/24"))
    assert vips(plan) == {"10.96.0.1", "fd00:96::1", "2001:db8::1"}, "IPv6 was switched on"


def test_headless_slices_are_not_endpoints() -> None:
    labelled = endpoint_slice("web", "10.244.1.1", labels=(("service.kubernetes.io/headless", ""),))
    assert shown(planned(service("web", "10.96.0.1"), labelled)) == ["-A -t 10.96.0.1:80 -s rr"]


def test_external_addresses() -> None:
    web = service(
        "web",
        "10.96.0.1",
        "80",
        type=LOAD_BALANCER,
        external_ips=("198.51.100.7", "198.51.100.8"),
        ingress=(
            LoadBalancerIngress(ip="203.0.113.1"),
            LoadBalancerIngress(ip="203.0.113.2", ip_mode_proxy=True),
            LoadBalancerIngress(hostname="lb.example"),
        ),
    )
    plan = planned(web)
    assert [line.split()[2] for line in shown(plan)] == [
        "10.96.0.1:80",
        "198.51.100.7:80",
        "198.51.100.8:80",
        "203.0.113.1:80",
    ]
    assert vips(plan) == {"10.96.0.1", "198.51.100.7", "198.51.100.8", "203.0.113.1"}
    left = planned(web, config=Config(additions=Additions(claim_load_balancer_ips=False)))
    assert "203.0.113.1" not in vips(left)


def test_external_ips_by_allow_list() -> None:
    web = service("web", "10.96.0.1", external_ips=("198.51.100.7", "192.0.2.7"))
    plan = planned(web, config=Config(additions=Additions(allow_external_ips=("192.0.2.0/24",))))
    assert vips(plan) == {"10.96.0.1", "192.0.2.7"}
    assert reasons(plan) == [("default/web", "ExternalIPNotAllowed")]
    assert vips(planned(web, config=Config(additions=Additions(allow_external_ips=())))) == {"10.96.0.1"}


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 127.1.2.3 0.0.0.0 224.0.0.1 255.255.255.255 169.254.20.10 :: ::1 fe80::1 febf::1 ff02::1".split(),
)
def test_nobody_takes_an_address_that_every_host_uses(address: str) -> None:
    """A virtual server at 127.0.0.1 would take the host's own daemons' place."""
    own = "fd00:96::1" if ":" in address else "10.96.0.1"
    web = service("web", own, external_ips=(address,), ingress=(LoadBalancerIngress(ip=address),), type=LOAD_BALANCER)
    plan = planned(web)
    assert vips(plan) == {own}
    assert len(shown(plan)) == 1
    assert set(reasons(plan)) == {("default/web", "AddressNotUsable")}
    assert shown(planned(service("web", address))) == []


@pytest.mark.parametrize(
    "address", ["1.0.0.1", "240.0.0.1", "126.0.0.1", "169.253.0.1", "fec0::1", "fd00::1", "64:ff9b::1"]
)
def test_ordinary_addresses(address: str) -> None:
    assert vips(planned(service("web", address))) == {address}


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("192.168.1.1", "an address of this node itself"),
        ("192.168.1.2", "another node's address"),
        ("192.168.1.254", "the address of a gateway"),
    ],
)
def test_an_address_of_a_machine_is_served_but_never_claimed(address: str, whose: str) -> None:
    other = Node("n2", internal_ips=("192.168.1.2",))
    node = view("eth0=192.168.1.1/24", gateways=("192.168.1.254",), nodes=(other,))
    plan = planned(service("web", "10.96.0.1", external_ips=(address,)), node=node)
    assert f"-A -t {address}:80 -s rr" in shown(plan)
    assert vips(plan) == {"10.96.0.1"}
    assert f"vip4 {address}" not in elements(plan, "vip4")
    (problem,) = plan.problems(service("web").key)
    assert problem.reason == "AddressNotClaimed"
    assert whose in problem.message


# -- node ports

ADDRESSES = (
    "lo=127.0.0.1/8",
    "lo=::1/128",
    "eth0=192.168.1.1/24",
    "eth0=fd00:1::1/64",
    "eth0=fe80::1/64",
    "eth1=172.16.0.1/16",
    "docker0=172.17.0.1/16",
    "kube-ipvs0=10.96.0.99/32",
)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (NodePortAddresses(), "172.16.0.1 172.17.0.1 192.168.1.1 fd00:1::1"),
        (NodePortAddresses(primary=True), "192.168.1.1 fd00:1::1"),
        (NodePortAddresses(cidrs=("172.16.0.0/12",)), "172.16.0.1 172.17.0.1"),  # no IPv6 CIDR: no IPv6 node ports
        (NodePortAddresses(cidrs=("fd00::/16",)), "fd00:1::1"),
        (NodePortAddresses(cidrs=("0.0.0.0/0",)), "172.16.0.1 172.17.0.1 192.168.1.1"),
        (NodePortAddresses(cidrs=("10.0.0.0/8",)), ""),  # never on kube-ipvs0
        (NodePortAddresses(cidrs=("127.0.0.0/8", "::1/128", "fe80::/10")), ""),
    ],
)
def test_node_port_addresses(setting: NodePortAddresses, expected: str) -> None:
    web = service("web", "10.96.0.1 fd00:96::1", "80@30080", type=NODE_PORT, health_check_node_port=31000)
    plan = planned(web, node=view(*ADDRESSES), config=Config(node_port_addresses=setting))
    found = {k.address for k in plan.desired.virtual_servers if k.port == 30080}
    assert found == set(expected.split())
    assert set(plan.node_port_addresses()) == set(expected.split())
    assert vips(plan) == {"10.96.0.1", "fd00:96::1"}, "a node port's address is no VIP"


def test_a_cluster_ip_on_an_interface_gets_no_node_ports() -> None:
    """kube-proxy puts every node port on a ClusterIP that is also configured on a real interface."""
    node = view("eth0=192.168.1.1/24", "eth1=10.96.0.1/32")
    plan = planned(
        service("web", "10.96.0.2", "80@30080", type=NODE_PORT), service("zed", "10.96.0.1", "443"), node=node
    )
    assert {k.address for k in plan.desired.virtual_servers if k.port == 30080} == {"192.168.1.1"}
    assert "10.96.0.1" not in vips(plan)
    assert reasons(plan) == [("default/zed", "AddressNotClaimed")]


def test_without_node_addresses_the_cluster_ip_still_works() -> None:
    web = service("web", "10.96.0.1", "80@30080", type=NODE_PORT)
    assert shown(planned(web, node=view(node=Node("n1")))) == ["-A -t 10.96.0.1:80 -s rr"]


# -- flags and schedulers


def config_of(web: Service, **ipvs: object) -> str:
    (line,) = shown(planned(web, config=Config(ipvs=Ipvs(**ipvs))))  # type: ignore[arg-type]
    return line


@pytest.mark.parametrize(
    ("ipvs", "annotations", "affinity_s", "line"),
    [
        ({}, "", 0, "-s rr"),
        ({}, "", 10800, "-s rr -p 10800"),
        ({"scheduler": Scheduler.MH}, "", 0, "-s mh -b mh-port"),
        ({"scheduler": Scheduler.MH}, "", 600, "-s mh -p 600 -b mh-port"),
        ({"scheduler": Scheduler.SH}, "", 0, "-s sh"),
        ({}, "ipvsproxy.io/scheduler=lc", 0, "-s lc"),
        ({}, "kube-router.io/service.scheduler=dh", 0, "-s dh"),
        ({}, "kube-router.io/service.scheduler=dh,ipvsproxy.io/scheduler=sed", 0, "-s sed"),
        ({}, "ipvsproxy.io/scheduler=mh", 0, "-s mh -b mh-port"),
        ({}, "ipvsproxy.io/scheduler=mh,ipvsproxy.io/scheduler-flags=mh-fallback", 0, "-s mh -b mh-fallback"),
        ({}, "kube-router.io/service.scheduler=sh,kube-router.io/service.schedflags=flag-1", 0, "-s sh -b sh-fallback"),
        ({"scheduler": Scheduler.MH}, "ipvsproxy.io/scheduler=rr", 0, "-s rr"),
        ({}, "ipvsproxy.io/scheduler-flags=ops", 0, "-s rr"),  # one-packet scheduling is for UDP
    ],
)
def test_scheduling(ipvs: dict[str, object], annotations: str, affinity_s: int, line: str) -> None:
    web = service("web", "10.96.0.1", annotations=annotations, affinity_timeout_s=affinity_s)
    assert config_of(web, **ipvs) == f"-A -t 10.96.0.1:80 {line}"


def test_one_packet_scheduling() -> None:
    dns = service("dns", "10.96.0.10", "53/UDP")
    assert shown(planned(dns)) == ["-A -u 10.96.0.10:53 -s rr"]
    one_packet = Config(additions=Additions(one_packet_udp=True))
    assert shown(planned(dns, config=one_packet)) == ["-A -u 10.96.0.10:53 -s rr -o"]
    asked = service("dns", "10.96.0.10", "53/UDP,53/TCP", annotations="ipvsproxy.io/scheduler-flags=ops")
    assert shown(planned(asked)) == ["-A -t 10.96.0.10:53 -s rr", "-A -u 10.96.0.10:53 -s rr -o"]
    in_vain = service("web", "10.96.0.1", annotations="ipvsproxy.io/scheduler-flags=ops")
    assert reasons(planned(dns)) == reasons(planned(in_vain)) == []
    assert reasons(planned(dns, config=one_packet)) == reasons(planned(asked)) == [("default/dns", "AnswersLost")]


@pytest.mark.parametrize(
    ("annotations", "reason", "words"),
    [
        ("ipvsproxy.io/scheduler=wrrr", "UnknownScheduler", "did you mean 'wrr'"),
        ("ipvsproxy.io/scheduler=", "UnknownScheduler", "Known are rr, wrr"),
        ("ipvsproxy.io/scheduler=ovf", "SchedulerUnavailable", "ip_vs_ovf"),
        ("ipvsproxy.io/scheduler=mh,ipvsproxy.io/scheduler-flags=mh_port", "UnknownSchedulerFlag", "'mh-port'"),
        ("ipvsproxy.io/scheduler-flags=sh-port", "UnknownSchedulerFlag", "is for sh, this Service uses rr"),
    ],
)
def test_what_cannot_be_scheduled_falls_back_and_is_reported(annotations: str, reason: str, words: str) -> None:
    web = service("web", "10.96.0.1", annotations=annotations)
    plan = planned(web, schedulers=frozenset({Scheduler.RR, Scheduler.MH}))
    assert len(shown(plan)) == 1
    (problem,) = plan.problems(web.key)
    assert problem.reason == reason
    assert words in problem.message


# -- two Services, one address


def test_the_older_service_holds_a_contested_address() -> None:
    young = service("aaa", "10.96.0.1", external_ips=("192.0.2.1",), created_s=200.0)
    old = service("zzz", "10.96.0.2", external_ips=("192.0.2.1",), created_s=100.0)
    eps = endpoint_slice("aaa", "10.244.1.1"), endpoint_slice("zzz", "10.244.1.2")
    for objects in ((young, old, *eps), (old, young, *eps)):
        plan = planned(*objects)
        assert "-a -t 192.0.2.1:80 -r 10.244.1.2:80 -m -w 1" in shown(plan)
        assert "-a -t 192.0.2.1:80 -r 10.244.1.1:80 -m -w 1" not in shown(plan)
        assert reasons(plan) == [("default/aaa", "AddressTaken")]
        assert vips(plan) == {"10.96.0.1", "10.96.0.2", "192.0.2.1"}


def test_nobody_takes_a_cluster_ip_by_external_ip() -> None:
    """CVE-2020-8554: not even an older Service."""
    thief = service("thief", "10.96.0.1", external_ips=("10.96.0.2",), created_s=1.0)
    victim = service("victim", "10.96.0.2", created_s=2.0)
    plan = planned(thief, victim, endpoint_slice("thief", "10.66.6.6"), endpoint_slice("victim", "10.244.1.1"))
    assert "-a -t 10.96.0.2:80 -r 10.244.1.1:80 -m -w 1" in shown(plan)
    assert reasons(plan) == [("default/thief", "AddressTaken")]


def test_ports_of_two_services_share_an_external_ip() -> None:
    web = service("web", "10.96.0.1", "80", external_ips=("192.0.2.1",))
    mail = service("mail", "10.96.0.2", "25", external_ips=("192.0.2.1",))
    plan = planned(web, mail)
    assert {"-A -t 192.0.2.1:80 -s rr", "-A -t 192.0.2.1:25 -s rr"} <= set(shown(plan))
    assert reasons(plan) == []
    state_without = planned(web)
    assert "192.0.2.1" in vips(state_without), "the address stays as long as one of them wants it"
