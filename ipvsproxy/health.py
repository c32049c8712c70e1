"""Whether this proxy is healthy and its node eligible for load balancers, as pure state.

Knows kube-proxy's rule: a family is healthy while no update is queued, or the oldest queued one is younger than twice
the sync period. Time comes in as `now_s`. `healthserver` shows it; the reconciler tells it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kubecore.model import Family

TAINT_TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
"""The cluster autoscaler's taint on a node it is about to remove: load balancers must stop sending it connections."""


@dataclass(slots=True)
class _FamilyHealth:
    queued_s: float | None = None
    updated_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FamilyStatus:
    """One family's line in /healthz."""

    updated_s: float
    healthy: bool


@dataclass(frozen=True, slots=True)
class Health:
    """The answer to a probe at one moment."""

    healthy: bool
    node_eligible: bool
    updated_s: float
    """When the family that is furthest behind was last in step."""
    families: dict[Family, FamilyStatus]
    degraded: dict[str, str]
    """What could not be programmed and is retried: object → reason. Does not make the node unhealthy."""


@dataclass(slots=True)
class ProxyHealth:
    """What the reconciler reports and probes read. Starting up counts as healthy.

    Args:
        patience_s: how old the oldest queued update may get (kube-proxy: twice syncPeriod).
    """

    patience_s: float
    _families: dict[Family, _FamilyHealth] = field(default_factory=dict)
    node_known: bool = False
    node_deleting: bool = False
    node_taints: tuple[str, ...] = ()
    degraded: dict[str, str] = field(default_factory=dict)
    unplanned: dict[str, str] = field(default_factory=dict)
    """Services that cannot be planned at all, until they change: trying again helps nothing."""

    def serve(self, families: tuple[Family, ...], now_s: float) -> None:
        """Name the families this node has; each starts in step."""
        self._families = {family: _FamilyHealth(updated_s=now_s) for family in families}

    def queued(self, now_s: float) -> None:
        """A change arrived that the kernel does not have yet; only the oldest counts."""
        for state in self._families.values():
            if state.queued_s is None:
                state.queued_s = now_s

    def updated(self, now_s: float) -> None:
        """The kernel has all that was queued."""
        for state in self._families.values():
            state.queued_s = None
            state.updated_s = now_s

    @property
    def node_eligible(self) -> bool:
        """Node known, not being deleted, not tainted for removal."""
        return self.node_known and not self.node_deleting and TAINT_TO_BE_DELETED not in self.node_taints

    def check(self, now_s: float) -> Health:
        """Health at `now_s`."""
        families = {
            family: FamilyStatus(
                updated_s=state.updated_s,
                healthy=state.queued_s is None or now_s - state.queued_s < self.patience_s,
            )
            for family, state in self._families.items()
        }
        healthy = all(status.healthy for status in families.values())
        behind = min((s.updated_s for s in families.values()), default=now_s)
        return Health(
            healthy=healthy,
            node_eligible=self.node_eligible,
            updated_s=behind,
            families=families,
            degraded={**self.degraded, **self.unplanned},
        )
