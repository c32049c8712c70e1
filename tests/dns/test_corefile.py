"""The Corefile: what it means, and what is said about each mistake in it."""

# ruff: noqa: E501 - messages are quoted as they are shown

from __future__ import annotations

import ipaddress
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsserver import corefile, names
from dnsserver.config import PodsMode
from dnsserver.corefile import CorefileError, load
from dnsserver.corefile_model import (
    COMMON_LOG_FORMAT,
    Address,
    CacheLimits,
    ForwardConfig,
    Key,
    Prefetch,
    ServerBlock,
    ServeStale,
    Upstream,
)
from tests.charts.kubeadm import COREFILE as KUBEADM


def zone(text: str) -> bytes:
    return names.from_text(text)


def block(text: str, **env: str) -> ServerBlock:
    """The only server block of a Corefile with these directives."""
    (found,) = load(f".:53 {{\n{text}\n}}\n", env=env).blocks
    return found


def forward(text: str) -> ForwardConfig:
    (found,) = block(text).forwards
    return found


def problems(text: str, **env: str) -> list[str]:
    with pytest.raises(CorefileError) as caught:
        load(text, env=env)
    return [str(problem) for problem in caught.value.problems]


# -- whole files


@pytest.mark.parametrize("text", [KUBEADM, corefile.DEFAULT], ids=["kubeadm-now", "kubeadm-before-1.32"])
def test_kubeadms_corefile_works_unmodified(text: str) -> None:
    (found,) = load(text).blocks
    assert found.keys == (Key(names.ROOT, 53),)
    assert found.errors is not None
    assert found.health is not None
    assert (found.health.address, found.health.lameduck_s) == (Address("", 8080), 5.0)
    assert found.ready is not None
    assert found.ready.address == Address("", 8181)
    assert found.prometheus is not None
    assert found.prometheus.address == Address("", 9153)
    kubernetes = found.kubernetes
    assert kubernetes is not None
    assert kubernetes.zones == (zone("cluster.local"), zone("in-addr.arpa"), zone("ip6.arpa"))
    assert (kubernetes.pods, kubernetes.ttl_s) == (PodsMode.INSECURE, 30)
    assert kubernetes.fallthrough == (zone("in-addr.arpa"), zone("ip6.arpa"))
    assert found.forwards == (ForwardConfig(zone=names.ROOT, upstreams=("/etc/resolv.conf",), max_concurrent=1000),)
    assert found.cache is not None
    assert (found.cache.success.ttl_s, found.cache.denial.ttl_s) == (30, 30)
    disabled = (zone("cluster.local"),) if "disable" in text else ()
    assert (found.cache.success.disabled, found.cache.denial.disabled) == (disabled, disabled)
    assert (found.loop, found.reload is not None, found.loadbalance is not None) == (True, True, True)


def test_a_config_can_be_sent_to_a_worker() -> None:
    config = load(KUBEADM + 'b.example {\n template IN A {\n match "^a"\n answer "{{ .Name }} 1 IN A 192.0.2.1"\n }\n}')
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("example.local:53 .:1053 {\n whoami\n}", [("example.local", 53), (".", 1053)]),
        ("dns://Example.LOCAL {\n whoami\n}", [("example.local", 53)]),
        ("a.test, b.test:54,\nc.test {\n whoami\n}", [("a.test", 53), ("b.test", 54), ("c.test", 53)]),
        (":1053 {\n whoami\n}", [(".", 1053)]),
        ("10.0.0.0/8 {\n whoami\n}", [("10.in-addr.arpa", 53)]),
        ("10.1.0.0/16:1053 {\n whoami\n}", [("1.10.in-addr.arpa", 1053)]),
        ("10.64.0.0/15 {\n whoami\n}", [("64.10.in-addr.arpa", 53), ("65.10.in-addr.arpa", 53)]),
        ("fd00:10::/32 {\n whoami\n}", [("0.1.0.0.0.0.d.f.ip6.arpa", 53)]),
        ("fd00:10::/32:1053 {\n whoami\n}", [("0.1.0.0.0.0.d.f.ip6.arpa", 1053)]),
        (".:53\nwhoami\nlog\n", [(".", 53)]),
        ("{$ZONE} {\n whoami\n}", [("env.test", 53)]),
        ("a.{%ZONE%}:{$PORT} {\n whoami\n}", [("a.env.test", 5353)]),
        ("{$ZONE:other.test}:{$UNSET:1053} {\n whoami\n}", [("env.test", 1053)]),
    ],
)
def test_keys_of_a_server_block(text: str, keys: list[tuple[str, int]]) -> None:
    (found,) = load(text, env={"ZONE": "env.test", "PORT": "5353"}).blocks
    assert found.keys == tuple(Key(zone(name), port) for name, port in keys)


def test_a_prefix_off_the_octet_is_every_zone_below() -> None:
    (found,) = load("10.0.0.0/17 {\n whoami\n}").blocks
    assert len(found.keys) == 128
    assert Key(zone("127.0.10.in-addr.arpa"), 53) in found.keys


