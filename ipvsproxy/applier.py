"""Carries out a diff on a data plane and keeps the picture of it true, whatever fails.

Knows: how far a batch may run ahead of its acknowledgements, and what to read again after a failure. Must not know: why
an operation is wanted (diff), what to do about a failure later (reconciler).
"""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from ipvsproxy.dataplane import (
    AddRealServer,
    AddVip,
    AddVirtualServer,
    AlreadyExists,
    ChangeElements,
    CutFlows,
    DataPlane,
    DataplaneError,
    DeleteRealServer,
    DeleteVip,
    DeleteVirtualServer,
    EditRealServer,
    EditVirtualServer,
    NotFound,
    Op,
)
from ipvsproxy.model import VirtualServerKey
from ipvsproxy.picture import Picture

_STAGE: dict[type[Op], int] = {
    ChangeElements: 0,
    AddVirtualServer: 1,
    EditVirtualServer: 1,
    AddRealServer: 1,
    EditRealServer: 1,
    DeleteRealServer: 1,
    AddVip: 2,
    DeleteVip: 3,
    DeleteVirtualServer: 4,
    CutFlows: 5,
}
"""Operations of one stage may share a batch: a failure of one cannot make another of the same stage harmful."""

_DELETES = (DeleteRealServer, DeleteVip, DeleteVirtualServer)
_OF_VIRTUAL_SERVERS = (AddVirtualServer, EditVirtualServer, DeleteVirtualServer)
_OF_REAL_SERVERS = (AddRealServer, EditRealServer, DeleteRealServer)

MAX_BATCH = 5000
"""Operations handed to the data plane at once, so that a long pass can be looked at (and cancelled) in between."""


