"""Where the cluster's objects come from, by what the configuration needs of them.

Knows which resources, namespaces and labels have to be watched for a set of `kubernetes` directives, and how to reach
the API server they name. Must not know zones or the store's inside. Called by the daemon when it starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from dnsserver.config import ApiConfig, KubernetesConfig, PodsMode
from kubecore import __version__
from kubecore.access import Access, Tls, load_access
from kubecore.api import ApiClient, Exchange
from kubecore.credentials import Fixed
from kubecore.files import FileSource
from kubecore.model import Resource
from kubecore.reflector import Reflector
from kubecore.store import Source
from kubecore.throttle import Limits
from kubecore.watchproto import Watched

CLUSTER = "cluster"
"""The value of `--source` that means the API server."""
_LIVE_PODS = "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"

_NO_IMPORTS = (
    "install the CustomResourceDefinition of ServiceImports (multicluster.x-k8s.io/v1alpha1), or take multicluster out "
    "of the Corefile; until then its zones are empty"
)


class SourceError(Exception):
    """The configuration does not lead to one source."""


class OpenSource(NamedTuple):
    """A source ready to run."""

    source: Source
    client: ApiClient | None
    """To be closed after it; None for files."""


def watched(configs: Iterable[KubernetesConfig]) -> tuple[Watched, ...]:
    """What has to be watched for these directives together; nothing if there is none.

    A namespace or label restricts the watch only where every directive has the same.
    """
    all_configs = tuple(configs)
    if not all_configs:
        return ()
    namespaces = {c.namespaces for c in all_configs}
    only = namespaces.pop() if len(namespaces) == 1 else frozenset[str]()
    namespace = next(iter(only)) if len(only) == 1 else ""
    selectors = {str(c.labels) if c.labels else "" for c in all_configs}
    selector = selectors.pop() if len(selectors) == 1 else ""
    found = [Watched(Resource.SERVICES, namespace, selector)]
    if any(not c.noendpoints for c in all_configs):
        found.append(Watched(Resource.ENDPOINT_SLICES, namespace, selector))
    found.append(Watched(Resource.NAMESPACES, field_selector=f"metadata.name={namespace}" if namespace else ""))
    if any(c.multicluster for c in all_configs):
        found.append(Watched(Resource.SERVICE_IMPORTS, namespace, selector, optional=True, remedy=_NO_IMPORTS))
    if any(c.pods is PodsMode.VERIFIED for c in all_configs):
        found.append(Watched(Resource.PODS, namespace, selector, _LIVE_PODS))
    return tuple(found)


def open_source(
    where: str,
    configs: Iterable[KubernetesConfig],
    observe: Callable[[Exchange], object] = lambda _exchange: None,
) -> OpenSource | None:
    """The source for these directives; None if nothing is to be watched.

    Args:
        where: `cluster`, or the path of a directory or file of manifests.
        configs: the `kubernetes` directives of all server blocks.
        observe: told of every request to the API server; for metrics.

    Raises:
        SourceError: the directives name different API servers.
        AccessError: there is no way to an API server.
    """
    all_configs = tuple(configs)
    resources = watched(all_configs)
    if not resources:
        return None
    if where != CLUSTER:
        return OpenSource(FileSource(where, resources), None)
    apis = {c.api for c in all_configs}
    if len(apis) > 1:
        raise SourceError(
            "the kubernetes directives name different API servers (endpoint, tls, kubeconfig): one process follows one "
            "cluster; run another for the other"
        )
    api = apis.pop()
    limits = Limits(api.qps, api.burst, api.max_inflight)
    client = ApiClient(_access(api), user_agent=f"dnsserver/{__version__}", limits=limits, observe=observe)
    return OpenSource(Reflector(client, resources), client)


def _access(api: ApiConfig) -> Access:
    if not api.tls:
        return load_access(kubeconfig=api.kubeconfig, context=api.context, server=api.endpoint)
    cert, key, ca = api.tls if len(api.tls) == 3 else (*api.tls, "") if len(api.tls) == 2 else ("", "", *api.tls)
    tls = Tls(ca_file=_path(ca), cert_file=_path(cert), key_file=_path(key))
    if api.endpoint and not api.kubeconfig:
        return Access(api.endpoint.rstrip("/"), Fixed(), "the endpoint given", tls)
    found = load_access(kubeconfig=api.kubeconfig, context=api.context, server=api.endpoint)
    return dataclasses.replace(found, tls=tls)


def _path(text: str) -> Path | None:
    return Path(text) if text else None
