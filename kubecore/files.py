"""The file source: a directory of manifests (or one file) as a cluster, followed while it is edited.

Knows: which files count, when a file has been written completely, and that a broken file's last good content holds.
Must not know: what is in a manifest (`manifestfile`), what files say together (`folder`).

A directory is looked at every fifth of a second, not recursively: `*.yaml`, `*.yml`, `*.json`, hidden names apart. That
needs no inotify, which network file systems and the symbolic links of a mounted ConfigMap defeat. A changed file is
read when two looks in a row find it the same, and as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from kubecore import log
from kubecore.folder import Folder
from kubecore.manifest import MAX_BYTES, ManifestError
from kubecore.manifestfile import FileContent, Problem, Severity, broken_file, read_file
from kubecore.model import Event, Listed, ListStarted, Resource
from kubecore.selectors import Selection, parse_selection
from kubecore.snapshot import ClusterState
from kubecore.store import Store
from kubecore.watchproto import Watched

_LOG = structlog.get_logger()
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_SOURCE_REMEDY = "give a directory of manifests, or a manifest file"

POLL_S = 0.2
"""Between two looks: an edit is seen after at most two of them, well within a second."""

_Stamp = tuple[int, ...]


def load(path: str | Path, watched: Iterable[Watched] | None = None) -> tuple[ClusterState, tuple[Problem, ...]]:
    """The cluster that a directory (or file) describes now, and what is wrong with the manifests.

    Args:
        path: a directory of manifests, or one manifest file.
        watched: as for FileSource.

    Raises:
        ManifestError: the path itself cannot be read.
    """
    selections = _selections(watched)
    reading = _Reading(Path(path), selections)
    events, outcome = _first_events(reading, Folder(selections))
    state = ClusterState()
    for event in events:
        state.apply_event(event)
    return state, outcome.problems


class FileSource:
    """Keeps a Store equal to what a directory of manifests says. A `Source`."""

    def __init__(
        self,
        path: str | Path,
        watched: Iterable[Watched] | None = None,
        *,
        poll_s: float = POLL_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Nothing is read before `run`.

        Args:
            path: a directory, or one file (whatever its name); it may come into being later.
            watched: resources to tell the store about, selectors included; None: all objects of all resources.
            poll_s: seconds between two looks.
            sleep: waits that long.
        """
        self._path = Path(path)
        self._selections = _selections(watched)
        self._poll_s = poll_s
        self._sleep = sleep

    async def run(self, store: Store) -> None:
        """Feed `store` until cancelled.

        While the path cannot be read what was read before holds, and nothing is marked as listed before it was
        readable once: a directory that is not mounted yet is not an empty cluster.
        """
        reading, folder = _Reading(self._path, self._selections), Folder(self._selections)
        listed, failing = False, ""
        while True:
            for resource in self._selections:
                store.figures[resource].requests += 1
            try:
                if listed:
                    changed = await asyncio.to_thread(reading.changed)
                    events, outcome = _take_in(changed, folder)
                else:
                    events, outcome = await asyncio.to_thread(_first_events, reading, folder)
            except ManifestError as error:
                for resource in self._selections:
                    store.figures[resource].failures += 1
                if failing != error.reason:
                    _LOG.error(log.MANIFEST_PATH_UNREADABLE, path=error.file, reason=error.reason, remedy=error.remedy)
                failing = error.reason
            else:
                if failing:
                    _LOG.info(log.MANIFEST_PATH_RESTORED, path=str(self._path))
                listed, failing = True, ""
                store.apply_all(events)
                for resource in self._selections:
                    store.note_alive(resource)
                _tell(outcome, store)
            await self._sleep(self._poll_s)


def _selections(watched: Iterable[Watched] | None) -> dict[Resource, Selection]:
    if watched is None:
        return {resource: Selection() for resource in Resource}
    return {w.resource: parse_selection(w.namespace, w.label_selector, w.field_selector) for w in watched}


# -- what to read


