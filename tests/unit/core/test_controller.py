"""The controller's decisions, and that replaying their records gives the image back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.core import topic_names
from raystream.core.controller import Controller
from raystream.core.metadata import MetadataImage
from raystream.core.placement import place
from raystream.core.records import Record, Removed, from_pair, to_pair
from raystream.errors import (
    Fenced,
    InvalidArgument,
    InvalidConfig,
    InvalidTopicName,
    PartitionNotFound,
    RaystreamError,
    TopicExists,
    TopicNotFound,
    Unavailable,
)
from raystream.messages import AlterTopicRequest, CreateTopicRequest, DeleteTopicRequest


class House:
    """An image, its controller, and everything written down so far."""

    def __init__(self, brokers: tuple[int, ...] = (0,)) -> None:
        self.image = MetadataImage()
        self.controller = Controller(self.image, brokers)
        self.log: list[Record | Removed] = []

    def commit(self, records: list[Record | Removed]) -> None:
        self.log += records
        for record in records:
            self.image.replay(record)

    def create(self, name: str, topic_id: str = "a" * 32, **fields: object) -> None:
        request = CreateTopicRequest(name=name, **{"partitions": 1, **fields})  # type: ignore[arg-type]
        self.commit(self.controller.create_topic(request, topic_id=topic_id, raw_schema=b"raw"))


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
        House().create("t", partitions=partitions)


def test_a_replication_factor_over_the_brokers_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="1 broker"):
        House().create("t", replication_factor=2)
    for factor in (0, -1, "1", True):
        with pytest.raises(InvalidArgument, match="replication_factor"):
            House().create("t", replication_factor=factor)
    house = House((0, 1))
    house.create("t")
    assert house.image.topic("t").replication_factor == 2
    house.create("u", "b" * 32, replication_factor=np.int64(1), partitions=np.int32(3))
    assert len(house.image.partitions_of("b" * 32)) == 3


def test_settings_are_checked_and_the_nearest_name_is_given() -> None:
    with pytest.raises(InvalidConfig, match="did you mean 'flush'"):
        House().create("t", config={"flsh": "os"})
    with pytest.raises(InvalidConfig, match="segment_bytes"):
        House().create("t", config={"segment_bytes": 1})


def test_a_topic_is_created_once() -> None:
    house = House()
    house.create("t", partitions=3)
    with pytest.raises(TopicExists):
        house.create("t")
    house.create("t", exist_ok=True)
    with pytest.raises(TopicExists, match="raw"):
        house.create("t", exist_ok=True, schema=b"typed")
    assert [p.partition for p in house.image.partitions_of("a" * 32)] == [0, 1, 2]


def test_partitions_grow_only_and_settings_go_back_to_their_default() -> None:
    house = House()
    house.create("t", partitions=2, config={"flush": "os"})
    house.commit(house.controller.alter_topic(AlterTopicRequest(name="t", partitions=4, config={"flush": None})))
    assert len(house.image.partitions["a" * 32]) == 4
    assert house.image.topic("t").config["flush"] == "fsync"
    with pytest.raises(InvalidArgument, match="not shrink"):
        house.controller.alter_topic(AlterTopicRequest(name="t", partitions=3))
    with pytest.raises(TopicNotFound, match="create_topic"):
        house.controller.alter_topic(AlterTopicRequest(name="u", partitions=3))


def test_internal_topics_cannot_be_changed_by_users() -> None:
    house = House()
    request = CreateTopicRequest(name="__consumer_offsets", partitions=1)
    house.commit(house.controller.create_topic(request, topic_id="b" * 32, raw_schema=b"", internal=True))
    with pytest.raises(InvalidTopicName):
        house.controller.delete_topic(DeleteTopicRequest(name="__consumer_offsets"))


def test_a_new_incarnation_raises_the_leader_epoch() -> None:
    house = House()
    house.create("t")
    house.commit(house.controller.new_incarnations([("a" * 32, 0)]))
    partition = house.image.partitions["a" * 32][0]
    assert (partition.leader_epoch, partition.incarnation) == (1, 1)


def test_replaying_the_written_records_gives_the_same_image() -> None:
    house = House((0, 1, 2))
    house.commit(house.controller.format("cluster"))
    house.create("kept", "a" * 32, partitions=5, key="k", schema=b"\x00\xff", config={"flush": "os"})
    house.create("gone", "b" * 32)
    house.commit(house.controller.new_incarnations([("a" * 32, 3)]))
    house.commit(house.controller.delete_topic(DeleteTopicRequest(name="gone")))
    again = MetadataImage()
    for record in house.log:
        again.replay(from_pair(*to_pair(record)))
    assert vars(again) == vars(house.image)
    assert again.topic("kept").schema_bytes == (b"\x00\xff",)
    with pytest.raises(TopicNotFound):
        again.topic("gone")


def test_placement_spreads_replicas_and_leaders() -> None:
    placed = place(6, 2, {0: 0, 1: 0, 2: 0})
    held = [broker for replicas in placed for broker in replicas]
    assert {held.count(broker) for broker in range(3)} == {4}
    assert all(len(set(replicas)) == 2 for replicas in placed)
    assert place(1, 1, {0: 5, 1: 2}) == [(1,)]


def test_leaders_spread_where_every_broker_holds_everything() -> None:
    leaders = [replicas[0] for replicas in place(9, 3, {0: 0, 1: 0, 2: 0})]
    assert {leaders.count(broker) for broker in range(3)} == {3}
    assert place(1, 2, {0: 1, 1: 1, 2: 1}, {0: 1, 1: 0, 2: 0})[0] == (1, 2)


def test_new_topics_go_where_fewest_are_held_and_led() -> None:
    house = House((0, 1, 2))
    for number in range(6):
        house.create(f"t{number}", f"{number:032}", partitions=3, replication_factor=2)
    records = [record for held in house.image.partitions.values() for record in held.values()]
    for broker in range(3):
        assert sum(broker in record.replicas for record in records) == 12
        assert sum(record.leader == broker for record in records) == 6


def test_a_typed_topic_is_taken_as_it_is_only_with_the_same_columns() -> None:
    house = House()
    house.create("t", schema=b"s", key="k", time="at")
    house.create("t", schema=b"s", key="k", time="at", exist_ok=True)
    same: dict[str, Any] = {"schema": b"s", "key": "k", "time": "at", "exist_ok": True}
    for name, value in (("schema", b"r"), ("key", "j"), ("time", None), ("schema", None)):
        with pytest.raises(TopicExists):
            house.create("t", **{**same, name: value})


def test_brokers_register_with_a_new_incarnation_and_go_when_they_hold_nothing() -> None:
    house = House()
    house.controller = controller = Controller(house.image)
    with pytest.raises(Unavailable, match="no broker"):
        house.create("t")
    for broker in (0, 1, 1):
        house.commit(controller.register_broker(broker))
    assert {b.broker_id: b.incarnation for b in house.image.brokers.values()} == {0: 1, 1: 2}
    house.create("t", replication_factor=1)
    with pytest.raises(Fenced, match="incarnation 2"):
        controller.unregister_broker(1, 1)
    with pytest.raises(InvalidArgument, match="of 1 partitions"):
        controller.unregister_broker(0, 1)
    house.commit(controller.unregister_broker(1, 2))
    assert list(house.image.brokers) == [0]
    assert controller.unregister_broker(1, 2) == []


def test_partitions_are_added_only_where_their_replicas_have_a_place() -> None:
    brokers = {0, 1}
    house = House()
    house.controller = Controller(house.image, brokers)
    house.create("t", replication_factor=2)
    brokers.remove(1)
    with pytest.raises(Unavailable, match="2 replicas"):
        house.controller.alter_topic(AlterTopicRequest(name="t", partitions=2))
    assert house.controller.alter_topic(AlterTopicRequest(name="t", partitions=1)) == []


def test_a_cluster_holds_so_many_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystream.core.controller.MAX_PARTITIONS_PER_CLUSTER", 5)
    house = House()
    house.create("t", partitions=5)
    with pytest.raises(InvalidArgument, match="6 partitions"):
        house.controller.alter_topic(AlterTopicRequest(name="t", partitions=6))


def test_a_deleted_topic_leaves_nothing_in_a_compacted_log() -> None:
    house = House()
    house.create("t", partitions=3)
    house.commit(house.controller.delete_topic(DeleteTopicRequest(name="t")))
    compacted = {to_pair(record)[0]: record for record in house.log}
    assert all(isinstance(record, Removed) for record in compacted.values())
    with pytest.raises(PartitionNotFound):
        house.controller.new_incarnations([("a" * 32, 0)])


NAMES = st.sampled_from(["t", "u", "v"])
STEPS = st.one_of(
    st.tuples(st.just("create"), NAMES, st.integers(1, 4)),
    st.tuples(st.just("grow"), NAMES, st.integers(1, 6)),
    st.tuples(st.just("delete"), NAMES, st.just(0)),
    st.tuples(st.just("register"), st.just(""), st.integers(0, 3)),
    st.tuples(st.just("restart"), NAMES, st.just(0)),
)


@settings(deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_any_history_replayed_gives_the_same_image(steps: list[tuple[str, str, int]]) -> None:
    house = House()
    house.controller = controller = Controller(house.image)
    house.commit(controller.format("c"))
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
                house.commit(controller.register_broker(count))
            else:
                records = house.image.partitions_of(house.image.topic(name).topic_id)
                house.commit(controller.new_incarnations([(r.topic_id, r.partition) for r in records]))
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
