"""What a Corefile says, as values: one dataclass a plugin, with its defaults and units.

Knows every plugin's options but those of `kubernetes` and `k8s_external`, which are in `config`. Must not know the
Corefile's syntax, sockets, the running plugins. Made by `corefile`, read by `chain` and the server.

Zones are lower-case names in wire form. Durations are seconds.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dnsserver import names
from dnsserver.config import ExternalConfig, KubernetesConfig

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Zones = tuple[bytes, ...]
EVERYWHERE: Zones = (names.ROOT,)


class Address(NamedTuple):
    """Where an operations endpoint listens."""

    host: str
    """Empty: every address."""
    port: int


_HEALTH = Address("", 8080)
_READY = Address("", 8181)
_METRICS = Address("localhost", 9153)
_WELL_KNOWN = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052 §2.1."""


class Key(NamedTuple):
    """What a server block answers for, and where."""

    zone: bytes
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Consolidation:
    """Errors that match are counted and printed once a period rather than one by one."""

    period_s: float
    pattern: re.Pattern[str]
    level: Literal["warning", "error", "info", "debug"] = "error"
    show_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorsConfig:
    """`errors`: failures of the chain are logged."""

    consolidate: tuple[Consolidation, ...] = ()
    stacktrace: bool = False


LogClass = Literal["success", "denial", "error", "all"]
_ASKED = '"{type} {class} {name} {proto} {size} {>do} {>bufsize}"'
COMMON_LOG_FORMAT = f"{{remote}}:{{port}} - {{>id}} {_ASKED} {{rcode}} {{>rflags}} {{rsize}} {{duration}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """`log`: a line for each query in these zones."""

    zones: Zones
    format: str = COMMON_LOG_FORMAT
    classes: frozenset[LogClass] = frozenset({"all"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """`health`: the liveness endpoint."""

    address: Address = _HEALTH
    lameduck_s: float = 0.0
    """How long to answer on after SIGTERM, while the endpoints of the Service still name this server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyConfig:
    """`ready`: the readiness endpoint."""

    address: Address = _READY
    continuously: bool = False
    """Ask again after having been ready once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusConfig:
    """`prometheus`: the metrics endpoint."""

    address: Address = _METRICS


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadConfig:
    """`reload`: how often the Corefile and its imports are looked at."""

    interval_s: float = 30.0
    jitter_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadbalanceConfig:
    """`loadbalance`: addresses in random order."""

    weights: str = ""
    """`weighted`: path of a file with weights of addresses, by which the first one is drawn. Empty: all are alike."""
    reload_s: float = 30.0
    """How often that file is looked at; 0: never again."""
    prefer: tuple[Network, ...] = ()
    """Addresses within come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Popular replies are renewed before they expire."""

    amount: int
    """Hits that make a name popular."""
    duration_s: float = 60.0
    """A pause longer than this between hits starts the count anew."""
    percentage: int = 10
    """Renewed when this much of the TTL is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeStale:
    """Expired replies are served while the source is out of reach. Source: RFC 8767."""

    duration_s: float = 3600.0
    """How long after its expiry a reply may still be served."""
    verify: bool = False
    """Ask the source first; otherwise the expired reply goes out at once and is renewed behind it."""
    verify_timeout_s: float = 1.8
    """How long to wait for the source when verifying; RFC 8767 §5 recommends 1.8 s."""
    ttl_s: int = 0
    """Of the records in a stale reply. CoreDNS sends 0; RFC 8767 §4 recommends 30."""
    prefer_positive: bool = False
    """An expired success is served rather than a fresh failure that replaced it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """One of the two halves of the cache."""

    capacity: int = 9984
    """Replies."""
    ttl_s: int
    """Nothing is kept longer."""
    min_ttl_s: int = 0
    """Everything that is kept at all is kept at least this long. A TTL of 0 is never kept."""
    disabled: Zones = ()
    """No caching within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """`cache`: replies are kept for their TTL."""

    zones: Zones
    success: CacheLimits = CacheLimits(ttl_s=3600)
    denial: CacheLimits = CacheLimits(ttl_s=1800)
    servfail_s: float = 5.0
    """How long failures are kept; 0: not at all. At most 300 (RFC 2308 §7)."""
    prefetch: Prefetch | None = None
    serve_stale: ServeStale | None = None
    keepttl: bool = False
    """Replies leave with the TTL they came with, not with what is left of it."""


