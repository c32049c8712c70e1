"""The cluster on disk, for a start while the API server is away: written now and then, read once.

Knows the file's form and that it may be old, cut off or of another version: then it is ignored, with an event. Must not
know zones. Used by the daemon with `--snapshot`.

The file is a header line (magic, version, SHA-256 of the rest) and a msgpack map from resource to objects. It is
written beside its place and renamed, so that a crash or a full disk leaves the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from dnsserver.corefile_model import Config
from dnsserver.source import watched
from kubecore import log
from kubecore.model import EndpointSlice, Listed, ListStarted, Namespace, Pod, Resource, Service, ServiceImport, Upsert
from kubecore.store import Store

_log = structlog.get_logger()

MAGIC = b"dnsserver-snapshot"
VERSION = 1
PERIOD_S = 60.0
_KINDS: Mapping[Resource, Any] = {
    Resource.SERVICES: Service,
    Resource.ENDPOINT_SLICES: EndpointSlice,
    Resource.NAMESPACES: Namespace,
    Resource.PODS: Pod,
    Resource.SERVICE_IMPORTS: ServiceImport,
}


class SnapshotError(Exception):
    """The file is no snapshot that this version can use."""


def pack(objects: Mapping[Resource, Iterable[Any]]) -> bytes:
    """The file's content."""
    body = msgspec.msgpack.encode({resource.value: list(found) for resource, found in objects.items()})
    return b"%s %d %s\n" % (MAGIC, VERSION, hashlib.sha256(body).hexdigest().encode()) + body


def unpack(content: bytes) -> dict[Resource, list[Any]]:
    """The objects in a file's content.

    Raises:
        SnapshotError: saying why it cannot be used.
    """
    head, newline, body = content.partition(b"\n")
    fields = head.split(b" ")
    if not newline or len(fields) != 3 or fields[0] != MAGIC:
        raise SnapshotError("not a snapshot")
    if fields[1] != str(VERSION).encode():
        raise SnapshotError(f"version {fields[1].decode(errors='replace')}, this program writes {VERSION}")
    if hashlib.sha256(body).hexdigest().encode() != fields[2]:
        raise SnapshotError("damaged or cut off")
    try:
        raw = msgspec.msgpack.decode(body, type=dict[str, list[msgspec.Raw]])
        return {
            resource: [msgspec.msgpack.decode(item, type=kind) for item in raw[resource.value]]
            for resource, kind in _KINDS.items()
            if resource.value in raw
        }
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"another version's objects: {error}") from None


class Snapshots:
    """The file of this process."""

    def __init__(self, path: Path, store: Store) -> None:
        self._path = path
        self._store = store
        self._written: int | None = None
        self._warm = False

    def load(self, config: Config) -> None:
        """Fill the store from the file, as if it had been listed; whatever the source lists later replaces it."""
        try:
            objects = unpack(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, SnapshotError) as error:
            _log.warning(log.SNAPSHOT_IGNORED, path=str(self._path), reason=str(error))
            return
        wanted = watched(b.kubernetes for b in config.blocks if b.kubernetes is not None)
        needed = {w.resource for w in wanted if not w.optional}
        if not needed <= objects.keys():
            missing = sorted(r.value for r in needed - objects.keys())
            _log.warning(log.SNAPSHOT_IGNORED, path=str(self._path), reason=f"lacks {', '.join(missing)}")
            return
        state = self._store.state
        for resource in {w.resource for w in wanted} & objects.keys():
            state.apply_event(ListStarted(resource))
            for item in objects[resource]:
                state.apply_event(Upsert(item))
            state.apply_event(Listed(resource))
        self._warm = True
        _log.info(log.SNAPSHOT_LOADED, path=str(self._path), services=len(state.services))

    def confirmed(self, config: Config) -> bool:
        """Whether the source has listed everything itself, so that nothing rests on the file any more."""
        needed = watched(b.kubernetes for b in config.blocks if b.kubernetes is not None)
        return all(self._store.figures[w.resource].lists for w in needed if not w.optional)

    async def keep(self) -> None:
        """Write every minute if something changed, until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.write()

    async def write(self) -> None:
        """Write the store as it is, if it is complete and differs from what was last written. Failures are logged."""
        state = self._store.state
        listed = [r for r in _KINDS if state.is_listed(r)]
        figures = self._store.figures
        mark = sum(figures[r].upserts + figures[r].deletes + figures[r].lists for r in listed)
        if Resource.SERVICES not in listed or not figures[Resource.SERVICES].lists or mark == self._written:
            return
        tables: dict[Resource, Mapping[Any, Any]] = {
            Resource.SERVICES: state.services,
            Resource.ENDPOINT_SLICES: state.slices,
            Resource.NAMESPACES: state.namespaces,
            Resource.PODS: state.pods,
            Resource.SERVICE_IMPORTS: state.service_imports,
        }
        objects = {r: list(tables[r].values()) for r in listed}
        try:
            await asyncio.to_thread(_replace, self._path, objects)
        except OSError as error:
            _log.warning(log.SNAPSHOT_NOT_WRITTEN, path=str(self._path), reason=error.strerror or str(error))
            return
        self._written = mark


def _replace(path: Path, objects: Mapping[Resource, Iterable[Any]]) -> None:
    """Write beside, then rename: readers see the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pack(objects))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
