"""Specification section 17: the configuration, its checks, and what an operator is told."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import msgspec
import pytest
import yaml

from ipvsproxy.config import Bind, Config, LocalMode, NodePortAddresses
from ipvsproxy.configfields import FLAGS, KUBE_PROXY_FIELDS, OUR_FIELDS
from ipvsproxy.configfile import ConfigError, Loaded, load_config, node_name
from ipvsproxy.configvalues import BadValue, duration_s
from ipvsproxy.configwrite import documents
from ipvsproxy.model import Scheduler, ServiceFlag

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OURS = "---\napiVersion: ipvsproxy.io/v1alpha1\nkind: IPVSProxyConfiguration\n"
KUBEADM = Path(__file__).parent.parent / "golden" / "proxy_kubeadm_config.yaml"


def read(body: str, **flags: str) -> Config:
    return load_config(HEAD + dedent(body), "c.yaml", {k.replace("_", "-"): v for k, v in flags.items()}).config


def mistakes(text: str, **flags: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_config(text, "c.yaml", {k.replace("_", "-"): v for k, v in flags.items()})
    return raised.value.mistakes


def test_no_file_is_kube_proxys_defaults() -> None:
    assert load_config(None, "", {}).config == Config()


def test_kubeadms_file_as_it_is() -> None:
    loaded = load_config(KUBEADM.read_text(), "config.conf", {})
    assert loaded.ignored == ()
    detect = loaded.config.detect_local
    assert (detect.mode, detect.cluster_cidrs) == (LocalMode.CLUSTER_CIDR, ("10.244.0.0/16",))
    assert loaded.config.client.kubeconfig == "/var/lib/kube-proxy/kubeconfig.conf"
    plain = msgspec.structs.replace(loaded.config, detect_local=Config().detect_local, client=Config().client)
    assert plain == Config(), "everything else is empty there and means the default"


def test_kubeadms_config_map_as_kubectl_prints_it() -> None:
    indented = KUBEADM.read_text().replace("\n", "\n    ")
    text = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-proxy}}\ndata:\n  config.conf: |\n    {indented}\n"
    assert load_config(text, "cm.yaml", {}).config.detect_local.cluster_cidrs == ("10.244.0.0/16",)


def test_every_field() -> None:
    config = read(
        """
        mode: ipvs
        bindAddress: 192.168.1.1
        bindAddressHardFail: true
        healthzBindAddress: "[::]:10256"
        metricsBindAddress: 127.0.0.1:1234
        enableProfiling: true
        hostnameOverride: Node-1
        clusterCIDR: 10.0.0.0/8,fd00::/56
        detectLocalMode: InterfaceNamePrefix
        detectLocal: {interfaceNamePrefix: veth}
        nodePortAddresses: [192.168.0.0/16, "fd00::/16"]
        oomScoreAdj: -500
        configSyncPeriod: 1h30m
        clientConnection: {kubeconfig: /k, qps: 50, burst: 100, contentType: x, acceptContentTypes: y}
        iptables: {masqueradeAll: true, masqueradeBit: 0, syncPeriod: 30s, minSyncPeriod: 1s}
        ipvs: {scheduler: wlc, excludeCIDRs: [10.1.0.0/16], strictARP: true, syncPeriod: 10s, minSyncPeriod: 500ms,
               tcpTimeout: 15m, tcpFinTimeout: 2m0.9s, udpTimeout: 300ms}
        conntrack: {maxPerCore: 0, min: 5, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 30m, tcpBeLiberal: true,
                    udpTimeout: 30s, udpStreamTimeout: 2m}
        """
    )
    assert config.bind_address == "192.168.1.1"
    assert config.bind_hard_fail
    assert config.profiling
    assert config.healthz_bind == Bind("::", 10256)
    assert str(config.metrics_bind) == "127.0.0.1:1234"
    assert config.detect_local.cluster_cidrs == ("10.0.0.0/8", "fd00::/56")
    assert config.detect_local.interface_name_prefix == "veth"
    assert config.node_port_addresses.cidrs == ("192.168.0.0/16", "fd00::/16")
    assert (config.oom_score_adj, config.config_sync_period_s) == (-500, 5400)
    assert (config.client.qps, config.client.burst) == (50, 100)
    assert (config.masquerade_all, config.masquerade_bit) == (True, 0)
    assert config.ipvs.scheduler is Scheduler.WLC
    assert (config.ipvs.sync_period_s, config.ipvs.min_sync_period_s) == (10, 0.5)
    assert (config.ipvs.tcp_timeout_s, config.ipvs.tcpfin_timeout_s, config.ipvs.udp_timeout_s) == (900, 120, 1)
    assert config.ipvs.exclude_cidrs == ("10.1.0.0/16",)
    assert config.ipvs.strict_arp
    assert config.conntrack.max_per_core == 0
    assert config.conntrack.tcp_established_timeout_s is None, "0: leave it alone"
    assert config.conntrack.tcp_close_wait_timeout_s == 1800
    assert (config.conntrack.udp_timeout_s, config.conntrack.udp_stream_timeout_s) == (30, 120)
    assert config.conntrack.tcp_be_liberal


@pytest.mark.parametrize(("given", "score"), [("0", 0), ("null", -999), ("-1000", -1000)])
def test_an_oom_score_of_0_is_not_the_default(given: str, score: int) -> None:
    assert read(f"oomScoreAdj: {given}").oom_score_adj == score


def test_our_own_document() -> None:
    config = load_config(
        HEAD
        + OURS
        + dedent("""
        drain: {grace: 0s, pollPeriod: 1s}
        auditPeriod: 1m
        sourceRangesCoverNodePorts: true
        allowExternalIPs: [192.0.2.0/24]
        claimLoadBalancerIPs: false
        onePacketUDP: true
        schedulerFlags: [mh-port, mh-fallback]
        metrics: {maxVirtualServers: 0}
        logLevel: debug
        """),
        "c.yaml",
        {},
    ).config
    ours = config.additions
    assert (ours.drain_grace_s, ours.drain_poll_s, ours.audit_interval_s) == (0, 1, 60)
    assert ours.source_ranges_cover_node_ports
    assert ours.one_packet_udp
    assert not ours.claim_load_balancer_ips
    assert ours.allow_external_ips == ("192.0.2.0/24",)
    assert ours.metrics_max_virtual_servers == 0
    assert config.ipvs.flags == ServiceFlag.SCHED_1 | ServiceFlag.SCHED_2
    assert config.log_level == "debug"
    as_text = load_config(HEAD + OURS + "schedulerFlags: mh-port, mh-fallback\n", "c.yaml", {}).config
    assert as_text.ipvs.flags == config.ipvs.flags
    nobody = load_config(HEAD + OURS + "allowExternalIPs: []\n", "c.yaml", {}).config
    assert nobody.additions.allow_external_ips == (), "an empty list allows none"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("mode: iptables", 'c.yaml:3: mode: "iptables" is not what this proxy does; set mode: "ipvs"'),
        ("ipvs: {schedular: rr}", 'c.yaml:3: ipvs.schedular: unknown field; did you mean "scheduler"?'),
        (
            "ipvs:\n  scheduler: wrrr",
            'c.yaml:4: ipvs.scheduler: there is no IPVS scheduler "wrrr"; did you mean "wrr"?',
        ),
        ("clusterCidr: 10.0.0.0/8", 'c.yaml:3: clusterCidr: unknown field; did you mean "clusterCIDR"?'),
        ("masqueradeAll: true", "c.yaml:3: masqueradeAll: unknown field; did you mean iptables.masqueradeAll?"),
        ("ipvs: {syncPeriod: 30}", "c.yaml:3: ipvs.syncPeriod: 30 is not a duration; write a number and a unit"),
        ("ipvs: {syncPeriod: -30s}", "c.yaml:3: ipvs.syncPeriod: '-30s' is negative; write a duration of 0 or more"),
        (
            "ipvs: {syncPeriod: 1s, minSyncPeriod: 2s}",
            "c.yaml:3: ipvs.minSyncPeriod: 2s is longer than syncPeriod (1s); make it at most syncPeriod",
        ),
        ("ipvs: {excludeCIDRs: [10.0.0.1]}", "c.yaml:3: ipvs.excludeCIDRs: '10.0.0.1' is not a CIDR"),
        ("ipvs: [1]", "c.yaml:3: ipvs: [1] is not a mapping; write its fields below it"),
        (
            "iptables: {masqueradeBit: 32}",
            "c.yaml:3: iptables.masqueradeBit: 32 is out of range; write a number from 0",
        ),
        ("oomScoreAdj: -1001", "c.yaml:3: oomScoreAdj: -1001 is out of range; write a number from -1000 to 1000"),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", "is not one CIDR or a dual-stack pair; give at most one CIDR of each"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", '"primary" stands beside other values; write "primary" alone'),
        ("nodePortAddresses: [10.0.0.0]", "c.yaml:3: nodePortAddresses: '10.0.0.0' is not a CIDR"),
        (
            "detectLocalMode: BridgeInterface",
            "c.yaml:3: detectLocalMode: BridgeInterface needs detectLocal.bridgeInterf",
        ),
        (
            "detectLocalMode: Bridge",
            'c.yaml:3: detectLocalMode: "Bridge" is not known; did you mean "BridgeInterface"?',
        ),
        (
            "healthzBindAddress: localhost:1",
            "'localhost:1' is not an IP address and port; write it as \"0.0.0.0:10256\"",
        ),
        ("metricsBindAddress: 1.2.3.4:99999", "c.yaml:3: metricsBindAddress: '99999' is not a port"),
        pytest.param(f"clientConnection: {{qps: {'9' * 400}}}", "c.yaml:3: clientConnection.qps: 9999", id="qps"),
        pytest.param(f"oomScoreAdj: '{'9' * 5000}'", "c.yaml:3: oomScoreAdj: '9999", id="long text"),
        pytest.param(f"healthzBindAddress: '0.0.0.0:{'9' * 5000}'", "9' is not a port; write a number", id="long port"),
        (
            f"{OURS}schedulerFlags: [[ops]]",
            "c.yaml:6: schedulerFlags: there is no scheduler flag ['ops']; did you",
        ),
        ("bindAddressHardFail: 1", "bindAddressHardFail: 1 is neither true nor false; write true or false"),
        ("bindAddress: eth0", "c.yaml:3: bindAddress: 'eth0' is not an IP address; write one such as"),
        ("clientConnection: {qps: fast}", "clientConnection.qps: 'fast' is not a number; write a number such as 5"),
        ("clientConnection: {qps: .inf}", "clientConnection.qps: inf is not a number; write a number such as 5"),
        ("nodePortAddresses: 1", "c.yaml:3: nodePortAddresses: 1 is not a list of CIDRs; write a list such as"),
        (f"{OURS}schedulerFlags: 1", "schedulerFlags: 1 is not a list of scheduler flags; write a list such as"),
        ('detectLocal: {bridgeInterface: "a; drop"}', "'a; drop' is not an interface name"),
        (
            "ipvs: {tcpTimeout: 9999h}",
            "c.yaml:3: ipvs.tcpTimeout: '9999h' is longer than a timeout of the kernel can be",
        ),
        ("configSyncPeriod: 1y", "c.yaml:3: configSyncPeriod: '1y' is not a duration"),
        ("ipvs: {scheduler: rr\n", "not YAML"),
    ],
)
def test_mistakes_name_file_line_field_and_remedy(body: str, expected: str) -> None:
    (mistake,) = mistakes(HEAD + body)
    assert expected in mistake


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "there is no document in it; write apiVersion: kubeproxy.config.k8s.io/v1alpha1"),
        ("- 1", "not a mapping"),
        ("kind: KubeProxyConfiguration", "no apiVersion, KubeProxyConfiguration is not a configuration of this proxy"),
        (HEAD.replace("v1alpha1", "v1beta1"), "c.yaml:1: apiVersion: kubeproxy.config.k8s.io/v1beta1"),
        (HEAD + "---\n" + HEAD, "c.yaml:5: kind: a second KubeProxyConfiguration; merge the two"),
        (OURS + "drain: {grace: soon}", "c.yaml:4: drain.grace: 'soon' is not a duration"),
        (OURS + "schedulerFlags: [mh_port]", "there is no scheduler flag 'mh_port'; did you mean \"mh-port\"?"),
    ],
)
def test_mistakes_of_documents(text: str, expected: str) -> None:
    (mistake,) = mistakes(text)
    assert expected in mistake


def test_a_file_that_is_not_utf_8() -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:3: not UTF-8; save the file as UTF-8"):
        load_config(HEAD.encode() + b"hostnameOverride: \xe4\n", "c.yaml", {})


def test_all_mistakes_at_once() -> None:
    found = mistakes(HEAD + "mode: iptables\noomScoreAdj: x\n" + OURS + "drainn: 1\n", ipvs_scheduler="q")
    assert len(found) == 4
    assert found[-1].startswith("--ipvs-scheduler: there is no IPVS scheduler")


def test_a_flag_beats_the_file() -> None:
    given = read("conntrack: {udpTimeout: 1m, tcpCloseWaitTimeout: 1m}", conntrack_udp_timeout="0")
    assert (given.conntrack.udp_timeout_s, given.conntrack.tcp_close_wait_timeout_s) == (None, 60)
    config = read("ipvs: {scheduler: lc}\nhealthzBindAddress: 0.0.0.0:1", ipvs_scheduler="sh", healthz_bind_address="")
    assert config.ipvs.scheduler is Scheduler.SH
    assert config.healthz_bind is None, 'a flag of "" switches the server off'
    assert read("", nodeport_addresses="primary").node_port_addresses == NodePortAddresses(primary=True)


def test_a_zero_in_a_file_is_the_default_and_as_a_flag_itself() -> None:
    """kube-proxy's own defaulting: a file that kubeadm or OpenShift writes has zeros for all that was not set."""
    zeros = "configSyncPeriod: 0h0m0s\nipvs: {syncPeriod: 0m0s}\nclientConnection: {qps: 0, burst: 0}"
    assert read(zeros) == Config()
    file = "ipvs: {minSyncPeriod: 10s, tcpTimeout: 5m}"
    given = read(file, ipvs_min_sync_period="0s", ipvs_tcp_timeout="0s")
    assert (given.ipvs.min_sync_period_s, given.ipvs.tcp_timeout_s) == (0, 0)
    assert mistakes(HEAD, ipvs_sync_period="0s")[0].startswith("--ipvs-sync-period: '0s' is not more than 0; write")