def test_blocks_may_share_a_zone_on_other_ports_or_addresses() -> None:
    config = load(
        ".:53 {\n whoami\n}\n.:54 {\n whoami\n}\n"
        "a.test {\n bind 127.0.0.1\n whoami\n}\na.test {\n bind 127.0.0.2\n whoami\n}\n"
    )
    assert [b.bind for b in config.blocks] == [(), (), ("127.0.0.1",), ("127.0.0.2",)]


# -- words, snippets, imports


def test_quotes_comments_and_continued_lines() -> None:
    found = block('log . "{type} said \\"{name}\\" # no comment" # a comment\nforward . 192.0.2.1 \\\n  192.0.2.2')
    assert found.logs[0].format == '{type} said "{name}" # no comment'
    assert found.forwards[0].upstreams == (Upstream("192.0.2.1", 53), Upstream("192.0.2.2", 53))


def test_a_snippet_is_put_where_it_is_imported() -> None:
    config = load(
        "(common) {\n errors\n cache 7 {\n  prefetch 3\n }\n}\na.test {\n import common\n}\nb.test {\n import common\n}"
    )
    assert [b.keys[0].zone for b in config.blocks] == [zone("a.test"), zone("b.test")]
    for found in config.blocks:
        assert found.errors is not None
        assert found.cache is not None
        assert (found.cache.success.ttl_s, found.cache.prefetch) == (7, Prefetch(amount=3))


