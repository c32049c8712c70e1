"""Several worker processes that share the ports, behind one watch of the cluster and one set of operations endpoints.

Knows: which worker has which sockets, what each has been told, what to do when one dies. Must not know zones or DNS
messages: it never reads a query. Used by the daemon for `--workers` above one.

All sockets are made here and inherited: the kernel spreads queries over the workers' sockets (SO_REUSEPORT), and what
arrives while a worker is replaced waits in its socket. Every worker is sent the same frames of events, so that all
change at the same moment and show the same serials.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import structlog

from dnsserver import link, ops
from dnsserver.configuration import Corefile, bind_all
from dnsserver.corefile_model import Config
from dnsserver.daemon import (
    DRAIN_S,
    MainProcess,
    Options,
    Signals,
    load,
    needs_new_source,
    startup_timeout_s,
)
from dnsserver.engine import layout
from dnsserver.metrics import MergedFigures, snapshot
from dnsserver.server import ListenAddress, Sockets
from kubecore import log
from kubecore.backoff import Backoff
from kubecore.model import Event, Listed, ListStarted, Resource, Upsert
from kubecore.store import Store

_log = structlog.get_logger()

EVENTS_A_FRAME = 64
"""A worker takes a frame in without interruption of its order; more would hold its event loop."""
SCRAPE_TIMEOUT_S = 2.0
SILENCE_S = 15.0
"""A worker that says nothing for this long hangs, and is replaced."""
_UNSENT_BYTES = 256 << 20
"""A worker this far behind will not catch up."""


async def run(options: Options) -> int:
    """Serve by workers until told to stop; the exit code. Raises as `daemon.run`."""
    corefile, config = load(options)
    return await Supervisor(options, corefile, config).run()


class _ToldStore(Store):
    """A Store that also keeps what it is told, for the workers."""

    def __init__(self) -> None:
        super().__init__()
        self.told: deque[Event] = deque()
        self.news = asyncio.Event()

    def apply(self, event: Event) -> None:
        """Take one event in and keep it to be passed on."""
        super().apply(event)
        self.told.append(event)
        self.news.set()


class _Worker:
    """One process and what it was last heard to say."""

    def __init__(self, number: int, sockets: dict[ListenAddress, Sockets]) -> None:
        self.number = number
        self.sockets = sockets
        self.process: asyncio.subprocess.Process | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.status: link.Status | None = None
        self.heard_s = 0.0
        self.replaying = False
        self.backlog: list[bytes] = []
        """Frames that must wait for the replay to end."""
        self.figures: dict[int, asyncio.Future[link.Figures]] = {}
        self.reloaded: asyncio.Future[str] | None = None

    def send(self, raw: bytes) -> None:
        """Send a frame, behind the replay if one is going on."""
        if self.replaying:
            self.backlog.append(raw)
        elif self.writer is not None:
            self.writer.write(raw)

    @property
    def serves(self) -> bool:
        """Whether it has come up."""
        return self.status is not None and self.writer is not None

    def fd_numbers(self) -> list[int]:
        """Descriptors it inherits."""
        return [fd for pair in self.sockets.values() for fd in (pair.udp.fileno(), pair.tcp.fileno())]


class Supervisor(MainProcess):
    """See the module's words."""

    def __init__(self, options: Options, corefile: Corefile, config: Config) -> None:
        self._told = _ToldStore()
        super().__init__(options, corefile, config, self._told)
        self._merged = MergedFigures()
        self._report = ops.Report(self._healthy, ops.Readiness(self._not_ready), self._merged, self._refresh)
        self._workers: list[_Worker] = []
        self._keepers: dict[_Worker, asyncio.Task[None]] = {}
        self._stopping = False
        self._scrapes = 0
        self._patient_until_s = 0.0

    async def run(self) -> int:
        """Serve until told to stop; the exit code."""
        signals = Signals.install()
        copies = bind_all(layout(self._config, self._options.listen), copies=self._options.workers)
        await ops.configure(self._ops, self._config, self._report)
        if self._snapshots is not None:
            self._snapshots.load(self._config)
        timeout_s = startup_timeout_s(self._config)
        self._patient_until_s = time.monotonic() + timeout_s
        await self._cluster.follow(self._config, timeout_s)
        self._hire(copies)
        parts = {"events": self._ship(), "watchdog": self._watch_silence()}
        listen = [str(address) for address in copies[0]]
        return await self._serve(signals, parts, listen=listen, workers=self._options.workers)

    async def _finish(self, grace_s: float) -> None:
        self._stopping = True
        await self._dismiss(self._workers, grace_s)

    # -- workers come and go

    def _hire(self, copies: Iterable[dict[ListenAddress, Sockets]]) -> None:
        """Start a worker for each set of sockets."""
        for number, sockets in enumerate(copies):
            worker = _Worker(number, sockets)
            self._workers.append(worker)
            self._keepers[worker] = asyncio.create_task(self._keep(worker), name=f"worker {number}")

    async def _keep(self, worker: _Worker) -> None:
        """Run a process for `worker`, and another whenever it dies."""
        backoff = Backoff(random.uniform, first_s=0.1, cap_s=10.0)
        while True:
            began_s = time.monotonic()
            await self._employ(worker)
            code = worker.process.returncode if worker.process is not None else None
            self._merged.bury(worker.number)
            if self._stopping or worker not in self._workers:
                return
            self._metrics.worker_restarts.inc()
            _log.error(log.WORKER_DIED, worker=worker.number, exit_status=code)
            if time.monotonic() - began_s > 60:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _employ(self, worker: _Worker) -> None:
        """One process, from its start to its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            worker.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dnsserver",
                "worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno(), *worker.fd_numbers()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # signals from a terminal come to the supervisor alone
            )
        reader, worker.writer = await link.open_link(ours)
        worker.heard_s = time.monotonic()
        worker.writer.write(link.frame(self._start_message(worker)))
        replay = asyncio.create_task(self._replay(worker))
        try:
            await self._listen_to(worker, reader)
            await worker.process.wait()
        finally:
            replay.cancel()
            if worker.process.returncode is None:
                worker.process.kill()
                await worker.process.wait()
            worker.writer.close()
            worker.writer = worker.status = None
            for waiting in worker.figures.values():
                waiting.cancel()
            if worker.reloaded is not None and not worker.reloaded.done():
                worker.reloaded.set_result("the worker died")

    def _start_message(self, worker: _Worker) -> link.Start:
        return link.Start(
            config=pickle.dumps(self._config),
            addresses=[
                link.Address(a.host, a.port, pair.udp.fileno(), pair.tcp.fileno()) for a, pair in worker.sockets.items()
            ],
            one=bool(self._options.listen),
            now_s=time.time(),
            patience_s=max(0.0, self._patient_until_s - time.monotonic()),
            log_level=self._options.log_level,
            log_format=self._options.log_format,
        )

    async def _replay(self, worker: _Worker) -> None:
        """Tell a new worker of everything there is; what happens meanwhile waits in its backlog."""
        worker.replaying = True
        self._flush()
        events = list(self._everything())
        writer = worker.writer
        assert writer is not None  # noqa: S101 - set just before
        now_s = time.time()
        for at in range(0, len(events), EVENTS_A_FRAME):
            writer.write(link.frame(link.pack_events(events[at : at + EVENTS_A_FRAME], now_s)))
            await writer.drain()
        reached = [w.status.serials for w in self._workers if w is not worker and w.status is not None]
        if reached:
            writer.write(link.frame(link.Serials([max(each) for each in zip(*reached, strict=False)])))
        for raw in worker.backlog:
            writer.write(raw)
        worker.backlog.clear()
        worker.replaying = False
        _log.info(log.WORKER_STARTED, worker=worker.number, pid=worker.process.pid if worker.process else 0)

    def _everything(self) -> Iterator[Event]:
        state = self._store.state
        tables: Mapping[Resource, Mapping[Any, Any]] = {
            Resource.NAMESPACES: state.namespaces,
            Resource.ENDPOINT_SLICES: state.slices,
            Resource.PODS: state.pods,
            Resource.SERVICES: state.services,
            Resource.SERVICE_IMPORTS: state.service_imports,
        }
        for resource, table in tables.items():
            if not table and not state.is_listed(resource):
                continue
            yield ListStarted(resource)
            for obj in table.values():
                yield Upsert(obj)
            if state.is_listed(resource):
                yield Listed(resource)

    async def _listen_to(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        while (raw := await link.receive(reader)) is not None:
            worker.heard_s = time.monotonic()
            match link.from_worker.decode(raw):
                case link.Status() as status:
                    worker.status = status
                case link.Figures(number) as figures:
                    waiting = worker.figures.pop(number, None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(figures)
                case link.Reloaded(error):
                    if worker.reloaded is not None and not worker.reloaded.done():
                        worker.reloaded.set_result(error)

    async def _watch_silence(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now_s = time.monotonic()
            for worker in self._workers:
                if worker.writer is None or worker.process is None:
                    continue
                behind = worker.writer.transport.get_write_buffer_size() > _UNSENT_BYTES
                if now_s - worker.heard_s > SILENCE_S or behind:
                    _log.error(log.WORKER_SILENT, worker=worker.number, behind=behind)
                    with contextlib.suppress(ProcessLookupError):
                        worker.process.kill()

    async def _dismiss(self, workers: list[_Worker], grace_s: float) -> None:
        """Have workers finish what is in flight and end."""
        for worker in workers:
            worker.send(link.frame(link.Drain(grace_s)))
        keepers = [self._keepers.pop(worker) for worker in workers if worker in self._keepers]
        if keepers:
            _, late = await asyncio.wait(keepers, timeout=grace_s + 3.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for worker in workers:
            for pair in worker.sockets.values():
                pair.close()

    # -- the cluster

    async def _ship(self) -> None:
        """Pass every event on, a frame for all workers alike."""
        while True:
            await self._told.news.wait()
            self._flush(EVENTS_A_FRAME)
            await asyncio.sleep(0)

    def _flush(self, limit: int | None = None) -> None:
        """Send what the store was told since the last time; at most `limit` events in one frame."""
        told = self._told.told
        while told:
            events = [told.popleft() for _ in range(min(len(told), EVENTS_A_FRAME))]
            raw = link.frame(link.pack_events(events, time.time()))
            for worker in self._workers:
                worker.send(raw)
            if limit is not None:
                break
        if not told:
            self._told.news.clear()

    # -- configuration

    async def _apply(self, new: Config) -> None:
        wanted = layout(new, self._options.listen)
        served = self._workers[0].sockets
        fresh = bind_all((a for a in wanted if a not in served), copies=len(self._workers))
        if needs_new_source(self._config, new):
            await self._cluster.follow(new, startup_timeout_s(new))
        old, self._config = self._config, new
        if fresh[0] or any(a not in wanted for a in served):
            await self._replace_workers(wanted, fresh)
        elif errors := await self._tell_reload(new):
            # All or none: those that took it go back.
            self._config = old
            await self._tell_reload(old)
            raise RuntimeError("; ".join(sorted(errors)))

    async def _tell_reload(self, config: Config) -> set[str]:
        """Have every worker put `config` to work; what they complain of."""
        raw = link.frame(link.Reload(pickle.dumps(config), time.time()))
        waiting = []
        for worker in self._workers:
            if worker.writer is None:
                continue  # it will start with the new one
            worker.reloaded = asyncio.get_running_loop().create_future()
            waiting.append(worker.reloaded)
            worker.send(raw)
        return {error for error in await asyncio.gather(*waiting) if error}

    async def _replace_workers(
        self, wanted: Iterable[ListenAddress], fresh: list[dict[ListenAddress, Sockets]]
    ) -> None:
        """New workers with the new set of sockets; the old ones end once the new ones serve.

        Both read from the sockets they share for a moment: a datagram is answered by whoever takes it.
        """
        leaving, self._workers = self._workers, []
        addresses = tuple(wanted)
        copies = []
        for worker, new in zip(leaving, fresh, strict=True):
            kept = {a: pair for a, pair in worker.sockets.items() if a in addresses}
            worker.sockets = {a: pair for a, pair in worker.sockets.items() if a not in kept}
            copies.append(kept | new)
        self._hire(copies)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30.0):
                while not all(w.serves and not w.replaying for w in self._workers):  # noqa: ASYNC110 - seldom
                    await asyncio.sleep(0.05)
        await self._dismiss(leaving, DRAIN_S)

    # -- what is reported

    def _healthy(self) -> tuple[int, str]:
        return (200, "OK") if any(w.serves for w in self._workers) else (503, "no worker serves")

    def _not_ready(self) -> Iterator[str]:
        if self._snapshots is not None and not self._snapshots.confirmed(self._config):
            yield "kubernetes"
        yield from ops.stale(self._config, self._store.staleness_s)
        if not self._workers:
            yield "workers"
        for worker in self._workers:
            if worker.status is None:
                yield "workers"
            else:
                yield from worker.status.not_ready

    async def _refresh(self) -> None:
        """Fetch every worker's figures."""
        self._metrics.workers.set(sum(w.serves for w in self._workers))
        self._scrapes += 1
        number, loop = self._scrapes, asyncio.get_running_loop()
        waiting: dict[asyncio.Future[link.Figures], _Worker] = {}
        for worker in self._workers:
            if worker.serves:
                future: asyncio.Future[link.Figures] = loop.create_future()
                worker.figures[number] = future
                waiting[future] = worker
                worker.send(link.frame(link.Scrape(number)))
        if waiting:
            done, late = await asyncio.wait(waiting, timeout=SCRAPE_TIMEOUT_S)
            for future in done:
                if not future.cancelled():
                    self._merged.update(waiting[future].number, future.result().families)
            for future in late:
                waiting[future].figures.pop(number, None)
        self._merged.update("supervisor", snapshot(self._registry))
