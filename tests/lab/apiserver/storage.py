"""Versioned storage: what etcd and the watch cache are to a real API server.

One counter for all kinds. Objects are never changed in place, so a state of the past is the present one with later
events undone, as long as they are not compacted away.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from tests.lab.apiserver.kinds import Object

Key = tuple[str, str]
"""(namespace, name), in etcd's order."""


class Stored:
    """One version of one object. `value` has no apiVersion and kind: those depend on who looks."""

    def __init__(self, value: Object) -> None:
        self.value = value

    @property
    def key(self) -> Key:
        metadata = self.value["metadata"]
        return metadata.get("namespace", ""), metadata["name"]

    @property
    def version(self) -> int:
        return int(self.value["metadata"]["resourceVersion"])

    @cached_property
    def json(self) -> bytes:
        return msgspec.json.encode(self.value)

    def at(self, version: int) -> Stored:
        """The same, as of a later version (a deletion, or leaving a selection)."""
        return Stored({**self.value, "metadata": {**self.value["metadata"], "resourceVersion": str(version)}})


@dataclass(frozen=True)
class Change:
    """One event of the history; created: no old, deleted: no new."""

    version: int
    old: Stored | None
    new: Stored | None


@dataclass
class Table:
    """Objects and history of one kind."""

    objects: dict[Key, Stored] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    """Sorted."""
    changes: list[Change] = field(default_factory=list)
    watchers: set[asyncio.Event] = field(default_factory=set)
    last_compacted: int = 0
    """Version of the latest change that is no longer in `changes`."""

    def after(self, version: int) -> list[Change]:
        return self.changes[bisect_right(self.changes, version, key=lambda c: c.version) :]


class Storage:
    """Every kind's table, under one version counter."""

    def __init__(self, first_version: int = 1000) -> None:
        self.version = first_version
        self.compacted = first_version
        """Changes up to here are gone: reading the past or watching from before it is refused."""
        self._tables: dict[str, Table] = {}

    def table(self, kind: str) -> Table:
        return self._tables.setdefault(kind, Table())

    def write(self, kind: str, key: Key, value: Object | None) -> Stored | None:
        """Store `value` (None: delete) as the next version; returns what is stored, or was."""
        table = self.table(kind)
        self.version += 1
        old = table.objects.get(key)
        new = None
        if value is not None:
            new = Stored({**value, "metadata": {**value["metadata"], "resourceVersion": str(self.version)}})
            if old is None:
                insort(table.keys, key)
            table.objects[key] = new
        elif old is not None:
            del table.objects[key]
            del table.keys[bisect_right(table.keys, key) - 1]
        table.changes.append(Change(self.version, old, new))
        for watcher in table.watchers:
            watcher.set()
        return new or (old.at(self.version) if old else None)

    def compact(self, version: int | None = None) -> None:
        """Forget the history up to `version` (default: all of it)."""
        self.compacted = self.version if version is None else version
        for table in self._tables.values():
            kept = table.after(self.compacted)
            if len(kept) < len(table.changes):
                table.last_compacted = table.changes[-len(kept) - 1].version
            table.changes = kept

    def page(self, kind: str, version: int | None, start: Key | None) -> Iterator[Stored]:
        """Objects after `start`, in order, as of `version` (None: now)."""
        table = self.table(kind)
        if version is None or version == self.version or not (later := table.after(version)):
            for key in table.keys[bisect_right(table.keys, start) if start else 0 :]:
                yield table.objects[key]
            return
        past = dict(table.objects)
        for change in reversed(later):
            changed = change.new or change.old
            assert changed is not None
            if change.old is None:
                past.pop(changed.key, None)
            else:
                past[changed.key] = change.old
        for key in sorted(past):
            if start is None or key > start:
                yield past[key]