def test_files_are_imported_beside_the_importing_file(tmp_path: Path) -> None:
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "b.override").write_text("log\n")
    (tmp_path / "custom" / "a.override").write_text("import ../more/cache.conf\n")
    (tmp_path / "custom" / "x.server").write_text("stub.test {\n forward . 192.0.2.9\n}\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "cache.conf").write_text("cache 9\n")
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n import custom/*.override\n import custom/*.absent\n whoami\n}\nimport custom/*.server\n")
    config = load(path)
    root, stub = config.blocks
    assert (len(root.logs), root.cache is not None, root.whoami) == (1, True, True)
    assert stub.keys == (Key(zone("stub.test"), 53),)
    assert [name.removeprefix(f"{tmp_path}/") for name in config.files] == [
        "Corefile",
        "custom/a.override",
        "custom/b.override",
        "custom/../more/cache.conf",
        "custom/x.server",
    ]


def test_a_byte_order_mark_is_no_word(tmp_path: Path) -> None:
    (tmp_path / "more").write_bytes(b"\xef\xbb\xbferrors\n")
    path = tmp_path / "Corefile"
    path.write_bytes(b"\xef\xbb\xbf.:53 {\r\n import more\r\n whoami\r\n}\r\n")
    (found,) = load(path).blocks
    assert (found.errors is not None, found.whoami) == (True, True)


def test_a_problem_in_an_imported_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "extra").write_text("errors\n\ncahce 30\n")
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n import extra\n}\n")
    with pytest.raises(CorefileError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (str(tmp_path / "extra"), 3)
    assert problem.remedy == "did you mean 'cache'?"


def test_the_same_file_twice_in_a_row_is_two_times_its_lines(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("forward a.test 192.0.2.1")
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n import f\n import f\n}\n")
    assert len(load(path).blocks[0].forwards) == 2


def test_endless_imports_are_found(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n import Corefile\n}\n")
    with pytest.raises(CorefileError, match="nested too deeply"):
        load(path)
    bomb = "(s0) {\n errors\n errors\n}\n" + "".join(
        f"(s{n}) {{\n" + f" import s{n - 1}\n" * 10 + "}\n" for n in range(1, 15)
    )
    assert any("too large" in text for text in problems(bomb + ".:53 {\n import s14\n}\n"))


def test_the_digest_sees_meaning_not_layout() -> None:
    one = load(".:53 {\n cache 30\n}\n").digest
    assert load(".:53   {\n\n  cache \t30 # half a minute\n}").digest == one
    assert load(".:53 {\n cache {$TTL}\n}\n", env={"TTL": "30"}).digest == one
    assert load(".:53 {\n cache 31\n}\n").digest != one


def test_a_missing_file_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(CorefileError) as caught:
        load(tmp_path / "Corefile")
    (problem,) = caught.value.problems
    assert (problem.line, problem.text) == (0, "cannot read the Corefile: No such file or directory")


# -- plugins, one by one


def test_errors() -> None:
    found = block(
        'errors {\n consolidate 5m ".* i/o timeout$" warning\n consolidate 30s "^Failed" show_first\n stacktrace\n}'
    )
    assert found.errors is not None
    first, second = found.errors.consolidate
    assert (first.period_s, first.pattern.pattern, first.level, first.show_first) == (
        300,
        ".* i/o timeout$",
        "warning",
        False,
    )
    assert (second.period_s, second.level, second.show_first) == (30, "error", True)
    assert found.errors.stacktrace


def test_log() -> None:
    assert block("log").logs[0].format == COMMON_LOG_FORMAT
    found = block('log a.test b.test "{remote} {common}" {\n class denial error\n}\nlog c.test')
    first, second = found.logs
    assert first.zones == (zone("a.test"), zone("b.test"))
    assert first.format == "{remote} " + COMMON_LOG_FORMAT
    assert first.classes == {"denial", "error"}
    assert (second.zones, second.classes) == ((zone("c.test"),), frozenset({"all"}))


def test_operations_endpoints() -> None:
    found = block(
        "health localhost:8091\nready [::1]:8182 {\n monitor continuously\n}\nprometheus 10.0.0.1:9100\nreload 10s 3s"
    )
    assert found.health is not None
    assert found.health.address == Address("localhost", 8091)
    assert found.ready is not None
    assert (found.ready.address, found.ready.continuously) == (Address("::1", 8182), True)
    assert found.prometheus is not None
    assert found.prometheus.address == Address("10.0.0.1", 9100)
    assert found.reload is not None
    assert (found.reload.interval_s, found.reload.jitter_s) == (10, 3)
    default = block("prometheus\nreload").prometheus
    assert default is not None
    assert default.address == Address("localhost", 9153)


def test_loadbalance() -> None:
    text = "loadbalance weighted /etc/weights {\n reload 5s\n prefer 10.0.0.0/8 fd00::/8\n}"
    found = block(text).loadbalance
    assert found is not None
    assert (found.weights, found.reload_s, [str(n) for n in found.prefer]) == (
        "/etc/weights",
        5.0,
        ["10.0.0.0/8", "fd00::/8"],
    )
    assert [str(b.loadbalance) for b in (block("loadbalance"), block("loadbalance round_robin"))] == 2 * [
        "LoadbalanceConfig(weights='', reload_s=30.0, prefer=())"
    ]


def test_kubernetes_names_of_zones_and_clusters() -> None:
    text = "kubernetes cluster.local clusterset.local in-addr.arpa {\n multicluster Clusterset.Local\n zonal\n}"
    found = block(text).kubernetes
    assert found is not None
    assert (found.multicluster, found.zonal) == ((zone("clusterset.local"),), True)


def test_kubernetes() -> None:
    config = block(
        """kubernetes cluster.local 10.96.0.0/12 {
            endpoint https://k8s.test:6443
            tls cert.pem key.pem ca.pem
            apiserver_qps 50.5
            apiserver_burst 100
            apiserver_max_inflight 7
            namespaces default kube-system
            labels environment in (staging, qa),application=nginx
            pods verified
            endpoint_pod_names
            ttl 0
            noendpoints
            fallthrough
            ignore empty_service
            startup_timeout 250ms
        }"""
    ).kubernetes
    assert config is not None
    assert config.zones[0] == zone("cluster.local")
    assert len(config.zones) == 17  # 10.96/12 is sixteen /16
    api = config.api
    assert (api.endpoint, api.tls) == ("https://k8s.test:6443", ("cert.pem", "key.pem", "ca.pem"))
    assert (api.qps, api.burst, api.max_inflight) == (50.5, 100, 7)
    assert config.namespaces == {"default", "kube-system"}
    assert str(config.labels) == "environment in (staging, qa),application=nginx"
    assert (config.pods, config.ttl_s, config.startup_timeout_s) == (PodsMode.VERIFIED, 0, 0.25)
    assert (config.endpoint_pod_names, config.noendpoints, config.ignore_empty_service) == (True, True, True)
    assert config.fallthrough == (names.ROOT,)
    other = load("cluster.local {\n kubernetes {\n kubeconfig /k admin\n namespace_labels tier=front\n }\n}").blocks[0]
    assert other.kubernetes is not None
    assert other.kubernetes.zones == (zone("cluster.local"),)
    assert (other.kubernetes.api.kubeconfig, other.kubernetes.api.context) == ("/k", "admin")
    assert str(other.kubernetes.namespace_labels) == "tier=front"


def test_k8s_external() -> None:
    config = block(
        "kubernetes cluster.local\nk8s_external ext.test {\n apex names\n ttl 7\n headless\n fallthrough\n}"
    ).external
    assert config is not None
    assert (config.zones, config.apex, config.ttl_s, config.headless) == ((zone("ext.test"),), "names", 7, True)
    assert config.fallthrough == (names.ROOT,)


@pytest.mark.parametrize(
    ("to", "upstream"),
    [
        ("192.0.2.1", Upstream("192.0.2.1", 53)),
        ("192.0.2.1:54", Upstream("192.0.2.1", 54)),
        ("dns://192.0.2.1", Upstream("192.0.2.1", 53)),
        ("2001:db8::1", Upstream("2001:db8::1", 53)),
        ("[2001:DB8::1]:54", Upstream("2001:db8::1", 54)),
        ("dns.example", Upstream("dns.example", 53)),
        ("tls://9.9.9.9", Upstream("9.9.9.9", 853, "tls")),
        ("tls://9.9.9.9%dns.quad9.net", Upstream("9.9.9.9", 853, "tls", "dns.quad9.net")),
        ("tls://9.9.9.9%dns.quad9.net:10853", Upstream("9.9.9.9", 10853, "tls", "dns.quad9.net")),
        ("tls://[2620:fe::9]:8853%dns.quad9.net", Upstream("2620:fe::9", 8853, "tls", "dns.quad9.net")),
        ("/etc/resolv.conf", "/etc/resolv.conf"),
    ],
)
def test_forward_upstreams(to: str, upstream: Upstream | str) -> None:
    assert forward(f"forward . {to}").upstreams == (upstream,)


def test_forward_options() -> None:
    config = forward(
        """forward example.test 192.0.2.1 tls://192.0.2.2 {
            except a.example.test b.example.test
            force_tcp
            prefer_udp
            expire 20s
            max_idle_conns 3
            max_fails 0
            max_connect_attempts 5
            tls ca.pem
            tls_servername dns.test
            policy sequential
            health_check 5s no_rec domain health.test
            max_concurrent 1000
            next NXDOMAIN SERVFAIL
            next_on_nodata
            failfast_all_unhealthy_upstreams
            failover SERVFAIL REFUSED
            resolver 192.0.2.53 192.0.2.54:5353
        }"""
    )
    assert config == ForwardConfig(
        zone=zone("example.test"),
        upstreams=(Upstream("192.0.2.1", 53), Upstream("192.0.2.2", 853, "tls")),
        exclude=(zone("a.example.test"), zone("b.example.test")),
        force_tcp=True,
        prefer_udp=True,
        expire_s=20,
        max_idle_conns=3,
        max_fails=0,
        max_connect_attempts=5,
        tls=("ca.pem",),
        tls_servername="dns.test",
        policy="sequential",
        health_interval_s=5,
        health_recursion=False,
        health_domain=zone("health.test"),
        max_concurrent=1000,
        next_rcodes=frozenset({3, 2}),
        next_on_nodata=True,
        failover_rcodes=frozenset({2, 5}),
        failfast=True,
        resolver=(Upstream("192.0.2.53", 53), Upstream("192.0.2.54", 5353)),
    )


def test_forward_may_stand_several_times() -> None:
    found = block("forward lab.example.local 10.20.0.1\nforward example.local 10.0.0.1\nforward . /etc/resolv.conf")
    assert [config.zone for config in found.forwards] == [zone("lab.example.local"), zone("example.local"), names.ROOT]


def test_cache() -> None:
    config = block(
        """cache 100 example.test {
            success 5000 60 5
            denial 2500 10
            prefetch 10 2m 20%
            serve_stale 30m verify 500ms
            serve_stale_policy prefer_positive
            servfail 1s
            disable success a.example.test
            disable denial
            keepttl
        }"""
    ).cache
    assert config is not None
    assert config.zones == (zone("example.test"),)
    assert config.success == CacheLimits(capacity=5000, ttl_s=60, min_ttl_s=5, disabled=(zone("a.example.test"),))
    assert config.denial == CacheLimits(capacity=2500, ttl_s=10, disabled=(zone("example.test"),))
    assert config.prefetch == Prefetch(amount=10, duration_s=120, percentage=20)
    assert config.serve_stale == ServeStale(duration_s=1800, verify=True, verify_timeout_s=0.5, prefer_positive=True)
    assert (config.servfail_s, config.keepttl) == (1, True)
    default = block("cache").cache
    assert default is not None
    assert (default.success, default.denial) == (CacheLimits(ttl_s=3600), CacheLimits(ttl_s=1800))
    assert (default.servfail_s, default.prefetch, default.serve_stale) == (5, None, None)
    for text, verify in (("serve_stale", False), ("serve_stale 1h Immediate", False), ("serve_stale 1h VERIFY", True)):
        stale = block(f"cache {{\n {text}\n}}").cache
        assert stale is not None
        assert stale.serve_stale == ServeStale(verify=verify)
    off = block("cache {\n serve_stale 0s\n}").cache
    assert off is not None
    assert off.serve_stale is None


def test_hosts() -> None:
    config = block(
        "hosts /etc/extra a.test {\n 192.0.2.1 one.a.test two.a.test\n ::1 *.a.test\n ttl 60\n reload 1s\n no_reverse\n fallthrough\n}"
    ).hosts
    assert config is not None
    assert (config.path, config.zones) == ("/etc/extra", (zone("a.test"),))
    assert config.inline == ("192.0.2.1 one.a.test two.a.test", "::1 *.a.test")
    assert (config.ttl_s, config.reload_s, config.no_reverse, config.fallthrough) == (60, 1, True, (names.ROOT,))


@pytest.mark.parametrize(
    ("line", "field", "go_on"),
    [
        ("rewrite name old.test new.test", "name", False),
        ("rewrite stop name suffix .old.test .new.test answer auto", "name", False),
        (
            "rewrite continue name regex (.*)-(us)\\.test {1}.{2}.test answer name (.*)\\.us\\.test {1}-us.test",
            "name",
            True,
        ),
        (
            "rewrite stop {\n name regex (.*)\\.a {1}.b\n answer name (.*)\\.b {1}.a\n answer value (.*)\\.b {1}.a\n}",
            "name",
            False,
        ),
        ("rewrite type ANY HINFO", "type", False),
        ("rewrite class CH IN", "class", False),
        ("rewrite ttl regex .* 30-300", "ttl", False),
        ("rewrite continue rcode exact a.test SERVFAIL NXDOMAIN", "rcode", True),
        ("rewrite cname exact a.test b.test", "cname", False),
    ],
)
def test_rewrite(line: str, field: str, go_on: bool) -> None:
    (rule,) = block(line).rewrites
    assert (rule.field, rule.go_on) == (field, go_on)


def test_rewrites_keep_their_order() -> None:
    found = block("rewrite name a.test b.test\nrewrite type A AAAA\nrewrite ttl exact c.test 5")
    assert [rule.field for rule in found.rewrites] == ["name", "type", "ttl"]


def test_the_rest() -> None:
    found = block(
        """autopath a.test /etc/resolv.conf
        template IN ANY a.test {
            match "^ip-(?P<a>[0-9]+)[.]a[.]test[.]$" "^x[.]"
            answer "{{ .Name }} 60 IN A 10.0.0.{{ .Group.a }}"
            authority "a.test. 60 IN NS ns.a.test."
            additional "ns.a.test. 60 IN A 192.0.2.53"
            rcode NOERROR
            ederror 21 "Blocked"
            fallthrough
        }
        dns64 64:ff9b:1::/96 {
            translate_all
            allow_ipv4
        }
        any
        chaos v1 alice bob
        acl a.test {
            block type A AAAA net 10.0.0.0/8 192.0.2.7
            drop net *
            allow
        }
        bufsize 1400
        minimal
        loadbalance round_robin {
            prefer 10.0.0.0/8
        }
        bind 127.0.0.1 ::1
        local
        cancel 500ms
        debug"""
    )
    assert found.autopath is not None
    assert found.autopath.resolv_conf == "/etc/resolv.conf"
    (template,) = found.templates
    assert (template.rclass, template.rtype, len(template.matches), template.error) == (1, 255, 2, (21, "Blocked"))
    assert found.dns64 is not None
    assert found.dns64.prefix == ipaddress.IPv6Network("64:ff9b:1::/96")
    assert (found.dns64.translate_all, found.dns64.allow_ipv4) == (True, True)
    assert found.chaos is not None
    assert (found.chaos.version, found.chaos.authors) == ("v1", ("alice", "bob"))
    (acl,) = found.acls
    assert [rule.action for rule in acl.rules] == ["block", "drop", "allow"]
    assert acl.rules[0].types == frozenset({1, 28})
    assert [str(network) for network in acl.rules[0].networks] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert acl.rules[1].networks == ()
    assert (found.any, found.bufsize, found.minimal, found.local, found.debug) == (True, 1400, True, True, True)
    assert found.loadbalance is not None
    assert [str(network) for network in found.loadbalance.prefer] == ["10.0.0.0/8"]
    assert (found.bind, found.cancel_s) == (("127.0.0.1", "::1"), 0.5)
    assert block("bufsize").bufsize == 1232


# -- mistakes: each line's number, and what to do


MISTAKES = """
erors                                 | 'erors' is no plugin; did you mean 'errors'?
forwad . 192.0.2.1                    | 'forwad' is no plugin; did you mean 'forward'?
proxy . 192.0.2.1                     | plugin 'proxy' is not supported; use forward, which replaced it in CoreDNS 1.5
file db.example                       | plugin 'file' is not supported; remove it, or forward the zone to a server that has it
errors now                            | 'errors' takes no argument, found 1; remove the rest
cache 0                               | TTL 0 is out of range; write 1 to 2147483647
health 8080:                          | '8080:' is no address; write HOST:PORT or :PORT
health 8080                           | '8080' is no address; write :8080
prometheus :99999                     | port 99999 is out of range; write 1 to 65535
reload 1s                             | interval 1s is out of range; write 2s to 86400s
reload 30                             | interval '30' is no duration; write 30s
loop twice                            | 'loop' takes no argument, found 1; remove the rest
loadbalance least_conn                | 'least_conn' is no policy; one of round_robin, weighted
loadbalance weighted                  | 'weighted' names no file; write weighted FILE
loadbalance round_robin file          | 'file' cannot stand here; remove it, or write weighted FILE
bufsize 100                           | size 100 is out of range; write 512 to 4096
forward .                             | 'forward' takes at least 2, found 1; add what is missing
forward . {$UPSTREAM                  | '{$UPSTREAM' is no upstream; write IP[:PORT], tls://IP%NAME or /etc/resolv.conf
forward . 192.0.2.300                 | '192.0.2.300' is no upstream; write IP[:PORT], tls://IP%NAME or /etc/resolv.conf
forward . https://192.0.2.1           | transport 'https://' is not supported for upstreams; write an address, dns://ADDRESS or tls://ADDRESS
forward . tls://192.0.2.1%            | 'tls://192.0.2.1%' has no server name after '%'; write tls://ADDRESS%NAME
forward a..b 192.0.2.1                | 'a..b' is no zone: label '' has 0 bytes; 1 to 63 are allowed; write a domain name or a CIDR
forward 10.0.0.0/17 192.0.2.1         | '10.0.0.0/17' covers 128 reverse zones; write a prefix of whole octets (IPv4) or nibbles (IPv6), or one forward line for each
kubernetes 10.96.0.0/12               | 'kubernetes' has only reverse zones; name the cluster's zone too, such as cluster.local
autopath                              | 'autopath' takes at least 1, found 0; add what is missing
autopath @kubernetes                  | '@kubernetes' names a plugin this block does not have; add kubernetes to this block
k8s_external ext.test                 | 'k8s_external' has no 'kubernetes' to take Services from; add kubernetes to this block
dns64 64:ff9b::/95                    | '64:ff9b::/95' is no translation prefix; write an IPv6 /32, /40, /48, /56, /64 or /96
template IN AAAAA                     | 'AAAAA' is no record type; did you mean 'AAAA'?
rewrite                               | rewrite names nothing to rewrite; write rewrite name FROM TO, for instance
rewrite nam a b                       | 'nam' is no field of rewrite; did you mean 'name'?
rewrite name a.test                   | 'rewrite name' takes 2 arguments, found 1; write rewrite name [exact|prefix|suffix|substring|regex] FROM TO [answer auto|name FROM TO|value FROM TO]
rewrite name regex (a b               | regular expression '(a': missing ), unterminated subpattern at position 0; correct the expression
rewrite name regex (a+)+b c           | regular expression '(a+)+b': takes exponential time on some names, as (a+)+ does; repeat only what cannot match two ways; correct the expression
rewrite name regex a {1}              | '{1}' in '{1}' is no group; there are 0 groups
rewrite ttl a.test 9-3                | '9-3' is no TTL; write SECONDS, LOW-HIGH, LOW- or -HIGH
rewrite rcode a.test NXDOMIAN NOERROR | 'NXDOMIAN' is no response code; did you mean 'NXDOMAIN'?
rewrite edns0 nsid set                | 'rewrite edns0' is not supported; remove it: EDNS options stop here (RFC 6891 §6.1.1)
log . "{typ}"                         | '{typ}' is no field of a log line; did you mean '{type}'?
bind eth0                             | 'eth0' is no IP address; write an address; interface names are not supported
import nowhere                        | cannot import 'nowhere': No such file or directory; name a readable file or a snippet (none)
import                                | import takes one argument, found 0; name one file, pattern or snippet
"""


@pytest.mark.parametrize(
    "case", [line for line in MISTAKES.splitlines() if line], ids=lambda c: c.split("|")[0].strip()
)
def test_a_mistake_in_a_line(case: str) -> None:
    line, expected = (part.strip() for part in case.split(" | ", 1))
    assert problems(f"# comment\n\n.:53 {{\n    whoami\n    {line}\n    debug\n}}\n") == [f"Corefile:5: {expected}"]


OPTION_MISTAKES = """
loadbalance | reload 5s              | 'reload' is for a file of weights; write weighted FILE, or remove it
loadbalance weighted /w | reload 5   | reload '5' is no duration; write 5s
errors     | consolidate 5 x         | period '5' is no duration; write 5s
errors     | consolidate 5s x louder | 'louder' is no level; one of warning, error, info, debug
health     | lameduk 5s              | 'lameduk' is no option of 'health'; did you mean 'lameduck'?
health     | lameduck 5              | lameduck '5' is no duration; write 5s
ready      | monitor sometimes       | 'sometimes' is no monitor mode; one of until-ready, continuously
log        | class succes            | 'succes' is no class; did you mean 'success'?
kubernetes cluster.local | pods insecur      | 'insecur' is no pods mode; did you mean 'insecure'?
kubernetes cluster.local | ttl 3601          | TTL 3601 is out of range; write 0 to 3600
kubernetes cluster.local | upstream          | 'upstream' is not supported in 'kubernetes'; remove it: names outside are resolved through this server itself
kubernetes cluster.local | resyncperiod 5m   | 'resyncperiod' is not supported in 'kubernetes'; remove it: the cluster is watched
kubernetes cluster.local | multicluster a.b  | 'a.b' is no zone of this 'kubernetes'; name it among the directive's zones too
kubernetes cluster.local | multicluster      | 'multicluster' takes at least 1, found 0; add what is missing
kubernetes cluster.local | zonal on          | 'zonal' takes no argument, found 1; remove the rest
kubernetes cluster.local | transfer to *     | 'transfer' is not supported in 'kubernetes'; zone transfer is not supported
kubernetes cluster.local | namespace default | 'namespace' is no option of 'kubernetes'; did you mean 'namespaces'?
kubernetes cluster.local | labels a ==== b   | 'a ==== b' is no label requirement; write KEY=VALUE, KEY!=VALUE, KEY in (A, B), KEY notin (A, B), KEY or !KEY; write it as kubectl's -l takes it
kubernetes cluster.local | endpoint k8s:6443 | 'k8s:6443' is no API endpoint; write https://HOST:PORT
kubernetes cluster.local | tls a b c         | 'tls' is for an endpoint that is not named; add endpoint https://HOST:PORT
kubernetes cluster.local | ignore everything | 'everything' is no thing to ignore; one of empty_service, emptyservice
forward . 192.0.2.1 | max_fail 3             | 'max_fail' is no option of 'forward'; did you mean 'max_fails'?
forward . 192.0.2.1 | max_fails -1           | max_fails -1 is out of range; write 0 to 65536
forward . 192.0.2.1 | policy random_robin    | 'random_robin' is no policy; did you mean 'round_robin'?
forward . 192.0.2.1 | health_check 5         | interval '5' is no duration; write 5s
forward . 192.0.2.1 | health_check 5s domain | 'domain' names no domain; write domain FQDN
forward . 192.0.2.1 | failover NOERROR       | failover cannot be asked for NOERROR; name codes of failure
forward . 192.0.2.1 | tls_servername a.test  | 'tls_servername' has no tls:// upstream to be for; write tls://ADDRESS, or remove it
forward . tls://192.0.2.1%a.test | tls_servername b.test | 'tls_servername' and tls://ADDRESS%NAME exclude each other; keep one of them
forward . 192.0.2.1 | doh_method GET         | 'doh_method' is not supported in 'forward'; DNS over HTTPS upstreams are not supported; write tls://ADDRESS
cache      | succes 10               | 'succes' is no option of 'cache'; did you mean 'success'?
cache      | success 10 5 9          | the minimum TTL 9 is above the TTL 5; swap them
cache      | prefetch 5 1m 10        | percentage '10' has no percent sign; write 10%
cache      | prefetch 5 1m 5%        | percentage 5 is out of range; write 10 to 90
cache      | servfail 6m             | servfail 6m is out of range; write 0s to 300s
cache      | serve_stale 1h verfy    | 'verfy' is no refresh mode; did you mean 'verify'?
cache      | serve_stale_policy prefer_positive | serve_stale_policy has nothing to decide; add serve_stale
cache      | disable everything      | 'everything' is no half of the cache; one of success, denial
hosts      | 192.0.2.1               | '192.0.2.1' takes at least 1, found 0; add what is missing
hosts      | ttl 0                   | TTL 0 is out of range; write 1 to 65535
template IN A | answer "{{ .Nam }}"  | template '{{ .Nam }}': no field '.Nam'; there are .Zone, .Name, .Class, .Type, .Match, .Group, .Remote, .Message, .Question; correct the template
template IN A | answer "{{ .Group.x }}" | template '{{ .Group.x }}': no expression has a group 'x' (named groups: none); correct the template
template IN A | answer "{{ range .Match }}" | template '{{ range .Match }}': 'range' is not supported; correct the template
template IN A | upstream             | 'upstream' is not supported in 'template'; remove it: names are resolved through this server itself
acl        | block net 10.0.0.0/33   | '10.0.0.0/33' is no network; write it as 10.0.0.0/8 or fd00::/64
acl        | blok net 10.0.0.0/8     | 'blok' is no option of 'acl'; did you mean 'block'?
acl        | block 10.0.0.0/8        | '10.0.0.0/8' cannot stand here; write ACTION type QTYPE… net SOURCE…
acl        | block type              | 'type' lists nothing; name what follows type, or leave it out
"""


@pytest.mark.parametrize(
    "case", [line for line in OPTION_MISTAKES.splitlines() if line], ids=lambda c: "|".join(c.split("|")[:2])
)
def test_a_mistake_in_an_option(case: str) -> None:
    directive, option, expected = (part.strip() for part in case.split(" | ", 2))
    found = problems(f".:53 {{\n    {directive} {{\n\n        {option}\n    }}\n}}\n")
    assert found == [f"Corefile:4: {expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["Corefile: no server block; write at least .:53 { forward . /etc/resolv.conf }"]),
        (".:53 {\n whoami\n", ["Corefile:1: '{' is never closed; add the missing '}'"]),
        (".:53 {\n forward . \"192.0.2.1\n}\n", ["Corefile:2: a quote is never closed; add the missing '\"'"]),
        (
            ".:53 {\n log . \"x\n whomi\n",
            [
                "Corefile:1: '{' is never closed; add the missing '}'",
                "Corefile:2: a quote is never closed; add the missing '\"'",
                "Corefile:3: 'whomi' is no plugin; did you mean 'whoami'?",
            ],
        ),
        ("(s) {\n log . \"x\n}\n. {\n import s\n}\n", ["Corefile:2: a quote is never closed; add the missing '\"'"]),
        (".:53 {\n whoami\n}\n}\n", ["Corefile:4: unexpected '}'; no block is open here: remove it"]),
        (".:53{\n whoami\n}\n", ["Corefile:1: '.:53{' has no space before its brace; write '.:53 {'"]),
        (".:53 {\n health{\n  lameduck 1s\n }\n}\n", ["Corefile:2: 'health{' has no space before its brace; write 'health {'"]),
        (".:53 {\n health\n {\n  lameduck 1s\n }\n}\n", ["Corefile:3: unexpected '{'; put the brace at the end of the line it belongs to"]),
        ("{\n whoami\n}\n", ["Corefile:1: a server block without a zone; write a zone before '{', for instance .:53"]),
        (".:53 {\n cache\n cache\n}\n", ["Corefile:3: 'cache' stands twice in this server block; merge it with line 2"]),
        (".:70000 {\n whoami\n}\n", ["Corefile:1: port 70000 is out of range; write 1 to 65535"]),
        ("tls://. {\n whoami\n}\n", ["Corefile:1: transport 'tls://' is not served; write the zone alone, or dns://ZONE:PORT"]),
        (
            ".:53 {\n whoami\n}\na.test .:53 {\n whoami\n}\n",
            ["Corefile:4: '.:53' is already served by the block of line 1; merge the blocks, or bind them apart"],
        ),
        (
            ".:53 {\n whoami\n bind 127.0.0.1\n}\n.:53 {\n whoami\n}\n",
            ["Corefile:5: '.:53' is already served by the block of line 1; merge the blocks, or bind them apart"],
        ),
        ("a.test A.TEST. {\n whoami\n}\n", ["Corefile:1: 'a.test.:53' is listed twice; remove one of them"]),
        ("a..test {\n whoami\n}\n", ["Corefile:1: 'a..test' is no zone: label '' has 0 bytes; 1 to 63 are allowed; write a domain name or a CIDR"]),
        (".:53 {\n whoami\n}\nlog\n", ["Corefile:4: the server block 'log' has no plugins; add at least one, or remove the block"]),
        (".:" + "9" * 5000 + " {\n whoami\n}\n", ["Corefile:1: port 999999 is out of range; write 1 to 65535"]),
        (
            ".:53 {\n errors\n" + " a {\n" * 3000 + "}\n" * 3000 + " erors\n}\n",
            [
                "Corefile:3: 'a' is no plugin; known are " + ", ".join(sorted(corefile.PLUGINS)),
                "Corefile:52: more than 50 braces within one another; close those before",
                "Corefile:6003: 'erors' is no plugin; did you mean 'errors'?",
            ],
        ),
        ("(x) {\n errors\n}\n(x) {\n errors\n}\n. {\n whoami\n}", ["Corefile:4: snippet '(x)' is defined twice; give one of them another name"]),
        (
            ".:53 {\n kubernetes cluster.local\n autopath @kubernetes\n}\n",
            ["Corefile:3: 'autopath @kubernetes' must know which pod asks; write pods verified in kubernetes"],
        ),
        (
            ".:53 {\n kubernetes cluster.local\n k8s_external cluster.local\n}\n",
            ["Corefile:3: zone 'cluster.local.' is kubernetes' own; name another zone for k8s_external"],
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_the_structure(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_every_problem_is_told_in_the_order_of_the_lines() -> None:
    text = """\
.:53 {
    erors
    cache 30 {
        succes 1
        prefetch x
    }
    forward . 192.0.2.1 {
        max_fail 1
        policy none
    }
}
a..b {
    whomi
}
"""
    assert [problem.split(":")[1] for problem in problems(text)] == ["2", "4", "5", "8", "9", "12", "13"]


_WORDS = st.sampled_from(
    [*corefile.PLUGINS, "{", "}", "{", "}", ".:53", "a.test", "\n", "\n", "\n", "import", "(s)", "s", "30", "5s", ".", "192.0.2.1",
     "success", "ttl", "match", "answer", "name", "regex", "(", '"', "\\", "#", "{$X}", "{{ .Name }}", "IN", "A", "@kubernetes"]
)  # fmt: skip


@given(st.lists(_WORDS).map(" ".join) | st.text())
def test_any_text_is_a_configuration_or_a_list_of_problems(text: str) -> None:
    problems: tuple[corefile.CorefileProblem, ...] = ()
    blocks = 0
    try:
        blocks = len(load(text, env={}).blocks)
    except CorefileError as error:
        problems = error.problems
    assert bool(problems) != bool(blocks)
    assert all(1 <= problem.line <= text.count("\n") + 1 for problem in problems if problem.line)
