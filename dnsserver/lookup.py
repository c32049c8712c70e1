"""Which name stands for what: the grammar of cluster names, and the records each name has.

Knows the zone's names. Must not know messages, fallthrough, who asks. `answer` calls `find`.

Labels left of ZONE (everything compares case-insensitively; `*` and `any` are ordinary labels):

    (none) · svc · pod · dns            exist and hold nothing but the apex' SOA and NS
    ns.dns · dns-version                this server's addresses · TXT
    NS.svc                              exists if the namespace does and is exposed
    SVC.NS.svc                          a Service
    EP.SVC.NS.svc                       an endpoint of it, by hostname or dashed address
    _PROTO.SVC.NS.svc                   exists if a named port below it does
    _PORT._PROTO.SVC.NS.svc             a named port
    TZ.pin._zone.SVC.NS.svc             with `zonal`, headless: the endpoints in topology zone TZ (which may be several
                                        labels), maybe none; `prefer` for `pin`: all of them where TZ has none
    EP.CLUSTER.SVC.NS.svc               in multicluster zones, where SVC is a ServiceImport: an endpoint there
    CLUSTER.SVC.NS.svc                  exists if one of the cluster's endpoints is ready
    NS.pod · a-b-c-d.NS.pod             as the pods mode says

A name exists if it, or one below it, holds a record: then a type it lacks is NODATA, otherwise NXDOMAIN (RFC 8020).

Source: Kubernetes DNS-based service discovery 1.1.0; KEP-1645 (ServiceImports); RFC 2782 (weights); RFC 8020.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

from dnsserver import names, records
from dnsserver.config import PodsMode
from dnsserver.message import RR, QType, Question
from dnsserver.services import PortName, ServiceNames, Target
from dnsserver.zone import Zone
from kubecore.model import ObjectKey

SCHEMA_VERSION = b"1.1.0"
SCHEMA_TTL_S = 28800
MAX_SOA_TTL_S = 300

_MAX_SRV_RECORDS = 2048
"""More than that fit in no message of 65535 bytes, so that the rest only costs time; TC is set all the same."""

_POD_LABEL = frozenset("0123456789abcdef-")

_Addresses = Callable[[], Iterable[str]]


class Kind(Enum):
    """What a look-up found."""

    DATA = "data"
    NODATA = "nodata"
    NXDOMAIN = "nxdomain"
    ALIAS = "alias"


class Reason(Enum):
    """Why a name does not exist, as a sentence."""

    NONE = ""
    NOT_A_CLUSTER_NAME = "the cluster's zone has no names of this form"
    NO_NAMESPACE = "no such namespace, or it is not exposed"
    NO_SERVICE = "no such service"
    NO_ENDPOINT = "no ready endpoint of that name"
    NO_READY_ENDPOINTS = "no ready endpoints"
    NO_PORT = "no such port"
    NO_POD = "no such pod address"
    PODS_DISABLED = "pod names are disabled"
    NO_ADDRESS = "no service or endpoint has this address"
    NO_EXTERNAL_ADDRESS = "the service has no external address"
    BAD_ALIAS = "externalName is not a domain name"


class Found(NamedTuple):
    """What a zone holds for one question."""

    kind: Kind
    answer: tuple[RR, ...] = ()
    additional: tuple[RR, ...] = ()
    target: bytes = b""
    """ALIAS: the name pointed to."""
    reason: Reason = Reason.NONE


NODATA = Found(Kind.NODATA)


def _missing(reason: Reason) -> Found:
    return _MISSING[reason]


_MISSING = {reason: Found(Kind.NXDOMAIN, reason=reason) for reason in Reason}


def find(zone: Zone, question: Question, cut: int) -> Found:
    """What `zone` holds for `question`, whose name it covers from offset `cut` on (`Zone.cut`). The class is not read.

    Never raises; a name of any bytes finds at least that it does not exist.
    """
    return _Look(zone, question, cut).found()


def soa(zone: Zone, apex: bytes) -> RR:
    """The SOA record of the zone called `apex`, spelt so."""
    ttl_s = zone.config.ttl_s
    serial = zone.serial_of(apex.lower()).serial
    mname, rname = b"\x02ns\x03dns" + apex, b"\x0ahostmaster" + apex
    return records.soa(apex, min(ttl_s, MAX_SOA_TTL_S), serial, mname=mname, rname=rname, minimum_s=ttl_s)


class _Look:
    """One look-up: the question taken apart."""

    __slots__ = ("apex", "imports", "labels", "owner", "qtype", "question", "ttl_s", "zone")

    def __init__(self, zone: Zone, question: Question, cut: int) -> None:
        self.zone = zone
        self.question = question
        self.owner = question.name
        self.qtype = question.qtype
        self.apex = question.name[cut:]
        self.imports = zone.imports if question.lower[cut:] in zone.imports.zones else None
        self.labels = [label.decode("latin-1") for label in names.labels(question.lower[:cut] + names.ROOT)]
        self.ttl_s = zone.config.ttl_s

    def found(self) -> Found:
        labels = self.labels
        if not labels:
            return self._apex()
        if labels[-1] == "dns":
            return self._own_addresses(labels)
        if names.is_reverse(self.apex.lower()):
            return self._reverse()
        match labels[-1]:
            case "svc":
                return self._service_tree(labels[:-1])
            case "pod":
                return self._pod_tree(labels[:-1])
            case "dns-version" if len(labels) == 1:
                if self.qtype == QType.TXT:
                    return _data(records.txt(self.owner, SCHEMA_TTL_S, SCHEMA_VERSION))
                return NODATA
        return _missing(Reason.NOT_A_CLUSTER_NAME)

    # -- the zone's own names

    def _apex(self) -> Found:
        if self.qtype == QType.SOA:
            return _data(soa(self.zone, self.apex))
        if self.qtype == QType.NS:
            servers = self._name_servers()
            answer = tuple(records.ns(self.owner, self.ttl_s, name) for name in servers)
            return Found(Kind.DATA, answer, self._glue(servers.items()))
        if self.qtype == QType.PTR:  # a zone may be one address: a /32 or /128
            found = self._reverse()
            return found if found.kind is Kind.DATA else NODATA
        return NODATA

    def _own_addresses(self, labels: list[str]) -> Found:
        if labels == ["dns"]:
            return NODATA
        if labels != ["ns", "dns"]:
            return _missing(Reason.NOT_A_CLUSTER_NAME)
        return self._addresses(self.zone.local_addresses)

    def _name_servers(self) -> dict[bytes, tuple[str, ...]]:
        """The zone's name servers and their addresses: the Services this server is an endpoint of, else `ns.dns`."""
        local = self.zone.local_addresses
        forward = self.zone.primary()
        reverse = names.is_reverse(self.apex.lower())
        apex = forward if reverse else self.apex
        servers: dict[bytes, tuple[str, ...]] = {}
        for address in local if apex and self.imports is None else ():
            for service in self.zone.services_of_endpoint(address):
                for label in service.labels_of(address) if service.service.headless else ("",):
                    name = _name_of(service, label, apex or b"")
                    if name:
                        servers[name] = service.endpoint(label.lower()) if label else service.service.cluster_ips
        return servers or {b"\x02ns\x03dns" + self.apex: local}

    # -- Services

    def _service_tree(self, labels: list[str]) -> Found:
        """Labels left of `svc`."""
        if not labels:
            return NODATA
        namespace = labels[-1]
        if not self.zone.has_namespace(namespace):
            return _missing(Reason.NO_NAMESPACE)
        if len(labels) == 1:
            return NODATA
        key = ObjectKey(namespace, labels[-2])
        service = self.imports.get(key) if self.imports else self.zone.service(*key)
        if service is None:
            return _missing(Reason.NO_SERVICE)
        left = labels[:-2]
        if service.is_alias:
            return self._alias(service, left)
        if (service.service.headless or self.zone.config.ignore_empty_service) and not service.has_ready_endpoints:
            return _missing(Reason.NO_READY_ENDPOINTS)
        match left:
            case []:
                return self._select(service, service.addresses, None, None)
            case [cluster] if service.imported and not cluster.startswith("_"):
                return NODATA if service.has_cluster(cluster) else _missing(Reason.NO_ENDPOINT)
            case [name, cluster] if service.imported and name[0] != "_" != cluster[0]:
                return self._endpoint(service, f"{name}.{cluster}")
            case [name] if not name.startswith("_"):
                return self._endpoint(service, name)
            case [*zonal, "_zone"] if self.zone.config.zonal and service.service.headless and not service.imported:
                return self._zonal(service, zonal)
            case [protocol] if len(protocol) > 1:
                return NODATA if service.has_protocol(protocol[1:]) else _missing(Reason.NO_PORT)
            case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
                return self._port(service, PortName(port[1:], protocol[1:]))
        return _missing(Reason.NOT_A_CLUSTER_NAME)

    def _endpoint(self, service: ServiceNames, label: str) -> Found:
        addresses = service.endpoint(label)
        if not addresses:
            return _missing(Reason.NO_ENDPOINT)
        return self._select(service, lambda: addresses, None, label)

    def _zonal(self, service: ServiceNames, left: list[str]) -> Found:
        """Labels left of `_zone`."""
        *zone, directive = left or ("pin",)
        if directive not in ("pin", "prefer"):
            return _missing(Reason.NOT_A_CLUSTER_NAME)
        if not zone:
            return NODATA
        there = service.in_topology_zone(".".join(zone))
        if directive == "prefer" and not there.has_ready_endpoints:
            there = service
        return self._select(there, there.addresses, None, None)

    def _port(self, service: ServiceNames, port: PortName) -> Found:
        if not service.has_port(port):
            return _missing(Reason.NO_PORT)
        if not service.service.headless:
            return self._select(service, service.addresses, port, None)
        return self._select(service, lambda: [target.address for target in service.targets(port)], port, None)

    def _select(self, service: ServiceNames, addresses: _Addresses, port: PortName | None, label: str | None) -> Found:
        """The records of the question's type at a name of `service` that exists."""
        if self.qtype in (QType.A, QType.AAAA):
            return self._addresses(addresses())
        if self.qtype == QType.SRV:
            return self._srv(service, service.targets(port, label))
        return NODATA

    def _srv(self, service: ServiceNames, targets: list[Target]) -> Found:
        weight = max(1, 100 // len(targets)) if targets else 0
        answer: dict[RR, None] = {}
        glue: dict[bytes, dict[str, None]] = {}
        hosts: dict[str, bytes | None] = {}
        for target in targets:
            if target.label not in hosts:
                hosts[target.label] = _name_of(service, target.label, self.apex)
            name = hosts[target.label]
            if len(answer) >= _MAX_SRV_RECORDS:
                break
            if name:
                answer[records.srv(self.owner, self.ttl_s, weight, target.port, name)] = None
                glue.setdefault(name, {})[target.address] = None
        return Found(Kind.DATA, tuple(answer), self._glue(glue.items())) if answer else NODATA

    def _alias(self, service: ServiceNames, left: list[str]) -> Found:
        target = service.alias_target
        if target is None:
            return _missing(Reason.BAD_ALIAS)
        if left:
            return _missing(Reason.NOT_A_CLUSTER_NAME)
        return Found(Kind.ALIAS, (records.cname(self.owner, self.ttl_s, target),), target=target)

    # -- pods

    def _pod_tree(self, labels: list[str]) -> Found:
        """Labels left of `pod`."""
        mode = self.zone.config.pods
        if not labels:
            return NODATA
        if mode is PodsMode.DISABLED:
            return _missing(Reason.PODS_DISABLED)
        if not self.zone.has_namespace(labels[-1]):
            return _missing(Reason.NO_NAMESPACE)
        if len(labels) == 1:
            return NODATA
        address = pod_address(labels[0]) if len(labels) == 2 else None
        if address is None:
            return _missing(Reason.NO_POD)
        if mode is PodsMode.VERIFIED and not self.zone.has_pod(labels[-1], address):
            return _missing(Reason.NO_POD)
        return self._addresses((address,))

    # -- reverse

    def _reverse(self) -> Found:
        name = names.parse_reverse(self.question.lower)
        if name is None or not self.zone.covers(name):
            return _missing(Reason.NO_ADDRESS)
        address = name.address
        apex = self.zone.primary()
        if address is None or apex is None or self.qtype != QType.PTR:
            return NODATA
        service = self.zone.service_of_ip(address)
        if service:
            targets = {_name_of(service, "", apex)}
        else:
            owners = self.zone.services_of_endpoint(address)
            targets = {_name_of(owner, label, apex) for owner in owners for label in owner.labels_of(address)}
        answer = tuple(records.ptr(self.owner, self.ttl_s, target) for target in sorted(filter(None, targets)))
        return Found(Kind.DATA, answer) if answer else NODATA

    # -- records

    def _addresses(self, addresses: Iterable[str]) -> Found:
        """A or AAAA records (whichever is asked for) of `addresses` at the question's name, each once."""
        if self.qtype not in (QType.A, QType.AAAA):
            return NODATA
        colon = self.qtype == QType.AAAA
        chosen = dict.fromkeys(address for address in addresses if (":" in address) == colon)
        answer = tuple(records.address(self.owner, self.ttl_s, address) for address in chosen)
        return Found(Kind.DATA, answer) if answer else NODATA

    def _glue(self, hosts: Iterable[tuple[bytes, Iterable[str]]]) -> tuple[RR, ...]:
        return tuple(records.address(name, self.ttl_s, address) for name, addresses in hosts for address in addresses)


def pod_address(label: str) -> str | None:
    """The canonical address a pod's label stands for (`10-1-2-3`, `2001-db8--1`); None if it stands for none."""
    if not _POD_LABEL.issuperset(label):
        return None  # a scope (`%eth0`) or a dotted part would be an address, too
    try:
        if label.count("-") == 3 and "--" not in label:
            return str(ipaddress.IPv4Address(label.replace("-", ".")))
        return str(ipaddress.IPv6Address(label.replace("-", ":")))
    except ValueError:
        return None


def _name_of(service: ServiceNames, label: str, apex: bytes) -> bytes | None:
    """`[LABEL.]SVC.NS.svc.APEX`; None where that is too long for a name. The label of an import's endpoint is two."""
    texts = (*label.split("."), service.key.name, service.key.namespace)
    parts = [text.encode("latin-1", "replace") for text in texts if text]
    try:
        return names.join([*parts, b"svc"], apex)
    except ValueError:
        return None


def _data(record: RR) -> Found:
    return Found(Kind.DATA, (record,))
