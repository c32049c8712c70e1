"""How a Service is to be scheduled: settings, overridden by its annotations.

Knows: the annotations and the names of scheduler flags. Must not know: endpoints, addresses.

`ipvsproxy.io/scheduler` and `ipvsproxy.io/scheduler-flags` are ours; `kube-router.io/service.scheduler` and
`kube-router.io/service.schedflags` are honoured where ours are absent.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache

from ipvsproxy.model import Problem, Scheduler, ServiceFlag, VirtualServerConfig
from ipvsproxy.site import Site
from kubecore.model import ObjectKey, Protocol, Service

SCHEDULER_ANNOTATIONS = ("ipvsproxy.io/scheduler", "kube-router.io/service.scheduler")
FLAG_ANNOTATIONS = ("ipvsproxy.io/scheduler-flags", "kube-router.io/service.schedflags")

SCHEDULER_FLAGS: dict[str, tuple[ServiceFlag, Scheduler | None]] = {
    "ops": (ServiceFlag.ONE_PACKET, None),
    "sh-fallback": (ServiceFlag.SCHED_1, Scheduler.SH),
    "sh-port": (ServiceFlag.SCHED_2, Scheduler.SH),
    "mh-fallback": (ServiceFlag.SCHED_1, Scheduler.MH),
    "mh-port": (ServiceFlag.SCHED_2, Scheduler.MH),
    "flag-1": (ServiceFlag.SCHED_1, None),
    "flag-2": (ServiceFlag.SCHED_2, None),
    "flag-3": (ServiceFlag.SCHED_3, None),
}
"""Name, as ipvsadm(8) has it, → bit, and the one scheduler it belongs to."""

SCHEDULERS = {s.value: s for s in Scheduler if s is not Scheduler.OTHER}


ONE_WAY = (
    "one-packet scheduling (ops): the kernel forgets a datagram as soon as it is sent on, so that answers arrive from "
    "the endpoint's own address and clients discard them; only for clients that want no answer"
)
"""With masquerading, that is (ip_vs_core.c, ip_vs_out: an answer finds no connection, and leaves as it came)."""


def schedule(service: Service, site: Site, problems: list[Problem]) -> tuple[Scheduler, ServiceFlag]:
    """The scheduler and flags of a Service; what cannot be had is added to `problems` and replaced by the default."""
    ipvs = site.config.ipvs
    if not service.annotations:
        return ipvs.scheduler, _flags_or_default(ipvs.scheduler, ipvs.flags)
    annotations = dict(service.annotations)
    name = _first(annotations, SCHEDULER_ANNOTATIONS)
    flag_text = _first(annotations, FLAG_ANNOTATIONS)
    scheduler = ipvs.scheduler
    if name is not None:
        chosen = SCHEDULERS.get(name.strip())
        if chosen is None or chosen not in site.schedulers:
            problems.append(_no_scheduler(service.key, name, known=chosen is not None, default=scheduler))
        else:
            scheduler = chosen
    if flag_text is None:
        same = scheduler is ipvs.scheduler
        return scheduler, _flags_or_default(scheduler, ipvs.flags if same else ServiceFlag.NONE)
    return scheduler, _parse_flags(service.key, flag_text, scheduler, problems)


@lru_cache(maxsize=1024)
def server_config(
    scheduler: Scheduler,
    flags: ServiceFlag,
    persistence_s: int,
    protocol: Protocol,
    *,
    one_packet_udp: bool,
) -> VirtualServerConfig:
    """The configuration of a virtual server; equal ones are one object. One-packet scheduling is for UDP alone."""
    if protocol is not Protocol.UDP:
        flags &= ~ServiceFlag.ONE_PACKET
    elif one_packet_udp:
        flags |= ServiceFlag.ONE_PACKET
    return VirtualServerConfig(scheduler, flags, persistence_s)


def _flags_or_default(scheduler: Scheduler, flags: ServiceFlag) -> ServiceFlag:
    """Maglev hashes the source port too unless told otherwise, as with kube-proxy: else a client sticks to one pod."""
    if scheduler is Scheduler.MH and not flags & ~ServiceFlag.ONE_PACKET:
        return flags | ServiceFlag.SCHED_2
    return flags


def _parse_flags(key: ObjectKey, text: str, scheduler: Scheduler, problems: list[Problem]) -> ServiceFlag:
    flags = ServiceFlag.NONE
    for name in filter(None, (part.strip() for part in text.split(","))):
        flag, only = SCHEDULER_FLAGS.get(name, (None, None))
        if flag is None:
            near = get_close_matches(name, SCHEDULER_FLAGS, 1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(SCHEDULER_FLAGS)}"
            problems.append(Problem(key, "UnknownSchedulerFlag", f"scheduler flag {name!r} is not known{hint}"))
        elif only is not None and only is not scheduler:
            message = f"scheduler flag {name!r} is for {only.value}, this Service uses {scheduler.value}"
            problems.append(Problem(key, "UnknownSchedulerFlag", message))
        else:
            flags |= flag
    return flags


def _no_scheduler(key: ObjectKey, name: str, *, known: bool, default: Scheduler) -> Problem:
    if known:
        message = (
            f"scheduler {name.strip()!r} is not available in this kernel (load module ip_vs_{name.strip()}); "
            f"{default.value} is used instead"
        )
        return Problem(key, "SchedulerUnavailable", message)
    near = get_close_matches(name.strip(), SCHEDULERS, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    message = f"scheduler {name!r} is not known, {default.value} is used; {hint}Known are {', '.join(SCHEDULERS)}"
    return Problem(key, "UnknownScheduler", message)


def _first(annotations: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((annotations[n] for n in names if n in annotations), None)
