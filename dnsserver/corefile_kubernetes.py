"""The `kubernetes` and `k8s_external` directives.

Knows their options. Must not know the API or the zone. Called by `corefile` through its table.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import urlsplit

from dnsserver import corefile_values as values
from dnsserver import names
from dnsserver.config import ApiConfig, ExternalConfig, KubernetesConfig, PodsMode
from dnsserver.corefile_plugins import Context
from dnsserver.corefile_syntax import Directive, Invalid, Token
from kubecore.selectors import LabelSelector

MAX_TTL_S = 3600
_REMOVED = {
    "upstream": "remove it: names outside are resolved through this server itself",
    "resyncperiod": "remove it: the cluster is watched",
    "transfer": "zone transfer is not supported",
}


def kubernetes(line: Directive, context: Context) -> KubernetesConfig:
    """`kubernetes [ZONES…] { options }`."""
    zones = values.zones_of(line.args) or context.zones
    if all(names.is_reverse(zone) for zone in zones):
        at = line.args[0] if line.args else line.name
        raise Invalid(at, "'kubernetes' has only reverse zones", "name the cluster's zone too, such as cluster.local")
    found: dict[str, Any] = {}
    api: dict[str, Any] = {}
    options: dict[str, Token] = {}

    def one(option: Directive) -> Token:
        return values.counted(option, 1, 1)[0]

    def endpoint(option: Directive) -> None:
        words = values.counted(option, 1)
        if len(words) > 1:
            raise Invalid(words[1], "more than one API endpoint", "name one; put a load balancer in front of several")
        parts = urlsplit(words[0].text)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Invalid(words[0], f"'{words[0].text}' is no API endpoint", "write https://HOST:PORT")
        api["endpoint"] = words[0].text

    def tls(option: Directive) -> None:
        api["tls"] = tuple(word.text for word in values.counted(option, 1, 3))

    def kubeconfig(option: Directive) -> None:
        path, *context_words = values.counted(option, 1, 2)
        api["kubeconfig"] = path.text
        api["context"] = context_words[0].text if context_words else ""

    def qps(option: Directive) -> None:
        word = one(option)
        try:
            api["qps"] = float(word.text)
        except ValueError:
            raise Invalid(word, f"'{word.text}' is no rate", "write requests a second, such as 50") from None
        if not 0 <= api["qps"] < float("inf"):
            raise Invalid(word, f"'{word.text}' is out of range", "write requests a second, such as 50")

    def number(option: Directive) -> None:
        api[option.name.text.removeprefix("apiserver_")] = values.integer(one(option), 0, 1 << 20, option.name.text)

    def namespaces(option: Directive) -> None:
        found["namespaces"] = found.get("namespaces", frozenset()) | {word.text for word in values.counted(option, 1)}

    def selector(option: Directive) -> None:
        words = values.counted(option, 1)
        text = " ".join(word.text for word in words)
        try:
            found[option.name.text] = LabelSelector.parse(text)
        except ValueError as error:
            raise Invalid(words[0], str(error), "write it as kubectl's -l takes it") from None

    def pods(option: Directive) -> None:
        found["pods"] = PodsMode(values.choice(one(option), [mode.value for mode in PodsMode], "pods mode"))

    def switch(option: Directive) -> None:
        values.counted(option, 0, 0)
        found[option.name.text] = True

    def ttl(option: Directive) -> None:
        found["ttl_s"] = values.integer(one(option), 0, MAX_TTL_S, "TTL")

    def fallthrough(option: Directive) -> None:
        found["fallthrough"] = values.fallthrough(option)

    def ignore(option: Directive) -> None:
        word = one(option)
        values.choice(word, ("empty_service", "emptyservice"), "thing to ignore")
        found["ignore_empty_service"] = True

    def multicluster(option: Directive) -> None:
        words = values.counted(option, 1)
        for word in words:
            if not set(values.zones_of([word])) <= set(zones):
                raise Invalid(
                    word, f"'{word.text}' is no zone of this 'kubernetes'", "name it among the directive's zones too"
                )
        found["multicluster"] = tuple(dict.fromkeys((*found.get("multicluster", ()), *values.zones_of(words))))

    def startup_timeout(option: Directive) -> None:
        found["startup_timeout_s"] = values.duration(one(option), "startup_timeout", high=3600)

    handlers = {
        "endpoint": endpoint,
        "tls": tls,
        "kubeconfig": kubeconfig,
        "apiserver_qps": qps,
        "apiserver_burst": number,
        "apiserver_max_inflight": number,
        "namespaces": namespaces,
        "namespace_labels": selector,
        "labels": selector,
        "pods": pods,
        "endpoint_pod_names": switch,
        "ttl": ttl,
        "noendpoints": switch,
        "fallthrough": fallthrough,
        "ignore": ignore,
        "startup_timeout": startup_timeout,
        "multicluster": multicluster,
        "zonal": switch,
    }
    values.options(line, handlers, context.problems, _REMOVED)
    options = {option.name.text: option.name for option in line.body or ()}
    if {"namespaces", "namespace_labels"} <= options.keys():
        raise Invalid(options["namespace_labels"], "'namespaces' and 'namespace_labels' exclude each other", "keep one")
    if {"endpoint", "kubeconfig"} <= options.keys():
        raise Invalid(options["kubeconfig"], "'endpoint' and 'kubeconfig' exclude each other", "keep one")
    if "tls" in options and "endpoint" not in options:
        raise Invalid(options["tls"], "'tls' is for an endpoint that is not named", "add endpoint https://HOST:PORT")
    return KubernetesConfig(zones=zones, api=ApiConfig(**api), **found)


def external(line: Directive, context: Context) -> ExternalConfig:
    """`k8s_external [ZONES…] { apex, ttl, headless, fallthrough }`."""
    config = ExternalConfig(zones=values.zones_of(line.args) or context.zones)
    found: dict[str, Any] = {}

    def apex(option: Directive) -> None:
        word = values.counted(option, 1, 1)[0]
        if len(names.labels(values.name_of(word))) != 1:
            raise Invalid(word, f"'{word.text}' is not one label", "write a label such as dns")
        found["apex"] = word.text.rstrip(".").lower()

    def ttl(option: Directive) -> None:
        found["ttl_s"] = values.integer(values.counted(option, 1, 1)[0], 0, MAX_TTL_S, "TTL")

    def headless(option: Directive) -> None:
        values.counted(option, 0, 0)
        found["headless"] = True

    def fallthrough(option: Directive) -> None:
        found["fallthrough"] = values.fallthrough(option)

    handlers = {"apex": apex, "ttl": ttl, "headless": headless, "fallthrough": fallthrough}
    values.options(line, handlers, context.problems, {"upstream": _REMOVED["upstream"]})
    return dataclasses.replace(config, **found)
