"""What is known to be in the kernel, and which operations it admits: the preconditions of architecture decision 9.

Knows: what each operation needs and changes, and what makes a virtual server ours. Must not know: Services, netlink,
time. The reconciler keeps one, filled from a dump, advanced by every operation that succeeded; tests take it for a
kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Set

from ipvsproxy import sets
from ipvsproxy.dataplane import (
    AddRealServer,
    AddVip,
    AddVirtualServer,
    ChangeElements,
    CutFlows,
    DeleteRealServer,
    DeleteVip,
    DeleteVirtualServer,
    EditRealServer,
    EditVirtualServer,
    Op,
)
from ipvsproxy.model import (
    ActualRealServer,
    ActualVirtualServer,
    Element,
    RealServerConfig,
    RealServerKey,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.addresses import family_of
from kubecore.model import Family

_MARK_MAPS = frozenset({f"{sets.MARK}4", f"{sets.MARK}6"})

ElementKey = tuple[str, tuple[str, ...]]
"""A set's name and a key in it; a map holds one value a key."""


class Alike(MutableMapping[RealServerKey, ActualRealServer]):
    """Real servers made with their virtual server, all alike: a start makes 100,000, and few of them ever change.

    Until one does they are the tuple that the plan has anyway, and take an eighth of a dict's memory. It is searched
    from end to end, and so no longer than MAX_NEW_REAL_SERVERS.
    """

    __slots__ = ("_actual", "_keys", "_table")

    def __init__(self, keys: tuple[RealServerKey, ...], actual: ActualRealServer) -> None:
        self._keys = keys
        self._actual = actual
        self._table: dict[RealServerKey, ActualRealServer] | None = None

    def are(self, keys: tuple[RealServerKey, ...]) -> bool:
        """Whether these are the very ones, as they were made; False says nothing."""
        return self._keys is keys and self._table is None

    def _unfolded(self) -> dict[RealServerKey, ActualRealServer]:
        if self._table is None:
            self._table = dict.fromkeys(self._keys, self._actual)
        return self._table

    def __getitem__(self, key: RealServerKey) -> ActualRealServer:
        if self._table is not None:
            return self._table[key]
        if key not in self._keys:
            raise KeyError(key)
        return self._actual

    def __setitem__(self, key: RealServerKey, actual: ActualRealServer) -> None:
        self._unfolded()[key] = actual

    def __delitem__(self, key: RealServerKey) -> None:
        del self._unfolded()[key]

    def __iter__(self) -> Iterator[RealServerKey]:
        return iter(self._keys if self._table is None else self._table)

    def __len__(self) -> int:
        return len(self._keys if self._table is None else self._table)


