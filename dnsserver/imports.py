"""What multicluster zones are made of: the ServiceImports that are visible, kept up to date one by one.

Knows how a ServiceImport and its slices stand for names. Must not know records, the cluster's own Services, which
imports are filtered out (that is `zone`, which holds one). Look-ups ask it by way of the Zone.

Source: KEP-1645 (Multi-Cluster Services API), "DNS"; KEP-2149 (cluster ids).
"""

from __future__ import annotations

from collections.abc import Iterable

from dnsserver.services import ServiceNames, answers_alike, slices_alike
from kubecore.model import EndpointSlice, ObjectKey, Service, ServiceImport


def import_names(
    found: ServiceImport, slices: Iterable[EndpointSlice], *, pod_names: bool, before: ServiceNames | None = None
) -> ServiceNames:
    """A ServiceImport as names: like a Service whose endpoints are called `EP.CLUSTER`."""
    like = Service(
        namespace=found.namespace,
        name=found.name,
        cluster_ips=found.ips,
        headless=found.headless,
        ports=found.ports,
        labels=found.labels,
    )
    return ServiceNames(like, tuple(slices), pod_names=pod_names, imported=True, before=before)


class Imports:
    """The ServiceImports of one `kubernetes` directive. Written by its Zone."""

    def __init__(self, zones: Iterable[bytes]) -> None:
        """Args: `zones`: where they are shown, lower case; none: nowhere, and it stays empty."""
        self.zones = frozenset(zones)
        self.serial = 0
        """As the Zone's, of answers in these zones."""
        self.synced = False
        """Whether the ServiceImports were listed: absence means something."""
        self._entries: dict[ObjectKey, ServiceNames] = {}

    def get(self, key: ObjectKey) -> ServiceNames | None:
        """One that is visible."""
        return self._entries.get(key)

    def put(self, key: ObjectKey, new: ServiceNames | None) -> bool:
        """Replace one (None: it is gone); whether any answer changed."""
        old = self._entries.pop(key, None)
        if new is not None:
            self._entries[key] = new
        if old is None or new is None:
            return old is not new
        if len(old.slices) != len(new.slices) or not answers_alike(old, new):
            return True
        pairs = zip(old.slices, new.slices, strict=True)  # both sorted by name
        return any(a.name != b.name or a.source_cluster != b.source_cluster or not slices_alike(a, b) for a, b in pairs)
