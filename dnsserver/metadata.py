"""What a name of the cluster's zones says by its labels alone, for log lines.

Knows the grammar and the labels' customary names. Must not know whether anything of that name exists. Called by the
`log` plugin.

Source: the metadata CoreDNS' `kubernetes` plugin publishes.
"""

from __future__ import annotations

from dnsserver import names
from dnsserver.config import KubernetesConfig
from dnsserver.message import Question


def kubernetes_metadata(config: KubernetesConfig, question: Question) -> dict[str, str]:
    """Values by label (`kubernetes/namespace` …), empty where the name does not say; no labels: not in the zones."""
    zone = names.longest_suffix(question.lower, config.zones)
    if zone is None:
        return {}
    below = question.lower[: len(question.lower) - len(zone)] + names.ROOT
    labels = [names.label_text(label) for label in names.labels(below)]
    found = dict.fromkeys(("kind", "namespace", "service", "endpoint", "port-name", "protocol"), "")
    if zone in config.multicluster:
        found["cluster"] = ""
    match labels:
        case [] | ["svc"] | ["pod"]:
            pass
        case [namespace, ("svc" | "pod") as kind]:
            found |= {"kind": kind, "namespace": namespace}
        case [*left, service, namespace, ("svc" | "pod") as kind] if len(left) <= 2:
            found |= {"kind": kind, "namespace": namespace, "service": service}
            match left:
                case [endpoint]:
                    found["endpoint"] = endpoint
                case [endpoint, cluster] if "cluster" in found and endpoint[0] != "_" != cluster[0]:
                    found |= {"endpoint": endpoint, "cluster": cluster}
                case [port, protocol]:
                    found |= {"port-name": port.removeprefix("_"), "protocol": protocol.removeprefix("_")}
        case _:
            found = {"parse-error": "invalid query name"}
    return {f"kubernetes/{label}": value for label, value in found.items()}
