"""`give_way`: who has been spoken to is served before the work goes on."""

from __future__ import annotations

import asyncio
import socket

from kubecore.turns import give_way


async def test_a_socket_that_is_readable_has_its_turn_before_the_work_goes_on() -> None:
    ours, theirs = socket.socketpair()
    order: list[str] = []
    loop = asyncio.get_running_loop()
    with ours, theirs:
        loop.add_reader(ours, lambda: order.append(f"served {ours.recv(10).decode()}"))
        try:
            order.append("worked")
            theirs.send(b"query")
            await give_way()
            order.append("worked on")
        finally:
            loop.remove_reader(ours)
    assert order == ["worked", "served query", "worked on"]


async def test_work_of_others_that_is_due_has_its_turn_too() -> None:
    order: list[str] = []
    asyncio.get_running_loop().call_soon(order.append, "other")
    await give_way()
    assert order == ["other"]