class Picture:
    """The kernel as last known. Reading attributes is fine; writing goes through `apply` and `put_server`.

    A virtual server is ours if our table claims it: by address, protocol and port in the service maps, by firewall
    mark in the mark maps, or because it was adopted (kube-proxy's, taken over at start; one whose mark gave way).
    """

    def __init__(
        self,
        servers: dict[VirtualServerKey, ActualVirtualServer] | None = None,
        vips: dict[str, str] | None = None,
        elements: Iterable[Element] = (),
        adopted: Iterable[VirtualServerKey] = (),
    ) -> None:
        self.servers: dict[VirtualServerKey, ActualVirtualServer] = {}
        self.vips = dict(vips or {})
        self.elements: dict[ElementKey, Element] = {}
        self.adopted = set(adopted)
        self._at: dict[str, int] = {}  # address → virtual servers there
        self._marks: dict[str, int] = {}  # fwmark as text → elements that set it
        self._fresh: dict[RealServerConfig, ActualRealServer] = {}  # one value for all that are new
        for key, server in (servers or {}).items():
            self.put_server(key, server)
        for element in elements:
            self._put_element(element)

    def owns(self, key: VirtualServerKey) -> bool:
        """Whether that virtual server is ours to edit and delete."""
        if key in self.adopted:
            return True
        if key.protocol is None:
            return f"{key.fwmark:#010x}" in self._marks
        return (sets.SERVICE_OF[key.family], sets.claim_key(key)) in self.elements

    def owned(self) -> list[VirtualServerKey]:
        """Our virtual servers."""
        return [key for key in self.servers if self.owns(key)]

    def sizes(self) -> dict[Family, tuple[int, int, int]]:
        """Our virtual servers, their real servers, and VIPs, by family."""
        owned: dict[Family, list[ActualVirtualServer]] = {4: [], 6: []}
        for key in self.owned():
            owned[key.family].append(self.servers[key])
        return {
            family: (
                len(servers),
                sum(len(server.real_servers) for server in servers),
                sum(1 for vip in self.vips if family_of(vip) == family),
            )
            for family, servers in owned.items()
        }

    def take_counters(self, dumped: Mapping[VirtualServerKey, ActualVirtualServer]) -> None:
        """Take over traffic and connections from a dump, and nothing else.

        What differs otherwise is left for the audit to see, and to count as drift.
        """
        for key, server in dumped.items():
            if self.agrees(key, server):
                self.put_server(key, server)

    def agrees(self, key: VirtualServerKey, server: ActualVirtualServer) -> bool:
        """Whether `key` is known to be configured as `server`, counters apart."""
        known = self.servers.get(key)
        return (
            known is not None
            and known.config == server.config
            and known.real_servers.keys() == server.real_servers.keys()
            and all(known.real_servers[k].config == real.config for k, real in server.real_servers.items())
        )

    def take_vips(self, found: dict[str, str]) -> dict[str, None]:
        """Take over what a dump said of routes; returns the addresses of which it said something else."""
        old, self.vips = self.vips, found
        differing = {vip: None for vip, source in old.items() if found.get(vip) != source}
        differing |= {vip: None for vip in found if vip not in old}
        return differing

    def take_elements(self, found: Set[Element]) -> dict[Element, None]:
        """Take over what a dump said of our table; returns the elements that came and went."""
        gone = [element for element in self.elements.values() if element not in found]
        for element in gone:
            self._drop_element(element)
        # What is left is in both; mostly that is all.
        new = [e for e in found if (e.set, e.key) not in self.elements] if len(found) > len(self.elements) else []
        for element in new:
            self._put_element(element)
        return dict.fromkeys([*gone, *new])

    def put_server(self, key: VirtualServerKey, server: ActualVirtualServer | None) -> None:
        """Take over what a dump said of one virtual server; None: it is not there."""
        old = self.servers.pop(key, None)
        if server is not None:
            self.servers[key] = server
        if key.address and (old is None) != (server is None):
            self._at[key.address] = self._at.get(key.address, 0) + (1 if old is None else -1)
            if not self._at[key.address]:
                del self._at[key.address]

    def advance(self, ops: Iterable[Op]) -> list[Op]:
        """What of `ops` may be done, each noted as done before the next is looked at."""
        permitted: list[Op] = []
        for op in ops:
            allowed = self.permit(op)
            if allowed is not None:
                self.apply(allowed)
                permitted.append(allowed)
        return permitted

    def permit(self, op: Op) -> Op | None:
        """`op`, or what of it may be done now; None if its precondition does not hold or nothing is left to do.

        Guarantees, after any sequence of permitted operations of which any may fail: every routed address has a
        virtual server, every virtual server we made has its claim, and no transaction deletes what is not there.
        """
        match op:  # what there is most of first
            case AddVirtualServer(key):
                return op if key not in self.servers and self.owns(key) else None
            case AddVip(address, source):
                claimed = (sets.VIP_OF[family_of(address)], (address,)) in self.elements
                return op if claimed and address in self._at and self.vips.get(address) != source else None
            case ChangeElements():
                return self._permit_elements(op)
            case AddRealServer(server, key):
                there = self.servers.get(server)
                return op if there is not None and key not in there.real_servers else None
            case EditRealServer(server, key) | DeleteRealServer(server, key):
                there = self.servers.get(server)
                return op if there is not None and key in there.real_servers else None
            case EditVirtualServer(key):
                return op if key in self.servers and self.owns(key) else None
            case DeleteVirtualServer(key):
                last = key.address in self.vips and self._at.get(key.address) == 1
                return op if key in self.servers and self.owns(key) and not last else None
            case DeleteVip(address):
                return op if address in self.vips else None
            case CutFlows():
                return op

    def apply(self, op: Op) -> None:
        """Note that `op`, as permitted, succeeded."""
        match op:
            case AddVirtualServer(key, config, real_servers, real_server_config):
                reals = Alike(real_servers, self._fresh_of(real_server_config))
                self.put_server(key, ActualVirtualServer(config, reals))
            case AddVip(address, source):
                self.vips[address] = source
            case ChangeElements(add, delete):
                for element in delete:
                    self._drop_element(element)
                for element in add:
                    self._put_element(element)
            case AddRealServer(server, key, config) | EditRealServer(server, key, config):
                self._set_real_server(server, key, config)
            case DeleteRealServer(server, key):
                del self.servers[server].real_servers[key]
            case EditVirtualServer(key, config):
                self._edit_server(key, config)
            case DeleteVirtualServer(key):
                self.put_server(key, None)
                self.adopted.discard(key)
            case DeleteVip(address):
                del self.vips[address]
            case CutFlows():
                pass

    def _permit_elements(self, op: ChangeElements) -> ChangeElements | None:
        add, delete = list[Element](), list[Element]()
        for e in op.add:
            there = self.elements.get((e.set, e.key))
            if there != e:
                add.append(e)
                if there is not None:
                    delete.append(there)
        added = {(e.set, e.key) for e in op.add} if op.delete else set()
        released: dict[str, int] = {}
        for e in op.delete:
            if (e.set, e.key) in added or self.elements.get((e.set, e.key)) != e:
                continue
            if not self._held(e, released):
                delete.append(e)
        return ChangeElements(tuple(add), tuple(delete)) if add or delete else None

    def _held(self, element: Element, released: dict[str, int]) -> bool:
        """Whether something in the kernel still rests on this element."""
        name = element.set[:-1]
        if name == sets.SERVICE:
            return self._server_of(element) in self.servers
        if name == sets.VIP:
            return element.key[0] in self.vips
        if name == sets.MARK:
            server = self._server_behind(element)
            left = self._marks.get(element.value, 0) - released.get(element.value, 0)
            if left == 1 and server in self.servers:
                return True
            released[element.value] = released.get(element.value, 0) + 1
        return False

    @staticmethod
    def _server_of(element: Element) -> VirtualServerKey:
        address, protocol, port = element.key
        return VirtualServerKey(6 if ":" in address else 4, sets.PROTOCOL_OF[protocol], address, int(port))

    @staticmethod
    def _server_behind(mark: Element) -> VirtualServerKey:
        return VirtualServerKey(6 if mark.set[-1] == "6" else 4, None, "", 0, int(mark.value, 16))

    def _put_element(self, element: Element) -> None:
        self.elements[(element.set, element.key)] = element
        if element.set in _MARK_MAPS:
            self._marks[element.value] = self._marks.get(element.value, 0) + 1

    def _drop_element(self, element: Element) -> None:
        if self.elements.get((element.set, element.key)) == element:
            del self.elements[(element.set, element.key)]
            if element.set in _MARK_MAPS:
                self._marks[element.value] -= 1
                if not self._marks[element.value]:
                    del self._marks[element.value]
                    self._keep(element)

    def _keep(self, element: Element) -> None:
        """The virtual server of a mark that no element sets any more stays ours: what it claimed got another mark."""
        server = self._server_behind(element)
        if server in self.servers:
            self.adopted.add(server)

    def _set_real_server(self, server: VirtualServerKey, key: RealServerKey, config: RealServerConfig) -> None:
        self.servers[server].real_servers[key] = self._fresh_of(config)

    def _fresh_of(self, config: RealServerConfig) -> ActualRealServer:
        found = self._fresh.get(config)
        if found is None:
            found = self._fresh[config] = ActualRealServer(config)
        return found

    def _edit_server(self, key: VirtualServerKey, config: VirtualServerConfig) -> None:
        old = self.servers[key]
        self.servers[key] = ActualVirtualServer(config, old.real_servers, old.traffic)
