"""The directives of a server block, each from its words to its value.

Knows every plugin's arguments and options. Must not know server blocks, files, the running plugins. Called by
`corefile` through its table; `forward`, `rewrite`, `template` and `kubernetes` have modules of their own.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from dnsserver import corefile_model as model
from dnsserver import corefile_values as values
from dnsserver.corefile_syntax import CorefileProblem, Directive, Invalid, Token

MAX_TTL_S = 0x7FFFFFFF


class Context(NamedTuple):
    """What a directive is read within."""

    zones: model.Zones
    """Of the server block: what a plugin without zones of its own is for."""
    problems: list[CorefileProblem]
    """Where option by option errors go; Invalid ends the directive."""


Parse = Callable[[Directive, Context], Any]


def flag(line: Directive, _context: Context) -> bool:
    """A plugin that is only switched on."""
    values.counted(line, 0, 0)
    values.no_body(line)
    return True


def errors(line: Directive, context: Context) -> model.ErrorsConfig:
    """`errors { consolidate DURATION REGEXP [LEVEL] [show_first]; stacktrace }`."""
    values.counted(line, 0, 0)
    rules: list[model.Consolidation] = []
    found: dict[str, Any] = {}

    def consolidate(option: Directive) -> None:
        period, pattern, *rest = values.counted(option, 2, 4)
        show_first = bool(rest) and rest[-1].text == "show_first"
        level = rest[0] if len(rest) > show_first else None
        if len(rest) - show_first > 1:
            raise Invalid(rest[1], f"'{rest[1].text}' cannot stand here", "write consolidate DURATION REGEXP [LEVEL]")
        rules.append(
            model.Consolidation(
                period_s=values.duration(period, "period", low=1e-3),
                pattern=values.pattern(pattern),
                level=cast("Any", values.choice(level, ("warning", "error", "info", "debug"), "level"))
                if level
                else "error",
                show_first=show_first,
            )
        )

    def stacktrace(option: Directive) -> None:
        values.counted(option, 0, 0)
        found["stacktrace"] = True

    values.options(line, {"consolidate": consolidate, "stacktrace": stacktrace}, context.problems)
    return model.ErrorsConfig(consolidate=tuple(rules), **found)


LOG_FIELDS = frozenset(
    {
        "{type}", "{name}", "{class}", "{proto}", "{remote}", "{local}", "{size}", "{port}", "{duration}", "{rcode}",
        "{rsize}", "{>rflags}", "{>bufsize}", "{>do}", "{>id}", "{>opcode}", "{common}", "{combined}",
    }
)  # fmt: skip
_COMBINED = '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" {rcode} {>rflags} {rsize}'


def log(line: Directive, context: Context) -> model.LogConfig:
    """`log [NAMES…] [FORMAT] { class CLASSES… }`."""
    names = list(line.args)
    form = model.COMMON_LOG_FORMAT
    if names and "{" in names[-1].text:
        last = names.pop()
        common = model.COMMON_LOG_FORMAT
        form = last.text.replace("{common}", common).replace("{combined}", f"{_COMBINED} {{duration}}")
        _check_log_format(last, form)
    classes: set[model.LogClass] = set()

    def class_(option: Directive) -> None:
        for word in values.counted(option, 1):
            classes.add(cast("model.LogClass", values.choice(word, ("success", "denial", "error", "all"), "class")))

    values.options(line, {"class": class_}, context.problems)
    zones = values.zones_of(names) or context.zones
    return model.LogConfig(zones=zones, format=form, classes=frozenset(classes) or frozenset({"all"}))


def _check_log_format(token: Token, form: str) -> None:
    at = 0
    while (start := form.find("{", at)) >= 0:
        end = form.find("}", start)
        if end < 0:
            raise Invalid(token, f"'{form[start:]}' is not closed", "add the missing '}'")
        word = form[start : end + 1]
        if word not in LOG_FIELDS and not word.startswith("{/"):
            raise Invalid(
                token, f"'{word}' is no field of a log line", values.nearest(word, LOG_FIELDS, "see the docs")
            )
        at = end + 1


def health(line: Directive, context: Context) -> model.HealthConfig:
    """`health [ADDRESS] { lameduck DURATION }`."""
    args = values.counted(line, 0, 1)
    found: dict[str, Any] = {"address": values.address(args[0], 8080)} if args else {}

    def lameduck(option: Directive) -> None:
        found["lameduck_s"] = values.duration(values.counted(option, 1, 1)[0], "lameduck", high=86400)

    values.options(line, {"lameduck": lameduck}, context.problems)
    return model.HealthConfig(**found)


def ready(line: Directive, context: Context) -> model.ReadyConfig:
    """`ready [ADDRESS] { monitor until-ready|continuously }`."""
    args = values.counted(line, 0, 1)
    found: dict[str, Any] = {"address": values.address(args[0], 8181)} if args else {}

    def monitor(option: Directive) -> None:
        word = values.counted(option, 1, 1)[0]
        found["continuously"] = values.choice(word, ("until-ready", "continuously"), "monitor mode") == "continuously"

    values.options(line, {"monitor": monitor}, context.problems)
    return model.ReadyConfig(**found)


def prometheus(line: Directive, _context: Context) -> model.PrometheusConfig:
    """`prometheus [ADDRESS]`."""
    values.no_body(line)
    args = values.counted(line, 0, 1)
    return model.PrometheusConfig(address=values.address(args[0], 9153)) if args else model.PrometheusConfig()


def reload(line: Directive, _context: Context) -> model.ReloadConfig:
    """`reload [INTERVAL] [JITTER]`: at least 2 s and 1 s, and the jitter at most half the interval."""
    values.no_body(line)
    args = values.counted(line, 0, 2)
    interval = values.duration(args[0], "interval", low=2.0, high=86400) if args else 30.0
    jitter = values.duration(args[1], "jitter", low=1.0, high=86400) if len(args) > 1 else interval / 2
    return model.ReloadConfig(interval_s=interval, jitter_s=min(jitter, interval / 2))


def loadbalance(line: Directive, context: Context) -> model.LoadbalanceConfig:
    """`loadbalance [round_robin | weighted FILE] { reload DURATION; prefer CIDR… }`."""
    words = values.counted(line, 0, 2)
    policy = values.choice(words[0], ("round_robin", "weighted"), "policy") if words else "round_robin"
    weighted = policy == "weighted"
    if weighted and len(words) < 2:
        raise Invalid(words[0], "'weighted' names no file", "write weighted FILE")
    if len(words) > 1 and not weighted:
        raise Invalid(words[1], f"'{words[1].text}' cannot stand here", "remove it, or write weighted FILE")
    prefer: list[model.Network] = []
    found: dict[str, Any] = {"weights": words[1].text} if weighted else {}

    def option_prefer(option: Directive) -> None:
        prefer.extend(values.network(word) for word in values.counted(option, 1))

    def option_reload(option: Directive) -> None:
        if not weighted:
            raise Invalid(option.name, "'reload' is for a file of weights", "write weighted FILE, or remove it")
        found["reload_s"] = values.duration(values.counted(option, 1, 1)[0], "reload", high=86400)

    values.options(line, {"prefer": option_prefer, "reload": option_reload}, context.problems)
    return model.LoadbalanceConfig(prefer=tuple(prefer), **found)


def cache(line: Directive, context: Context) -> model.CacheConfig:
    """`cache [TTL] [ZONES…] { success, denial, prefetch, serve_stale, servfail, disable, keepttl … }`."""
    args = list(line.args)
    success, denial = model.CacheLimits(ttl_s=3600), model.CacheLimits(ttl_s=1800)
    if args and args[0].text.lstrip("-").isdigit():
        ttl = values.integer(args.pop(0), 1, MAX_TTL_S, "TTL")
        success, denial = dataclasses.replace(success, ttl_s=ttl), dataclasses.replace(denial, ttl_s=ttl)
    zones = values.zones_of(args) or context.zones
    limits = {"success": success, "denial": denial}
    found: dict[str, Any] = {}

    def limit(option: Directive) -> None:
        words = values.counted(option, 1, 3)
        changes = {"capacity": values.integer(words[0], 1, 1 << 24, "capacity")}
        if len(words) > 1:
            changes["ttl_s"] = values.integer(words[1], 1, MAX_TTL_S, "TTL")
        if len(words) > 2:
            changes["min_ttl_s"] = values.integer(words[2], 0, MAX_TTL_S, "minimum TTL")
        half = dataclasses.replace(limits[option.name.text], **changes)  # type: ignore[arg-type]
        if half.min_ttl_s > half.ttl_s:
            raise Invalid(words[2], f"the minimum TTL {half.min_ttl_s} is above the TTL {half.ttl_s}", "swap them")
        limits[option.name.text] = half

    def prefetch(option: Directive) -> None:
        words = list(values.counted(option, 1, 3))
        settings: dict[str, Any] = {"amount": values.integer(words[0], 0, 1 << 31, "amount")}
        if len(words) > 1:
            settings["duration_s"] = values.duration(words[1], "duration", high=86400)
        if len(words) > 2:
            if not words[2].text.endswith("%"):
                raise Invalid(words[2], f"percentage '{words[2].text}' has no percent sign", f"write {words[2].text}%")
            number = words[2]._replace(text=words[2].text[:-1])
            settings["percentage"] = values.integer(number, 10, 90, "percentage")
        found["prefetch"] = model.Prefetch(**settings) if settings["amount"] else None

    def serve_stale(option: Directive) -> None:
        words = list(values.counted(option, 0, 4))
        settings: dict[str, Any] = {}
        if words:
            settings["duration_s"] = values.duration(words.pop(0), "duration")
        if words:
            mode = words[0]._replace(text=words.pop(0).text.lower())
            settings["verify"] = values.choice(mode, ("immediate", "verify"), "refresh mode") == "verify"
        if words:
            if not settings["verify"]:
                raise Invalid(words[0], "a timeout belongs to 'verify'", f"write verify {words[0].text}")
            settings["verify_timeout_s"] = values.duration(words.pop(0), "timeout", low=1e-3, high=30)
        if words:
            raise Invalid(words[0], f"'{words[0].text}' cannot stand here", "remove it")
        found["serve_stale"] = model.ServeStale(**settings) if settings.get("duration_s", 1) else None

    def stale_policy(option: Directive) -> None:
        values.choice(values.counted(option, 1, 1)[0], ("prefer_positive",), "policy")
        found["policy"] = option.name

    def servfail(option: Directive) -> None:
        found["servfail_s"] = values.duration(values.counted(option, 1, 1)[0], "servfail", high=300)

    def disable(option: Directive) -> None:
        half, *rest = values.counted(option, 1)
        name = values.choice(half, ("success", "denial"), "half of the cache")
        disabled = limits[name].disabled + (values.zones_of(rest) or zones)
        limits[name] = dataclasses.replace(limits[name], disabled=disabled)

    def keepttl(option: Directive) -> None:
        values.counted(option, 0, 0)
        found["keepttl"] = True

    known = {
        "success": limit,
        "denial": limit,
        "prefetch": prefetch,
        "serve_stale": serve_stale,
        "serve_stale_policy": stale_policy,
        "servfail": servfail,
        "disable": disable,
        "keepttl": keepttl,
    }
    values.options(line, known, context.problems)
    if policy := found.pop("policy", None):
        if found.get("serve_stale") is None:
            raise Invalid(policy, "serve_stale_policy has nothing to decide", "add serve_stale")
        found["serve_stale"] = dataclasses.replace(found["serve_stale"], prefer_positive=True)
    return model.CacheConfig(zones=zones, success=limits["success"], denial=limits["denial"], **found)


def hosts(line: Directive, context: Context) -> model.HostsConfig:
    """`hosts [FILE [ZONES…]] { lines of a hosts file; ttl, reload, no_reverse, fallthrough }`."""
    path, zone_words = (line.args[0].text, line.args[1:]) if line.args else ("/etc/hosts", ())
    found: dict[str, Any] = {}
    inline: list[str] = []

    def ttl(option: Directive) -> None:
        found["ttl_s"] = values.integer(values.counted(option, 1, 1)[0], 1, 65535, "TTL")

    def interval(option: Directive) -> None:
        found["reload_s"] = values.duration(values.counted(option, 1, 1)[0], "reload")

    def no_reverse(option: Directive) -> None:
        values.counted(option, 0, 0)
        found["no_reverse"] = True

    def fallthrough(option: Directive) -> None:
        found["fallthrough"] = values.fallthrough(option)

    known = {"ttl": ttl, "reload": interval, "no_reverse": no_reverse, "fallthrough": fallthrough}
    rest: list[Directive] = []
    for option in line.body or ():
        try:
            ipaddress.ip_address(option.name.text)
        except ValueError:
            rest.append(option)
            continue
        try:
            words = values.counted(option, 1)
            for word in words:
                values.name_of(word._replace(text=word.text.removeprefix("*.")))
            inline.append(" ".join((option.name.text, *(word.text for word in words))))
        except Invalid as invalid:
            context.problems.append(invalid.problem)
    values.options(_with_body(line, rest), known, context.problems)
    zones = values.zones_of(zone_words) or context.zones
    return model.HostsConfig(zones=zones, path=path, inline=tuple(inline), **found)


def _with_body(line: Directive, body: list[Directive]) -> Directive:
    """`line` with other options."""
    return Directive(line.name, line.args, tuple(body))


def autopath(line: Directive, context: Context) -> model.AutopathConfig:
    """`autopath [ZONES…] RESOLV-CONF|@kubernetes`."""
    values.no_body(line)
    *zone_words, source = values.counted(line, 1)
    zones = values.zones_of(zone_words) or context.zones
    if source.text.startswith("@"):
        values.choice(source, ("@kubernetes",), "source of search paths")
        return model.AutopathConfig(zones=zones)
    return model.AutopathConfig(zones=zones, resolv_conf=source.text)


def dns64(line: Directive, context: Context) -> model.Dns64Config:
    """`dns64 [PREFIX] { prefix PREFIX; translate_all; allow_ipv4 }`."""
    args = values.counted(line, 0, 1)
    found: dict[str, Any] = {}

    def use(word: Token) -> None:
        network = values.network(word)
        if not isinstance(network, ipaddress.IPv6Network) or network.prefixlen not in (32, 40, 48, 56, 64, 96):
            raise Invalid(
                word, f"'{word.text}' is no translation prefix", "write an IPv6 /32, /40, /48, /56, /64 or /96"
            )
        if int(network.network_address) >> 56 & 0xFF and network.prefixlen == 96:
            raise Invalid(word, f"'{word.text}' has bits 64 to 71 set", "clear them (RFC 6052 §2.2)")
        found["prefix"] = network

    def switch(option: Directive) -> None:
        values.counted(option, 0, 0)
        found[option.name.text] = True

    if args:
        use(args[0])
    known = {
        "prefix": lambda option: use(values.counted(option, 1, 1)[0]),
        "translate_all": switch,
        "allow_ipv4": switch,
    }
    values.options(line, known, context.problems)
    return model.Dns64Config(**found)


def chaos(line: Directive, _context: Context) -> model.ChaosConfig:
    """`chaos [VERSION] [AUTHORS…]`."""
    values.no_body(line)
    for word in line.args:
        if len(word.text.encode()) > 255:
            raise Invalid(word, "a text of more than 255 bytes", "shorten it")
    words = tuple(word.text for word in line.args)
    return model.ChaosConfig(version="".join(words[:1]), authors=words[1:])


def acl(line: Directive, context: Context) -> model.AclConfig:
    """`acl [ZONES…] { ACTION [type QTYPE…] [net SOURCE…] }`."""
    rules: list[model.AclRule] = []

    def rule(option: Directive) -> None:
        types: frozenset[int] | None = None
        networks: list[model.Network] = []
        section = ""
        seen: dict[str, list[Token]] = {}
        for word in option.args:
            if word.text in ("type", "net"):
                section = word.text
                if section in seen:
                    raise Invalid(word, f"'{section}' is given twice", "list everything after the first")
                seen[section] = []
            elif not section:
                raise Invalid(word, f"'{word.text}' cannot stand here", "write ACTION type QTYPE… net SOURCE…")
            else:
                seen[section].append(word)
        for section, words in seen.items():
            if not words:
                raise Invalid(
                    option.name, f"'{section}' lists nothing", f"name what follows {section}, or leave it out"
                )
        if any(word.text != "*" for word in seen.get("type", ())):
            types = frozenset(values.record_type(word) for word in seen["type"] if word.text != "*")
            types = None if any(word.text == "*" for word in seen["type"]) else types
        if not any(word.text == "*" for word in seen.get("net", ())):
            networks = [values.network(word) for word in seen.get("net", ())]
        action = cast("Any", option.name.text)
        rules.append(model.AclRule(action=action, types=types, networks=tuple(networks)))

    values.options(line, dict.fromkeys(("allow", "block", "filter", "drop"), rule), context.problems)
    return model.AclConfig(zones=values.zones_of(line.args) or context.zones, rules=tuple(rules))


def bufsize(line: Directive, _context: Context) -> int:
    """`bufsize [SIZE]`: 512 to 4096 bytes, 1232 by default (what passes every path unfragmented)."""
    values.no_body(line)
    args = values.counted(line, 0, 1)
    return values.integer(args[0], 512, 4096, "size") if args else 1232


def cancel(line: Directive, _context: Context) -> float:
    """`cancel [TIMEOUT]`, 5.001 s by default."""
    values.no_body(line)
    args = values.counted(line, 0, 1)
    return values.duration(args[0], "timeout", low=1e-3, high=60) if args else 5.001


def bind(line: Directive, context: Context) -> tuple[str, ...]:
    """`bind ADDRESS…`."""
    values.options(line, {}, context.problems, {"except": "name the addresses that are wanted"})
    found = []
    for word in values.counted(line, 1):
        try:
            found.append(values.ip_address(word))
        except Invalid as invalid:
            problem = invalid.problem._replace(remedy="write an address; interface names are not supported")
            context.problems.append(problem)
    return tuple(found)


ELSEWHERE: Mapping[str, str] = {
    "proxy": "use forward, which replaced it in CoreDNS 1.5",
    "federation": "remove it: Kubernetes federation v1 is gone",
    "startup": "start helper processes outside",
    "shutdown": "start helper processes outside",
    "tls": "DNS over TLS is not served here; terminate it in front",
    **dict.fromkeys(
        (
            "auth", "auto", "azure", "clouddns", "dnssec",
            "dnstap", "erratic", "etcd", "file", "geoip", "grpc", "header", "metadata",
            "multisocket", "nomad", "nsid", "pprof", "quic",
            "root", "route53", "secondary", "sign", "shed", "timeouts", "trace",
            "transfer", "tsig", "view", "on",
        ),
        "remove it, or forward the zone to a server that has it",
    ),
}  # fmt: skip
"""Plugins of CoreDNS that are not here, and what to do instead."""
