"""Replicas are moved, counted, elected and drained as asked; what cannot be is refused before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from raystream import aio
from raystream.client import describing
from raystream.cluster import Cluster
from raystream.errors import InvalidArgument, InvalidConfig, NotFound, PartitionNotFound, TopicNotFound
from raystream.types import TopicDescription
from tests.fakes.cluster import FakeCluster
from tests.fakes.connection import connected


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    with FakeCluster(brokers=4) as fake:
        fake.create("t", 2, replication_factor=3)
        yield fake


@pytest.fixture
def cluster(fake: FakeCluster) -> Cluster:
    return connected(fake)


def replicas(topic: TopicDescription) -> list[tuple[int, ...]]:
    return [row.replicas for row in topic.partition_list]


def leaders(topic: TopicDescription) -> list[int | None]:
    return [row.leader for row in topic.partition_list]


def states(cluster: Cluster) -> list[str]:
    return [broker.state for broker in cluster.brokers()]


# Reassignment -------------------------------------------------------------------------------------------------------


def test_a_reassignment_is_seen_in_the_description(cluster: Cluster) -> None:
    before = cluster.describe_topic("t").partition_list[0]
    moved = cluster.reassign("t", {0: [3, 1]})
    assert replicas(moved) == [(3, 1), (1, 2, 3)]
    assert moved.partition_list[0].isr == (3, 1)
    assert leaders(moved) == [3, 1]
    assert moved.partition_list[0].leader_epoch == before.leader_epoch + 1
    assert cluster.describe_topic("t") == moved


def test_brokers_may_be_any_integers(cluster: Cluster) -> None:
    wish: Any = {np.int64(1): np.array([0, 2])}
    assert replicas(cluster.reassign("t", wish))[1] == (0, 2)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({}, "give {partition: [broker id, …]}, the preferred leader first, not {}"),
        ([(0, [1])], "give {partition: [broker id, …]}, the preferred leader first, not [(0, [1])]"),
        (None, "give {partition: [broker id, …]}, the preferred leader first, not None"),
        ({0: []}, "partition 0: give one broker or more, each once, not []"),
        ({0: [1, 2, 1]}, "partition 0: give one broker or more, each once, not [1, 2, 1]"),
        ({0: 1}, "partition 0: give a list of broker ids, not 1"),
        ({0: "12"}, "partition 0: give a list of broker ids, not '12'"),
        ({0: ["1"]}, "partition 0: a broker id must be an integer, not '1'"),
        ({0: [1.0]}, "partition 0: a broker id must be an integer, not 1.0"),
        ({0: [True]}, "partition 0: a broker id must be an integer, not True"),
        ({0: [-1]}, "partition 0: a broker id must be 0 or above, not -1"),
        ({"0": [1]}, "partition must be an integer, not '0'"),
        ({-1: [1]}, "partition must be 0 or above, not -1"),
    ],
)
def test_a_wish_that_makes_no_sense_is_not_sent(fake: FakeCluster, cluster: Cluster, wish: Any, sentence: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        cluster.reassign("t", wish)
    assert str(refused.value) == sentence
    assert fake.changes == []


def test_an_unknown_partition_is_not_sent(fake: FakeCluster, cluster: Cluster) -> None:
    with pytest.raises(PartitionNotFound, match=r"^topic 't' has partitions 0 to 1, not 2$"):
        cluster.reassign("t", {0: [1], 2: [1]})
    with pytest.raises(TopicNotFound):
        cluster.reassign("u", {0: [1]})
    assert fake.changes == []


def test_a_partition_that_came_since_is_known(fake: FakeCluster, cluster: Cluster) -> None:
    cluster.describe_topic("t")
    fake.on_loop(fake.grow, "t", 3)
    assert replicas(cluster.reassign("t", {2: [0]}))[2] == (0,)


def test_an_unknown_broker_is_refused_whole(cluster: Cluster) -> None:
    before = replicas(cluster.describe_topic("t"))
    with pytest.raises(InvalidArgument, match="there is no broker 9"):
        cluster.reassign("t", {0: [1], 1: [9]})
    assert replicas(cluster.describe_topic("t")) == before


# How many -----------------------------------------------------------------------------------------------------------


def test_the_replication_factor_is_altered_alone(fake: FakeCluster, cluster: Cluster) -> None:
    altered = cluster.alter_topic("t", replication_factor=2)
    assert altered.replication_factor == 2
    assert replicas(altered) == [(0, 1), (1, 2)]
    assert fake.changes[0].config == {} and fake.changes[0].partitions is None
    assert replicas(cluster.alter_topic("t", {"flush": "os"}, 4))[0] == (0, 1, 2, 3)
    assert cluster.describe_topic("t").config["flush"] == "os"


def test_settings_are_altered_alone(fake: FakeCluster, cluster: Cluster) -> None:
    altered = cluster.alter_topic("t", config={"segment_ms": 5000})
    assert altered.config["segment_ms"] == 5000 and altered.replication_factor == 3
    assert fake.changes[0].replication_factor is None
    assert cluster.add_partitions("t", 3).partitions == 3
    with pytest.raises(InvalidConfig):
        cluster.alter_topic("t", {"segment_minutes": 5})


@pytest.mark.parametrize("factor", ["2", 2.0, True])
def test_a_factor_that_is_no_integer_is_not_sent(fake: FakeCluster, cluster: Cluster, factor: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"^replication_factor must be an integer, not {factor!r}$"):
        cluster.alter_topic("t", replication_factor=factor)
    assert fake.changes == []


# Elections ----------------------------------------------------------------------------------------------------------


def test_leads_go_back_to_preferred_replicas(fake: FakeCluster, cluster: Cluster) -> None:
    fake.create("u", 1, replication_factor=3)
    fake.fence(0)
    fake.unfence(0)
    assert leaders(cluster.describe_topic("t")) == leaders(cluster.describe_topic("u")) * 2 == [1, 1]
    cluster.elect_leaders("t")
    assert (leaders(cluster.describe_topic("t")), leaders(cluster.describe_topic("u"))) == ([0, 1], [1])
    cluster.elect_leaders()
    assert leaders(cluster.describe_topic("u")) == [0]


def test_an_unclean_election_is_asked_for_by_name(fake: FakeCluster, cluster: Cluster) -> None:
    cluster.reassign("t", {0: [0, 1]})
    fake.fence(1)
    fake.fence(0)
    fake.unfence(1)  # it lacks what broker 0 took alone
    cluster.elect_leaders("t")
    lost = cluster.describe_topic("t").partition_list[0]
    assert (lost.leader, lost.isr) == (None, (0,))
    cluster.elect_leaders("t", unclean=True)
    led = cluster.describe_topic("t").partition_list[0]
    assert (led.leader, led.isr) == (1, (1,))


def test_a_partition_without_a_leader_is_not_waited_for_as_one_that_does_not_answer(
    fake: FakeCluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describing, "LEADERLESS_TIMEOUT_MS", 50.0)
    monkeypatch.setattr(describing, "STATUS_TIMEOUT_MS", 600_000.0)
    cluster.reassign("t", {0: [0]})
    fake.fence(0)
    assert cluster.describe_topic("t").partition_list[0].leader is None


def test_an_election_that_makes_no_sense_is_not_sent(fake: FakeCluster, cluster: Cluster) -> None:
    wrong: list[Any] = [True, ["t"], 0]
    for topic in wrong:
        with pytest.raises(InvalidArgument, match="topic must be a topic's name, or None"):
            cluster.elect_leaders(topic)
    yes: Any = "no"
    with pytest.raises(InvalidArgument, match="unclean must be True or False, not 'no'"):
        cluster.elect_leaders("t", unclean=yes)
    assert fake.changes == []
    with pytest.raises(TopicNotFound):
        cluster.elect_leaders("u")


# Brokers ------------------------------------------------------------------------------------------------------------


def test_a_broker_is_drained_and_removed(cluster: Cluster) -> None:
    with pytest.raises(InvalidArgument, match="broker 1 holds replicas of 2 partitions"):
        cluster.remove_broker(1)
    cluster.drain_broker(1)
    assert states(cluster) == ["running", "draining", "running", "running"]
    assert [broker.partitions for broker in cluster.brokers()] == [2, 0, 2, 2]
    assert all(1 not in held for held in replicas(cluster.describe_topic("t")))
    with pytest.raises(InvalidArgument, match="broker 1 is being drained"):
        cluster.reassign("t", {0: [1, 2]})
    cluster.remove_broker(1)
    assert [broker.broker_id for broker in cluster.brokers()] == [0, 2, 3]
    with pytest.raises(NotFound, match="there is no broker 1"):
        cluster.drain_broker(1)


def test_draining_is_taken_back(cluster: Cluster) -> None:
    cluster.drain_broker(3)
    cluster.drain_broker(3, drain=False)
    assert states(cluster) == ["running"] * 4
    assert replicas(cluster.reassign("t", {0: [3]}))[0] == (3,)


def test_what_the_others_cannot_take_stays(cluster: Cluster) -> None:
    cluster.drain_broker(3)
    with pytest.raises(InvalidArgument, match="no broker would be left"):
        cluster.drain_broker(0)
    assert states(cluster)[0] == "running"


@pytest.mark.parametrize(
    ("broker", "sentence"),
    [
        ("1", "broker_id must be an integer, not '1'"),
        (None, "broker_id must be an integer, not None"),
        (True, "broker_id must be an integer, not True"),
        (-1, "broker_id must be 0 or above, not -1"),
    ],
)
def test_no_broker_id_is_not_sent(fake: FakeCluster, cluster: Cluster, broker: Any, sentence: str) -> None:
    for call in (cluster.drain_broker, cluster.remove_broker):
        with pytest.raises(InvalidArgument) as refused:
            call(broker)
        assert str(refused.value) == sentence
    assert fake.changes == []


def test_brokers_are_described(fake: FakeCluster, cluster: Cluster) -> None:
    fake.brokers[2].rack = "b"
    fake.brokers[2].draining = True
    fake.fence(2)
    found = cluster.brokers()
    assert [broker.rack for broker in found] == ["", "", "b", ""]
    assert found[2].state == "not heard", "that it is drained too matters less"
    assert repr(found).splitlines()[0].split()[:3] == ["broker_id", "node", "state"]


# As coroutines ------------------------------------------------------------------------------------------------------


def test_all_of_it_as_coroutines(fake: FakeCluster, cluster: Cluster) -> None:
    async def main() -> None:
        async with aio.Cluster(cluster) as c:
            assert replicas(await c.reassign("t", {0: [3, 1]}))[0] == (3, 1)
            assert (await c.alter_topic("t", replication_factor=1)).replication_factor == 1
            await c.elect_leaders()
            await c.elect_leaders("t", unclean=True)
            await c.drain_broker(0)
            await c.drain_broker(0, drain=False)
            await c.remove_broker(0)
            assert [broker.broker_id for broker in await c.brokers()] == [1, 2, 3]
            assert (await c.health()).ok
            with pytest.raises(InvalidArgument):
                await c.reassign("t", {})

    asyncio.run(main())
    assert [type(change).__name__ for change in fake.changes] == [
        *("ReassignRequest", "AlterTopicRequest", "ElectLeadersRequest", "ElectLeadersRequest"),
        *("DrainBrokerRequest", "DrainBrokerRequest", "DrainBrokerRequest"),
    ]
    assert [change.unclean for change in fake.changes[2:4]] == [False, True]
    assert [(change.drain, change.remove) for change in fake.changes[4:]] == [
        (True, False),
        (False, False),
        (True, True),
    ]
