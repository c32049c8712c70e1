"""Names for external addresses: `SVC.NS.ZONE` answers with a Service's external IPs and load balancer.

Knows the grammar of the `k8s_external` zones. Must not know sockets, time, which plugin comes next. The plugin calls
`answer_external` and acts on what it gets, as with `answer`.

Labels left of ZONE:

    (none) · APEX · ns1.APEX            SOA and NS · exists · this server's addresses (APEX is `dns` by default)
    NS                                  exists if the namespace does
    SVC.NS                              the external addresses; a CNAME where there is only a hostname
    _PORT._PROTO.SVC.NS · _PROTO.SVC.NS a port of the Service · exists if one below it does
    EP.SVC.NS                           an endpoint of a headless Service (option `headless`)

Source: the convention of CoreDNS' plugin; RFC 1034 §3.6.2 (a CNAME stands alone), RFC 2782 (an SRV target is no alias).
"""

from __future__ import annotations

from collections.abc import Iterable

from dnsserver import names, records
from dnsserver.answer import Fallthrough, NeedsTarget, Outcome, Reply, own_message, unsynced_error
from dnsserver.config import ExternalConfig
from dnsserver.lookup import Reason
from dnsserver.message import RR, Message, QClass, QType, Question, Rcode
from dnsserver.services import PortName, ServiceNames
from dnsserver.zone import Zone


def answer_external(zone: Zone, config: ExternalConfig, question: Question) -> Outcome | None:
    """The answer of the external zones, out of the Services of `zone`; None: the name is in none. Never raises."""
    apex = names.longest_suffix(question.lower, config.zones)
    if apex is None:
        return None
    if question.qclass not in (QClass.IN, QClass.ANY):
        return Reply(own_message(rcode=Rcode.REFUSED))
    return _External(zone, config, question, len(question.lower) - len(apex)).outcome()


