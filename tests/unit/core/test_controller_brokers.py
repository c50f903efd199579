"""The controller's decisions on brokers and their replicas, one rule each."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from raystream import messages as m
from raystream.core.controller import Controller, was_removed
from raystream.core.elections import NO_LEADER
from raystream.core.metadata import MetadataImage, ReplicaRecord
from raystream.errors import (
    Fenced,
    InvalidArgument,
    NotFound,
    NotLeader,
    PartitionNotFound,
    TopicNotFound,
    Unavailable,
)
from raystream.messages import CORRUPT_LOG, LET_GO, LOST_LOG, ElectLeadersRequest
from tests.unit.core.controller_house import CLUSTER, TOPIC_ID, House

KEY = (TOPIC_ID, 0)


def three_replicas() -> House:
    """Brokers 0, 1, 2 and 3; one partition on the first three, led by 0, all open."""
    house = House(3)
    house.create("t")
    house.join()
    house.serve()
    assert (house.partition().replicas, house.partition().leader) == ((0, 1, 2), 0)
    return house


# Registration -------------------------------------------------------------------------------------------------------


def test_a_new_disk_gets_the_next_id_and_is_fenced_until_it_is_heard() -> None:
    house = House(2)
    reply = house.register(None, rack="r", pid=7)
    assert reply == m.RegisterBrokerReply(cluster_id=CLUSTER, broker_id=2, incarnation=1)
    known = house.image.brokers[2]
    assert (known.fenced, known.rack, known.pid, known.directory_id) == (True, "r", 7, "disk-2")
    house.hear(2, coordinator="c")
    assert (house.image.brokers[2].fenced, house.image.brokers[2].coordinator) == (False, "c")
    assert house.controller.broker_heard(house.heartbeat(2, coordinator="c")) == []


def test_a_broker_that_starts_again_keeps_its_id_in_a_new_life() -> None:
    house = three_replicas()
    house.hear(0, coordinator="c")
    house.drain(3)
    assert house.register(0).incarnation == 2
    known = house.image.brokers[0]
    assert (known.fenced, known.coordinator) == (True, "")
    assert (house.partition().leader, house.partition().isr) == (1, (1, 2))
    assert house.image.replica(*KEY, 0) is not None, "its partition actors may live on"
    house.register(3)
    assert house.image.brokers[3].draining


def test_a_disk_that_was_given_an_id_and_forgot_it_is_told_again() -> None:
    house = House(2)
    assert house.register(None, directory_id="disk-1").broker_id == 1


def test_the_founder_brings_its_id() -> None:
    house = House()
    assert house.register(0).broker_id == 0
    with pytest.raises(InvalidArgument, match="removed"):
        house.register(1)


def test_before_the_cluster_is_founded_nobody_registers() -> None:
    house = House()
    house.controller = Controller(MetadataImage())
    with pytest.raises(Unavailable, match="founded"):
        house.register(None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"cluster_id": "x" * 32}, f"/data/1 belongs to cluster {'x' * 32}, and this is cluster {CLUSTER}"),
        ({"directory_id": "other"}, "broker 1 is another disk's: /data/1 on host"),
        ({"directory_id": ""}, "which disk"),
        ({"broker_id": 7}, "broker 7 was removed"),
        ({"broker_id": -1}, "broker -1 was removed"),
    ],
)
def test_a_disk_that_is_not_what_it_says_is_refused(fields: dict[str, Any], sentence: str) -> None:
    house = House(2)
    before = dict(house.image.brokers)
    asked: dict[str, Any] = {"broker_id": 1, "directory_id": "disk-1", "data_dir": "/data/1"}
    with pytest.raises(InvalidArgument) as refused:
        house.register(**(asked | fields))
    assert sentence in str(refused.value)
    assert house.image.brokers == before


def test_a_disk_that_lost_something_is_neither_in_sync_nor_eligible() -> None:
    house = three_replicas()
    house.fence(1, 2)
    house.register(0, clean=False)
    house.hear(0)
    assert (house.partition().leader, house.partition().isr, 0 in house.partition().elr) == (NO_LEADER, (), False)


# Life and death -----------------------------------------------------------------------------------------------------


def test_a_fenced_broker_leads_nothing_until_it_is_heard() -> None:
    house = three_replicas()
    house.fence(0)
    assert (house.partition().leader, house.partition().isr) == (1, (1, 2))
    house.fence(1, 2)
    assert house.partition().leader == NO_LEADER
    house.hear(2)
    assert house.partition().leader == 2
    assert house.controller.fence(0) == house.controller.fence(9) == []


def test_an_earlier_life_is_not_heard() -> None:
    house = House(1)
    earlier = house.heartbeat(0)
    house.register(0)
    for request in (earlier, dataclasses.replace(earlier, broker_id=5)):
        with pytest.raises(Fenced, match="register again"):
            house.controller.broker_heard(request)
    with pytest.raises(Fenced):
        house.change(0, incarnation=1)


# Draining and removal -----------------------------------------------------------------------------------------------


def test_a_drained_broker_is_emptied_and_removed() -> None:
    house = three_replicas()
    with pytest.raises(InvalidArgument, match="holds replicas of 1 partitions"):
        house.drain(0, remove=True)
    house.drain(0)
    assert house.controller.drain_broker(m.DrainBrokerRequest(broker_id=0)) == []
    house.keep_up()
    assert set(house.partition().replicas) == set(house.partition().isr) == {1, 2, 3}
    house.drain(0, remove=True)
    assert 0 not in house.image.brokers
    assert house.controller.drain_broker(m.DrainBrokerRequest(broker_id=0, remove=True)) == []


def test_draining_is_taken_back() -> None:
    house = three_replicas()
    house.drain(0)
    house.drain(0, drain=False)
    assert not house.image.brokers[0].draining
    assert house.controller.upkeep() == []


def test_what_cannot_be_drained_is_refused() -> None:
    house = House(3)
    house.create("t", replication_factor=3)
    with pytest.raises(InvalidArgument, match="topic 't' keeps 3 replicas, and 2 brokers would be left"):
        house.drain(0)
    with pytest.raises(NotFound, match="no broker 7; there are: 0, 1, 2"):
        house.drain(7)
    alone = House(1)
    with pytest.raises(InvalidArgument, match="no broker would be left"):
        alone.drain(0)
    with pytest.raises(InvalidArgument, match="the only one"):
        alone.drain(0, remove=True)


def test_the_id_of_a_removed_broker_is_never_given_again() -> None:
    house = House(3)
    house.drain(2, remove=True)
    assert was_removed(house.image.brokers[2])
    for incarnation in (1, 2):
        with pytest.raises(Fenced, match="broker 2 is unknown"):
            house.hear(2, incarnation=incarnation)
    with pytest.raises(InvalidArgument, match="broker 2 was removed from cluster"):
        house.register(2)
    with pytest.raises(NotFound, match="there are: 0, 1"):
        house.drain(2)
    assert house.join() == 3
    assert list(house.image.brokers) == [0, 1, 3]
    with pytest.raises(InvalidArgument, match="broker 2 was removed from cluster"):
        house.register(2)


# Replicas -----------------------------------------------------------------------------------------------------------


def test_who_serves_is_written_down_once() -> None:
    house = House(1)
    house.create("t")
    house.serve()
    served = house.image.replica(*KEY, 0)
    assert served is not None and served.actor == "actor-0"
    before = len(house.log)
    house.serve()
    house.change(0, served=(("gone", 0, "a", ""), (TOPIC_ID, 9, "a", "")), lost=(("gone", 0), (TOPIC_ID, 9)))
    assert len(house.log) == before


def test_a_replica_that_is_not_the_brokers_is_not_written_down() -> None:
    house = three_replicas()
    house.change(3, served=((*KEY, "actor", ""),))
    assert house.image.replica(*KEY, 3) is None


def test_another_in_sync_leads_what_a_lost_actor_led() -> None:
    house = three_replicas()
    before = house.partition()
    house.change(0, lost=(KEY,))
    after = house.partition()
    assert (after.leader, after.isr, after.leader_epoch) == (1, (0, 1, 2), before.leader_epoch + 1)
    assert (after.incarnation, after.partition_epoch) == (before.incarnation + 1, before.partition_epoch + 1)
    assert not house.image.replica(*KEY, 0).actor  # type: ignore[union-attr]
    assert house.controller.upkeep() == [], "it gets the lead back once it is open"
    house.serve()
    house.keep_up()
    assert house.partition().leader == 0


def test_the_successor_leads_in_a_new_epoch_where_nobody_else_is_in_sync() -> None:
    house = House(1)
    house.create("t")
    house.serve()
    before = house.partition()
    house.change(0, lost=(KEY,), served=((*KEY, "successor", ""),))
    after = house.partition()
    assert (after.leader, after.leader_epoch, after.isr) == (0, before.leader_epoch + 1, (0,))
    served = house.image.replica(*KEY, 0)
    assert served is not None and served.actor == "successor"


def test_a_lost_follower_stays_in_sync() -> None:
    house = three_replicas()
    before = house.partition()
    house.change(2, lost=(KEY,))
    assert house.partition() == before
    assert not house.image.replica(*KEY, 2).actor  # type: ignore[union-attr]


def test_a_corrupt_replica_is_neither_in_sync_nor_eligible() -> None:
    house = three_replicas()
    house.change(0, served=((*KEY, "", f"{CORRUPT_LOG}a file is missing"),))
    record = house.image.partition(*KEY)
    assert 0 not in (*record.isr, *record.elr)
    assert record.leader in record.isr


def test_the_only_replica_is_kept_although_it_is_corrupt() -> None:
    house = House(1)
    house.create("t")
    house.serve()
    house.change(0, served=((*KEY, "", f"{CORRUPT_LOG}a file is missing"),))
    assert house.image.partition(*KEY).isr == (0,)


def test_that_a_replica_was_opened_outlives_its_actor() -> None:
    house = three_replicas()
    assert house.image.replica(*KEY, 2) == ReplicaRecord(*KEY, 2, "actor-2", opened=True)
    house.change(2, lost=(KEY,))
    assert house.image.replica(*KEY, 2) == ReplicaRecord(*KEY, 2, "", opened=True)
    house.change(2, served=((*KEY, "", "the disk is away"),))
    assert house.image.replica(*KEY, 2) == ReplicaRecord(*KEY, 2, "", "the disk is away", opened=True)


def test_one_that_could_never_be_opened_is_not_missed() -> None:
    house = House(1)
    house.create("t")
    house.change(0, served=((*KEY, "", "the disk is full"),))
    assert not house.image.replica(*KEY, 0).opened  # type: ignore[union-attr]


def test_a_leader_whose_files_are_gone_is_not_in_sync_where_others_are() -> None:
    house = three_replicas()
    house.change(0, lost=(KEY,))
    house.change(0, served=((*KEY, "", f"{LOST_LOG}the directory is gone"),))
    record = house.partition()
    assert record.leader in (1, 2) and 0 not in (*record.isr, *record.elr)


def test_the_only_replica_begins_empty_once_an_administrator_lets_go_of_what_it_held() -> None:
    house = House(1)
    house.create("t")
    house.serve()
    house.change(0, lost=(KEY,))
    house.change(0, served=((*KEY, "", f"{LOST_LOG}the directory is gone"),))
    before = house.partition()
    house.commit(house.controller.elect_leaders(ElectLeadersRequest()))
    assert house.image.replica(*KEY, 0).opened  # type: ignore[union-attr]
    house.commit(house.controller.elect_leaders(ElectLeadersRequest(unclean=True)))
    assert not house.image.replica(*KEY, 0).opened  # type: ignore[union-attr]
    after = house.partition()
    assert (after.leader, after.isr) == (0, (0,)) and after.leader_epoch == before.leader_epoch + 1


def test_the_only_replica_whose_log_is_corrupt_is_let_go_of_once_an_administrator_says_so() -> None:
    house = House(1)
    house.create("t")
    house.serve()
    error = f"{CORRUPT_LOG}at byte 7"
    house.change(0, served=((*KEY, "", error),))
    house.commit(house.controller.elect_leaders(ElectLeadersRequest()))
    assert house.image.replica(*KEY, 0) == ReplicaRecord(*KEY, 0, "", error, opened=True)
    house.commit(house.controller.elect_leaders(ElectLeadersRequest(unclean=True)))
    let_go = ReplicaRecord(*KEY, 0, "", f"{LET_GO}{error}", opened=False)
    assert house.image.replica(*KEY, 0) == let_go
    house.change(0, served=((*KEY, "", error),))
    assert house.image.replica(*KEY, 0) == let_go, "the broker says once more what is known"
    house.change(0, served=((*KEY, "actor", ""),))
    assert house.image.replica(*KEY, 0) == ReplicaRecord(*KEY, 0, "actor", opened=True)


def test_another_replica_leads_uncleanly_before_one_begins_empty() -> None:
    house = House(3)
    house.create("t", config={"min_insync_replicas": 1})
    house.serve()
    house.set_isr(house.partition(), 0)
    house.change(0, served=((*KEY, "", f"{LOST_LOG}the directory is gone"),))
    assert house.partition().leader == 0
    house.commit(house.controller.elect_leaders(ElectLeadersRequest(topic="t", unclean=True)))
    record = house.partition()
    assert record.leader in (1, 2) and 0 not in (*record.isr, *record.elr)
    assert house.image.replica(*KEY, 0).opened  # type: ignore[union-attr]


def test_the_lead_goes_away_from_a_replica_that_cannot_be_opened() -> None:
    house = three_replicas()
    house.change(0, served=((*KEY, "", "corrupt"),))
    assert house.partition().leader == 1
    house.change(2, served=((*KEY, "", "corrupt"),))
    house.change(1, served=((*KEY, "", "corrupt"),))
    assert house.partition().leader == 1, "nobody else can"
    assert house.controller.upkeep() == []
    house.change(2, served=((*KEY, "actor", ""),))
    house.commit(house.controller.upkeep())
    assert house.partition().leader == 2
    assert house.controller.upkeep() == []


def test_the_isr_is_the_leaders_to_change() -> None:
    house = three_replicas()
    house.set_isr(house.partition(), 0, 1)
    assert house.partition().isr == (0, 1)
    with pytest.raises(NotLeader):
        house.set_isr(dataclasses.replace(house.partition(), leader=1), 1)


def test_partitions_are_reassigned() -> None:
    house = three_replicas()
    request = m.ReassignRequest(topic="t", replicas=((0, (3, 1)),))
    house.commit(house.controller.reassign(request))
    assert house.partition().adding == (3,)
    assert house.controller.reassign(request) == []
    house.catch_up()
    assert (house.partition().replicas, house.partition().isr, house.partition().leader) == ((3, 1), (3, 1), 3)
    assert house.image.replica(*KEY, 0) is house.image.replica(*KEY, 2) is None, "they serve nothing any more"


def test_an_impossible_reassignment_is_refused_whole() -> None:
    house = three_replicas()
    house.drain(3)
    for request, error in (
        (m.ReassignRequest(topic="u", replicas=((0, (0,)),)), TopicNotFound),
        (m.ReassignRequest(topic="t", replicas=((0, (1, 2)), (1, (0,)))), PartitionNotFound),
        (m.ReassignRequest(topic="t", replicas=((0, (1, 9)),)), InvalidArgument),
        (m.ReassignRequest(topic="t", replicas=((0, (1, 3)),)), InvalidArgument),
    ):
        with pytest.raises(error):
            house.controller.reassign(request)
    assert not house.partition().removing


def test_leads_go_back_to_who_is_preferred_when_somebody_asks() -> None:
    house = three_replicas()
    house.fence(0)
    house.hear(0)
    house.catch_up()
    assert house.partition().leader == 1
    for topic in ("t", None):
        records = house.controller.elect_leaders(m.ElectLeadersRequest(topic=topic))
        assert [record.leader for record in records] == [0]  # type: ignore[union-attr]
    with pytest.raises(TopicNotFound):
        house.controller.elect_leaders(m.ElectLeadersRequest(topic="u"))


def test_an_unclean_election_is_held_only_when_it_is_asked_for() -> None:
    house = House(2)
    house.create("t", replication_factor=2)
    leader, other = house.partition().replicas
    house.set_isr(house.partition(), leader)
    house.fence(leader)
    assert house.controller.elect_leaders(m.ElectLeadersRequest()) == []
    house.commit(house.controller.elect_leaders(m.ElectLeadersRequest(unclean=True)))
    assert (house.partition().leader, house.partition().isr) == (other, (other,))
