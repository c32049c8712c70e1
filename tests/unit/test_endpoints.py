"""Merging the slices of a Service: which port is which, and which of two mentions of an endpoint holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubecore.endpoints import merge_slices
from kubecore.model import EndpointSlice
from tests.builders import endpoint_slice
from tests.strategies import endpoint_slices, steady


def _merged(*slices: EndpointSlice) -> list[str]:
    """`IPv4 http/TCP -> 10.0.0.1:80 10.0.0.2:80~`, one line a port."""
    lines = []
    for (family, name, protocol), found in sorted(merge_slices(slices).items(), key=str):
        marks = {True: ""}
        texts = [
            f"{key.address}:{key.port}"
            + ("~" if e.terminating else marks.get(e.ready, "!"))
            + (e.node_name and "@")
            + e.node_name
            for key, e in found.items()
        ]
        lines.append(f"IPv{family} {name}/{protocol.value} -> {' '.join(texts)}".rstrip())
    return lines


@pytest.mark.parametrize(
    ("slices", "merged"),
    [
        pytest.param([], [], id="no slices"),
        pytest.param(
            [endpoint_slice("web", "10.0.0.2 10.0.0.1", "http:80,dns:53/UDP")],
            ["IPv4 dns/UDP -> 10.0.0.1:53 10.0.0.2:53", "IPv4 http/TCP -> 10.0.0.1:80 10.0.0.2:80"],
            id="every endpoint has every port of its slice",
        ),
        pytest.param(
            [
                endpoint_slice("web", "10.0.0.1", ":80", suffix="a"),
                endpoint_slice("web", "10.0.0.2", ":8080", suffix="b"),
            ],
            ["IPv4 /TCP -> 10.0.0.1:80 10.0.0.2:8080"],
            id="a named targetPort differs from pod to pod",
        ),
        pytest.param(
            [endpoint_slice("web", "10.0.0.1", "?:80,http:0")],
            [],
            id="a port with a null name or number matches nothing",
        ),
        pytest.param(
            [endpoint_slice("web", "10.0.0.1", "a:80"), endpoint_slice("web", "fd00::1", "a:80", suffix="6")],
            ["IPv4 a/TCP -> 10.0.0.1:80", "IPv6 a/TCP -> fd00::1:80"],
            id="families are apart",
        ),
        pytest.param(
            [endpoint_slice("web", "", "a:80")],
            ["IPv4 a/TCP ->"],
            id="a port without endpoints is a port",
        ),
        pytest.param(
            [endpoint_slice("web", "10.0.0.1@new", "a:80"), endpoint_slice("web", "10.0.0.1~@old", "a:80", suffix="y")],
            ["IPv4 a/TCP -> 10.0.0.1:80@new"],
            id="not terminating wins over terminating, which comes later",
        ),
        pytest.param(
            [endpoint_slice("web", "10.0.0.1~@old", "a:80"), endpoint_slice("web", "10.0.0.1@new", "a:80", suffix="y")],
            ["IPv4 a/TCP -> 10.0.0.1:80@new"],
            id="not terminating wins over terminating, which came before",
        ),
        pytest.param(
            [endpoint_slice("web", "10.0.0.1@n1", "a:80"), endpoint_slice("web", "10.0.0.1!@n2", "a:80", suffix="y")],
            ["IPv4 a/TCP -> 10.0.0.1:80!@n2"],
            id="else the later one holds",
        ),
        pytest.param(
            [endpoint_slice("web", "10.0.0.1", "a:80,b:80")],
            ["IPv4 a/TCP -> 10.0.0.1:80", "IPv4 b/TCP -> 10.0.0.1:80"],
            id="one number under two names",
        ),
    ],
)
def test_merge(slices: list[EndpointSlice], merged: list[str]) -> None:
    assert _merged(*slices) == merged


@steady
@given(st.lists(endpoint_slices(), max_size=4))
def test_every_endpoint_once_and_nothing_invented(slices: list[EndpointSlice]) -> None:
    said = {
        (s.family, p.name, p.protocol, e.addresses[0], p.port)
        for s in slices
        for p in s.ports
        if p.name is not None and p.port
        for e in s.endpoints
    }
    merged = [(*key, e.address, e.port) for key, found in merge_slices(slices).items() for e in found]
    assert len(merged) == len(set(merged))
    assert set(merged) == said
    for found in merge_slices(slices).values():
        assert list(found) == sorted(found, key=lambda key: (key.address, key.port))