class _External:
    """One look-up: the question taken apart."""

    __slots__ = ("apex", "config", "labels", "owner", "qtype", "question", "ttl_s", "zone")

    def __init__(self, zone: Zone, config: ExternalConfig, question: Question, cut: int) -> None:
        self.zone = zone
        self.config = config
        self.question = question
        self.owner = question.name
        self.qtype = question.qtype
        self.apex = question.name[cut:]
        self.labels = [label.decode("latin-1") for label in names.labels(question.lower[:cut] + names.ROOT)]
        self.ttl_s = config.ttl_s

    def outcome(self) -> Outcome:
        if self.labels and names.is_reverse(self.apex.lower()):
            return self._reverse()
        own = self.config.apex.lower()
        match self.labels:
            case []:
                return self._apex()
            case [label] if label == own:
                return self._nodata()
            case ["ns1", label] if label == own:
                return self._addresses(self.zone.local_addresses)
            case [*_, label] if label == own:
                return self._missing(Reason.NOT_A_CLUSTER_NAME)
            case [namespace]:
                return self._nodata() if self.zone.has_namespace(namespace) else self._missing(Reason.NO_NAMESPACE)
            case [*left, name, namespace]:
                service = self.zone.service(namespace, name)
                return self._service(service, left) if service else self._missing(Reason.NO_SERVICE)
        return self._missing(Reason.NOT_A_CLUSTER_NAME)

    # -- Services

    def _service(self, service: ServiceNames, left: list[str]) -> Outcome:
        addresses, hosts = service.external_addresses(), service.external_names()
        if not addresses and not hosts:
            if self.config.headless and service.service.headless and service.has_ready_endpoints:
                return self._headless(service, left)
            return self._missing(Reason.NO_EXTERNAL_ADDRESS)
        match left:
            case [] if not addresses:
                return self._alias(hosts[0])
            case []:
                return self._select(service, None)
            case [protocol] if len(protocol) > 1 and protocol.startswith("_"):
                known = any(p.name and p.protocol.value.lower() == protocol[1:] for p in service.service.ports)
                return self._nodata() if known else self._missing(Reason.NO_PORT)
            case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
                wanted = PortName(port[1:], protocol[1:])
                known = any(
                    p.name.lower() == wanted.port and p.protocol.value.lower() == wanted.protocol
                    for p in service.service.ports
                    if p.name
                )
                return self._select(service, wanted) if known else self._missing(Reason.NO_PORT)
        return self._missing(Reason.NOT_A_CLUSTER_NAME)

    def _select(self, service: ServiceNames, wanted: PortName | None) -> Outcome:
        addresses = service.external_addresses()
        if self.qtype != QType.SRV:
            return self._addresses(addresses)
        ports = [
            port.port
            for port in service.service.ports
            if wanted is None or (port.name.lower(), port.protocol.value.lower()) == wanted
        ]
        if addresses:
            name = self._name(service, "")
            targets = [(name, address, port) for port in ports for address in addresses] if name else []
        else:
            targets = [(host, "", port) for port in ports for host in self._host_names(service)]
        return self._srv(targets)

    def _headless(self, service: ServiceNames, left: list[str]) -> Outcome:
        wanted: PortName | None = None
        label: str | None = None
        match left:
            case []:
                pass
            case [name] if not name.startswith("_"):
                label = name
                if not service.endpoint(name):
                    return self._missing(Reason.NO_ENDPOINT)
            case [protocol] if len(protocol) > 1:
                return self._nodata() if service.has_protocol(protocol[1:]) else self._missing(Reason.NO_PORT)
            case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
                wanted = PortName(port[1:], protocol[1:])
                if not service.has_port(wanted):
                    return self._missing(Reason.NO_PORT)
            case _:
                return self._missing(Reason.NOT_A_CLUSTER_NAME)
        if self.qtype == QType.SRV:
            targets = [(self._name(service, t.label), t.address, t.port) for t in service.targets(wanted, label)]
            return self._srv([(name, address, port) for name, address, port in targets if name])
        if label is not None:
            return self._addresses(service.endpoint(label))
        if wanted is not None:
            return self._addresses(target.address for target in service.targets(wanted))
        return self._addresses(service.addresses())

    def _alias(self, host: str) -> Outcome:
        try:
            target = names.from_text(host)
        except ValueError:
            return self._missing(Reason.BAD_ALIAS)
        alias = (records.cname(self.owner, self.ttl_s, target),)
        if self.qtype in (QType.CNAME, QType.ANY):
            return Reply(own_message(answer=alias))
        return NeedsTarget(alias, target)

    # -- the zone's own names, and reverse

    def _apex(self) -> Outcome:
        server = names.join([b"ns1", self.config.apex.encode()], self.apex)
        if self.qtype == QType.SOA:
            return Reply(own_message(answer=(self._soa(),)))
        if self.qtype == QType.NS:
            glue = tuple(records.address(server, self.ttl_s, address) for address in self.zone.local_addresses)
            return Reply(own_message(answer=(records.ns(self.owner, self.ttl_s, server),), additional=glue))
        return self._nodata()

    def _reverse(self) -> Outcome:
        """PTR for external addresses; the rest of the reverse tree is somebody else's."""
        name = names.parse_reverse(self.question.lower)
        forward = next((zone for zone in self.config.zones if not names.is_reverse(zone)), None)
        address = name.address if name else None
        service = self.zone.service_of_external_ip(address) if address else None
        if name is not None and service is None and self.zone.covers_external(name):
            return self._nodata()  # a pointer stands below it (RFC 8020)
        if service is None or forward is None:
            message = own_message(rcode=Rcode.NXDOMAIN, authority=(self._soa(),))
            return Fallthrough(message, Reason.NO_ADDRESS)
        target = self._name(service, "", forward)
        if self.qtype != QType.PTR or target is None:
            return self._nodata()
        return Reply(own_message(answer=(records.ptr(self.owner, self.ttl_s, target),)))

    # -- replies

    def _soa(self) -> RR:
        base = names.join([self.config.apex.encode()], self.apex)
        return records.soa(
            self.apex,
            self.ttl_s,
            self.zone.external_serial,
            mname=b"\x03ns1" + base,
            rname=b"\x0ahostmaster" + base,
            minimum_s=self.ttl_s,
        )

    def _nodata(self) -> Reply:
        return Reply(own_message(authority=(self._soa(),)))

    def _missing(self, reason: Reason) -> Outcome:
        message = own_message(rcode=Rcode.NXDOMAIN, authority=(self._soa(),))
        zones = self.config.fallthrough
        if zones is not None and names.longest_suffix(self.question.lower, zones) is not None:
            return Fallthrough(message, reason)
        if not self.zone.synced:
            message = own_message(rcode=Rcode.SERVFAIL, authority=(self._soa(),), errors=(unsynced_error(),))
        return Reply(message, reason)

    def _addresses(self, addresses: Iterable[str]) -> Outcome:
        wanted = [a for a in dict.fromkeys(addresses) if records.address_type(a) == self.qtype]
        if not wanted:
            return self._nodata()
        return Reply(own_message(answer=tuple(records.address(self.owner, self.ttl_s, a) for a in wanted)))

    def _srv(self, targets: list[tuple[bytes, str, int]]) -> Outcome:
        if not targets:
            return self._nodata()
        weight = max(1, 100 // len(targets))
        answer = dict.fromkeys(records.srv(self.owner, self.ttl_s, weight, port, name) for name, _, port in targets)
        glue = dict.fromkeys(records.address(name, self.ttl_s, address) for name, address, _ in targets if address)
        message: Message = own_message(answer=tuple(answer), additional=tuple(glue))
        return Reply(message)

    def _host_names(self, service: ServiceNames) -> list[bytes]:
        found = []
        for host in service.external_names():
            try:
                found.append(names.from_text(host))
            except ValueError:
                continue
        return found

    def _name(self, service: ServiceNames, label: str, apex: bytes | None = None) -> bytes | None:
        parts = [part.encode("latin-1", "replace") for part in (label, service.key.name, service.key.namespace) if part]
        try:
            return names.join(parts, self.apex if apex is None else apex)
        except ValueError:
            return None
