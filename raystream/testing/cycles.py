"""Strongly connected components and a short cycle through one, of a graph given as successors by node."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping


def strongly_connected(edges: Mapping[int, Iterable[int]]) -> list[list[int]]:
    """The components of more than one node (Tarjan 1972), without recursion; linear in nodes and edges."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    components: list[list[int]] = []
    for root in edges:
        if root in index:
            continue
        work: list[tuple[int, Iterator[int]]] = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, successors = work[-1]
            for successor in successors:
                if successor not in index:
                    index[successor] = low[successor] = len(index)
                    stack.append(successor)
                    on_stack.add(successor)
                    work.append((successor, iter(edges.get(successor, ()))))
                    break
                if successor in on_stack:
                    low[node] = min(low[node], index[successor])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    component = [stack.pop()]
                    while component[-1] != node:
                        component.append(stack.pop())
                    on_stack.difference_update(component)
                    if len(component) > 1:
                        components.append(component)
    return components


def cycle_through(
    edges: Mapping[int, Iterable[int]], component: Iterable[int], first: int, second: int | None = None
) -> list[int]:
    """A shortest cycle of a component through `first`, and through the edge to `second` where one is named."""
    members = set(component)
    came_from: dict[int, int] = {}
    queue = deque([first if second is None else second])
    if second is not None:
        came_from[second] = first
    while queue:
        node = queue.popleft()
        for successor in edges.get(node, ()):
            if successor == first:
                path = [node]
                while path[-1] != first:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if successor in members and successor not in came_from:
                came_from[successor] = node
                queue.append(successor)
    raise ValueError(f"no cycle goes through {first}")
