"""The operations that turn the kernel as known into the kernel as wanted, in a safe order.

Knows: order and what is edited in place. Must not know: policy (the planner's), preconditions at run time
(`Picture.permit`), time (`draining`). Called by the reconciler for what changed, at start and in the audit.

Order: claims (set elements) → virtual servers → real servers → routes; then real servers to weight 0 or away → routes
→ virtual servers → flows of what is gone, all together, for that reads the whole connection table → claims away. See
docs/decisions/0001-data-plane.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipvsproxy import sets
from ipvsproxy.dataplane import (
    MAX_NEW_REAL_SERVERS,
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
from ipvsproxy.draining import drains
from ipvsproxy.model import (
    ActualVirtualServer,
    Delta,
    Desired,
    Element,
    PlannedVirtualServer,
    RealServerConfig,
    RealServerKey,
    VirtualServerKey,
)
from ipvsproxy.picture import Picture
from kubecore.model import Protocol

_CLAIMS = frozenset({sets.SERVICE, sets.MARK, sets.VIP})
"""Sets whose elements vouch for something else in the kernel and therefore go last."""
_BY_SERVER = frozenset({sets.SERVICE, sets.MARK, sets.RANGE})
"""Sets whose keys begin with address, protocol and port."""
TRANSACTION_ELEMENTS = 1000
"""Elements changed in one transaction, about: encoding and sending so many takes some 5 ms."""


def diff(desired: Desired, actual: Picture, delta: Delta | None = None) -> list[Op]:
    """The ordered operations from `actual` to `desired`; empty if they agree.

    Args:
        desired: what is wanted.
        actual: what is known to be there; foreign virtual servers in it are left alone.
        delta: look at these keys only; None: at everything.

    Order of `delta` (or of `desired`) is kept within each stage. Apply each op through `Picture.permit`.
    """
    add, edit, drop, gone = list[Op](), list[Op](), list[Op](), list[Op]()
    cut = list[Op]()
    for key in _servers(desired, actual, delta):
        planned, there = desired.virtual_servers.get(key), actual.servers.get(key)
        if planned is None:
            if there is not None and actual.owns(key):
                gone.append(DeleteVirtualServer(key))
                cut += _cut(key, None)
            continue
        if there is None:
            add += _anew(planned)
            cut += _cut(key, planned)
            continue
        if there.config != planned.config:
            edit.append(EditVirtualServer(key, planned.config))
        _real_servers(planned, there, edit, drop, cut)
    vips = [*desired.vips, *(v for v in actual.vips if v not in desired.vips)] if delta is None else delta.vips
    route = [AddVip(v, s) for v in vips if (s := desired.vips.get(v)) is not None and actual.vips.get(v) != s]
    unroute = [DeleteVip(v) for v in vips if v not in desired.vips and v in actual.vips]
    first, last = _elements(desired, actual, delta)
    return [*first, *add, *edit, *route, *drop, *unroute, *gone, *cut, *last]


def _anew(planned: PlannedVirtualServer) -> list[Op]:
    """A virtual server with all its real servers."""
    key, config, reals = planned.key, planned.real_server_config, planned.real_servers
    first = reals[:MAX_NEW_REAL_SERVERS]
    rest = [AddRealServer(key, server, config) for server in reals[MAX_NEW_REAL_SERVERS:]]
    return [AddVirtualServer(key, planned.config, first, config), *rest]


def _servers(desired: Desired, actual: Picture, delta: Delta | None) -> Iterable[VirtualServerKey]:
    if delta is not None:
        return delta.virtual_servers
    return [*desired.virtual_servers, *(k for k in actual.servers if k not in desired.virtual_servers)]


def _real_servers(
    planned: PlannedVirtualServer,
    there: ActualVirtualServer,
    edit: list[Op],
    drop: list[Op],
    cut: list[Op],
) -> None:
    have, config = there.real_servers, planned.real_server_config
    kept = 0
    for key in planned.real_servers:
        actual = have.get(key)
        if actual is None:
            edit.append(AddRealServer(planned.key, key, config))
            continue
        kept += 1
        if actual.config != config:
            edit.append(EditRealServer(planned.key, key, config))
    if kept == len(have):
        return
    wanted = set(planned.real_servers)
    for key, actual in have.items():
        if key in wanted:
            continue
        if not drains(planned, key):
            _take_away(planned, key, drop, cut)
        elif actual.config.weight:
            drop.append(EditRealServer(planned.key, key, _quiescent(actual.config)))


def without(finished: Iterable[tuple[PlannedVirtualServer, RealServerKey]]) -> list[Op]:
    """What takes real servers away that may go, their flows included."""
    drop, cut = list[Op](), list[Op]()
    for planned, key in finished:
        _take_away(planned, key, drop, cut)
    return [*drop, *cut]


def _take_away(planned: PlannedVirtualServer, key: RealServerKey, drop: list[Op], cut: list[Op]) -> None:
    drop.append(DeleteRealServer(planned.key, key))
    cut += _cut(planned.key, planned, key)


def _quiescent(config: RealServerConfig) -> RealServerConfig:
    return RealServerConfig(0, config.method, config.upper_threshold, config.lower_threshold)


def _cut(
    key: VirtualServerKey,
    planned: PlannedVirtualServer | None,
    real_server: RealServerKey | None = None,
) -> list[Op]:
    """UDP flows have no end to wait for: one from before would bypass the new choice for as long as it lasts."""
    address = real_server.address if real_server is not None else None
    if key.protocol is None:
        if planned is None or planned.protocol is Protocol.TCP or address is None:
            return []
        return [CutFlows(planned.protocol, front, port, address) for front, port in planned.fronts]
    return [] if key.protocol is Protocol.TCP else [CutFlows(key.protocol, key.address, key.port, address)]


def _elements(desired: Desired, actual: Picture, delta: Delta | None) -> tuple[list[Op], list[Op]]:
    """The transactions that come first and those that come last."""
    wanted, known = desired.elements, actual.elements
    add, replaced, drop = list[Element](), list[Element](), list[Element]()
    for e in delta.elements if delta is not None else dict.fromkeys([*wanted, *known.values()]):
        there = known.get((e.set, e.key))
        if e in wanted:
            if there != e:
                add.append(e)
                if there is not None:
                    replaced.append(there)
        elif there == e:
            drop.append(e)
    if replaced:
        going = set(replaced)
        drop = [e for e in drop if e not in going]
    early = [*replaced, *(e for e in drop if e.set[:-1] not in _CLAIMS)]
    late = [e for e in drop if e.set[:-1] in _CLAIMS]
    return _transactions(add, early), _transactions([], late)


def _transactions(add: list[Element], delete: list[Element]) -> list[Op]:
    """Transactions that do this together: one, or where that would hold up everything else, several.

    What belongs to one virtual server stays together, and so do prefixes, which may overlap. A claim comes before the
    VIP and goes after it, for a packet to a VIP that no claim mentions is rejected.
    """
    if len(add) + len(delete) <= TRANSACTION_ELEMENTS:
        return [ChangeElements(tuple(add), tuple(delete))] if add or delete else []
    groups: dict[tuple[int, tuple[str, ...]], tuple[list[Element], list[Element]]] = {}
    for e in delete:
        groups.setdefault((0 if e.set[:-1] == sets.VIP else 1, _together(e)), ([], []))[1].append(e)
    for e in add:
        groups.setdefault((2 if e.set[:-1] == sets.VIP else 1, _together(e)), ([], []))[0].append(e)
    found: list[Op] = []
    adding, deleting = list[Element](), list[Element]()
    for _, (added, deleted) in sorted(groups.items(), key=lambda group: group[0][0]):
        adding += added
        deleting += deleted
        if len(adding) + len(deleting) >= TRANSACTION_ELEMENTS:
            found.append(ChangeElements(tuple(adding), tuple(deleting)))
            adding, deleting = [], []
    return [*found, ChangeElements(tuple(adding), tuple(deleting))] if adding or deleting else found


def _together(element: Element) -> tuple[str, ...]:
    """The same for elements that have to change in one transaction."""
    name = element.set[:-1]
    if name in _BY_SERVER:
        return element.key[:3]
    return element.key if name == sets.VIP else (element.set,)