class _Reading:
    """Which files there are and which of them changed."""

    def __init__(self, path: Path, selections: Mapping[Resource, Selection]) -> None:
        self.path = path
        self._selections = selections
        self._read: dict[str, _Stamp] = {}
        """As they were when they were read."""
        self._unsettled: dict[str, _Stamp | None] = {}
        """Changed ones, as they were at the last look; None: gone."""

    def changed(self, *, wait: bool = True) -> dict[str, FileContent | None]:
        """Contents of the files that changed since the last call, None for those gone.

        Args:
            wait: leave out a file until a second look finds it the same.

        Raises:
            ManifestError: the path cannot be read.
        """
        found = self._look()
        changed: dict[str, FileContent | None] = {}
        unsettled: dict[str, _Stamp | None] = {}
        for file in sorted(found.keys() | self._read.keys()):
            stamp = found.get(file)
            if stamp == self._read.get(file):
                continue
            if wait and (file not in self._unsettled or self._unsettled[file] != stamp):
                unsettled[file] = stamp
            elif stamp is None:
                del self._read[file]
                changed[file] = None
            else:
                content = self._content(file)
                if wait and _stamp(Path(file)) != stamp:  # changed while it was read
                    unsettled[file] = stamp
                else:
                    self._read[file] = stamp
                    changed[file] = content
        self._unsettled = unsettled
        return changed

    def _look(self) -> dict[str, _Stamp]:
        try:
            if self.path.is_dir():
                files = [p for p in self.path.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith(".")]
            elif stat.S_ISREG(self.path.stat().st_mode):
                files = [self.path]
            else:  # a pipe can be read once, and a source is read again when it changes
                raise ManifestError(str(self.path), 0, "neither a file nor a directory", remedy=_SOURCE_REMEDY)
        except OSError as error:
            raise ManifestError(str(self.path), 0, error.strerror or str(error), remedy=_SOURCE_REMEDY) from error
        return {str(file): stamp for file in files if (stamp := _stamp(file)) is not None}

    def _content(self, file: str) -> FileContent:
        try:
            with Path(file).open("rb") as stream:
                text = stream.read(MAX_BYTES + 1)
        except OSError as error:
            return broken_file(ManifestError(file, 0, error.strerror or str(error), remedy="make it readable"))
        return read_file(text, file, self._selections)


def _stamp(file: Path) -> _Stamp | None:
    """What differs once a file has been written to or replaced; None for what is no file, or gone."""
    try:
        status = file.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# -- what to do with it


@dataclass(slots=True)
class _Outcome:
    """What a look at the files led to, for the log."""

    applied: dict[str, int] = field(default_factory=dict)
    """Objects in each file taken in."""
    removed: list[str] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    """Files whose last good content still holds."""
    problems: tuple[Problem, ...] = ()


def _first_events(reading: _Reading, folder: Folder) -> tuple[list[Event], _Outcome]:
    """A complete list of every resource."""
    changed = reading.changed(wait=False)
    events, outcome = _take_in(changed, folder)
    if not changed:
        reason, remedy = "no manifests in it", "put *.yaml, *.yml or *.json files there; directories below do not count"
        outcome.problems = (Problem(Severity.HINT, str(reading.path), 0, "", "", reason, remedy),)
    resources = folder.resources
    return [*map(ListStarted, resources), *events, *map(Listed, resources)], outcome


def _take_in(changed: Mapping[str, FileContent | None], folder: Folder) -> tuple[list[Event], _Outcome]:
    """Update the folder with what is good enough to replace what holds now."""
    outcome = _Outcome()
    problems: list[Problem] = []
    accepted: dict[str, FileContent | None] = {}
    for file, content in changed.items():
        old = folder.content(file)
        if content is None:
            accepted[file] = None
            outcome.removed.append(file)
            continue
        problems += content.problems
        if content.broken or (content.has_errors and old is not None and not old.has_errors):
            outcome.rejected.add(file)
        else:
            accepted[file] = content
            outcome.applied[file] = len(content.entries)
    events, rivals = folder.update(accepted)
    outcome.problems = (*problems, *rivals)
    return events, outcome


def _tell(outcome: _Outcome, store: Store) -> None:
    for file in outcome.removed:
        _LOG.info(log.MANIFEST_FILE_REMOVED, file=file)
    for file, objects in outcome.applied.items():
        _LOG.info(log.MANIFEST_FILE_APPLIED, file=file, objects=objects)
    for p in outcome.problems:
        keys = {"file": p.file, "line": p.line, "object": p.object, "field": p.field}
        keys |= {"reason": p.reason, "remedy": p.remedy}
        match p.severity:
            case Severity.ERROR if p.file in outcome.rejected:
                _LOG.error(log.MANIFEST_FILE_REJECTED, **keys)
            case Severity.ERROR:
                if p.resource is not None:
                    store.figures[p.resource].skipped += 1
                _LOG.error(log.OBJECT_SKIPPED, **keys)
            case Severity.WARNING:
                _LOG.warning(log.MANIFEST_FIELD_IGNORED, **keys)
            case Severity.HINT:
                _LOG.info(log.MANIFEST_OBJECT_QUESTIONED, **keys)
            case Severity.NOTE:
                _LOG.debug(log.MANIFEST_KIND_IGNORED, **keys)