def test_fields_that_kube_proxy_had_once() -> None:
    """kubeadm 1.13's, which an upgrade leaves in the ConfigMap."""
    old = "conntrack: {max: null, min: 1}\nresourceContainer: /kube-proxy\nudpIdleTimeout: 250ms\n"
    loaded = load_config(HEAD + old, "c.yaml", {})
    assert loaded.config.conntrack.min == 1
    assert loaded.ignored == (
        "c.yaml:4: resourceContainer has no effect here",
        "c.yaml:5: udpIdleTimeout has no effect here",
    )


@pytest.mark.parametrize(
    ("text", "is_on"),
    [("true", True), ("True", True), ("t", True), ("1", True), ("FALSE", False), ("f", False), ("0", False)],
)
def test_a_flags_boolean_is_written_as_in_go(text: str, is_on: bool) -> None:
    assert read("iptables: {masqueradeAll: true}", masquerade_all=text).masquerade_all is is_on


def test_every_field_of_kube_proxy_that_has_a_flag_here_has_kube_proxys_name() -> None:
    assert {f for f in FLAGS if f.startswith("conntrack")} == {
        "conntrack-max-per-core",
        "conntrack-min",
        "conntrack-tcp-timeout-established",
        "conntrack-tcp-timeout-close-wait",
        "conntrack-tcp-be-liberal",
        "conntrack-udp-timeout",
        "conntrack-udp-timeout-stream",
    }
    assert all(field.help for field in KUBE_PROXY_FIELDS.values())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nodePortAddresses: [primary]\noomScoreAdj: 0\nclusterCIDR: 10.0.0.0/8,fd00::/56\nbindAddress: fd00::1\n",
        (
            "healthzBindAddress: '[::]:1'\nipvs: {scheduler: mh, minSyncPeriod: 1ms, tcpTimeout: 15m}\n"
            "conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 5s, udpTimeout: 7s}\n"
            "detectLocalMode: NodeCIDR\nfeatureGates: {AllowServiceExternalIPs: false}\n"
            "nodePortAddresses: [10.0.0.0/8, 'fd00::/8']"
        ),
        OURS + "drain: {grace: 0s}\nauditPeriod: 0s\nschedulerFlags: [ops, flag-3]\nallowExternalIPs: [192.0.2.0/24]",
    ],
)
def test_what_is_written_is_read_again(text: str) -> None:
    config = load_config(f"{HEAD}{text}", "c.yaml", {}).config
    written = yaml.safe_dump_all(documents(config))
    assert load_config(written, "written.yaml", {}) == Loaded(config, ())


