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

LOOK_TIMEOUT_S = 60.0
"""How long a command waits for the API server's lists."""


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
    from kubecore.access import AccessError, load_access  # noqa: PLC0415
    from kubecore.api import ApiClient, ApiError, ConnectionFailed  # noqa: PLC0415
    from kubecore.reflector import Reflector  # noqa: PLC0415
    from kubecore.store import Store  # noqa: PLC0415

    try:
        access = load_access(kubeconfig=kubeconfig, server=server)
    except AccessError as error:
        raise SourceError(str(error)) from error
    store = Store()
    async with ApiClient(access, user_agent="ipvsproxy") as client:
        # A daemon goes on trying. Somebody who waits for a command is told at once what stands in the way.
        for watched in WATCHED:
            try:
                await client.request(
                    "GET", watched.path, query=[("labelSelector", watched.label_selector), ("limit", "1")]
                )
            except ConnectionFailed as error:
                raise SourceError(f"{error} ({access.origin})") from error
            except ApiError as error:
                if error.status == 429 or error.status >= 500:
                    break  # busy or in trouble for now: waited out
                raise SourceError(f"{access.server}: {error}; {_remedy(error.status)} ({access.origin})") from error
        following = asyncio.create_task(Reflector(client, WATCHED).run(store))
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                await store.wait_listed(*(w.resource for w in WATCHED))
        except TimeoutError:
            missing = [w.resource.value for w in WATCHED if not store.state.is_listed(w.resource)]
            message = f"{access.server}: no list of {', '.join(missing)} within {LOOK_TIMEOUT_S:.0f} s"
            raise SourceError(f"{message}; what is in the way is logged above ({access.origin})") from None
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    return store.state


def _remedy(status: int) -> str:
    match status:
        case 401:
            return "the API server does not accept these credentials: check the token or certificate"
        case 403:
            kinds = ", ".join(w.resource.value for w in WATCHED)
            return f"this user needs a ClusterRole with list and watch of {kinds}"
        case _:
            return "is that the API server?"
