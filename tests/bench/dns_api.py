"""A process with an API server full of Services, for the DNS benchmarks: `python -m tests.bench.dns_api KUBECONFIG`.

Writes a kubeconfig, prints `ready`, then obeys lines on standard input: `churn N` changes the endpoints of N Services a
second (0: none) until told otherwise; `relist` restarts the server without its history, so that everything is listed
anew.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from tests.bench.dns_load import SERVICES, headless_objects, namespace_objects, service_object, slice_object
from tests.lab.apiserver import ApiServer


async def main(kubeconfig: Path) -> None:
    """Serve until standard input ends."""
    async with ApiServer() as server:
        for obj in namespace_objects():
            server.put(obj)
        for i in range(SERVICES):
            server.put(service_object(i))
            server.put(slice_object(i))
        for obj in headless_objects():
            server.put(obj)
        await asyncio.to_thread(kubeconfig.write_text, server.kubeconfig())
        print("ready", flush=True)
        rate = [0]
        churning = asyncio.create_task(churn(server, rate))
        while line := await asyncio.to_thread(sys.stdin.readline):
            match line.split():
                case ["churn", number]:
                    rate[0] = int(number)
                case ["relist"]:
                    await server.restart(lose_history=True)
            print("ok", flush=True)
        churning.cancel()


async def churn(server: ApiServer, rate: list[int]) -> None:
    """Change endpoints, evenly over time."""
    turn = 0
    pick = random.Random(1)
    loop = asyncio.get_running_loop()
    next_s = loop.time()
    while True:
        if not rate[0]:
            await asyncio.sleep(0.05)
            next_s = loop.time()
            continue
        turn += 1
        server.put(slice_object(pick.randrange(SERVICES), turn))
        next_s += 1 / rate[0]
        await asyncio.sleep(max(0.0, next_s - loop.time()))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