def test_known_fields_without_effect_are_named() -> None:
    loaded = load_config(HEAD + "winkernel: {enableDSR: true}\nfeatureGates: {A: true}\nportRange: ''", "c.yaml", {})
    assert loaded.ignored == (
        "c.yaml:3: winkernel has no effect here",
        "c.yaml:4: featureGates: gate A has no effect here",
    )


@pytest.mark.parametrize(
    ("body", "flags", "allowed"),
    [
        ("featureGates: {AllowServiceExternalIPs: false}", {}, ()),
        ("featureGates: {AllowServiceExternalIPs: true}", {}, ("192.0.2.0/24",)),
        ("", {"feature_gates": "AllowServiceExternalIPs=false"}, ()),
        ("featureGates: {AllowServiceExternalIPs: false}", {"feature_gates": "AllowServiceExternalIPs=true"}, None),
    ],
)
def test_the_gate_of_external_ips(body: str, flags: dict[str, str], allowed: tuple[str, ...] | None) -> None:
    """Off, it is stricter than our own list."""
    ours = "" if allowed is None else OURS + "allowExternalIPs: [192.0.2.0/24]\n"
    given = {name.replace("_", "-"): value for name, value in flags.items()}
    assert load_config(HEAD + body + "\n" + ours, "c.yaml", given).config.additions.allow_external_ips == allowed


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (0, 0),
        ("0s", 0),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("100ms", 0.1),
        ("1m0.5s", 60.5),
        ("+2s", 2),
        (".5s", 0.5),
        ("5us1\u00b5s1\u03bcs", 7e-6),
        ("2562047h47m16s", 9223372036),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", 5, "s", "1", "1 s", "1d", "-1s", "1.2.3s", None, True, [], "\u0661s", "2562047h47m17s"]
)
def test_no_durations(text: object) -> None:
    with pytest.raises(BadValue):
        duration_s(text)


