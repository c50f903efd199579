"""The faults of the matrix, each by name: what it does to the nodes, and what it waits for before it is over.

A fault gets the nodes and how many came before it, which picks the victim. It returns when it has healed as far as it
heals by itself, and when what it took away is there again, so that one fault does not meet the next one's victims.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from benchmarks.chaos.namespaces import Network
from benchmarks.chaos.nodes import Nodes

TOPIC: Final = "soak"
GROUPS_LOG: Final = "__consumer_offsets"
PARTITIONS: Final = 4
PAUSE_S: Final = 5.0
CUT_S: Final = 8.0
"""Past every lease, and before Ray gives the node up (after 14 s)."""
NODE_GONE_S: Final = 4.0
SETTLE_S: Final = 60.0

Injection = Callable[[Nodes, int], object]


def _leader(nodes: Nodes, turn: int) -> None:
    nodes.kill(nodes.pid_of(nodes.leader_actor(TOPIC, turn % PARTITIONS)))


def _follower(nodes: Nodes, turn: int) -> None:
    nodes.kill(nodes.pid_of(nodes.follower_actors(TOPIC, turn % PARTITIONS)[0]))


def _broker(nodes: Nodes, turn: int) -> None:
    nodes.kill(nodes.broker(nodes.leader(TOPIC, turn % PARTITIONS)).pid)


def _coordinator(nodes: Nodes, turn: int) -> None:
    """The one that answers: beside the leader of the groups' log."""
    nodes.kill(nodes.pid_of(nodes.broker(nodes.leader(GROUPS_LOG)).coordinator))


def _controller(nodes: Nodes, turn: int) -> None:
    nodes.kill(nodes.broker(nodes.controller()).pid)


def _pause(nodes: Nodes, turn: int) -> None:
    """The leader's whole node stands still past its lease: its broker and the partition's actor."""
    partition = turn % PARTITIONS
    pids = [nodes.broker(nodes.leader(TOPIC, partition)).pid, nodes.pid_of(nodes.leader_actor(TOPIC, partition))]
    threads = [threading.Thread(target=nodes.pause, args=(pid, PAUSE_S)) for pid in pids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _node(nodes: Nodes, turn: int) -> None:
    """A node is lost with all that runs on it, and another comes with its disk."""
    nodes.kill_node(nodes.removable[turn % len(nodes.removable)])
    time.sleep(NODE_GONE_S)
    nodes.add_node()
    _settle(nodes)


def _raylet(nodes: Nodes, turn: int) -> None:
    """The raylet alone dies, its workers after it, and another node comes with its disk."""
    outlived_s = nodes.kill_raylet(nodes.removable[turn % len(nodes.removable)])
    print(f"the last worker ended {outlived_s:.2f} s after its raylet", flush=True)
    nodes.add_node()
    _settle(nodes)


def _cut(nodes: Nodes, turn: int) -> None:
    """By turns one node is cut off from both others, and two nodes from each other that both reach the third."""
    network = _network(nodes)
    (lambda: network.isolate(1), lambda: network.separate(1, 2), lambda: network.isolate(2))[turn % 3]()
    _heal(nodes)


def _cut_head(nodes: Nodes, turn: int) -> None:
    """Ray's head and all clients are on one side, both other nodes on the other."""
    _network(nodes).isolate(0)
    _heal(nodes)


def _one_way(nodes: Nodes, turn: int) -> None:
    """By turns nobody hears a node that hears everybody, and the other way round."""
    network, number = _network(nodes), 1 + turn // 2 % 2
    for other in range(network.count):
        if other != number:
            network.cut(*((number, other) if turn % 2 == 0 else (other, number)))
    _heal(nodes)


def _network(nodes: Nodes) -> Network:
    assert nodes.network is not None
    return nodes.network


def _heal(nodes: Nodes) -> None:
    time.sleep(CUT_S)
    _network(nodes).heal()
    time.sleep(CUT_S)  # TCP may wait once more for as long as it has waited before it tries again
    nodes.replace_the_dead()
    _settle(nodes)


def _settle(nodes: Nodes) -> None:
    nodes.wait_for_brokers(3)
    nodes.wait_for_isr(TOPIC, 3, SETTLE_S)


def _nothing(nodes: Nodes, turn: int) -> None:
    """To know what a run looks like in which nothing is broken on purpose, or something all the time."""


INJECTIONS: Final[dict[str, Injection]] = {
    "leader": _leader,
    "follower": _follower,
    "broker": _broker,
    "coordinator": _coordinator,
    "controller": _controller,
    "pause": _pause,
    "raylet": _raylet,
    "node": _node,
    "cut": _cut,
    "cut-head": _cut_head,
    "one-way": _one_way,
    "rpc": _nothing,
    "none": _nothing,
}
