"""A broker's copy of the metadata."""

from __future__ import annotations

import threading

import pytest

from raystream.actors.metadata import Metadata, decode, encode
from raystream.core.metadata import (
    OFFSETS_TOPIC,
    BrokerRecord,
    ClusterRecord,
    PartitionRecord,
    ReplicaRecord,
    TopicRecord,
)
from raystream.core.records import Record, Removed
from raystream.errors import NewerFormat

A, B = "a" * 32, "b" * 32


def broker(broker_id: int, **fields: object) -> BrokerRecord:
    return BrokerRecord(broker_id, 1, node_id=f"node {broker_id}", actor=f"broker {broker_id}", **fields)  # type: ignore[arg-type]


def topic(topic_id: str, name: str) -> TopicRecord:
    return TopicRecord(topic_id, name, False, ("",), None, None, {}, 3)


RECORDS: list[Record | Removed] = [
    ClusterRecord("c"),
    *(broker(n, coordinator=f"coordinator {n}") for n in range(3)),
    topic(A, "events"),
    PartitionRecord(A, 0, (1, 2, 0), (1, 2), 1, 4, 1),
    ReplicaRecord(A, 0, 1, "actor 1"),
    ReplicaRecord(A, 0, 2, "actor 2"),
    topic(B, OFFSETS_TOPIC),
    PartitionRecord(B, 0, (2, 0), (2, 0), 2, 0, 0),
]


@pytest.fixture
def metadata() -> Metadata:
    made = Metadata()
    made.apply([encode(RECORDS)])
    return made


def test_what_is_encoded_comes_back() -> None:
    records = [*RECORDS, Removed("topic", (A,))]
    assert list(decode(encode(records))) == records


def test_a_snapshot_gives_the_same_metadata_and_version(metadata: Metadata) -> None:
    other = Metadata()
    other.restore(metadata.take_snapshot())
    assert other.version == metadata.version == len(RECORDS)
    assert other.topics(None, internal=True) == metadata.topics(None, internal=True)
    assert other.brokers(0, {}) == metadata.brokers(0, {})


def test_a_newer_snapshot_is_refused() -> None:
    with pytest.raises(NewerFormat):
        Metadata().restore(b'{"format": 2, "version": 1, "records": []}')


def test_clients_see_who_leads_and_which_followers_are_in_sync(metadata: Metadata) -> None:
    (found,) = metadata.topics(None, internal=False)
    (partition,) = found.partitions
    assert (partition.leader, partition.actor, partition.node_id) == (1, "actor 1", "node 1")
    assert partition.followers == (("actor 2", "node 2"),)


def test_a_replica_is_told_of_the_others(metadata: Metadata) -> None:
    spec = metadata.spec((A, 0), 1, "directory", "lease")
    assert spec is not None
    assert (spec.leader, spec.leader_epoch, spec.replicas, spec.isr) == (1, 4, (1, 2, 0), (1, 2))
    assert spec.actors == ((2, "actor 2"),)
    assert spec.min_insync_replicas == 2
    assert (spec.broker, spec.lease_path) == ("broker 1", "lease")


def test_a_broker_without_a_replica_gets_no_spec(metadata: Metadata) -> None:
    assert metadata.spec((B, 0), 1, "directory", "lease") is None
    assert metadata.spec(("f" * 32, 0), 1, "directory", "lease") is None


def test_replicas_of_internal_topics_come_first(metadata: Metadata) -> None:
    assert metadata.replicas_on(0) == [(B, 0), (A, 0)]


def test_the_coordinator_is_the_one_beside_the_leader_of_the_groups_log(metadata: Metadata) -> None:
    brokers = metadata.brokers(1, {2: 7})
    assert [each.coordinator for each in brokers] == ["", "", "coordinator 2"]
    assert [each.controller for each in brokers] == [False, True, False]
    assert [each.free_bytes for each in brokers] == [-1, -1, 7]


def test_waiting_for_a_version_ends_with_it(metadata: Metadata) -> None:
    assert not metadata.wait_for_version(metadata.version + 1, 0.01)
    threading.Timer(0.05, metadata.apply, ([encode([broker(7)])],)).start()
    assert metadata.wait_for_version(metadata.version + 1, 5)


def test_listeners_hear_of_every_change(metadata: Metadata) -> None:
    heard = []
    metadata.listen(lambda: heard.append(metadata.version))
    metadata.apply([encode([broker(7)])])
    metadata.restore(metadata.take_snapshot())
    assert heard == [len(RECORDS) + 1] * 2