@pytest.mark.parametrize(
    ("flag", "override", "environment", "hostname", "expected"),
    [
        ("A", "b", "c", "d", "a"),
        (None, " B ", "c", "d", "b"),
        (None, "", "C", "d", "c"),
        (None, "", None, "Host.Example", "host.example"),
    ],
)
def test_the_nodes_name(flag: str | None, override: str, environment: str | None, hostname: str, expected: str) -> None:
    config = Config(hostname_override=override)
    assert node_name(config, flag=flag, environment=environment, hostname=hostname) == expected


def test_a_node_without_a_name() -> None:
    with pytest.raises(ConfigError, match="has no name"):
        node_name(Config(), flag=None, environment=" ", hostname="")


def test_the_manual_has_every_field_and_flag() -> None:
    manual = (Path(__file__).parent.parent.parent / "docs" / "proxy-configuration.md").read_text()
    rows = {line.split("|")[1].split()[0] for line in manual.splitlines() if line.startswith("| ")}
    assert rows >= set(KUBE_PROXY_FIELDS) | set(OUR_FIELDS)
    for name in FLAGS:
        assert f"--{name} " in manual or f"--{name})" in manual, name


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        (":10256", Bind("0.0.0.0", 10256)),
        ("[::]:1", Bind("::", 1)),
        ("::1", Bind("::1", 10256)),
        ("192.0.2.1", Bind("192.0.2.1", 10256)),
    ],
)
def test_listening_addresses(text: str, bind: Bind) -> None:
    assert read("", healthz_bind_address=text).healthz_bind == bind
