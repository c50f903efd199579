"""Components and cycles against reachability worked out the long way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raystream.testing.cycles import cycle_through, strongly_connected

edge_lists = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=25)


@given(edge_lists)
def test_components_are_the_nodes_that_reach_each_other(pairs: list[tuple[int, int]]) -> None:
    edges: dict[int, set[int]] = {}
    for first, second in pairs:
        if first != second:
            edges.setdefault(first, set()).add(second)
    reach = {node: {node} for node in range(10)}
    for _ in range(10):
        for node, seen in reach.items():
            reach[node] = seen.union(*(edges.get(other, ()) for other in seen))
    expected = {frozenset(n for n in reach if n in reach[node] and node in reach[n]) for node in range(10)}
    components = strongly_connected(edges)
    assert {frozenset(component) for component in components} == {c for c in expected if len(c) > 1}
    for component in components:
        cycle = cycle_through(edges, component, component[0])
        assert cycle[0] == component[0] and len(set(cycle)) == len(cycle)
        assert all(after in edges[before] for before, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def test_long_chains_need_no_recursion() -> None:
    edges = {node: [node + 1] for node in range(100_000)} | {100_000: [0]}
    assert len(strongly_connected(edges)[0]) == 100_001
