"""The controller's decisions, and that replaying their records gives the image back."""

from __future__ import annotations

import pytest

from raystream.core import topic_names
from raystream.core.controller import Controller
from raystream.core.metadata import MetadataImage
from raystream.core.placement import place
from raystream.core.records import Record, Removed, from_pair, to_pair
from raystream.errors import (
    InvalidArgument,
    InvalidConfig,
    InvalidTopicName,
    TopicExists,
    TopicNotFound,
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


@pytest.mark.parametrize("partitions", [0, -1, 10**6])
def test_impossible_partition_counts_are_refused(partitions: int) -> None:
    with pytest.raises(InvalidArgument, match=f"partitions={partitions}"):
        House().create("t", partitions=partitions)


def test_a_replication_factor_over_the_brokers_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="1 broker"):
        House().create("t", replication_factor=2)
    house = House((0, 1))
    house.create("t")
    assert house.image.topic("t").replication_factor == 2


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
