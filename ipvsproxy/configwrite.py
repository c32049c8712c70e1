"""Settings as the two documents that `configfile` reads them from, every default written out.

Knows: how each kind of value is written. Must not know: files. Called by `run --write-config-to` and by /configz.
"""

from __future__ import annotations

from enum import Enum
from operator import attrgetter
from typing import Any

from ipvsproxy.config import Bind, Config, NodePortAddresses
from ipvsproxy.configfields import KUBE_PROXY, LANGUAGES
from ipvsproxy.ipvsadm import flag_names
from ipvsproxy.model import ServiceFlag, VirtualServerConfig

_JOINED = "detect_local.cluster_cidrs"
"""The one list that is written as text with commas."""


def documents(config: Config) -> list[dict[str, Any]]:
    """kube-proxy's document and ours, of plain values; reading them gives `config` again.

    But for a listening address that a flag has switched off: the language has no word for it, and "" means the default.
    """
    return [_document(config, *language) for language in LANGUAGES]


def _document(config: Config, version: str, kind: str) -> dict[str, Any]:
    document: dict[str, Any] = {"apiVersion": version, "kind": kind}
    if (version, kind) == KUBE_PROXY:
        document["mode"] = "ipvs"
    fields, _ = LANGUAGES[version, kind]
    for name, field in fields.items():
        if not field.target or field.target == "feature_gates":  # their effect is in allowExternalIPs
            continue
        value = _written(field.target, attrgetter(field.target)(config), config)
        if value is not None:
            *above, last = name.split(".")
            place = document
            for step in above:
                place = place.setdefault(step, {})
            place[last] = value
    return document


def _written(target: str, value: Any, config: Config) -> Any:
    """The plain value of a field; None for one that is to be left out."""
    match value:
        case None if target.startswith("conntrack."):
            return "0s"
        case ServiceFlag():
            return flag_names(VirtualServerConfig(config.ipvs.scheduler, value))
        case Enum():
            return value.value
        case NodePortAddresses():
            return ["primary"] if value.primary else list(value.cidrs)
        case Bind():
            return str(value)
        case tuple():
            return ",".join(value) if target == _JOINED else list(value)
        case int() | float() if target.endswith("_s"):
            return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
        case _:
            return value
