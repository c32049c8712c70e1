"""How fresh a Store is and what its source did, as metrics; counted at scrape time.

Knows: names and meaning. Used by both daemons under the same names, so that one alert watches both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kubecore.store import Store

_COUNTERS = {
    "upserts": ("kubecore_watch_upserts", "Objects told as added or changed"),
    "deletes": ("kubecore_watch_deletes", "Objects told as deleted"),
    "lists": ("kubecore_watch_lists", "Complete lists; each after the first is a relist"),
    "skipped": ("kubecore_watch_objects_skipped", "Malformed objects or fields left out"),
    "requests": ("kubecore_watch_requests", "Requests sent (files: scans)"),
    "failures": ("kubecore_watch_failures", "Requests (scans) that failed and are retried"),
}


class StoreCollector(Collector):
    """Staleness and counters of each watched resource.

    Args:
        store: the store; only resources its source has touched are shown.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> Iterator[Metric]:
        """Names only."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One series a resource."""
        stale = GaugeMetricFamily(
            "kubecore_watch_staleness_seconds",
            "Seconds since the source of a resource last gave a sign of life; +Inf before the first",
            labels=["resource"],
        )
        listed = GaugeMetricFamily(
            "kubecore_watch_listed", "1 once a resource has been listed completely", labels=["resource"]
        )
        counters = {
            name: CounterMetricFamily(metric, text, labels=["resource"]) for name, (metric, text) in _COUNTERS.items()
        }
        for resource, staleness_s in self._store.staleness().items():
            labels = [resource.value]
            stale.add_metric(labels, staleness_s if math.isfinite(staleness_s) else math.inf)
            listed.add_metric(labels, int(self._store.state.is_listed(resource)))
            figures = self._store.figures[resource]
            for name, family in counters.items():
                family.add_metric(labels, getattr(figures, name))
        yield stale
        yield listed
        yield from counters.values()
