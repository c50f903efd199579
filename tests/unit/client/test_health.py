"""What is not in order is named; nothing is, where all is well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from raystream import messages as m
from raystream.client.health import health, min_insync_replicas
from raystream.cluster import Cluster
from raystream.config import MIN_FREE_BYTES
from tests.fakes.cluster import FakeCluster
from tests.fakes.connection import connected


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    with FakeCluster(brokers=3) as fake:
        fake.create("t", 1, replication_factor=3)
        yield fake


@pytest.fixture
def cluster(fake: FakeCluster) -> Cluster:
    return connected(fake)


def test_all_in_order(fake: FakeCluster, cluster: Cluster) -> None:
    fake.create("alone", 2)
    fake.create("__own", 1, replication_factor=3)
    found = cluster.health()
    assert found.ok and found.problems == ()
    assert (found.brokers, found.topics, found.partitions, found.offline_partitions) == (3, 2, 3, 0)


def test_a_drained_broker_is_in_order(fake: FakeCluster, cluster: Cluster) -> None:
    cluster.alter_topic("t", replication_factor=2)
    cluster.drain_broker(2)
    assert cluster.health().ok


def test_a_disk_at_its_reserve_is_named(fake: FakeCluster, cluster: Cluster) -> None:
    fake.brokers[1].free_bytes = MIN_FREE_BYTES - 1
    found = cluster.health()
    assert not found.ok
    (problem,) = found.problems
    assert problem.startswith("broker 1 (host-1): the disk of /data has 64.0 MiB free") and "refused" in problem
    fake.brokers[1].free_bytes = 2 * MIN_FREE_BYTES
    assert cluster.health().ok


def test_what_a_silent_brokers_disk_has_is_not_known(fake: FakeCluster, cluster: Cluster) -> None:
    fake.fence(2)
    assert [broker.free_bytes for broker in cluster.brokers()] == [1 << 30, 1 << 30, None]
    assert not any("free" in problem for problem in cluster.health().problems)


def test_fewer_replicas_in_sync(fake: FakeCluster, cluster: Cluster) -> None:
    fake.fence(2)
    found = cluster.health()
    assert not found.ok and found.offline_partitions == 0
    assert found.problems == (
        "broker 2 (host-2) is not heard",
        "partition t-0 has 2 of 3 replicas in sync",
    )
    fake.unfence(2)
    assert cluster.health().ok


def test_too_few_for_acks_all(fake: FakeCluster, cluster: Cluster) -> None:
    fake.fence(2)
    fake.fence(1)
    assert cluster.health().problems[2:] == (
        'partition t-0 has 1 of 3 replicas in sync, fewer than min_insync_replicas=2: acks="all" waits',
    )
    cluster.alter_topic("t", {"min_insync_replicas": 1})
    assert cluster.health().problems[2:] == ("partition t-0 has 1 of 3 replicas in sync",)


def test_internal_topics_count_as_well(fake: FakeCluster, cluster: Cluster) -> None:
    cluster.alter_topic("t", replication_factor=1)
    fake.create("__own", 1, replication_factor=3)
    fake.fence(1)
    assert cluster.health().problems[1:] == ("partition __own-0 has 2 of 3 replicas in sync",)


def test_no_leader(fake: FakeCluster, cluster: Cluster) -> None:
    for broker in (2, 1, 0):
        fake.fence(broker)
    fake.unfence(1)
    found = cluster.health()
    assert found.offline_partitions == 1
    assert found.problems == (
        "partition t-0 has no leader: none of its replicas on brokers 0, 1, 2 may lead now (in sync: 0)",
        "broker 0 (host-0) is not heard",
        "broker 2 (host-2) is not heard",
    )


def test_a_leader_that_nobody_serves(fake: FakeCluster, cluster: Cluster) -> None:
    fake.topics["t"].offline.add(0)
    assert cluster.health().problems == ("partition t-0 is offline: its actor is starting",)


def reply(config: dict[str, Any], factor: int, replicas: int, **how: Any) -> m.MetadataReply:
    brokers = tuple(range(replicas))
    values: dict[str, Any] = {"leader": 0, "isr": brokers, "actor": "a", **how}
    partition = m.PartitionMetadata(partition=0, leader_epoch=1, replicas=brokers, node_id="n", **values)
    topic = m.TopicMetadata(
        name="t",
        topic_id="i",
        typed=False,
        schemas=(),
        key=None,
        time=None,
        config=config,
        replication_factor=factor,
        partitions=(partition,),
    )
    return m.MetadataReply(version=1, cluster_id="c", brokers=(), topics=(topic,))


def test_why_a_partition_is_offline() -> None:
    found = health(reply({}, 1, 1, actor="", error="corrupt log: at byte 7"))
    assert found.problems[0] == "partition t-0 is offline: corrupt log: at byte 7"


def test_nobody_coordinates_groups(fake: FakeCluster) -> None:
    (broker, *_) = fake.brokers.metadata((), node_id="n")
    found = replace(reply({}, 1, 1), brokers=(replace(broker, coordinator=""),))
    assert health(found).problems == ("the group coordinator is starting",)


def test_a_lost_majority_is_named_and_nobody_is_said_to_run(
    fake: FakeCluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {broker.state for broker in cluster.brokers()} == {"running"}
    known = fake.brokers.metadata

    def metadata(*placed: Any, **how: Any) -> tuple[m.BrokerMetadata, ...]:
        return tuple(replace(broker, controller=False) for broker in known(*placed, **how))

    monkeypatch.setattr(fake.brokers, "metadata", metadata)
    assert {broker.state for broker in cluster.brokers()} == {"not known"}
    found = cluster.health()
    assert not found.ok
    assert found.problems[0].startswith("the brokers have no controller: fewer than a majority of the voters are up")


@pytest.mark.parametrize(
    ("config", "factor", "replicas", "wanted"),
    [
        ({}, 1, 1, 1),
        ({}, 2, 2, 1),
        ({}, 3, 3, 2),
        ({"min_insync_replicas": 0}, 3, 3, 2),
        ({"min_insync_replicas": 0}, 5, 5, 2),
        ({"min_insync_replicas": 1}, 3, 3, 1),
        ({"min_insync_replicas": 3}, 3, 3, 3),
        ({"min_insync_replicas": 2}, 2, 2, 2),
        ({}, 2, 3, 1),  # a replica more, while one is moved
        ({}, 3, 1, 1),  # reassigned to one broker
    ],
)
def test_how_many_must_be_in_sync(config: dict[str, Any], factor: int, replicas: int, wanted: int) -> None:
    topics = reply(config, factor, replicas).topics
    assert topics is not None
    assert min_insync_replicas(topics[0], topics[0].partitions[0]) == wanted
