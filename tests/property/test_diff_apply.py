"""Architecture properties 1 and 2 of diff: it converges, it is idempotent, and no prefix of it leaves harm behind."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ipvsproxy import sets
from ipvsproxy.config import Config, DetectLocal
from ipvsproxy.dataplane import CutFlows, DeleteRealServer, Op
from ipvsproxy.diff import diff
from ipvsproxy.draining import Draining, drains, leaving
from ipvsproxy.model import (
    ActualRealServer,
    ActualVirtualServer,
    Delta,
    Desired,
    RealServerConfig,
    RealServerCounters,
    RealServerKey,
    Scheduler,
    VirtualServerConfig,
    VirtualServerKey,
)
from ipvsproxy.nodeview import NodeView
from ipvsproxy.picture import Picture
from ipvsproxy.planner import Planner
from kubecore.model import Event, Protocol
from kubecore.snapshot import ClusterState
from tests.strategies_proxy import events, histories, node_views

CONFIG = Config(detect_local=DetectLocal(cluster_cidrs=("10.244.0.0/16",)))

FOREIGN = VirtualServerKey(4, Protocol.TCP, "203.0.113.9", 80)


def kernel() -> Picture:
    """A kernel with somebody else's virtual server in it."""
    theirs = ActualVirtualServer(VirtualServerConfig(Scheduler.WLC), {})
    return Picture({FOREIGN: theirs})


def run(ops: list[Op], picture: Picture) -> None:
    for op in ops:
        permitted = picture.permit(op)
        if permitted is not None:
            picture.apply(permitted)


def harmless(picture: Picture) -> None:
    """What must hold after any prefix of operations."""
    for vip in picture.vips:
        assert any(key.address == vip for key in picture.servers), f"{vip} is routed and nothing serves it"
        assert (f"vip{6 if ':' in vip else 4}", (vip,)) in picture.elements
    for key in picture.servers:
        assert key == FOREIGN or picture.owns(key), f"{key} is nobody's"
    assert FOREIGN in picture.servers


def agree(desired: Desired, picture: Picture) -> None:
    """apply(diff(d, a), a) == d, draining real servers apart."""
    assert set(picture.elements.values()) == set(desired.elements)
    assert picture.vips == desired.vips
    assert set(picture.servers) - {FOREIGN} == set(desired.virtual_servers)
    for key, planned in desired.virtual_servers.items():
        there = picture.servers[key]
        assert there.config == planned.config
        wanted = dict.fromkeys(planned.real_servers, planned.real_server_config)
        for real, actual in there.real_servers.items():
            if real in wanted:
                assert actual.config == wanted[real]
            else:
                assert drains(planned, real)
                assert actual.config.weight == 0
        assert wanted.keys() <= there.real_servers.keys()


def planned(node: NodeView, history: list[Event]) -> Desired:
    state = ClusterState()
    for event in history:
        state.apply_event(event)
    planner = Planner(CONFIG, node)
    planner.update(state, state.services)
    return planner.desired


@settings(max_examples=200, deadline=None)
@given(node_views(), histories(), node_views(), histories())
def test_diff_leads_there_from_anywhere(
    node: NodeView, history: list[Event], other: NodeView, later: list[Event]
) -> None:
    picture = kernel()
    for desired in (planned(node, history), planned(other, later)):
        run(diff(desired, picture), picture)
        agree(desired, picture)
        assert diff(desired, picture) == []
    run(diff(Desired({}, {}, {}), picture), picture)
    assert list(picture.servers) == [FOREIGN]
    assert not picture.vips
    assert not picture.elements


@settings(max_examples=150, deadline=None)
@given(node_views(), histories(), histories(), st.data())
def test_every_prefix_is_harmless_and_can_be_gone_on_from(
    node: NodeView, history: list[Event], later: list[Event], data: st.DataObject
) -> None:
    picture = kernel()
    run(diff(planned(node, history), picture), picture)
    target = planned(node, later)
    ops = diff(target, picture)
    stop = data.draw(st.integers(0, len(ops)))
    for op in ops[:stop]:
        permitted = picture.permit(op)
        if permitted is not None:
            picture.apply(permitted)
        harmless(picture)
    run(diff(target, picture), picture)
    agree(target, picture)


