"""The `k8s_external` link of a chain: names for external addresses, out of the `kubernetes` directive's Services."""

from __future__ import annotations

from dnsserver.config import ExternalConfig
from dnsserver.external import answer_external
from dnsserver.message import Handler, Message, Query
from dnsserver.plugins.kubernetes import act
from dnsserver.zone import Zone


class KubernetesExternal:
    """A Handler: answers for the external zones, passes on what is not in them or falls through."""

    def __init__(self, config: ExternalConfig, zone: Zone, rest: Handler, ask_self: Handler) -> None:
        """Args: as of `Kubernetes`, with the configuration of this directive."""
        self._config = config
        self._zone = zone
        self._rest = rest
        self._ask_self = ask_self

    async def __call__(self, query: Query) -> Message | None:
        """The answer; None only where the rest of the chain says None."""
        outcome = answer_external(self._zone, self._config, query.question)
        return await act(outcome, query, self._rest, self._ask_self)
