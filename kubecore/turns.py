"""Long work between a server's clients: how it lets them go first.

Knows: the order in which asyncio runs what is due. Must not know what the work is. Called by whoever takes in changes
of the cluster, next to sockets that must not wait.
"""

from __future__ import annotations

import asyncio


async def give_way() -> None:
    """Return after the sockets that are readable by now had their turn.

    Twice, because asyncio polls the sockets when the first continuation is queued already: what it finds comes after
    that, and so waits for one more piece of work if there is only one.
    """
    await asyncio.sleep(0)
    await asyncio.sleep(0)
