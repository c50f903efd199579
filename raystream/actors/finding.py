"""Where the brokers of a Ray cluster are: one per node, named after it. Ray's answers are hints and never a fence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import ray

from raystream.actors.launch import find_actor
from raystream.errors import Unavailable

RACK_LABEL: Final = "raystream.io/rack"
"""The label of a Ray node that says in which rack it stands: replicas are spread over racks."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the Ray cluster."""

    node_id: str
    head: bool
    rack: str


def nodes() -> list[Node]:
    """The nodes that Ray takes for alive, the head first. One that has died may be among them for 15 s."""
    found = [
        Node(
            str(node["NodeID"]),
            "node:__internal_head__" in node["Resources"],
            str((node.get("Labels") or {}).get(RACK_LABEL, "")),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (not node.head, node.node_id))


def broker_name(node_id: str) -> str:
    """The name of the broker actor of a node."""
    return f"raystream-broker-{node_id[:24]}"


def find_brokers(namespace: str, near: str) -> Iterator[Any]:
    """Handles of the brokers that can be found, that of the node `near` first."""
    with contextlib.suppress(Unavailable):
        yield find_actor(broker_name(near), namespace)
    for node in nodes():
        if node.node_id != near:
            try:
                yield find_actor(broker_name(node.node_id), namespace)
            except Unavailable:
                continue


def find_broker(namespace: str, near: str) -> Any:
    """The handle of a broker, that of the node `near` where there is one. Raises Unavailable."""
    for handle in find_brokers(namespace, near):
        return handle
    raise Unavailable("no broker is running at the moment")
