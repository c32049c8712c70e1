"""The `forward` directive.

Knows its options and how upstreams are written. Must not know sockets. Called by `corefile` through its table.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from dnsserver import corefile_model as model
from dnsserver import corefile_values as values
from dnsserver.corefile_plugins import Context
from dnsserver.corefile_syntax import Directive, Invalid, Token

MAX_UPSTREAMS = 15
PORTS = {"dns": 53, "tls": 853}
_HOST = re.compile(r"[A-Za-z0-9_.-]+")
"""What a host name is made of; anything else is a typing error, such as a variable without its brace."""


def forward(line: Directive, context: Context) -> model.ForwardConfig:
    """`forward FROM TO… { options }`."""
    values.counted(line, 2)
    zones = values.zones_of(line.args[:1])
    if len(zones) != 1:
        raise Invalid(
            line.args[0],
            f"'{line.args[0].text}' covers {len(zones)} reverse zones",
            "write a prefix of whole octets (IPv4) or nibbles (IPv6), or one forward line for each",
        )
    found: dict[str, Any] = {}
    targets: list[model.Upstream | str] = []
    for word in line.args[1:]:
        try:
            targets.append(upstream(word))
        except Invalid as invalid:
            context.problems.append(invalid.problem)
    if len(targets) > MAX_UPSTREAMS:
        raise Invalid(line.args[MAX_UPSTREAMS + 1], f"{len(targets)} upstreams", f"name at most {MAX_UPSTREAMS}")
    _options(line, context, found)
    config = model.ForwardConfig(zone=zones[0], upstreams=tuple(targets), **found)
    _check_tls(line, config, found)
    return config


def _options(line: Directive, context: Context, found: dict[str, Any]) -> None:
    def switch(field: str) -> Any:
        def handle(option: Directive) -> None:
            values.counted(option, 0, 0)
            found[field] = True

        return handle

    def number(field: str, high: int) -> Any:
        def handle(option: Directive) -> None:
            word = values.counted(option, 1, 1)[0]
            found[field] = values.integer(word, 0, high, option.name.text)

        return handle

    def rcodes(field: str) -> Any:
        def handle(option: Directive) -> None:
            codes = frozenset(values.response_code(word) for word in values.counted(option, 1))
            if field == "failover_rcodes" and 0 in codes:
                raise Invalid(option.name, "failover cannot be asked for NOERROR", "name codes of failure")
            found[field] = found.get(field, frozenset()) | codes

        return handle

    def exclude(option: Directive) -> None:
        found["exclude"] = found.get("exclude", ()) + values.zones_of(values.counted(option, 1))

    def expire(option: Directive) -> None:
        found["expire_s"] = values.duration(values.counted(option, 1, 1)[0], "expire")

    def tls(option: Directive) -> None:
        found["tls"] = tuple(word.text for word in values.counted(option, 0, 3))

    def server_name(option: Directive) -> None:
        found["tls_servername"] = values.counted(option, 1, 1)[0].text

    def policy(option: Directive) -> None:
        word = values.counted(option, 1, 1)[0]
        found["policy"] = values.choice(word, ("random", "round_robin", "sequential"), "policy")

    def health_check(option: Directive) -> None:
        words = list(values.counted(option, 1, 4))
        found["health_interval_s"] = values.duration(words.pop(0), "interval", low=1e-3, high=3600)
        while words:
            word = words.pop(0)
            if values.choice(word, ("no_rec", "domain"), "argument of health_check") == "no_rec":
                found["health_recursion"] = False
            elif not words:
                raise Invalid(word, "'domain' names no domain", "write domain FQDN")
            else:
                found["health_domain"] = values.name_of(words.pop(0))

    def resolver(option: Directive) -> None:
        found["resolver"] = tuple(_server(word) for word in values.counted(option, 1))

    known = {
        "except": exclude,
        "force_tcp": switch("force_tcp"),
        "prefer_udp": switch("prefer_udp"),
        "expire": expire,
        "max_idle_conns": number("max_idle_conns", 1 << 16),
        "max_fails": number("max_fails", 1 << 16),
        "max_connect_attempts": number("max_connect_attempts", 1 << 16),
        "tls": tls,
        "tls_servername": server_name,
        "policy": policy,
        "health_check": health_check,
        "max_concurrent": number("max_concurrent", 1 << 20),
        "next": rcodes("next_rcodes"),
        "next_on_nodata": switch("next_on_nodata"),
        "failover": rcodes("failover_rcodes"),
        "failfast_all_unhealthy_upstreams": switch("failfast"),
        "resolver": resolver,
    }
    removed = {
        "doh_method": "DNS over HTTPS upstreams are not supported; write tls://ADDRESS",
        "protocol": "use force_tcp or prefer_udp",
        "spray": "remove it: a random upstream is asked anyway when all are down",
    }
    values.options(line, known, context.problems, removed)


def upstream(word: Token) -> model.Upstream | str:
    """What a TO argument names: a server, or the path of a resolv.conf."""
    text = word.text
    if "://" not in text and text.startswith(("/", "./", "../")):
        return text
    scheme, separator, rest = text.rpartition("://")
    if not separator:
        scheme = "dns"
    if scheme not in PORTS:
        remedy = "write an address, dns://ADDRESS or tls://ADDRESS"
        raise Invalid(word, f"transport '{scheme}://' is not supported for upstreams", remedy)
    server_name = ""
    host, port = values.split_port(rest)
    # fe80::1%eth0 is an address with a zone; behind tls:// a percent sign gives the name to verify.
    if scheme == "tls" and "%" in host:
        host, _, server_name = host.partition("%")
        if not server_name:
            raise Invalid(word, f"'{text}' has no server name after '%'", "write tls://ADDRESS%NAME")
        if port is None:
            host, port = values.split_port(host)
    if port is not None and not 0 < port < 65536:
        raise Invalid(word, f"port {port} is out of range", "write 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host) or host.replace(".", "").isdigit():
            raise Invalid(
                word, f"'{text}' is no upstream", "write IP[:PORT], tls://IP%NAME or /etc/resolv.conf"
            ) from None
        values.name_of(word._replace(text=host))
    return model.Upstream(host, port or PORTS[scheme], "tls" if scheme == "tls" else "dns", server_name)


def _server(word: Token) -> model.Upstream:
    found = upstream(word)
    if isinstance(found, str) or found.transport != "dns":
        raise Invalid(word, f"'{word.text}' is no resolver", "write IP or IP:PORT")
    values.ip_address(word._replace(text=found.host))
    return found


def _check_tls(line: Directive, config: model.ForwardConfig, found: dict[str, Any]) -> None:
    encrypted = [u for u in config.upstreams if isinstance(u, model.Upstream) and u.transport == "tls"]
    for option in line.body or ():
        name = option.name.text
        if name in ("tls", "tls_servername") and not encrypted:
            raise Invalid(
                option.name, f"'{name}' has no tls:// upstream to be for", "write tls://ADDRESS, or remove it"
            )
        if name == "tls_servername" and any(u.server_name for u in encrypted):
            raise Invalid(option.name, "'tls_servername' and tls://ADDRESS%NAME exclude each other", "keep one of them")
    if found.get("force_tcp") and found.get("prefer_udp"):
        # force_tcp wins, as documented for CoreDNS.
        return