class Applier:
    """Applies operations through preconditions.

    Args:
        dataplane: the kernel or its fake.
        picture: what is known to be in it; kept true by `apply` and `reread`.
        count: told how many operations of a name had an outcome, once a batch, for metrics.
    """

    def __init__(self, dataplane: DataPlane, picture: Picture, count: Callable[[str, str, int], None]) -> None:
        self._dataplane = dataplane
        self.picture = picture
        self._count = count
        self.doubtful: set[VirtualServerKey] = set()
        """Virtual servers that could not be read again after a failure; `reread` tries anew."""
        self.touched: set[VirtualServerKey] = set()
        """Virtual servers that any operation was about; the audit empties it."""
        self.surprised = False
        """Something to be added was there already, and was read: diff again, for it may differ from what is wanted."""
        self.doubtful_vips = False
        self.doubtful_elements = False
        self._notes: list[Op] | None = None

    @contextlib.contextmanager
    def noting(self, notes: list[Op]) -> Iterator[None]:
        """Have `notes` tell every operation that is done until the end."""
        before, self._notes = self._notes, notes
        try:
            yield
        finally:
            self._notes = before
            if before is not None:
                before += notes

    async def apply(self, ops: Sequence[Op]) -> list[DataplaneError]:
        """Do `ops` in order as far as their preconditions hold; returns what failed.

        What failed was read again from the kernel, so that the next diff starts from the truth. An operation whose
        precondition does not hold is skipped: the next diff asks for it again.
        """
        failed: list[DataplaneError] = []
        for _, stage in groupby(ops, key=lambda op: _STAGE[type(op)]):
            for batch in _chunks(list(stage)):
                failed += await self._apply_batch(batch)
        return failed

    def doubt_all(self) -> None:
        """Routes and elements may be otherwise than they were last read; `reread` looks at them."""
        self.doubtful_vips = self.doubtful_elements = True

    async def reread(self) -> bool:
        """Read again whatever is in doubt; True if nothing is any more."""
        for key in list(self.doubtful):
            await self._reread_server(key)
        if self.doubtful_vips:
            await self._reread_vips()
        if self.doubtful_elements:
            await self._reread_elements()
        return not (self.doubtful or self.doubtful_vips or self.doubtful_elements)

    async def _apply_batch(self, ops: Sequence[Op]) -> list[DataplaneError]:
        # The picture runs ahead of the kernel within a batch: each operation is taken for done, so that a real server
        # may follow its virtual server in one buffer. What then fails is read again before the next batch.
        permitted = self.picture.advance(ops)
        tally: Counter[tuple[type[Op], str]] = Counter()
        for kind, times in Counter(map(type, ops)).items():
            tally[kind, "skipped"] = times
        for kind, times in Counter(map(type, permitted)).items():
            tally[kind, "skipped"] -= times
            tally[kind, "done"] = times
        tally[AddRealServer, "done"] += sum(len(op.real_servers) for op in permitted if type(op) is AddVirtualServer)
        self._note_touched(permitted)
        if self._notes is not None:
            self._notes += permitted
        failed: list[DataplaneError] = []
        if permitted:
            for op, error in await self._carry_out(permitted):
                if isinstance(error, NotFound) and isinstance(op, _DELETES):
                    continue
                tally[type(op), "done"] -= 1
                tally[type(op), "failed"] += 1
                self._doubt(op)
                if isinstance(error, AlreadyExists) and not isinstance(op, ChangeElements):
                    self.surprised = True
                else:
                    failed.append(error)
        for (kind, outcome), times in tally.items():
            if times:
                self._count(kind.__name__, outcome, times)
        if self.doubtful or self.doubtful_vips or self.doubtful_elements:
            await self.reread()
        return failed

    def _note_touched(self, ops: Iterable[Op]) -> None:
        for op in ops:
            if isinstance(op, _OF_VIRTUAL_SERVERS):
                self.touched.add(op.key)
            elif isinstance(op, _OF_REAL_SERVERS):
                self.touched.add(op.server)

    async def _carry_out(self, ops: list[Op]) -> list[tuple[Op, DataplaneError]]:
        """Those of `ops` that failed, and how."""
        try:
            results = await self._dataplane.apply(ops)
        except DataplaneError as error:  # the whole call failed: nothing is known of any of them
            return [(op, type(error)(op, error.errno, error.detail)) for op in ops]
        return [(op, error) for op, error in zip(ops, results, strict=True) if error is not None]

    def _doubt(self, op: Op) -> None:
        match op:
            case AddVirtualServer(key) | EditVirtualServer(key) | DeleteVirtualServer(key):
                self.doubtful.add(key)
            case AddRealServer(server) | EditRealServer(server) | DeleteRealServer(server):
                self.doubtful.add(server)
            case AddVip() | DeleteVip():
                self.doubtful_vips = True
            case ChangeElements():
                self.doubtful_elements = True
            case CutFlows():
                pass

    async def _reread_server(self, key: VirtualServerKey) -> None:
        try:
            self.picture.put_server(key, await self._dataplane.dump_real_servers(key))
        except NotFound:
            self.picture.put_server(key, None)
        except DataplaneError:
            # Unknown counts as absent: then no route is added for it, and it is looked at again.
            self.picture.put_server(key, None)
            return
        self.doubtful.discard(key)

    async def _reread_vips(self) -> None:
        try:
            self.picture.vips = await self._dataplane.dump_vips()
        except DataplaneError:
            return
        self.doubtful_vips = False

    async def _reread_elements(self) -> None:
        try:
            elements = await self._dataplane.dump_elements()
        except DataplaneError:
            return
        self.picture.take_elements(elements or set())
        self.doubtful_elements = elements is None

    @property
    def table_lost(self) -> bool:
        """Whether the last read of our table found it missing or altered: it has to be made anew."""
        return self.doubtful_elements


def _chunks(ops: list[Op]) -> Iterator[list[Op]]:
    for start in range(0, len(ops), MAX_BATCH):
        yield ops[start : start + MAX_BATCH]


def describe(error: DataplaneError) -> str:
    """One line for a person: operation, its key, and what the kernel said."""
    name = errno.errorcode.get(error.errno, str(error.errno))
    what = "" if error.op is None else f"{type(error.op).__name__} {subject(error.op)}: "
    hint = "; CAP_NET_ADMIN is needed" if error.errno in {errno.EPERM, errno.EACCES} else ""
    return f"{what}{error.detail or name}{hint}"


def subject(op: Op) -> str:
    """What an operation is about, for a person."""
    match op:
        case AddVirtualServer(key) | EditVirtualServer(key) | DeleteVirtualServer(key):
            return str(key)
        case AddRealServer(server, key) | EditRealServer(server, key) | DeleteRealServer(server, key):
            return f"{server} -> {key.address}:{key.port}"
        case AddVip(address) | DeleteVip(address):
            return address
        case ChangeElements(add, delete):
            return f"{len(add)} added, {len(delete)} deleted"
        case CutFlows(protocol, address, port):
            return f"{address}:{port}/{protocol.value}"
