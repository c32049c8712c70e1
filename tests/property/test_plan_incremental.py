"""Architecture property 4: a plan kept up to date equals a plan made from scratch, whatever happened in between."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsproxy.config import Config, DetectLocal, NodePortAddresses
from ipvsproxy.marks import recognition
from ipvsproxy.model import Delta, Desired
from ipvsproxy.nodeview import NodeView
from ipvsproxy.planner import Planner
from kubecore.model import Event
from kubecore.snapshot import ClusterState
from tests.strategies_proxy import histories, node_views

CONFIGS = st.sampled_from(
    (
        Config(),
        Config(detect_local=DetectLocal(cluster_cidrs=("10.244.0.0/16",))),
        Config(node_port_addresses=NodePortAddresses(primary=True)),
        Config(node_port_addresses=NodePortAddresses(cidrs=("192.168.0.0/16",)), masquerade_bit=29),
    )
)


def from_scratch(config: Config, node: NodeView, state: ClusterState) -> Planner:
    planner = Planner(config, node)
    planner.update(state, state.services)
    return planner


def contents(desired: Desired) -> tuple[object, ...]:
    return (desired.virtual_servers, desired.vips, set(desired.elements))


@settings(max_examples=300, deadline=None)
@given(CONFIGS, st.lists(st.tuples(node_views(), histories(5)), min_size=1, max_size=4))
def test_incremental_equals_from_scratch(config: Config, steps: list[tuple[NodeView, list[Event]]]) -> None:
    state = ClusterState()
    planner = Planner(config, steps[0][0])
    told = Desired({}, {}, {})  # what somebody knows who only follows the deltas
    for node, events in steps:
        deltas = [planner.set_node(state, node)]
        for event in events:
            state.apply_event(event)
            deltas.append(planner.update(state, state.take_changes().services))
        for delta in deltas:
            _follow(delta, planner.desired, told)
    asked = Desired({}, {}, {})
    _follow(planner.asked_by(state.services), planner.desired, asked)
    assert contents(asked) == contents(planner.desired), "nothing is wanted that nobody asks for"
    scratch = from_scratch(config, steps[-1][0], state)
    assert contents(planner.desired) == contents(scratch.desired)
    assert contents(told) == contents(scratch.desired)
    for service in state.services:
        assert planner.problems(service) == scratch.problems(service)
        assert planner.health_check(service) == scratch.health_check(service)


def _follow(delta: Delta, desired: Desired, told: Desired) -> None:
    for key in delta.virtual_servers:
        _copy(desired.virtual_servers, told.virtual_servers, key)
    for vip in delta.vips:
        _copy(desired.vips, told.vips, vip)
    for element in delta.elements:
        _copy(desired.elements, told.elements, element)


def _copy(source: dict, target: dict, key: object) -> None:  # type: ignore[type-arg]  # of any of the three
    if key in source:
        target[key] = source[key]
    else:
        target.pop(key, None)


@settings(max_examples=200, deadline=None)
@given(CONFIGS, node_views(), histories())
def test_what_is_planned_hangs_together(config: Config, node: NodeView, events: list[Event]) -> None:
    state = ClusterState()
    for event in events:
        state.apply_event(event)
    desired = from_scratch(config, node, state).desired
    at = {key.address for key in desired.virtual_servers}
    mask, value = recognition(config.masquerade_bit)
    claimed = {(e.set, e.key): e.value for e in desired.elements}
    assert len(claimed) == len(desired.elements), "one value a map key"
    for vip in desired.vips:
        assert vip not in {a.address for a in node.addresses} | node.gateways | node.node_addresses
    for key, server in desired.virtual_servers.items():
        if key.protocol is None:
            assert key.fwmark & mask == value
            assert not key.fwmark & (1 << config.masquerade_bit)
            assert f"{key.fwmark:#010x}" in {v for (s, _), v in claimed.items() if s.startswith("mark")}
        else:
            assert (f"service{key.family}", (key.address, key.protocol.value.lower(), str(key.port))) in claimed
        wanted = list(server.real_servers)
        assert len(wanted) == len(set(wanted))
        assert server.real_server_config.weight > 0
        assert server.draining.isdisjoint(wanted)
        assert server.listed.isdisjoint(wanted)
        assert server.listed.isdisjoint(server.draining)
    marked = {f"{key.fwmark:#010x}" for key in desired.virtual_servers if key.protocol is None}
    assert marked == {v for (name, _), v in claimed.items() if name.startswith("mark")}
    assert at >= desired.vips.keys(), "a routed address has a virtual server"
