"""The controller's decisions on topics, and that replaying all records gives the image back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.core import topic_names
from raystream.core.metadata import BrokerRecord, ClusterRecord, MetadataImage
from raystream.core.records import Removed, from_pair, to_pair
from raystream.errors import (
    InvalidArgument,
    InvalidConfig,
    InvalidTopicName,
    NotEnoughBrokers,
    PartitionNotFound,
    RaystreamError,
    TopicExists,
    TopicNotFound,
    Unavailable,
)
from raystream.messages import AlterTopicRequest, CreateTopicRequest, DeleteTopicRequest
from tests.unit.core.controller_house import House


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\0b", "topic\n", "x" * 250, "tôpic", "__offsets", "a b", None, 7]
)
def test_bad_names_are_refused_with_a_sentence(name: object) -> None:
    with pytest.raises(InvalidTopicName, match=r"topic name|cannot name"):
        topic_names.check(name)


def test_good_names_pass_and_names_that_metrics_confuse_do_not() -> None:
    topic_names.check("a.b-C_9", ["other"])
    topic_names.check("x" * 249)
    with pytest.raises(InvalidTopicName, match="'a_b'"):
        topic_names.check("a.b", ["a_b"])


@pytest.mark.parametrize("partitions", [0, -1, 10**6, True, 2.0, "2", None])
def test_impossible_partition_counts_are_refused(partitions: object) -> None:
    with pytest.raises(InvalidArgument, match=f"partitions={partitions!r}"):
        House(1).create("t", partitions=partitions)


def test_a_replication_factor_over_the_brokers_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="1 broker"):
        House(1).create("t", replication_factor=2)
    for factor in (0, -1, "1", True):
        with pytest.raises(InvalidArgument, match="replication_factor"):
            House(1).create("t", replication_factor=factor)
    house = House(2)
    house.create("t")
    assert house.image.topic("t").replication_factor == 2
    house.create("u", "b" * 32, replication_factor=np.int64(1), partitions=np.int32(3))
    assert len(house.image.partitions_of("b" * 32)) == 3


def test_settings_are_checked_and_the_nearest_name_is_given() -> None:
    with pytest.raises(InvalidConfig, match="did you mean 'flush'"):
        House(1).create("t", config={"flsh": "os"})
    with pytest.raises(InvalidConfig, match="segment_bytes"):
        House(1).create("t", config={"segment_bytes": 1})


def test_a_typed_topic_without_a_key_column_is_not_compacted() -> None:
    house = House(1)
    with pytest.raises(InvalidConfig, match="has no key column"):
        house.create("t", schema=b"s", config={"cleanup_policy": "compact"})
    house.create("t", schema=b"s")
    with pytest.raises(InvalidConfig, match="has no key column"):
        house.controller.alter_topic(AlterTopicRequest(name="t", config={"cleanup_policy": "compact,delete"}))
    house.create("u", "b" * 32, schema=b"s", key="k", config={"cleanup_policy": "compact", "retention_ms": None})
    house.create("v", "c" * 32, config={"cleanup_policy": "compact", "max_compaction_lag_ms": 5})


def test_a_topic_is_created_once() -> None:
    house = House(1)
    house.create("t", partitions=3)
    with pytest.raises(TopicExists):
        house.create("t")
    house.create("t", exist_ok=True)
    with pytest.raises(TopicExists, match="raw"):
        house.create("t", exist_ok=True, schema=b"typed")
    assert [p.partition for p in house.image.partitions_of("a" * 32)] == [0, 1, 2]


def test_partitions_grow_only_and_settings_go_back_to_their_default() -> None:
    house = House(1)
    house.create("t", partitions=2, config={"flush": "os"})
    house.commit(house.controller.alter_topic(AlterTopicRequest(name="t", partitions=4, config={"flush": None})))
    assert len(house.image.partitions["a" * 32]) == 4
    assert house.image.topic("t").config["flush"] == "fsync"
    with pytest.raises(InvalidArgument, match="not shrink"):
        house.controller.alter_topic(AlterTopicRequest(name="t", partitions=3))
    with pytest.raises(TopicNotFound, match="there is no topic 'u'"):
        house.controller.alter_topic(AlterTopicRequest(name="u", partitions=3))


def test_internal_topics_cannot_be_changed_by_users() -> None:
    house = House(1)
    request = CreateTopicRequest(name="__consumer_offsets", partitions=1)
    house.commit(house.controller.create_topic(request, topic_id="b" * 32, raw_schema=b"", internal=True))
    with pytest.raises(InvalidTopicName):
        house.controller.delete_topic(DeleteTopicRequest(name="__consumer_offsets"))


def test_replaying_the_written_records_gives_the_same_image() -> None:
    house = House(3)
    house.create("kept", "a" * 32, partitions=5, key="k", schema=b"\x00\xff", config={"flush": "os"})
    house.create("gone", "b" * 32)
    house.fence(0)
    house.commit(house.controller.delete_topic(DeleteTopicRequest(name="gone")))
    again = MetadataImage()
    for record in house.log:
        again.replay(from_pair(*to_pair(record)))
    assert vars(again) == vars(house.image)
    assert again.topic("kept").schema_bytes == (b"\x00\xff",)
    with pytest.raises(TopicNotFound):
        again.topic("gone")


def test_new_topics_go_where_fewest_are_held_and_led() -> None:
    house = House(3)
    for number in range(6):
        house.create(f"t{number}", f"{number:032}", partitions=3, replication_factor=2)
    records = [record for held in house.image.partitions.values() for record in held.values()]
    for broker in range(3):
        assert sum(broker in record.replicas for record in records) == 12
        assert sum(record.leader == broker for record in records) == 6


def test_a_typed_topic_is_taken_as_it_is_only_with_the_same_columns() -> None:
    house = House(1)
    house.create("t", schema=b"s", key="k", time="at")
    house.create("t", schema=b"s", key="k", time="at", exist_ok=True)
    same: dict[str, Any] = {"schema": b"s", "key": "k", "time": "at", "exist_ok": True}
    for name, value in (("schema", b"r"), ("key", "j"), ("time", None), ("schema", None)):
        with pytest.raises(TopicExists):
            house.create("t", **{**same, name: value})


def test_partitions_are_added_only_where_their_replicas_have_a_place() -> None:
    house = House(2)
    house.create("t", replication_factor=2)
    house.fence(1)
    with pytest.raises(NotEnoughBrokers, match=r"2 replicas: 1 of 2 brokers .* \(not heard: 1\): try again"):
        house.alter("t", partitions=2)
    assert house.controller.alter_topic(AlterTopicRequest(name="t", partitions=1)) == []


def test_a_factor_that_only_living_brokers_lack_for_can_be_asked_for_again() -> None:
    house = House(3)
    house.fence(1)
    with pytest.raises(NotEnoughBrokers, match=r"=3: 2 of 3 brokers .* \(not heard: 1\): try again") as error:
        house.create("t", replication_factor=3)
    assert error.value.retriable and "t" not in house.image.topics
    house.create("u", replication_factor=2)
    with pytest.raises(NotEnoughBrokers, match="=3"):
        house.alter("u", replication_factor=3)
    with pytest.raises(InvalidArgument, match="this cluster has 3 brokers"):
        house.create("t", replication_factor=4)
    house.hear(1)
    house.create("t", replication_factor=3)


def test_nothing_is_created_while_no_broker_is_there() -> None:
    house = House(1)
    house.fence(0)
    with pytest.raises(Unavailable, match="no broker"):
        house.create("t")


def test_fenced_and_drained_brokers_get_no_new_replicas() -> None:
    house = House(4)
    house.fence(1)
    house.drain(2)
    house.create("t", partitions=4)
    assert all(set(record.replicas) == {0, 3} for record in house.partitions())
    assert house.image.topic("t").replication_factor == 2


def test_replicas_are_spread_over_racks() -> None:
    house = House(4, racks={0: "a", 1: "a", 2: "b", 3: "b"})
    house.create("t", partitions=8, replication_factor=2)
    assert all(len({house.racks[broker] for broker in record.replicas}) == 2 for record in house.partitions())


def test_acks_all_cannot_ask_for_more_replicas_than_there_are() -> None:
    house = House(2)
    with pytest.raises(InvalidConfig, match="min_insync_replicas=2: topic 't' keeps 1 replica,"):
        house.create("t", replication_factor=1, config={"min_insync_replicas": 2})
    house.create("t", config={"min_insync_replicas": 2})
    with pytest.raises(InvalidConfig, match="keeps 2 replicas"):
        house.alter(config={"min_insync_replicas": 3})
    with pytest.raises(InvalidConfig, match="keeps 1 replica,"):
        house.alter(replication_factor=1)
    house.alter(replication_factor=1, config={"min_insync_replicas": None})
    assert len(house.partition().replicas) == 1


def test_a_lower_min_insync_ends_what_was_kept_for_the_higher_one() -> None:
    house = House(2)
    house.create("t", config={"min_insync_replicas": 2})
    (follower,) = set(house.partition().replicas) - {house.partition().leader}
    house.fence(follower)
    assert house.partition().elr == (follower,)
    house.alter(config={"min_insync_replicas": 1})
    assert house.partition().elr == ()


def test_a_higher_factor_adds_replicas_on_the_least_loaded_brokers_in_other_racks() -> None:
    house = House(4, racks={0: "a", 1: "a", 2: "b", 3: "b"})
    house.create("t", partitions=4, replication_factor=1)
    house.alter(replication_factor=2)
    assert house.image.topic("t").replication_factor == 2
    for record in house.partitions():
        assert record.isr == (record.leader,) and len(record.adding) == 1
        assert len({house.racks[broker] for broker in record.replicas}) == 2
    assert {sum(broker in record.replicas for record in house.partitions()) for broker in range(4)} == {2}
    house.catch_up()
    assert all(len(record.isr) == 2 and not record.adding for record in house.partitions())
    assert house.controller.alter_topic(AlterTopicRequest(name="t", replication_factor=2)) == []


def test_a_lower_factor_keeps_the_leader_and_those_in_sync() -> None:
    house = House(3)
    house.create("t", replication_factor=3)
    record = house.partition()
    leader, _, lagging = record.leader, *(broker for broker in record.replicas if broker != record.leader)
    house.set_isr(record, *(broker for broker in record.replicas if broker != lagging))
    house.alter(replication_factor=2)
    assert lagging not in house.partition().replicas
    house.alter(replication_factor=1)
    assert (house.partition().replicas, house.partition().leader) == ((leader,), leader)


def test_a_factor_over_the_brokers_is_refused_when_it_is_altered_too() -> None:
    house = House(3)
    house.create("t", replication_factor=2)
    for wanted in (0, 4):
        with pytest.raises(InvalidArgument, match=f"replication_factor={wanted}: this cluster has 3 brokers"):
            house.alter(replication_factor=wanted)
    house.fence(*set(range(3)) - {house.partition().leader})
    house.alter(replication_factor=1)
    with pytest.raises(NotEnoughBrokers, match=r"=2: 1 of 3 brokers"):
        house.alter(replication_factor=2)


def test_settings_partitions_and_factor_change_together() -> None:
    house = House(3)
    house.create("t", replication_factor=1)
    house.alter(replication_factor=3, partitions=2, config={"min_insync_replicas": 3})
    assert len(house.partition(0).adding) == 2
    assert (len(house.partition(1).isr), house.partition(1).adding) == (3, ())


def test_a_cluster_holds_so_many_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystream.core.controller.MAX_PARTITIONS_PER_CLUSTER", 5)
    house = House(1)
    house.create("t", partitions=5)
    with pytest.raises(InvalidArgument, match="6 partitions"):
        house.controller.alter_topic(AlterTopicRequest(name="t", partitions=6))


def test_a_deleted_topic_leaves_nothing_in_a_compacted_log() -> None:
    house = House(1)
    house.create("t", partitions=3)
    house.serve()
    house.delete("t")
    compacted = {to_pair(record)[0]: record for record in house.log}
    left = [record for record in compacted.values() if not isinstance(record, Removed)]
    assert {type(record) for record in left} == {ClusterRecord, BrokerRecord}
    assert not house.image.replicas
    with pytest.raises(PartitionNotFound):
        house.partition()


NAMES = st.sampled_from(["t", "u", "v"])
STEPS = st.one_of(
    st.tuples(st.just("create"), NAMES, st.integers(1, 4)),
    st.tuples(st.just("grow"), NAMES, st.integers(1, 6)),
    st.tuples(st.just("delete"), NAMES, st.just(0)),
    st.tuples(st.just("register"), st.just(""), st.integers(0, 3)),
    st.tuples(st.just("hear"), st.just(""), st.just(0)),
    st.tuples(st.just("fence"), st.just(""), st.integers(0, 3)),
)


@settings(deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_any_history_replayed_gives_the_same_image(steps: list[tuple[str, str, int]]) -> None:
    house = House()
    controller = house.controller
    for number, (what, name, count) in enumerate(steps):
        before = MetadataImage()
        for record in house.log:
            before.replay(record)
        try:
            if what == "create":
                house.create(name, f"{number:032}", partitions=count)
            elif what == "grow":
                house.commit(controller.alter_topic(AlterTopicRequest(name=name, partitions=count)))
            elif what == "delete":
                house.commit(controller.delete_topic(DeleteTopicRequest(name=name)))
            elif what == "register":
                house.register(count if count in house.image.brokers else None)
            elif what == "hear":
                for broker in house.image.brokers:
                    house.hear(broker)
            else:
                house.fence(count)
        except RaystreamError:
            assert vars(before) == vars(house.image), "a refusal changes nothing"
    again, short = MetadataImage(), MetadataImage()
    for record in house.log:
        again.replay(from_pair(*to_pair(record)))
    for record in house.image.snapshot():
        short.replay(from_pair(*to_pair(record)))
    assert vars(again) == vars(house.image)
    assert {**vars(short), "version": 0} == {**vars(house.image), "version": 0}
    assert house.image.version == len(house.log)
