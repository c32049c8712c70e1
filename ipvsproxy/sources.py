"""Which objects the proxy follows, and how a command that looks once gets them.

Knows: the selections of the specification (a foreign proxy's Services and headless slices never arrive). Must not know:
what is made of them. Called by the commands.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ipvsproxy.serviceplan import LABEL_HEADLESS, LABEL_PROXY_NAME
from kubecore.model import Resource
from kubecore.snapshot import ClusterState
from kubecore.watchproto import Watched

CLUSTER = "cluster"
"""`--source` that means the API server rather than a path."""

WATCHED = (
    Watched(
        Resource.SERVICES,
        label_selector=f"!{LABEL_PROXY_NAME}",
        field_selector="spec.clusterIP!=None",
        field_selector_optional=True,
    ),
    Watched(Resource.ENDPOINT_SLICES, label_selector=f"!{LABEL_HEADLESS}"),
    Watched(Resource.NODES),  # all of them: an address of any node must not be claimed
)


class SourceError(Exception):
    """The source cannot be read; the message says which and what to do."""


def look(source: str, kubeconfig: str = "", server: str = "") -> tuple[ClusterState, list[str]]:
    """The cluster as `source` (a path, or CLUSTER) shows it now, and what is wrong with its manifests, a line each.

    Raises: SourceError.
    """
    if source == CLUSTER:
        return asyncio.run(_look_at_cluster(kubeconfig, server)), []
    from kubecore.files import load  # noqa: PLC0415 - each source's libraries load only if it is used
    from kubecore.manifest import ManifestError  # noqa: PLC0415
    from kubecore.manifestfile import Severity  # noqa: PLC0415

    try:
        state, problems = load(Path(source), WATCHED)
    except ManifestError as error:
        raise SourceError(str(error)) from error
    return state, [str(p) for p in problems if p.severity is not Severity.NOTE]


async def _look_at_cluster(kubeconfig: str, server: str) -> ClusterState:
    from kubecore import once  # noqa: PLC0415
    from kubecore.access import AccessError, load_access  # noqa: PLC0415
    from kubecore.api import ApiClient  # noqa: PLC0415

    try:
        access = load_access(kubeconfig=kubeconfig, server=server)
        async with ApiClient(access, user_agent="ipvsproxy") as client:
            return await once.look(client, WATCHED)
    except (AccessError, once.LookError) as error:
        raise SourceError(str(error)) from error