class Upstream(NamedTuple):
    """One server to forward to."""

    host: str
    """A canonical address, or a host name to be resolved at start."""
    port: int
    transport: Literal["dns", "tls"] = "dns"
    server_name: str = ""
    """For TLS: the name its certificate must hold."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls://' if self.transport == 'tls' else ''}{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardConfig:
    """`forward`: queries below a zone go to other servers."""

    zone: bytes
    upstreams: tuple[Upstream | str, ...]
    """At most 15. A string is the path of a file like resolv.conf, read at start and when it changes."""
    exclude: Zones = ()
    """`except`: what is not forwarded."""
    force_tcp: bool = False
    prefer_udp: bool = False
    expire_s: float = 10.0
    """Idle connections are closed after this time."""
    max_idle_conns: int = 0
    """Idle connections kept for each upstream; 0: no limit of its own."""
    max_fails: int = 2
    """Failures in a row that make an upstream down; 0: never."""
    max_connect_attempts: int = 0
    """For each query; 0: twice the number of upstreams."""
    tls: tuple[str, ...] = ()
    """Paths: none, CA, certificate and key, or certificate, key and CA."""
    tls_servername: str = ""
    policy: Literal["random", "round_robin", "sequential"] = "random"
    health_interval_s: float = 0.5
    health_recursion: bool = True
    health_domain: bytes = names.ROOT
    max_concurrent: int = 0
    """Queries under way; more are REFUSED. 0: only the server's own bound."""
    next_rcodes: frozenset[int] = frozenset()
    """These replies are passed over for the next `forward` of the block."""
    next_on_nodata: bool = False
    failover_rcodes: frozenset[int] = frozenset()
    """These replies make the next upstream be asked."""
    failfast: bool = False
    """`failfast_all_unhealthy_upstreams`: SERVFAIL at once while every upstream is down."""
    resolver: tuple[Upstream, ...] = ()
    """Who resolves upstreams given by name; empty: the system's resolver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsConfig:
    """`hosts`: records out of a hosts file."""

    zones: Zones
    path: str = "/etc/hosts"
    inline: tuple[str, ...] = ()
    """Lines as in the file."""
    ttl_s: int = 3600
    reload_s: float = 5.0
    """How often the file is looked at; 0: never again."""
    no_reverse: bool = False
    fallthrough: Zones | None = None


MatchKind = Literal["exact", "prefix", "suffix", "substring", "regex"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NameMatch:
    """Which names a rule concerns."""

    kind: MatchKind
    text: str
    """Lower case and absolute where the kind is about whole labels."""
    pattern: re.Pattern[str] | None = None
    """For `regex`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRule:
    """How names in a reply are turned back."""

    where: Literal["name", "value", "auto"]
    pattern: re.Pattern[str] | None = None
    replacement: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteRule:
    """One `rewrite` line."""

    field: Literal["name", "type", "class", "ttl", "rcode", "cname"]
    go_on: bool = False
    """`continue`: later rules apply too."""
    match: NameMatch | None = None
    replacement: str = ""
    """For name and cname: what the match becomes."""
    answers: tuple[AnswerRule, ...] = ()
    from_number: int = 0
    to_number: int = 0
    """Types, classes or response codes; for `ttl` the lowest and the highest allowed, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutopathConfig:
    """`autopath`: the client's search path is tried here rather than there."""

    zones: Zones
    resolv_conf: str = ""
    """A file with a search line; empty for `@kubernetes`: by the namespace of the pod that asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateConfig:
    """`template`: replies made out of the question's text."""

    rclass: int
    rtype: int
    zones: Zones
    matches: tuple[re.Pattern[str], ...] = ()
    """None given: every name."""
    answer: tuple[str, ...] = ()
    """Record templates, in zone-file notation once expanded."""
    additional: tuple[str, ...] = ()
    authority: tuple[str, ...] = ()
    rcode: int = 0
    error: tuple[int, str] | None = None
    """Extended error code and text."""
    fallthrough: Zones | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns64Config:
    """`dns64`: AAAA records made out of A records. Source: RFC 6147."""

    prefix: ipaddress.IPv6Network = _WELL_KNOWN
    translate_all: bool = False
    """Even where there are AAAA records."""
    allow_ipv4: bool = False
    """For clients that ask over IPv4 too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosConfig:
    """`chaos`: who this server says it is, in class CH."""

    version: str = ""
    authors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AclRule:
    """The first that matches decides."""

    action: Literal["allow", "block", "filter", "drop"]
    types: frozenset[int] | None = None
    """None: every type."""
    networks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AclConfig:
    """`acl`: who may ask what."""

    zones: Zones
    rules: tuple[AclRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBlock:
    """One server block. A plugin that was not written is None, False or empty."""

    keys: tuple[Key, ...]
    file: str
    line: int
    bind: tuple[str, ...] = ()
    """Addresses to listen on; empty: every one, or what the command line says."""
    errors: ErrorsConfig | None = None
    logs: tuple[LogConfig, ...] = ()
    health: HealthConfig | None = None
    ready: ReadyConfig | None = None
    prometheus: PrometheusConfig | None = None
    reload: ReloadConfig | None = None
    loop: bool = False
    loadbalance: LoadbalanceConfig | None = None
    cache: CacheConfig | None = None
    kubernetes: KubernetesConfig | None = None
    external: ExternalConfig | None = None
    forwards: tuple[ForwardConfig, ...] = ()
    hosts: HostsConfig | None = None
    rewrites: tuple[RewriteRule, ...] = ()
    """In the order written."""
    autopath: AutopathConfig | None = None
    templates: tuple[TemplateConfig, ...] = ()
    dns64: Dns64Config | None = None
    any: bool = False
    chaos: ChaosConfig | None = None
    acls: tuple[AclConfig, ...] = ()
    bufsize: int | None = None
    """Largest UDP reply, bytes."""
    minimal: bool = False
    local: bool = False
    whoami: bool = False
    cancel_s: float | None = None
    """Time a query may take."""
    debug: bool = False

    @property
    def zones(self) -> Zones:
        """The zones of its keys, each once."""
        return tuple(dict.fromkeys(key.zone for key in self.keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration."""

    blocks: tuple[ServerBlock, ...]
    files: tuple[str, ...] = ()
    """The Corefile and everything it imports."""
    digest: str = ""
    """SHA-512 of the effective text, hexadecimal; tells whether a reload has anything to do."""
