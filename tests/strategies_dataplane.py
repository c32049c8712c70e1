"""Hypothesis strategies for what a data plane takes: any virtual and real server that IPVS can hold."""

from __future__ import annotations

from hypothesis import strategies as st

from ipvsproxy.model import (
    ForwardMethod,
    RealServerConfig,
    RealServerKey,
    Scheduler,
    ServiceFlag,
    VirtualServerConfig,
    VirtualServerKey,
)
from kubecore.model import Family, Protocol


def addresses(family: Family) -> st.SearchStrategy[str]:
    return st.ip_addresses(v=family).map(str)


ports = st.integers(1, 65535)
families: st.SearchStrategy[Family] = st.sampled_from((4, 6))
virtual_server_keys = families.flatmap(
    lambda family: (
        st.builds(VirtualServerKey, st.just(family), st.sampled_from(Protocol), addresses(family), ports, st.just(0))
        | st.builds(VirtualServerKey, st.just(family), st.none(), st.just(""), st.just(0), st.integers(1, 0xFFFFFFFF))
    )
)
virtual_server_configs = st.builds(
    VirtualServerConfig,
    st.sampled_from([s for s in Scheduler if s is not Scheduler.OTHER]),
    st.sets(
        st.sampled_from((ServiceFlag.ONE_PACKET, ServiceFlag.SCHED_1, ServiceFlag.SCHED_2, ServiceFlag.SCHED_3))
    ).map(lambda flags: ServiceFlag(sum(flags))),
    st.integers(0, 86400),
)


def real_server_keys(family: Family) -> st.SearchStrategy[RealServerKey]:
    """The kernel refuses what is no unicast address (ip_vs_new_dest)."""
    unicast = st.ip_addresses(v=4, network="10.0.0.0/8") if family == 4 else st.ip_addresses(v=6, network="2000::/3")
    return st.builds(RealServerKey, unicast.map(str), ports)


real_server_configs = st.builds(
    lambda weight, method, upper, lower: RealServerConfig(weight, method, max(upper, lower), min(upper, lower)),
    st.integers(0, (1 << 31) - 1),
    st.sampled_from((ForwardMethod.MASQUERADE, ForwardMethod.TUNNEL, ForwardMethod.DIRECT_ROUTE)),
    st.integers(0, (1 << 31) - 1),
    st.integers(0, (1 << 31) - 1),
)
