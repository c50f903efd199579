"""What groups do that only several nodes show: members beside their partitions' leaders, and lives of a static member.

Steps of three_nodes.py, on its cluster.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raystream as rs
from benchmarks.chaos.nodes import Nodes


def eventually(what: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def members_get_the_partitions_that_are_led_beside_them(nodes: Nodes) -> None:
    """Three workers, one pinned to each node, and a topic that comes up when they are there: two partitions each."""
    cluster = nodes.cluster
    jobs = []
    for broker in nodes.brokers():
        beside = NodeAffinitySchedulingStrategy(broker.node_id, soft=False)
        job = cluster.run_consumers(re.compile("near"), "near-readers", each_batch=len, scheduling_strategy=beside)
        jobs.append(job)
    try:
        eventually(lambda: cluster.describe_group("near-readers").members == 3)
        cluster.create_topic("near", partitions=6, replication_factor=1)
        node_of = {broker.broker_id: broker.node_id for broker in nodes.brokers()}
        leaders = {number: node_of[nodes.leader("near", number)] for number in range(6)}
        assert sorted(leaders.values()) == sorted([*node_of.values()] * 2)

        def all_near() -> bool:
            owned = {
                partition: member.node
                for member in cluster.describe_group("near-readers").member_list
                for _, partition in member.partitions
            }
            return owned == leaders

        eventually(all_near)
    finally:
        for job in jobs:
            job.stop()


def a_static_member_that_restarts_moves_nothing(nodes: Nodes) -> None:
    cluster = nodes.cluster
    cluster.create_topic("still", partitions=4, replication_factor=2)

    def opened(instance: str) -> rs.Consumer:
        return cluster.consumer(
            "still", group="still-readers", start="earliest", group_instance_id=instance, session_timeout_ms=20_000
        )

    with opened("b") as other:
        first = opened("a")
        eventually(lambda: len(first.assignment()) == len(other.assignment()) == 2)
        its_own, others = set(first.assignment()), set(other.assignment())
        first.close()
        second = opened("a")
        moved: list[rs.TopicPartition] = []
        deadline = time.monotonic() + 3

        def looks_as_before() -> bool:
            moved.extend(others ^ set(other.assignment()))
            return set(second.assignment()) == its_own and time.monotonic() > deadline

        eventually(looks_as_before)
        assert moved == [], "the other member was paused"
        with cluster.producer() as producer:
            for number in range(4):
                producer.send("still", b"%d" % number, partition=number).result(30)
        for consumer, mine in ((second, its_own), (other, others)):
            batches = [consumer.poll(20) for _ in mine]
            assert {batch.partition for batch in batches if batch} == {partition for _, partition in mine}
        second.close()
