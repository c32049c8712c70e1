"""Structured logging for both daemons, and the one list of event names.

Events are `area.object.past_tense`; values go into keys, never into the sentence. info: the world changed; warning: we
retry; error: a human is needed; debug: per query or per packet.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Literal, TextIO, cast

import structlog

LogFormat = Literal["auto", "console", "json"]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(*, level: str = "info", fmt: LogFormat = "auto", stream: TextIO | None = None) -> None:
    """Send events to `stream` (default: stderr), as coloured lines on a terminal and as JSON otherwise.

    Args:
        level: a key of `LEVELS`.
        fmt: `auto` decides by whether the stream is a terminal.
        stream: where to write; stdout stays free for a command's answer.
    """
    out = stream or sys.stderr
    console = fmt == "console" or (fmt == "auto" and out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
        structlog.processors.StackInfoRenderer(),
    ]
    if console:
        shared.append(structlog.dev.ConsoleRenderer(colors=out.isatty()))
    else:
        shared += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Unfailing(out))),
        cache_logger_on_first_use=False,
    )


def set_level(level: str) -> None:
    """Log from now on what is at least of this level (a key of `LEVELS`), to where it goes already."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]))


class _Unfailing:
    """A stream whose failures end nothing: a daemon goes on with a full disk under its log, or with nobody reading."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


# Event names. One line each, by area; a test checks that every name used is listed here and every listed name is used.

# -- process
PROCESS_STARTED = "process.daemon.started"
PROCESS_STOPPED = "process.daemon.stopped"

# -- kubecore: decode, files
OBJECT_SKIPPED = "kubecore.object.skipped"
MANIFEST_PATH_UNREADABLE = "manifest.path.unreadable"
MANIFEST_PATH_RESTORED = "manifest.path.restored"
MANIFEST_FILE_APPLIED = "manifest.file.applied"
MANIFEST_FILE_REMOVED = "manifest.file.removed"
MANIFEST_FILE_REJECTED = "manifest.file.rejected"
MANIFEST_FIELD_IGNORED = "manifest.field.ignored"
MANIFEST_OBJECT_QUESTIONED = "manifest.object.questioned"
MANIFEST_KIND_IGNORED = "manifest.kind.ignored"

# -- kubecore: watch
WATCH_LIST_COMPLETED = "watch.list.completed"
WATCH_VERSION_EXPIRED = "watch.version.expired"
WATCH_STREAM_STALLED = "watch.stream.stalled"
WATCH_STREAMING_LIST_REFUSED = "watch.streaming_list.refused"
WATCH_FIELD_SELECTOR_REFUSED = "watch.field_selector.refused"
WATCH_REQUEST_FAILED = "watch.request.failed"
WATCH_REQUEST_DENIED = "watch.request.denied"
WATCH_RESOURCE_MISSED = "watch.resource.missed"
WATCH_CONNECTION_RESTORED = "watch.connection.restored"
API_ACCESS_LOADED = "api.access.loaded"
API_TRANSPORT_REPLACED = "api.transport.replaced"

# -- kubecore: operations server
OPS_LISTENER_OPENED = "kubecore.ops_listener.opened"
OPS_LISTENER_CLOSED = "kubecore.ops_listener.closed"
OPS_LISTENER_REFUSED = "kubecore.ops_listener.refused"

# -- ipvsproxy: kernel edges
SYSCTL_WRITTEN = "ipvsproxy.sysctl.written"
SYSCTL_NOT_OURS = "ipvsproxy.sysctl.left_alone"
IPVS_TIMEOUTS_SET = "ipvsproxy.ipvs_timeouts.set"
IPVS_TIMEOUTS_REFUSED = "ipvsproxy.ipvs_timeouts.refused"

# -- ipvsproxy: reconciler, health
RECONCILE_STARTED = "ipvsproxy.reconciler.started"
RECONCILE_FAILED = "ipvsproxy.operation.failed"
CONFIG_CHANGED = "ipvsproxy.configuration.changed"
OOM_SCORE_KEPT = "ipvsproxy.oom_score.kept"
PLAN_FAILED = "ipvsproxy.service.not_planned"
DRIFT_FOUND = "ipvsproxy.drift.found"
DRIFT_REPAIRED = "ipvsproxy.drift.repaired"
NODE_CHANGED = "ipvsproxy.node.changed"
KUBE_PROXY_TAKEN_OVER = "ipvsproxy.kube_proxy.taken_over"
EVENT_RECORDED = "ipvsproxy.event.recorded"
EVENT_DROPPED = "ipvsproxy.event.dropped"
EVENT_REFUSED = "ipvsproxy.event.refused"
HEALTH_CHECK_STARTED = "ipvsproxy.health_check.started"

# -- dnsserver: configuration, zone

# -- dnsserver: server, forwarder, cache
DNS_LISTENER_OPENED = "dns.listener.opened"
DNS_LISTENER_CLOSED = "dns.listener.closed"
DNS_LISTENER_SHARED = "dns.listener.shared"
DNS_QUERY_FAILED = "dns.query.failed"
DNS_CONFIG_RELOADED = "dns.configuration.reloaded"
DNS_CONFIG_REJECTED = "dns.configuration.rejected"
DNS_LAMEDUCK_STARTED = "dns.lameduck.started"
SNAPSHOT_LOADED = "dns.snapshot.loaded"
SNAPSHOT_IGNORED = "dns.snapshot.ignored"
SNAPSHOT_NOT_WRITTEN = "dns.snapshot.not_written"
WORKER_STARTED = "dns.worker.started"
WORKER_DIED = "dns.worker.died"
WORKER_SILENT = "dns.worker.silent"

# -- dnsserver: plugins, forwarding
WEIGHT_FILE_REJECTED = "dns.weight_file.rejected"
HOSTS_FILE_LOADED = "dns.hosts_file.loaded"
HOSTS_FILE_UNREADABLE = "dns.hosts_file.unreadable"
FORWARD_LOOP_FOUND = "dns.forward_loop.found"
FORWARD_LOOP_ENDED = "dns.forward_loop.ended"
FORWARD_UPSTREAMS_LOADED = "dns.upstreams.loaded"
FORWARD_UPSTREAMS_UNREADABLE = "dns.upstreams.unreadable"
FORWARD_STUB_RESOLVER_REPLACED = "dns.stub_resolver.replaced"
FORWARD_UPSTREAM_DOWN = "dns.upstream.went_down"
FORWARD_UPSTREAM_UP = "dns.upstream.came_up"