class Life(RuleBasedStateMachine):
    """A node's life: the cluster changes, any operation may fail, connections come and go, the proxy is killed."""

    @initialize(node=node_views())
    def start(self, node: NodeView) -> None:
        self.node = node
        self.state = ClusterState()
        self.picture = kernel()
        self.now_s = 0.0
        self._restart()

    def _restart(self) -> None:
        """The new process knows nothing but what a dump tells it."""
        self.picture = Picture(self.picture.servers, self.picture.vips, list(self.picture.elements.values()))
        marks = [e for e in self.picture.elements.values() if e.set[:-1] == sets.MARK]
        self.planner = Planner(CONFIG, self.node, known_marks=marks)
        self.planner.update(self.state, self.state.services)
        self.draining = Draining(grace_s=30, every_s=5)
        self._track(self.planner.desired.virtual_servers)

    def _track(self, keys: object) -> None:
        for key in list(keys):  # type: ignore[call-overload]  # any iterable of keys
            self.draining.track(key, leaving(self.planner.desired, self.picture, key), self.now_s)

    def _carry_out(self, ops: list[Op], failing: set[int]) -> None:
        for index, op in enumerate(ops):
            permitted = self.picture.permit(op)
            if permitted is not None and index not in failing:
                self.picture.apply(permitted)
            harmless(self.picture)

    @rule(event=events(), failing=st.sets(st.integers(0, 15), max_size=4))
    def change(self, event: Event, failing: set[int]) -> None:
        self.state.apply_event(event)
        delta = self.planner.update(self.state, self.state.take_changes().services)
        self._carry_out(diff(self.planner.desired, self.picture, delta), failing)
        self._track(delta.virtual_servers)

    @rule(node=node_views(), failing=st.sets(st.integers(0, 15), max_size=4))
    def move(self, node: NodeView, failing: set[int]) -> None:
        self.node = node
        delta = self.planner.set_node(self.state, node)
        self._carry_out(diff(self.planner.desired, self.picture, delta), failing)
        self._track(delta.virtual_servers)

    @rule()
    def kill_and_start(self) -> None:
        self._restart()

    @rule(busy=st.booleans(), seconds=st.sampled_from((1.0, 6.0, 40.0)))
    def wait(self, busy: bool, seconds: float) -> None:
        self.now_s += seconds
        counters = RealServerCounters(active=int(busy))
        for key in self.draining.due(self.now_s):
            there = self.picture.servers.get(key)
            counts = dict.fromkeys(there.real_servers, counters) if there else {}
            for real in self.draining.counted(key, counts, self.now_s):
                run([DeleteRealServer(key, real)], self.picture)

    @rule(data=st.data())
    def somebody_meddles(self, data: st.DataObject) -> None:
        """An operator edits what is ours; the audit sees it in a dump and repairs it."""
        ours = self.picture.owned()
        if not ours:
            return
        key = data.draw(st.sampled_from(ours))
        there = self.picture.servers[key]
        reals = dict(there.real_servers)
        reals[RealServerKey(key.address or "10.9.9.9", 1)] = ActualRealServer(RealServerConfig(weight=7))
        self.picture.put_server(key, ActualVirtualServer(VirtualServerConfig(Scheduler.FO), reals))

    @rule()
    def settle(self) -> None:
        self._carry_out(diff(self.planner.desired, self.picture), set())
        agree(self.planner.desired, self.picture)
        left = diff(self.planner.desired, self.picture)
        assert [op for op in left if not isinstance(op, CutFlows)] == []
        everything = Delta(
            {},
            dict.fromkeys([*self.planner.desired.virtual_servers, *self.picture.servers]),
            dict.fromkeys([*self.planner.desired.vips, *self.picture.vips]),
            dict.fromkeys([*self.planner.desired.elements, *self.picture.elements.values()]),
        )
        assert diff(self.planner.desired, self.picture, everything) == []

    @invariant()
    def nothing_harmful(self) -> None:
        if hasattr(self, "picture"):
            harmless(self.picture)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
