"""What three nodes must bear, one thing after the other, on one cluster. Run by test_nodes.py in a process of its own.

python -m tests.ray.three_nodes DIRECTORY
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import raystream as rs
from benchmarks.chaos.nodes import Nodes
from tests.ray.groups_on_nodes import (
    a_static_member_that_restarts_moves_nothing,
    eventually,
    members_get_the_partitions_that_are_led_beside_them,
)

TOPIC = "events"
_numbers = itertools.count()


class Written:
    """What was acknowledged so far."""

    def __init__(self, cluster: rs.Cluster) -> None:
        self._cluster = cluster
        self.values: list[bytes] = []

    def more(self, count: int = 50) -> None:
        with self._cluster.producer(linger_ms=1) as producer:
            values = [b"%d" % next(_numbers) for _ in range(count)]
            for sent in [producer.send(TOPIC, value) for value in values]:
                sent.result(timeout=30)
            self.values += values

    def check(self) -> None:
        stored = self._cluster.read(TOPIC).to_arrow().column("value").to_pylist()
        assert sorted(stored) == sorted(self.values), (len(stored), len(self.values))


def replicas_are_spread_and_the_groups_log_follows(nodes: Nodes) -> None:
    topic = nodes.cluster.describe_topic(TOPIC)
    assert topic.replication_factor == 3
    nodes.wait_for_isr("__consumer_offsets", 3)


def the_factor_cannot_exceed_the_brokers(nodes: Nodes) -> None:
    with pytest.raises(rs.InvalidArgument, match="3"):
        nodes.cluster.create_topic("too-many", replication_factor=4)


def a_killed_leader_is_replaced_from_the_isr(nodes: Nodes, written: Written) -> None:
    before = nodes.cluster.describe_topic(TOPIC).partition_list[0]
    nodes.kill(nodes.pid_of(nodes.leader_actor(TOPIC)))
    written.more()
    after = nodes.cluster.describe_topic(TOPIC).partition_list[0]
    assert after.leader_epoch > before.leader_epoch  # it may lead again by now: it is the preferred one
    nodes.wait_for_isr(TOPIC, 3)
    written.check()


def a_killed_follower_comes_back(nodes: Nodes, written: Written) -> None:
    nodes.kill(nodes.pid_of(nodes.follower_actors(TOPIC)[0]))
    written.more()
    nodes.wait_for_isr(TOPIC, 3)
    written.check()


def a_killed_broker_is_adopted_by_its_successor(nodes: Nodes, written: Written) -> None:
    nodes.kill(nodes.broker(nodes.leader(TOPIC)).pid)
    written.more()
    nodes.wait_for_brokers(3)
    nodes.wait_for_isr(TOPIC, 3)
    written.check()


def the_loss_of_the_controller_is_not_noticed(nodes: Nodes, written: Written) -> None:
    before = nodes.broker(nodes.controller()).pid
    nodes.kill(before)
    written.more()
    eventually(lambda: any(broker.controller and broker.pid != before for broker in nodes.brokers()))
    nodes.cluster.create_topic("made-by-the-next", replication_factor=2)
    nodes.wait_for_brokers(3)
    nodes.wait_for_isr(TOPIC, 3)
    written.check()


def a_group_keeps_its_positions_when_its_coordinator_moves(nodes: Nodes, written: Written) -> None:
    with nodes.cluster.consumer(TOPIC, group="readers", start="earliest") as consumer:
        seen = 0
        while seen < len(written.values):
            batch = consumer.poll(timeout=10)
            assert batch is not None
            seen += len(batch)
            consumer.commit(batch)
        nodes.kill(nodes.pid_of(nodes.leader_actor("__consumer_offsets")))
        written.more(10)
        seen = 0
        while seen < 10:
            batch = consumer.poll(timeout=20)
            assert batch is not None
            seen += len(batch)
            consumer.commit(batch)
    nodes.wait_for_isr("__consumer_offsets", 3)
    assert all(lag.lag == 0 for lag in nodes.cluster.lag("readers"))


def a_replica_that_lost_its_file_is_filled_anew(nodes: Nodes, written: Written, directory: Path) -> None:
    actor = nodes.follower_actors(TOPIC)[0]
    broker = next(b for b in nodes.brokers() if actor in nodes.actors_on(b.broker_id))
    topic_id = nodes.topic_id(TOPIC)
    eventually(lambda: any((directory / f"broker-{n}" / f"{topic_id}-0").exists() for n in range(3)))
    time.sleep(6)  # a checkpoint states by then that everything is synced
    slot = next(slot for slot in directory.glob("broker-*") if _holder(slot) == broker.pid)
    for segment in (slot / f"{topic_id}-0").glob("*.log"):
        segment.unlink()
    nodes.kill(nodes.pid_of(actor))
    eventually(lambda: (slot / "quarantine").exists())
    written.more()
    nodes.wait_for_isr(TOPIC, 3)
    assert list((slot / f"{topic_id}-0").glob("*.log"))
    written.check()


def _holder(slot: Path) -> int:
    return int(json.loads((slot / "slot.json").read_text())["pid"])


def partitions_move_while_they_are_in_use(nodes: Nodes, written: Written) -> None:
    cluster = nodes.cluster
    first, second, third = (nodes.leader(TOPIC), *(n for n in range(3) if n != nodes.leader(TOPIC)))
    cluster.reassign(TOPIC, {0: [second]})
    written.more()
    eventually(lambda: cluster.describe_topic(TOPIC).partition_list[0].replicas == (second,))
    written.more()
    written.check()
    cluster.alter_topic(TOPIC, replication_factor=3)
    written.more()
    nodes.wait_for_isr(TOPIC, 3)
    cluster.reassign(TOPIC, {0: [third, second, first]})
    eventually(lambda: nodes.leader(TOPIC) == third)
    written.more()
    written.check()


def a_drained_broker_holds_nothing(nodes: Nodes, written: Written) -> None:
    cluster = nodes.cluster
    cluster.create_topic("small", partitions=2, replication_factor=1)
    with pytest.raises(rs.InvalidArgument):  # three replicas do not fit on two brokers
        cluster.drain_broker(2)
    cluster.alter_topic(TOPIC, replication_factor=2)
    cluster.drain_broker(2)
    written.more()
    eventually(lambda: all(2 not in p.replicas for p in cluster.describe_topic(TOPIC).partition_list), 60)
    eventually(lambda: all(2 not in p.replicas for p in cluster.describe_topic("small").partition_list), 60)
    cluster.drain_broker(2, drain=False)
    cluster.alter_topic(TOPIC, replication_factor=3)
    nodes.wait_for_isr(TOPIC, 3)
    written.check()


def a_killed_node_is_replaced_and_finds_its_data(nodes: Nodes, written: Written) -> None:
    dead = nodes.removable[0]
    broker = next(each for each in nodes.brokers() if each.node_id == dead)
    nodes.kill_node(dead)
    written.more()
    written.check()
    eventually(lambda: nodes.broker(broker.broker_id).fenced)
    nodes.add_node()
    nodes.wait_for_brokers(3)
    nodes.wait_for_isr(TOPIC, 3)
    assert {each.broker_id for each in nodes.brokers()} == {0, 1, 2}
    assert nodes.broker(broker.broker_id).node_id != dead
    written.check()


def everything_survives_a_hard_stop_of_all(directory: Path, values: list[bytes]) -> None:
    with Nodes(directory) as nodes:
        nodes.wait_for_brokers(3)
        written = Written(nodes.cluster)
        written.values = values
        written.check()
        assert nodes.cluster.lag("readers")
        assert "readers" in {group.name for group in nodes.cluster.groups()}
        written.more()
        nodes.wait_for_isr(TOPIC, 3)
        written.check()


def main(directory: Path) -> None:
    with Nodes(directory) as nodes:
        nodes.wait_for_brokers(3)
        nodes.cluster.create_topic(TOPIC)
        written = Written(nodes.cluster)
        written.more()
        nodes.wait_for_isr(TOPIC, 3)
        _step(replicas_are_spread_and_the_groups_log_follows, nodes)
        _step(the_factor_cannot_exceed_the_brokers, nodes)
        _step(members_get_the_partitions_that_are_led_beside_them, nodes)
        _step(a_static_member_that_restarts_moves_nothing, nodes)
        _step(a_killed_leader_is_replaced_from_the_isr, nodes, written)
        _step(a_killed_follower_comes_back, nodes, written)
        _step(a_killed_broker_is_adopted_by_its_successor, nodes, written)
        _step(the_loss_of_the_controller_is_not_noticed, nodes, written)
        _step(a_group_keeps_its_positions_when_its_coordinator_moves, nodes, written)
        _step(a_replica_that_lost_its_file_is_filled_anew, nodes, written, directory)
        _step(partitions_move_while_they_are_in_use, nodes, written)
        _step(a_drained_broker_holds_nothing, nodes, written)
        _step(a_killed_node_is_replaced_and_finds_its_data, nodes, written)
        nodes.stop_hard()
    _step(everything_survives_a_hard_stop_of_all, directory, written.values)


def _step(step: Callable[..., None], *arguments: object) -> None:
    begun = time.monotonic()
    step(*arguments)
    print(f"{step.__name__}: {time.monotonic() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
