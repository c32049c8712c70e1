"""`python -m tests.e2e.lookups SERVER NAME [one-socket]`: UDP queries all the time, one retry each after a second.

From a new socket each, as a C library does, or all from one, as some resolvers do: the proxy then sees one flow that
never ends. Runs inside the guest until SIGTERM, then prints what it met with:
{"count", "retried", "lost": [[seconds, what], ...]}.
"""

from __future__ import annotations

import json
import signal
import sys
import time

from tests.demo.api import addresses_of, dns_socket, look_up

_INTERVAL_S = 0.02


def main(server: str, name: str, sockets: str = "") -> None:
    """Ask until told to stop."""
    shared = dns_socket(server) if sockets == "one-socket" else None
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    started = time.monotonic()
    count, retried, lost = 0, 0, []
    print("asking", flush=True)
    while not stopped:
        count += 1
        asked = time.monotonic()
        failures = 0
        for _ in range(2):
            try:
                if look_up(shared, name) if shared else addresses_of(server, name):
                    break
                what = "no address"
            except OSError as error:  # a timeout, or refused
                what = str(error)
            failures += 1
        else:
            lost.append((round(asked - started, 2), what))
        retried += failures == 1
        time.sleep(_INTERVAL_S)
    print(json.dumps({"count": count, "retried": retried, "lost": lost}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
