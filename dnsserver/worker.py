"""A worker process: an Engine that is told everything by its supervisor.

Knows: its end of the link. Must not know files, the API server, the operations endpoints: those are the supervisor's.
Started by it as `dnsserver worker`; ends when told to, or when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from prometheus_client import disable_created_metrics

from dnsserver import link
from dnsserver.corefile_model import Config
from dnsserver.daemon import DRAIN_S, SWITCH_INTERVAL_S, new_environment, set_log_level
from dnsserver.engine import Engine, relax_memory, settle_memory
from dnsserver.metrics import ServerMetrics, snapshot
from dnsserver.server import ListenAddress, Sockets
from kubecore import __version__, log
from kubecore.model import Resource
from kubecore.opsserver import new_registry
from kubecore.store import Store

_STATUS_PERIOD_S = 1.0


def run(fd: int) -> int:
    """Serve until told to stop; the exit code."""
    return asyncio.run(_Worker(socket.socket(fileno=fd)).run())


class _Worker:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._now_s = 0.0
        self._registry = new_registry()
        self._store = Store()
        self._addresses: tuple[ListenAddress, ...] = ()
        self._one = False
        self._log_level = "info"

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)  # the supervisor gets them too and decides
        disable_created_metrics()  # type: ignore[no-untyped-call]
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        relax_memory()
        reader, self._writer = await link.open_link(self._sock)
        first = await link.receive(reader)
        start = link.to_worker.decode(first) if first is not None else None
        if not isinstance(start, link.Start):
            return 1
        log.configure(level=start.log_level, fmt=start.log_format)  # type: ignore[arg-type]  # as on the command line
        await self._begin(start)
        statuses = asyncio.create_task(self._tell_status())
        grace_s = await self._obey(reader)
        statuses.cancel()
        await self._engine.stop(grace_s)
        return 0

    async def _begin(self, start: link.Start) -> None:
        self._now_s, self._log_level = start.now_s, start.log_level
        self._metrics = ServerMetrics(self._registry, __version__)
        environment = new_environment(self._registry, self._metrics)
        self._engine = Engine(self._store, self._metrics, environment, clock=lambda: self._now_s)
        self._engine.be_patient(start.patience_s)
        sockets = {
            ListenAddress(a.host, a.port): Sockets(socket.socket(fileno=a.udp_fd), socket.socket(fileno=a.tcp_fd))
            for a in start.addresses
        }
        self._addresses, self._one = tuple(sockets), start.one
        await self._configure(start.config, sockets)

    async def _obey(self, reader: asyncio.StreamReader) -> float:
        """Do as told until it is time to end; the seconds to do so in."""
        settled = False
        while True:
            raw = await link.receive(reader)
            if raw is None:
                return DRAIN_S  # the supervisor is gone, and with it everything that keeps answers true
            match link.to_worker.decode(raw):
                case link.Events() as message:
                    self._now_s = message.now_s
                    self._store.apply_all(link.unpack_events(message))
                    await self._engine.apply(self._store.take_changes(), message.now_s)
                    if not settled and self._store.state.is_listed(Resource.SERVICES):
                        settled = True
                        settle_memory()
                case link.Serials(serials):
                    self._engine.set_serials(serials)
                case link.Reload(config, now_s):
                    self._now_s = now_s
                    await self._reload(config)
                case link.Scrape(number):
                    self._engine.server.gauge()
                    self._send(link.Figures(number, snapshot(self._registry)))
                case link.Drain(grace_s):
                    return grace_s
            self._send_status()

    async def _reload(self, pickled: bytes) -> None:
        try:
            await self._configure(pickled, {})
        except Exception as error:  # whatever it is, what runs goes on
            self._send(link.Reloaded(str(error) or repr(error)))
        else:
            self._send(link.Reloaded(""))

    async def _configure(self, pickled: bytes, sockets: Mapping[ListenAddress, Sockets]) -> None:
        config = _config(pickled)
        await self._engine.configure(config, self._addresses, sockets, one=self._one)
        set_log_level(config, self._log_level)

    async def _tell_status(self) -> None:
        while True:
            self._send_status()
            await asyncio.sleep(_STATUS_PERIOD_S)

    def _send_status(self) -> None:
        self._send(link.Status(list(self._engine.not_ready()), self._engine.serials))

    def _send(self, message: link.FromWorker) -> None:
        self._writer.write(link.frame(message))


def _config(pickled: bytes) -> Config:
    found: Any = pickle.loads(pickled)  # noqa: S301 - made by the supervisor, of which we are a child
    assert isinstance(found, Config)  # noqa: S101
    return found
