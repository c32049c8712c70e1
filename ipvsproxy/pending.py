"""The Services that wait to be planned, and which of them goes first.

Must not know: what planning is. The reconciler keeps one.
"""

from __future__ import annotations

from collections.abc import Iterable

from kubecore.model import ObjectKey


class Pending:
    """Services to be planned: newcomers first, so that a burst does not hold up a single change."""

    def __init__(self) -> None:
        self._fresh: dict[ObjectKey, None] = {}
        self._backlog: dict[ObjectKey, None] = {}

    def __bool__(self) -> bool:
        """Whether any waits."""
        return bool(self._fresh or self._backlog)

    def add(self, services: Iterable[ObjectKey], limit: int) -> None:
        """Put newcomers in front; a crowd of more than `limit` goes behind, where only what is left waits."""
        new = dict.fromkeys(services)
        if len(new) > limit:
            self._backlog |= new
        else:
            self._fresh |= new

    def take(self, limit: int) -> list[ObjectKey]:
        """The next services; each once, with its newest state whichever queue it was in."""
        taken: list[ObjectKey] = []
        for queue in (self._fresh, self._backlog):
            while queue and len(taken) < limit:
                key = next(iter(queue))
                del queue[key]
                taken.append(key)
        for key in taken:
            self._fresh.pop(key, None)
            self._backlog.pop(key, None)
        return taken
