"""What the API server shows now, for a command that looks once.

Knows when to wait and when to give up: a daemon goes on trying whatever happens, but somebody who waits for a command
is told at once what stands in the way. Must not know what the objects are for. Called by commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kubecore.api import ApiClient, ApiError, ConnectionFailed
from kubecore.reflector import Reflector
from kubecore.snapshot import ClusterState
from kubecore.store import Store
from kubecore.watchproto import Watched

LISTS_TIMEOUT_S = 60.0
"""How long the API server's lists are waited for."""


class LookError(Exception):
    """The API server does not show its objects; the message says which server, why, and what to do."""


async def look(client: ApiClient, watched: Sequence[Watched]) -> ClusterState:
    """The state of the cluster once every list is complete.

    Raises:
        LookError: there is no connection, the credentials are not accepted or do not suffice, or the lists took longer
            than LISTS_TIMEOUT_S. A server that is busy (429) or in trouble (5xx) is waited for.
    """
    access = client.access
    for resource in watched:
        try:
            await client.request(
                "GET", resource.path, query=[("labelSelector", resource.label_selector), ("limit", "1")]
            )
        except ConnectionFailed as error:
            raise LookError(f"{error} ({access.origin})") from error
        except ApiError as error:
            if error.status == 429 or error.status >= 500:
                break
            if error.status == 404 and resource.optional:
                continue
            raise LookError(f"{access.server}: {error}; {_remedy(error.status, watched)} ({access.origin})") from error
    store = Store()
    following = asyncio.create_task(Reflector(client, watched).run(store))
    try:
        async with asyncio.timeout(LISTS_TIMEOUT_S):
            await store.wait_listed(*(w.resource for w in watched))
    except TimeoutError:
        missing = [w.resource.value for w in watched if not store.state.is_listed(w.resource)]
        message = f"{access.server}: no list of {', '.join(missing)} within {LISTS_TIMEOUT_S:.0f} s"
        raise LookError(f"{message}; what is in the way is logged above ({access.origin})") from None
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return store.state


def _remedy(status: int, watched: Sequence[Watched]) -> str:
    match status:
        case 401:
            return "the API server does not accept these credentials: check the token or certificate"
        case 403:
            kinds = ", ".join(w.resource.value for w in watched)
            return f"this user needs a ClusterRole with list and watch of {kinds}"
        case _:
            return "is that the API server?"
